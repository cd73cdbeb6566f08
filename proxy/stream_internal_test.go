package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
)

// script is a stream on which a client says some frames, and then nothing more.
type script struct {
	grpc.ServerStream
	ctx    context.Context
	frames [][]byte
	read   chan struct{} // closed when all have been read
}

func (s *script) Context() context.Context { return s.ctx }
func (s *script) SendMsg(m any) error {
	if c, is := m.(*codec.Counted); is {
		c.Sent()
	}
	return nil
}

func (s *script) RecvMsg(m any) error {
	if len(s.frames) == 0 {
		close(s.read)
		<-s.ctx.Done()
		return s.ctx.Err()
	}
	m.(*codec.Frame).Data, s.frames[0] = s.frames[0], nil // nobody else keeps it
	s.frames = s.frames[1:]
	return nil
}

// slowOnes answers reads with a great deal, but those at a token never.
type slowOnes struct{ kept []*route.Call }

func (b *slowOnes) start(_ int64, c *route.Call) {
	if c.Token != 0 {
		b.kept = append(b.kept, c)
		return
	}
	c.Result.Answer = make([]byte, 1<<20)
	c.Done(c)
}
func (b *slowOnes) leads(rsm.ShardID) bool                  { return true }
func (b *slowOnes) met() <-chan struct{}                    { return always }
func (b *slowOnes) cluster() string                         { return "" }
func (b *slowOnes) topology() *decreev1.GetTopologyResponse { return nil }

// taken is a script whose stream is taken.
type taken struct {
	script
	greeted chan struct{}
}

func (s *taken) SendHeader(metadata.MD) error { close(s.greeted); return nil }

// A stream that a closing server ends says that what was under way on it may have happened, and if nothing was, that nothing has.
func TestCutSaysUnknown(t *testing.T) {
	waits := wire.AppendCall(nil, 1, time.Hour, &route.Call{Kind: route.Read, Shard: 1, Query: []byte("q"), Level: core.AtToken, Token: 1})
	for name, want := range map[string]error{"under way": core.ErrUnknown, "idle": core.ErrNotProposed} {
		ctx, cancel := context.WithCancel(context.Background())
		s := newService(&slowOnes{}, Limits{}.withDefaults())
		g := &taken{script{ctx: ctx, read: make(chan struct{})}, make(chan struct{})}
		if name == "under way" {
			g.frames = [][]byte{waits}
		}
		done := make(chan error, 1)
		go func() { done <- s.serveStream(g) }()
		<-g.greeted
		<-g.read
		late, end := context.WithCancel(context.Background())
		end()
		if cut := s.close(late); cut != (name == "under way") {
			t.Errorf("%s: is something cut? %v", name, cut)
		}
		err := wire.FromStatus(<-done)
		if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeClosed || !errors.Is(err, want) {
			t.Errorf("%s: it ends with %v", name, err)
		}
		cancel()
	}
}

// A call that takes long keeps neither the answers of those that came with it, nor a frame that is mostly not its own.
//
// Mutations with which it was seen to fail: nothing is copied; what has an eighth of its frame is not.
func TestSlowCallsKeepLittle(t *testing.T) {
	for _, query := range []int{1, 400 << 10} {
		t.Run(fmt.Sprintf("%d bytes", query), func(t *testing.T) { slowCalls(t, query) })
	}
}

func slowCalls(t *testing.T, query int) {
	const frames, padding = 40, 1 << 20
	most := uint64(frames * (query + padding/4))
	var all [][]byte
	for id := uint64(1); id <= frames*15; {
		var b []byte
		for i := range 15 {
			c := &route.Call{Kind: route.Read, Shard: 1, Query: []byte("q")}
			if i == 14 {
				c.Level, c.Token, c.Query = core.AtToken, 1<<60, make([]byte, query)
			}
			b = wire.AppendCall(b, id, time.Hour, c)
			id++
		}
		b = append(append(b, 0x7a, 0x80, 0x80, 0x40), bytes.Repeat([]byte{1}, padding)...) // a field that nobody knows
		all = append(all, b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	backend := &slowOnes{}
	s := newService(backend, Limits{}.withDefaults())
	st := s.newStream(&script{ctx: ctx, frames: all, read: make(chan struct{})})
	st.who.role = access.Admin
	all = nil
	done := make(chan error, 1)
	go func() { done <- st.read() }()
	<-st.ServerStream.(*script).read
	var m runtime.MemStats
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // answers are being sent
		runtime.GC()
		if runtime.ReadMemStats(&m); m.HeapAlloc < most || time.Now().After(end) {
			break
		}
	}
	if len(backend.kept) != frames {
		t.Errorf("%d slow calls are under way, and not %d", len(backend.kept), frames)
	}
	if m.HeapAlloc >= most {
		t.Errorf("%d slow calls keep %d MiB", frames, m.HeapAlloc>>20)
	}
	runtime.KeepAlive(backend)
	cancel()
	<-done
}

// reader is a client that reads when it is told to.
type reader struct {
	script
	reads chan struct{}
	mu    sync.Mutex
	got   [][]byte
}

func (s *reader) SendMsg(m any) error {
	select {
	case <-s.reads:
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, is := m.(*codec.Counted); is {
		m = c.Message
		defer c.Sent()
	}
	s.got = append(s.got, m.(*codec.Frame).Data)
	return nil
}

// answer has a call on a stream answered with so many bytes.
func (st *stream) answer(id uint64, bytes int) {
	st.mu.Lock()
	st.calls++
	st.mu.Unlock()
	st.done(id, 0, &route.Call{Kind: route.Read, Result: rsm.Result{Answer: make([]byte, bytes)}})
}

// readerOf returns a stream of a service, and its client, which has read nothing yet.
func readerOf(t *testing.T, s *service) (*stream, *reader) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	g := &reader{script: script{ctx: ctx}, reads: make(chan struct{})}
	return s.newStream(g), g
}

func proxyService() *service { return newService(&slowOnes{}, Limits{}.withDefaults()) }

// What has become much while a client did not read goes to it in pieces, each of which tells it that the server lives.
//
// Mutation with which it was seen to fail: all that there is goes as one message.
func TestAnswersGoInPieces(t *testing.T) {
	st, g := readerOf(t, proxyService())
	sizes := append(slices.Repeat([]int{1000}, 2000), 1<<20, 100<<10)
	for i, size := range sizes {
		st.answer(uint64(i+1), size)
	}
	close(g.reads)
	if err := st.drain(); err != nil {
		t.Fatal(err)
	}
	next := uint64(1)
	for _, frame := range g.got {
		answers := 0
		if err := wire.ParseAnswers(frame, func(a *wire.ReceivedAnswer) {
			if a.ID != next || len(a.Result.Answer) != sizes[next-1] {
				t.Fatalf("answer %d has %d bytes, and comes as number %d", a.ID, len(a.Result.Answer), next)
			}
			next++
			answers++
		}); err != nil {
			t.Fatal(err)
		}
		if len(frame) > 256<<10 && answers > 1 {
			t.Errorf("a message has %d bytes, of %d answers", len(frame), answers)
		}
	}
	if next != uint64(len(sizes)+1) {
		t.Errorf("%d answers came", next-1)
	}
}

// Answers for which a stream has no room are refused, whatever their size, and the stream goes on, with what there was room for and with all small ones.
//
// Mutation with which it was seen to fail: only answers above 4 MiB are refused.
func TestManyAnswersEndNoStream(t *testing.T) {
	for _, size := range []int{600, 60 << 10, 1 << 20, 20 << 20} {
		st, g := readerOf(t, proxyService())
		many := (maxUnread+16<<20)/size + 1
		for i := range many {
			st.answer(uint64(i+1), size)
		}
		for i := range 8192 {
			st.answer(uint64(many+i+1), 100)
		}
		close(g.reads)
		if err := st.drain(); err != nil {
			t.Fatalf("%d answers of %d bytes: %v", many, size, err)
		}
		next, came, bytes := uint64(1), 0, 0
		for _, frame := range g.got {
			if err := wire.ParseAnswers(frame, func(a *wire.ReceivedAnswer) {
				want := size
				if next > uint64(many) {
					want = 100
				}
				switch e, _ := core.Verdict(a.Err); {
				case a.ID != next:
					t.Fatalf("answer %d comes after %d", a.ID, next-1)
				case a.Err == nil && len(a.Result.Answer) == want:
					came++
					bytes += want
				case want == 100 || e == nil || e.Code != core.CodeOverloaded || !errors.Is(e, core.ErrNotProposed) || e.RetryAfter == 0:
					t.Fatalf("answer %d of %d bytes: %d, %v", a.ID, want, len(a.Result.Answer), a.Err)
				}
				next++
			}); err != nil {
				t.Fatal(err)
			}
		}
		if next != uint64(many+8192+1) || bytes < maxUnread-size-1<<20 || bytes > maxUnread+size+1<<20 {
			t.Errorf("%d answers of %d bytes: %d came, with %d bytes", next-1, size, came, bytes)
		}
	}
}

// await waits until something is so of a stream.
func (st *stream) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		st.mu.Lock()
		so := is()
		st.mu.Unlock()
		if so {
			return
		} else if time.Now().After(end) {
			t.Fatalf("waiting in vain: %s", what)
		}
	}
}

// What waits on streams counts for their caller, on all of them together, until it is sent or its stream ends; above the bound further answers are refused, except
// those of streams on which little waits.
//
// Mutations with which it was seen to fail: only what gRPC is given counts; what waits counts after its stream has ended; a stream has no room of its own.
func TestAnswersThatWaitCount(t *testing.T) {
	s := proxyService()
	st, g := readerOf(t, s)
	if err := s.enter(st); err != nil {
		t.Fatal(err)
	}
	unsent := func() int64 {
		s.holds.mu.Lock()
		defer s.holds.mu.Unlock()
		return st.held.unsent
	}
	st.answer(1, 1<<20)
	st.await(t, "the first answer is being sent", func() bool { return st.waits == 0 })
	for range 60 {
		st.answer(1, 1<<20)
	}
	before := st.waits
	g.reads <- struct{}{} // it takes one
	st.await(t, "the second answer is being sent", func() bool { return st.waits < before })
	for range 60 {
		st.answer(1, 1<<20)
	}
	for range 20 {
		st.answer(1, 150<<10)
	}
	if n := unsent(); n < int64(st.waits)+1<<20-codec.SmallBytes || n > maxUnsent || n < maxUnsent-2<<20 {
		t.Errorf("%d bytes wait, one answer is being sent, and %d count", st.waits, n)
	}
	other, g2 := readerOf(t, s)
	if err := s.enter(other); err != nil {
		t.Fatal(err)
	}
	sent := func() bool { return other.waits == 0 }
	for range 2 {
		other.answer(1, 200<<10)
		other.await(t, "an answer is being sent", sent)
		other.answer(2, 1<<20)
		g2.reads <- struct{}{}
		other.await(t, "a refusal is being sent", sent)
		g2.reads <- struct{}{}
		other.await(t, "all is sent", func() bool { return !other.sending })
		if !st.ended {
			s.leave(st)
			if n := unsent(); n < 1<<20 || n > 3<<19 {
				t.Errorf("after the stream has ended %d bytes count, and not the one answer that gRPC has", n)
			}
		}
	}
	var got []string
	for _, frame := range g2.got {
		if err := wire.ParseAnswers(frame, func(a *wire.ReceivedAnswer) {
			what := "?"
			if e, _ := core.Verdict(a.Err); e != nil && errors.Is(e, core.ErrNotProposed) {
				what = string(e.Code)
			} else if a.Err == nil {
				what = fmt.Sprint(len(a.Result.Answer) >> 10)
			}
			got = append(got, what)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"200", "overloaded", "200", "1024"}; !slices.Equal(got, want) {
		t.Errorf("another stream of the same caller has %q, want %q", got, want)
	}
	s.leave(other)
	close(g.reads)
}

// On a node's own port, where all proxies may be one caller, one stream that is not read does not have the answers of others refused.
//
// Mutation with which it was seen to fail: the bound of a proxy's port.
func TestStreamsOfNodesHaveBoundsOfTheirOwn(t *testing.T) {
	s := nodeService(&slowOnes{})
	var all []*stream
	for range 3 {
		st, _ := readerOf(t, s)
		for range 80 {
			st.answer(1, 1<<20)
		}
		all = append(all, st)
	}
	for i, st := range all {
		st.mu.Lock()
		if st.waits < maxUnread-3<<20 {
			t.Errorf("on stream %d wait %d bytes", i, st.waits)
		}
		st.mu.Unlock()
	}
}

// Who takes a little now and then must take all that waits in the time that it is given.
//
// Mutation with which it was seen to fail: only the time since something was taken last counts.
func TestTricklesEnd(t *testing.T) {
	st, g := readerOf(t, proxyService())
	began := monotonic()
	for i := range 40 {
		st.answer(uint64(i+1), 1<<20)
	}
	ended := monotonic()
	for range 10 {
		g.reads <- struct{}{}
	}
	st.await(t, "ten answers are taken, and one is being sent", func() bool { return len(st.out) == 29 })
	st.mu.Lock()
	defer st.mu.Unlock()
	const sec = int64(time.Second)
	for _, c := range []struct {
		at   int64
		want bool
	}{{began + 25*sec, false}, {ended + 28*sec, true}} {
		st.said = c.at - 14*sec
		if st.overdue(c.at) != c.want {
			t.Errorf("ten of forty mebibytes are taken after %v, the last of them 14 s ago: is it overdue? %v", time.Duration(c.at-began), !c.want)
		}
	}
}

// Who reads a large answer has the time for it before the next one counts as not read.
//
// Mutation with which it was seen to fail: what gRPC is being given does not count.
func TestTimeBehindALargeAnswer(t *testing.T) {
	const large = 32 << 20
	st, g := readerOf(t, proxyService())
	due := func(what string, bytes int64) {
		t.Helper()
		began := monotonic()
		st.answer(2, 1)
		st.mu.Lock()
		defer st.mu.Unlock()
		if got, least := st.out[len(st.out)-1].due-began, st.service.timeFor(bytes); got < least {
			t.Errorf("%s: it is to be read within %v, want %v at least", what, time.Duration(got), time.Duration(least))
		}
	}
	st.answer(1, large)
	st.await(t, "the large answer is being given", func() bool { return st.waits == 0 })
	due("while the large one is being given", large)
	g.reads <- struct{}{}
	st.await(t, "the small one is being given", func() bool { return st.waits == 0 })
	due("behind it", large-maxPiece)
	close(g.reads)
}

// On a node's port, calls that wait for long, however many and large, hold up no others on the stream.
//
// Mutations with which it was seen to fail: the calls, or the bytes, that a client's stream to a proxy takes.
func TestSlowShardsHoldUpNobody(t *testing.T) {
	late := func(b []byte, id uint64, size int) []byte {
		return wire.AppendCall(b, id, time.Hour, &route.Call{Kind: route.Read, Shard: 1, Query: make([]byte, size), Level: core.AtToken, Token: 1 << 60})
	}
	var many, large [][]byte
	for id := uint64(1); id <= 10000; {
		var b []byte
		for range 1000 {
			b = late(b, id, 1)
			id++
		}
		many = append(many, b)
	}
	for id := range uint64(5) {
		large = append(large, late(nil, id+1, 7900<<10))
	}
	for name, frames := range map[string][][]byte{"many": many, "large": large} {
		st, g := readerOf(t, nodeService(&slowOnes{}))
		st.who.role = access.Admin
		g.frames = append(frames, wire.AppendCall(nil, 1<<40, time.Hour, &route.Call{Kind: route.Read, Shard: 2, Query: []byte("q"), Level: core.Stale}))
		g.read = make(chan struct{})
		close(g.reads)
		go func() { _ = st.read() }()
		select {
		case <-g.read:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: a read of another shard is not begun", name)
		}
		st.await(t, "its answer", func() bool { return !st.sending })
		g.mu.Lock()
		if len(g.got) != 1 || len(g.got[0]) < 1<<20 {
			t.Errorf("%s: it has %d messages", name, len(g.got))
		}
		g.mu.Unlock()
	}
}

// partly has no leader for shard 1, whose calls wait for ever, and answers those of other shards.
type partly struct{ slowOnes }

func (b *partly) leads(id rsm.ShardID) bool { return id != 1 }

func (b *partly) start(now int64, c *route.Call) {
	if c.Shard == 1 {
		b.kept = append(b.kept, c)
		return
	}
	c.Done(c)
}

// Calls that wait for one shard's leader stop no others on their stream: of other shards, while their client has room, and of those that make room, when ordinary calls
// are refused.
//
// Mutations with which it was seen to fail: StreamBytes of 32 MiB; of all of ClientBytes but its reserve.
func TestOneShardHoldsUpNoOther(t *testing.T) {
	submit := func(id uint64, shard rsm.ShardID, size int, room bool) []byte {
		return wire.AppendCall(nil, id, time.Hour, &route.Call{Kind: route.Submit, Shard: shard, Commands: [][]byte{make([]byte, size)}, MakesRoom: room})
	}
	const large = 4 << 20
	var frames [][]byte
	for id := range uint64(10) { // 40 MiB, of the 56 that ordinary calls have
		frames = append(frames, submit(id+1, 1, large, false))
	}
	frames = append(frames, submit(101, 2, 100, false))
	for id := range uint64(10) { // of which some have no room any more
		frames = append(frames, submit(id+11, 1, large, false))
	}
	frames = append(frames, submit(102, 2, large, true))

	admission, err := Admission{}.controller()
	if err != nil {
		t.Fatal(err)
	}
	s := newService(&partly{}, Limits{}.withDefaults())
	s.admission = admission
	st, g := readerOf(t, s)
	who, release := s.caller(g.ctx)
	defer release()
	st.who, st.checked = who, time.Now()
	g.frames, g.read = frames, make(chan struct{})
	close(g.reads)
	go func() { _ = st.read() }()
	select {
	case <-g.read:
	case <-time.After(20 * time.Second):
		t.Fatal("the stream is not read to its end")
	}
	st.await(t, "the answers", func() bool { return !st.sending })
	g.mu.Lock()
	defer g.mu.Unlock()
	answered, refused := []uint64(nil), 0
	for _, frame := range g.got {
		if err := wire.ParseAnswers(frame, func(a *wire.ReceivedAnswer) {
			switch e, _ := core.Verdict(a.Err); {
			case a.Err == nil:
				answered = append(answered, a.ID)
			case e != nil && e.Code == core.CodeOverloaded && e.RetryAfter > 0 && a.ID > 10 && a.ID < 21:
				refused++
			default:
				t.Errorf("call %d: %v", a.ID, a.Err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if want := []uint64{101, 102}; !slices.Equal(answered, want) || refused < 6 || refused > 8 {
		t.Errorf("%v are answered, want %v, and %d refused", answered, want, refused)
	}
}

// An error may be as large as an answer, where it is a machine's: it counts as one, is refused where there is no room for it, and ends no stream.
//
// Mutation with which it was seen to fail: only results have bytes.
func TestRejectionsThatWaitCount(t *testing.T) {
	st, _ := readerOf(t, proxyService())
	if err := st.service.enter(st); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		st.mu.Lock()
		st.calls++
		st.mu.Unlock()
		st.done(uint64(i+1), 0, &route.Call{Kind: route.Read, Err: &core.Rejection{Code: "many", Detail: make([]byte, 1<<20)}})
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	select {
	case err := <-st.kicked:
		t.Errorf("the stream ends: %v", err)
	default:
	}
	if st.waits > maxUnread+1<<20 || st.waits < 8<<20 {
		t.Errorf("%d bytes wait", st.waits)
	}
}

// A rejection that is larger than what can be sent is one all the same.
//
// Mutation with which it was seen to fail: it ends as answer_too_large, and so unknown.
func TestRejectionThatCannotBeSent(t *testing.T) {
	st, g := readerOf(t, proxyService())
	c := &streamCall{Call: route.Call{Kind: route.Submit, Err: &core.Rejection{Code: "full", Message: "no room", Detail: make([]byte, wire.MaxAnswerBytes)}}, stream: st, id: 7}
	st.mu.Lock()
	st.calls++
	st.mu.Unlock()
	c.answered()
	close(g.reads)
	if err := st.drain(); err != nil {
		t.Fatal(err)
	}
	var got error
	if err := wire.ParseAnswers(g.got[0], func(a *wire.ReceivedAnswer) { got = a.Err }); err != nil || !errors.Is(got, &core.Rejection{Code: "full"}) {
		t.Error(err, got)
	}
}

// unwelcome is a stream on which nothing may be sent any more: its token has gone.
type unwelcome struct{ script }

func (*unwelcome) SendMsg(any) error {
	return status.Error(codes.Unauthenticated, "the token has gone")
}

// What gRPC was never given does not count for the caller.
//
// Mutation with which it was seen to fail: flush leaves that to gRPC.
func TestRefusedAnswersDoNotCount(t *testing.T) {
	s := proxyService()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	st := s.newStream(&unwelcome{script{ctx: ctx}})
	if err := s.enter(st); err != nil {
		t.Fatal(err)
	}
	st.answer(1, 1<<20)
	st.await(t, "the stream has been told", func() bool { return !st.sending })
	s.leave(st)
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	if st.held.unsent != 0 {
		t.Errorf("%d bytes count for ever", st.held.unsent)
	}
}
