package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
)

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// message is a call in generated code.
func message(id uint64, timeout time.Duration, c *route.Call) *decreev1.Call {
	m := &decreev1.Call{Id: id, TimeoutMs: milliseconds(timeout)}
	if t := c.Trace; t != nil {
		m.Trace = append(append(append(m.Trace, t.TraceID[:]...), t.SpanID[:]...), t.Flags)
	}
	switch c.Kind {
	case route.Submit:
		m.Call = &decreev1.Call_Submit{Submit: &decreev1.SubmitRequest{Shard: uint64(c.Shard), Commands: c.Commands, Session: uint64(c.Session),
			Sequence: c.Sequence, Acknowledged: c.Acknowledged, MakesRoom: c.MakesRoom}}
	case route.Read:
		m.Call = &decreev1.Call_Read{Read: &decreev1.ReadRequest{Shard: uint64(c.Shard), Query: c.Query, Level: decreev1.Level(c.Level + 1), Token: uint64(c.Token)}}
	case route.OpenSession:
		m.Call = &decreev1.Call_OpenSession{OpenSession: &decreev1.OpenSessionRequest{Shard: uint64(c.Shard)}}
	case route.CloseSession:
		m.Call = &decreev1.Call_CloseSession{CloseSession: &decreev1.CloseSessionRequest{Shard: uint64(c.Shard), Session: uint64(c.Session)}}
	}
	return m
}

// callOf is what a generated message says, as ParseCalls has to see it.
func callOf(m *decreev1.Call) *route.Call {
	c := callWithoutTrace(m)
	if t := m.GetTrace(); c != nil && len(t) == 25 && !bytes.Equal(t[:16], make([]byte, 16)) && !bytes.Equal(t[16:24], make([]byte, 8)) {
		c.Trace = &route.Trace{TraceID: [16]byte(t[:16]), SpanID: [8]byte(t[16:24]), Flags: t[24]}
	}
	return c
}

func callWithoutTrace(m *decreev1.Call) *route.Call {
	switch x := m.GetCall().(type) {
	case *decreev1.Call_Submit:
		r := x.Submit
		return &route.Call{Kind: route.Submit, Shard: core.ShardID(r.GetShard()), Commands: r.GetCommands(), Session: core.SessionID(r.GetSession()),
			Sequence: r.GetSequence(), Acknowledged: r.GetAcknowledged(), MakesRoom: r.GetMakesRoom()}
	case *decreev1.Call_Read:
		r := x.Read
		return &route.Call{Kind: route.Read, Shard: core.ShardID(r.GetShard()), Query: r.GetQuery(), Level: ParseLevel(uint64(uint32(r.GetLevel()))), Token: core.Index(r.GetToken())}
	case *decreev1.Call_OpenSession:
		return &route.Call{Kind: route.OpenSession, Shard: core.ShardID(x.OpenSession.GetShard())}
	case *decreev1.Call_CloseSession:
		return &route.Call{Kind: route.CloseSession, Shard: core.ShardID(x.CloseSession.GetShard()), Session: core.SessionID(x.CloseSession.GetSession())}
	}
	return nil
}

// sameCall compares what travels; nothing and empty are the same.
func sameCall(a, b *route.Call) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Kind == b.Kind && a.Shard == b.Shard && a.Session == b.Session && a.Sequence == b.Sequence && a.Acknowledged == b.Acknowledged &&
		a.MakesRoom == b.MakesRoom && a.Level == b.Level && a.Token == b.Token && bytes.Equal(a.Query, b.Query) && sameBytes(a.Commands, b.Commands) &&
		(a.Trace == nil) == (b.Trace == nil) && (a.Trace == nil || *a.Trace == *b.Trace)
}

func sameBytes(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func sampleCalls() []*route.Call {
	return []*route.Call{
		{Kind: route.Submit, Shard: 1, Commands: [][]byte{[]byte("a"), {}, bytes.Repeat([]byte("x"), 300)}, Session: 1 << 40, Sequence: 7, Acknowledged: 6, MakesRoom: true},
		{Kind: route.Submit, Shard: 2, Commands: [][]byte{nil}},
		{Kind: route.Submit},
		{Kind: route.Read, Shard: 3, Query: []byte("q"), Level: core.Stale, Token: math.MaxUint64},
		{Kind: route.Read, Shard: 3},
		{Kind: route.OpenSession, Shard: 4},
		{Kind: route.CloseSession, Shard: 5, Session: 6},
		{Kind: route.CloseSession},
		{Kind: route.Submit, Shard: 1, Commands: [][]byte{[]byte("a")}, Trace: &route.Trace{TraceID: [16]byte{15: 1}, SpanID: [8]byte{2}, Flags: 3}},
		{Kind: route.Read, Shard: 2, Trace: &route.Trace{TraceID: [16]byte{1}, SpanID: [8]byte{7: 2}}},
	}
}

// FuzzCalls: what AppendCall writes is what generated code writes; what ParseCalls reads of any bytes is what generated code reads.
func FuzzCalls(f *testing.F) {
	for i, c := range sampleCalls() {
		f.Add(AppendCall(nil, uint64(i+1), time.Duration(i)*time.Second, c))
	}
	f.Add([]byte{0x0a, 0x08, 0x08, 0x01, 0x1a, 0x00, 0x1a, 0x02, 0x08, 0x01})       // the same twice
	f.Add([]byte{0x0a, 0x06, 0x08, 0x01, 0x1a, 0x00, 0x22, 0x00})                   // two kinds
	f.Add([]byte{0x0a, 0x05, 0x08, 0x01, 0x7a, 0x01, 0x00, 0x12, 0x00, 0x99, 0x06}) // fields that are not known
	for _, trace := range [][]byte{{}, bytes.Repeat([]byte{1}, 24), bytes.Repeat([]byte{1}, 26), make([]byte, 25), append(make([]byte, 16), bytes.Repeat([]byte{1}, 9)...),
		append(bytes.Repeat([]byte{1}, 16), make([]byte, 9)...)} { // that name no span
		f.Add(marshal(f, &decreev1.ConnectRequest{Calls: []*decreev1.Call{{Id: 1, Trace: trace, Call: &decreev1.Call_Read{Read: &decreev1.ReadRequest{Shard: 1}}}}}))
	}
	named := marshal(f, &decreev1.Call{Id: 1, Trace: bytes.Repeat([]byte{1}, 25)}) // before what is called, and what is called is changed after it
	f.Add(protowire.AppendBytes(protowire.AppendTag(nil, fieldCalls, protowire.BytesType), append(named, 0x1a, 0x00, 0x22, 0x00)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []ReceivedCall
		err := ParseCalls(b, newCall, func(c ReceivedCall) error { got = append(got, c); return nil })
		var m decreev1.ConnectRequest
		if e := proto.Unmarshal(b, &m); e != nil {
			return // it may be read up to there, or further, where a number has a meaning that is not looked at here
		}
		for i, c := range m.GetCalls() {
			if c.GetId() == 0 {
				if err == nil {
					t.Fatal("a call with the id 0 is taken")
				}
				return
			}
			if err != nil && i >= len(got) {
				t.Fatalf("%v, and generated code reads %v", err, c)
			}
			want := callOf(c)
			if got[i].ID != c.GetId() || got[i].Timeout != time.Duration(c.GetTimeoutMs())*time.Millisecond || !sameCall(got[i].Call, want) {
				t.Fatalf("got %+v %+v, want %v", got[i], got[i].Call, c)
			}
			_ = CheckCall(want)
			if want == nil || want.Kind == route.Read && int(want.Level) >= len(levels) {
				continue
			}
			mine, theirs := AppendCall(nil, c.GetId(), got[i].Timeout, want), marshal(t, &decreev1.ConnectRequest{Calls: []*decreev1.Call{message(c.GetId(), got[i].Timeout, want)}})
			if !bytes.Equal(mine, theirs) {
				t.Fatalf("%+v: %x, generated code writes %x", want, mine, theirs)
			}
		}
		if err != nil || len(got) != len(m.GetCalls()) {
			t.Fatalf("%d calls, %v, want %d", len(got), err, len(m.GetCalls()))
		}
	})
}

func sampleAnswers() []ReceivedAnswer {
	return []ReceivedAnswer{
		{ID: 1, Kind: route.Submit, Result: core.Result{Replies: [][]byte{[]byte("r"), {}}, Index: 9}},
		{ID: 2, Kind: route.Submit},
		{ID: 3, Kind: route.Read, Result: core.Result{Answer: []byte("a"), Index: 1, Age: time.Second}},
		{ID: 4, Kind: route.OpenSession, Result: core.Result{Session: 77}},
		{ID: 5, Kind: route.CloseSession},
		{ID: 6, Err: &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNotLeader, Message: "m", Leader: 3, LeaderAddress: "h:1", RetryAfter: 20 * time.Millisecond}},
		{ID: 1 << 60, Err: &core.Rejection{Code: "own", Message: "no", Detail: []byte{0xff}}},
	}
}

func answerMessage(a *ReceivedAnswer) *decreev1.Answer {
	m := &decreev1.Answer{Id: a.ID}
	r := &a.Result
	switch {
	case a.Err != nil:
		m.Answer = &decreev1.Answer_Error{Error: ErrorOf(a.Err)}
	case a.Kind == route.Submit:
		m.Answer = &decreev1.Answer_Submit{Submit: &decreev1.SubmitResponse{Replies: r.Replies, Index: uint64(r.Index)}}
	case a.Kind == route.Read:
		m.Answer = &decreev1.Answer_Read{Read: &decreev1.ReadResponse{Answer: r.Answer, Index: uint64(r.Index), Age: int64(r.Age)}}
	case a.Kind == route.OpenSession:
		m.Answer = &decreev1.Answer_OpenSession{OpenSession: &decreev1.OpenSessionResponse{Session: uint64(r.Session)}}
	default:
		m.Answer = &decreev1.Answer_CloseSession{CloseSession: &decreev1.CloseSessionResponse{}}
	}
	return m
}

func answerOf(m *decreev1.Answer) (a ReceivedAnswer) {
	a.ID = m.GetId()
	switch x := m.GetAnswer().(type) {
	case *decreev1.Answer_Error:
		a.Err = FromError(x.Error)
	case *decreev1.Answer_Submit:
		a.Kind, a.Result = route.Submit, core.Result{Replies: x.Submit.GetReplies(), Index: core.Index(x.Submit.GetIndex())}
	case *decreev1.Answer_Read:
		a.Kind, a.Result = route.Read, core.Result{Answer: x.Read.GetAnswer(), Index: core.Index(x.Read.GetIndex()), Age: time.Duration(x.Read.GetAge())}
	case *decreev1.Answer_OpenSession:
		a.Kind, a.Result = route.OpenSession, core.Result{Session: core.SessionID(x.OpenSession.GetSession())}
	case *decreev1.Answer_CloseSession:
		a.Kind = route.CloseSession
	}
	return a
}

func sameAnswer(a, b *ReceivedAnswer) bool {
	return a.ID == b.ID && a.Kind == b.Kind && reflect.DeepEqual(a.Err, b.Err) && a.Result.Index == b.Result.Index && a.Result.Age == b.Result.Age &&
		a.Result.Session == b.Result.Session && bytes.Equal(a.Result.Answer, b.Result.Answer) && sameBytes(a.Result.Replies, b.Result.Replies)
}

// FuzzAnswers is FuzzCalls for the way back.
func FuzzAnswers(f *testing.F) {
	for _, a := range sampleAnswers() {
		f.Add(AppendAnswer(nil, a.ID, a.Kind, &a.Result, a.Err))
	}
	f.Add([]byte{0x0a, 0x08, 0x08, 0x01, 0x1a, 0x00, 0x12, 0x02, 0x08, 0x01}) // an outcome, and then an error
	f.Add([]byte{0x0a, 0x08, 0x08, 0x01, 0x12, 0x02, 0x08, 0x01, 0x1a, 0x00}) // the other way around
	f.Add([]byte{0x0a, 0x0a, 0x08, 0x01, 0x12, 0x02, 0x08, 0x01, 0x12, 0x02, 0x20, 0x03})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []ReceivedAnswer
		err := ParseAnswers(b, func(a *ReceivedAnswer) { got = append(got, *a) })
		var m decreev1.ConnectResponse
		if e := proto.Unmarshal(b, &m); e != nil {
			return
		}
		for i, x := range m.GetAnswers() {
			if x.GetId() == 0 || x.GetAnswer() == nil {
				if err == nil {
					t.Fatalf("taken: %v", x)
				}
				return
			}
			want := answerOf(x)
			if i >= len(got) || !sameAnswer(&got[i], &want) {
				t.Fatalf("got %+v (%v), want %+v", got, err, want)
			}
			mine := AppendAnswer(nil, want.ID, want.Kind, &want.Result, want.Err)
			if theirs := marshal(t, &decreev1.ConnectResponse{Answers: []*decreev1.Answer{answerMessage(&want)}}); !bytes.Equal(mine, theirs) {
				t.Fatalf("%+v: %x, generated code writes %x", want, mine, theirs)
			}
		}
		if err != nil || len(got) != len(m.GetAnswers()) {
			t.Fatalf("%d answers, %v, want %d", len(got), err, len(m.GetAnswers()))
		}
	})
}

// An error keeps what it says: kind, code, hints and detail; text that is no UTF-8 is replaced, and loses nothing else.
// A call that changes its kind again and again is one call all the while.
func TestChangingKindIsOneCall(t *testing.T) {
	var body []byte
	for range 1000 {
		body = append(body, callSubmit<<3|2, 0, callRead<<3|2, 0)
	}
	body = append(body, callID<<3, 1)
	made, got := 0, 0
	err := ParseCalls(append(header(nil, fieldCalls, len(body)), body...), func() *route.Call { made++; return &route.Call{Owner: made} }, func(c ReceivedCall) error {
		if got++; c.Call.Kind != route.Read || c.Call.Owner != 1 {
			t.Errorf("%+v", c.Call)
		}
		return nil
	})
	if err != nil || made != 1 || got != 1 {
		t.Errorf("%d calls are made for %d; %v", made, got, err)
	}
}

// An answer has no more bytes than AnswerBytes says, and not many less if its text is UTF-8: what can be sent is. One of more than can be sent is an error that says what became of the call.
//
// Mutations with which it was seen to fail: all text counts threefold; none does; with a cause the leader's address, or the cause, counts for nothing.
func TestAnswerBytes(t *testing.T) {
	large := make([]byte, 1<<22)
	for _, res := range []core.Result{{}, {Answer: large, Index: 1 << 63, Age: -1}, {Session: 1 << 63}, {Replies: make([][]byte, 1<<16), Index: 1 << 63},
		{Replies: [][]byte{large[:127], large[:128], large[:1<<14], large[:1<<21], large}}} {
		for kind := route.Submit; kind <= route.CloseSession; kind++ {
			if b := AppendAnswer(nil, 1<<63, kind, &res, nil); len(b) > AnswerBytes(&res, nil) {
				t.Errorf("%v: %d bytes, and it says %d", kind, len(b), AnswerBytes(&res, nil))
			}
		}
	}
	for _, err := range []error{
		&core.Rejection{Code: "c", Message: "m", Detail: large}, &core.Rejection{Message: string(bytes.Repeat([]byte("a\xff"), 1<<10)), Code: "\xff"}, &core.Rejection{},
		&core.Error{Kind: core.ErrNotProposed, Code: core.CodeNotLeader, Message: strings.Repeat("\xffa", 1<<10), Cause: errors.New(string(large)), Leader: 1 << 63, LeaderAddress: "a:1", RetryAfter: time.Hour},
		errors.New(strings.Repeat("\xffa", 1<<10)), context.Canceled,
		&core.Rejection{Code: "c", Message: strings.Repeat("a", 11<<20)}, // as large as a machine's may be, and more than a third of what can be sent
		&core.Rejection{Code: core.Code(strings.Repeat("\u00fc", 1<<10)), Message: strings.Repeat("\uFFFD", 1<<10)},
		&core.Error{Kind: core.ErrUnknown, LeaderAddress: strings.Repeat("h", 1<<10), Cause: errors.New("below")},
		&core.Error{Kind: core.ErrUnknown, Message: "m\xc3", LeaderAddress: strings.Repeat("\xffh", 1<<10), Cause: errors.New(strings.Repeat("\xbc\u00fc", 1<<10))},
		fmt.Errorf("around it: %w", &core.Error{Kind: core.ErrBroken, Message: strings.Repeat("m", 1<<10), Cause: errors.New(strings.Repeat("c", 1<<10))}),
	} {
		b, says := AppendAnswer(nil, 1<<63, route.Submit, &core.Result{}, err), AnswerBytes(&core.Result{}, err)
		if len(b) > says {
			t.Errorf("%.100v: %d bytes, and it says %d", err, len(b), says)
		}
		if utf8.ValidString(err.Error()) && says > len(b)+128 {
			t.Errorf("%.100v: it says %d, and has only %d bytes", err, says, len(b))
		}
	}
	if err := TooLarge(route.Submit, &core.Result{}, &core.Rejection{Message: strings.Repeat("a", 11<<20)}); err != nil {
		t.Errorf("a rejection that can be sent: %v", err)
	}
	for kind, want := range map[route.Kind]error{route.Submit: core.ErrUnknown, route.Read: core.ErrNotProposed} {
		if err := TooLarge(kind, &core.Result{Answer: make([]byte, MaxAnswerBytes-64)}, nil); err != nil {
			t.Error(err)
		}
		if err := TooLarge(kind, &core.Result{Answer: make([]byte, MaxAnswerBytes-63)}, nil); !errors.Is(err, want) {
			t.Errorf("%v: %v", kind, err)
		}
	}
}

// What became of a call is known, and told, though not all that is said of it can be sent: on a stream, nor in gRPC's trailers.
//
// Mutations with which it was seen to fail: the error is answer_too_large; Status cuts nothing.
func TestCutErrors(t *testing.T) {
	huge := strings.Repeat("\u00fc", MaxAnswerBytes/2)
	for name, tt := range map[string]struct {
		err, is error
		words   string
	}{
		"detail":       {&core.Rejection{Code: "full", Message: "no room", Detail: []byte(huge)}, &core.Rejection{Code: "full"}, "no room"},
		"words":        {&core.Rejection{Code: "full", Message: huge}, &core.Rejection{Code: "full"}, "\u00fc\u00fc"},
		"not UTF-8":    {&core.Rejection{Code: "full", Message: strings.Repeat("a\xff", 6<<20)}, &core.Rejection{Code: "full"}, "aa"},
		"code":         {&core.Rejection{Code: core.Code(huge), Message: "no room"}, core.ErrRejected, "no room"},
		"not proposed": {&core.Error{Kind: core.ErrNotProposed, Code: core.CodeMachinePanic, Message: huge}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeMachinePanic}, "\u00fc\u00fc"},
		"cause": {&core.Error{Kind: core.ErrUnknown, Code: core.CodeCancelled, Message: "late", RetryAfter: time.Second, Leader: 3, LeaderAddress: "a:1", Cause: errors.New(huge)},
			&core.Error{Kind: core.ErrUnknown, Code: core.CodeCancelled}, "late"},
		"another": {errors.New(huge), core.ErrUnknown, "\u00fc\u00fc"},
	} {
		for _, kind := range []route.Kind{route.Submit, route.Read} {
			var got error
			if err := ParseAnswers(AppendAnswer(nil, 1, kind, &core.Result{}, TooLarge(kind, &core.Result{}, tt.err)), func(a *ReceivedAnswer) { got = a.Err }); err != nil {
				t.Fatal(err)
			}
			if !errors.Is(got, tt.is) || !strings.Contains(got.Error(), tt.words) || !strings.Contains(got.Error(), "cannot be sent") || len(got.Error()) > 16<<10 {
				t.Errorf("%s, %v: %.200v", name, kind, got)
			}
			if e, _ := core.Verdict(got); name == "cause" && (e.RetryAfter != time.Second || e.Leader != 3 || e.LeaderAddress != "a:1") {
				t.Errorf("%s: %+v", name, e)
			}
		}
		unary := Status(tt.err)
		if p := status.Convert(unary).Proto(); proto.Size(p) > 12<<20 || len(p.GetMessage()) > 5<<20 {
			t.Errorf("%s: %d bytes of status, %d of message", name, proto.Size(p), len(p.GetMessage()))
		}
		if got := FromStatus(unary); !errors.Is(got, tt.is) {
			t.Errorf("%s, unary: %.200v", name, got)
		}
	}
	if got := FromStatus(Status(&core.Rejection{Code: "full", Detail: make([]byte, 10<<20)})); len(got.(*core.Rejection).Detail) != 10<<20 {
		t.Error("what can be sent is cut")
	}
}

func TestErrorsTravel(t *testing.T) {
	for _, err := range []error{
		&core.Error{Kind: core.ErrNotProposed, Code: core.CodeNotLeader, Message: "m", Leader: 3, LeaderAddress: "h:1"},
		&core.Error{Kind: core.ErrUnknown, Code: core.CodeLeadershipLost, RetryAfter: 7 * time.Millisecond},
		&core.Error{Kind: core.ErrBroken, Code: core.CodeStorage},
		&core.Rejection{Code: "own", Message: "no", Detail: []byte{0, 0xff}},
	} {
		for way, back := range map[string]error{"stream": FromError(ErrorOf(err)), "unary": FromStatus(Status(err)), "wrapped": FromError(ErrorOf(fmt.Errorf("so: %w", err)))} {
			if !reflect.DeepEqual(back, err) {
				t.Errorf("%s: %#v became %#v", way, err, back)
			}
		}
	}
	odd := &core.Rejection{Code: "a\xffb", Message: "\xc3", Detail: []byte{0xff}}
	back := FromError(ErrorOf(odd)).(*core.Rejection)
	if !utf8.ValidString(string(back.Code)+back.Message) || !bytes.Equal(back.Detail, odd.Detail) {
		t.Errorf("%#v", back)
	}
	if b := AppendAnswer(nil, 1, route.Submit, &core.Result{}, odd); ParseAnswers(b, func(*ReceivedAnswer) {}) != nil {
		t.Error("it does not arrive on a stream")
	}
	if _, err := proto.Marshal(status.Convert(Status(odd)).Proto()); err != nil {
		t.Errorf("gRPC could not send it, and who asked would not learn that it was decided: %v", err)
	}
	if st := status.Convert(Status(odd)); st.Code() != codes.FailedPrecondition || len(st.Details()) != 1 {
		t.Errorf("unary: %v", st)
	}
}

// Who looks at the status alone is not told of a command that may have happened that it was refused.
//
// Mutation with which it was seen to fail: the code of the last answer is the status, whatever the kind.
func TestUnknownIsNoRefusal(t *testing.T) {
	for _, code := range []core.Code{core.CodeOverloaded, core.CodeDiskLow, core.CodeNoShard, core.CodeForbidden, core.CodeUnauthenticated, core.CodeBadRequest, core.CodeCommandTooLarge, core.CodeTooManyCommands, core.CodeNoLeader} {
		last := &core.Error{Kind: core.ErrNotProposed, Code: code}
		for _, cause := range []error{nil, context.DeadlineExceeded} {
			late := core.Late(true, last, cause)
			if got := status.Code(Status(late)); got != codes.DeadlineExceeded {
				t.Errorf("%s, in doubt: %v", code, got)
			}
			if e := FromError(ErrorOf(late)).(*core.Error); e.Kind != core.ErrUnknown || e.Code != code || e.Cause != nil {
				t.Errorf("%s travels as %#v", code, e)
			}
		}
		if got := status.Code(Status(last)); got == codes.DeadlineExceeded || got == codes.Unknown {
			t.Errorf("%s, refused: %v", code, got)
		}
	}
}

// A rejection is final, whatever its code, which is the machine's own: no status of it says that asking again may help.
//
// Mutation with which it was seen to fail: a rejection with a code of the library has that code's status.
func TestRejectionIsFinal(t *testing.T) {
	for _, code := range []core.Code{core.CodeOverloaded, core.CodeDiskLow, core.CodeNoShard, core.CodeForbidden, core.CodeUnauthenticated, core.CodeBadRequest, core.CodeCancelled, core.CodeClosed, "sold_out"} {
		if got := status.Code(Status(&core.Rejection{Code: code})); got != codes.FailedPrecondition {
			t.Errorf("%s: %v", code, got)
		}
	}
}

// An answer that is too large is no reason to ask again; of a command, which was decided, it is no word of a refusal either.
//
// Mutation with which it was seen to fail: a read's is UNAVAILABLE.
func TestStatusOfALargeAnswer(t *testing.T) {
	for kind, want := range map[error]codes.Code{core.ErrNotProposed: codes.InvalidArgument, core.ErrUnknown: codes.Unknown} {
		if got := status.Code(Status(&core.Error{Kind: kind, Code: core.CodeAnswerTooLarge})); got != want {
			t.Errorf("%v: %v", kind, got)
		}
	}
}

// What became of a call is what its error says, and not what the errors below it say.
func TestCauseIsNoKind(t *testing.T) {
	for _, below := range []error{&core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed}, &core.Rejection{Code: core.CodeSessionExpired}} {
		err := &core.Error{Kind: core.ErrUnknown, Code: core.CodeUnreachable, Message: "lost", Cause: below}
		d := ErrorOf(err)
		if d.GetKind() != decreev1.Kind_KIND_UNKNOWN || d.GetCode() != string(core.CodeUnreachable) || !strings.Contains(d.GetMessage(), below.Error()) {
			t.Errorf("%v travels as %v", err, d)
		}
	}
	if k := ErrorOf(errors.New("odd")).GetKind(); k != decreev1.Kind_KIND_UNKNOWN {
		t.Errorf("an error that says nothing travels as %v", k)
	}
	if k := FromError(&decreev1.Error{Kind: 99}).(*core.Error).Kind; k != core.ErrUnknown {
		t.Errorf("a kind that is not known is %v", k)
	}
}

// A call with a great many empty commands is refused, by its size in memory.
func TestManyCommands(t *testing.T) {
	c := &route.Call{Kind: route.Submit, Shard: 1, Commands: make([][]byte, 1<<20)}
	n := 0
	err := ParseCalls(AppendCall(nil, 1, 0, c), newCall, func(r ReceivedCall) error {
		n = len(r.Call.Commands)
		return CheckCall(r.Call)
	})
	if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeTooManyCommands || n > maxCommands+1 {
		t.Errorf("%d commands: %v", n, err)
	}
}

func newCall() *route.Call { return &route.Call{} }

// Sides that know nothing of traces and those that do understand each other: it is one more field, and one that need not be there.
func TestTraceIsOptional(t *testing.T) {
	traced := &route.Call{Kind: route.Submit, Shard: 1, Commands: [][]byte{[]byte("a")}, Session: 2, Sequence: 3, Trace: &route.Trace{TraceID: [16]byte{1}, SpanID: [8]byte{2}, Flags: 1}}
	plain := traced.Again()
	plain.Trace = nil
	inner := func(b []byte) []byte { // of the only call
		_, _, n := protowire.ConsumeTag(b)
		v, _ := protowire.ConsumeBytes(b[n:])
		return v
	}
	before, now := inner(AppendCall(nil, 9, time.Second, plain)), inner(AppendCall(nil, 9, time.Second, traced))
	var without []byte
	for rest := now; len(rest) > 0; {
		n, kind, tag := protowire.ConsumeTag(rest)
		size := tag + protowire.ConsumeFieldValue(n, kind, rest[tag:])
		if n != 7 {
			without = append(without, rest[:size]...)
		}
		rest = rest[size:]
	}
	if !bytes.Equal(without, before) || len(now) == len(before) {
		t.Fatalf("%x became %x", before, now)
	}
	for _, want := range []*route.Call{plain, traced} {
		if err := ParseCalls(AppendCall(nil, 9, time.Second, want), newCall, func(c ReceivedCall) error {
			if !sameCall(c.Call, want) || c.ID != 9 {
				t.Errorf("%+v came as %+v", want, c.Call)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// A call that is not traced costs what it did.
func TestNoTraceIsFree(t *testing.T) {
	c := &route.Call{Kind: route.Submit, Shard: 1, Commands: [][]byte{[]byte("a")}}
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(1000, func() { _ = AppendCall(buf, 1, time.Second, c) }); n != 0 {
		t.Errorf("%g allocations to write a call", n)
	}
}
