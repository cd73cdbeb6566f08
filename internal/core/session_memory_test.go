package core

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// apply has a session of the table take one command, as an entry would.
func (t *sessionTable) command(id SessionID, seq, acked uint64, outcome []byte) {
	t.apply(&requestHeader{flags: flagSession, session: id, seq: seq, acked: acked, digest: seq, outcome: outcome}, 1, Index(seq), 0)
}

// holds returns the memory that a session really has.
func (s *session) holds() int {
	n := len(s.ring) * outcomeBytes
	for i := range s.ring {
		n += cap(s.ring[i].data)
	}
	return n
}

func newTestSession(window uint64) (*sessionTable, *session) {
	t := newSessionTable()
	t.open(1, 1e9, window, 0)
	return t, t.byID[1]
}

func wantBytes(t *testing.T, table *sessionTable, s *session) {
	t.Helper()
	if s.bytes != s.holds() || table.bytes != s.bytes {
		t.Fatalf("the session counts %d bytes, the table %d; it has %d", s.bytes, table.bytes, s.holds())
	}
}

// One command far out in the window takes as much as the whole window; that counts, and goes with it.
func TestLoneOutcomeCounts(t *testing.T) {
	table, s := newTestSession(4096)
	table.command(1, 4096, 0, []byte("x"))
	if wantBytes(t, table, s); s.bytes < 4096*outcomeBytes {
		t.Errorf("a ring of %d counts as %d bytes", len(s.ring), s.bytes)
	}
	table.command(1, 4097, 4096, []byte("x"))
	if wantBytes(t, table, s); len(s.ring) > smallRing {
		t.Errorf("one outcome is known, and the ring has %d", len(s.ring))
	}
}

// What was acknowledged keeps little memory, and all of it counts.
func TestAcknowledgedOutcomesGo(t *testing.T) {
	table, s := newTestSession(4096)
	large := make([]byte, 4000)
	for seq := uint64(1); seq <= 4096; seq++ {
		table.command(1, seq, 0, large)
	}
	if wantBytes(t, table, s); s.bytes < 4096*len(large) {
		t.Errorf("16 MiB of outcomes count as %d", s.bytes)
	}
	table.command(1, 4097, 4096, []byte("x"))
	if wantBytes(t, table, s); s.bytes > idleSessionBytes {
		t.Errorf("%d bytes are left", s.bytes)
	}
}

// Whatever a ring has been through, it has what is known, and counts what it has.
func TestRingAgainstModel(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		window := uint64(1) << r.IntN(9)
		table, s := newTestSession(window)
		known, acked := map[uint64][]byte{}, uint64(0)
		for range 500 {
			if r.IntN(4) == 0 {
				acked += r.Uint64N(window + 1)
			}
			seq := acked + 1 + r.Uint64N(window)
			data := bytes.Repeat([]byte{byte(seq)}, r.IntN(pick(r, 10, 1000)))
			table.command(1, seq, acked, data)
			if known[seq] == nil {
				known[seq] = data
			}
			for q := range known {
				if q <= acked {
					delete(known, q)
				}
			}
			for q := acked; q <= acked+window; q++ {
				o, want := s.lookup(q), known[q]
				if (o != nil) != (want != nil) || o != nil && (!bytes.Equal(o.data, want) || o.digest != q) {
					t.Fatalf("seed %d: sequence %d has %v, want %q", seed, q, o, want)
				}
			}
			wantBytes(t, table, s)
		}
	}
}

func pick(r *rand.Rand, of ...int) int { return of[r.IntN(len(of))] }

// A client that goes on and on makes no garbage, alone or with many in flight.
func TestRingIsReused(t *testing.T) {
	for _, inFlight := range []uint64{1, 8, 300} {
		table, s := newTestSession(4096)
		seq, outcome := uint64(0), make([]byte, 100)
		next := func() {
			seq++
			table.command(1, seq, max(seq, inFlight)-inFlight, outcome)
		}
		for range 2 * 4096 {
			next()
		}
		if n := testing.AllocsPerRun(1000, next); n > 0 {
			t.Errorf("%d in flight, a ring of %d: %v allocations for a command", inFlight, len(s.ring), n)
		}
	}
}

// What a panic says is bounded, before it is in the log.
func TestPanicTextIsBounded(t *testing.T) {
	for _, p := range []any{"short", strings.Repeat("x", 1<<20), make([]byte, 1<<20), fmt.Errorf("%s", strings.Repeat("\u00e4", 1<<20)), map[int]int{1: 2}, [][]byte{make([]byte, 1<<20)}, nil} {
		if text := panicText(p); text == "" || len(text) > maxPanicText+100 {
			t.Errorf("%T: %d bytes: %.50q", p, len(text), text)
		}
	}
	h := newHand(t, Limits{})
	h.lead()
	do := func(q *Request) *Request {
		q.Shard, q.Done = 1, func(*Request) {}
		h.in.Requests = append(h.in.Requests, q)
		h.settle(2)
		return q
	}
	session := do(&Request{Kind: KindOpenSession}).Result.Session
	last := h.replica().log.last()
	rejected := do(&Request{Session: session, Sequence: 1, Commands: [][]byte{[]byte("!" + strings.Repeat("x", 900<<10))}}).Err
	for _, e := range h.replica().log.slice(last+1, h.replica().log.last()) {
		if len(e.Data) > 2*maxPanicText {
			t.Errorf("the entry has %d bytes", len(e.Data))
		}
	}
	if rejected == nil || !strings.Contains(rejected.Error(), "the machine panicked") {
		t.Errorf("rejected with %v", rejected)
	}
}

// A session that is full can be emptied: by a command that acknowledges all before it, as nothing else brings an acknowledgement.
//
// So can one that was filled by numbers above one that was refused: that one is taken, though they have acknowledged all before it already.
//
// Where all sessions together are full, that is for those who give back their share, and has an end.
//
// Mutations with which it was seen to fail: no command is taken; every command that acknowledges something is; those who give little back are taken; there is no end;
// who acknowledges no more than those before is not taken.
func TestFullSessionIsEmptied(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	do := func(q *Request) error {
		q.Shard, q.Done = 1, func(*Request) {}
		h.in.Requests = append(h.in.Requests, q)
		h.settle(2)
		return q.Err
	}
	open := &Request{Kind: KindOpenSession}
	if err := do(open); err != nil {
		t.Fatal(err)
	}
	command := func(seq, acked uint64) error {
		return do(&Request{Session: open.Result.Session, Sequence: seq, Acknowledged: acked, Commands: [][]byte{[]byte("a")}})
	}
	for seq := uint64(1); seq <= 3; seq++ { // as if each had had such an answer
		h.replica().sessions.command(open.Result.Session, seq, 0, make([]byte, maxSessionBytes/2))
	}
	for _, c := range []struct{ seq, acked uint64 }{{4, 0}, {5, 3}, {4, 1}} {
		if e, ok := command(c.seq, c.acked).(*Error); !ok || e.Kind != ErrNotProposed || e.Code != CodeOverloaded {
			t.Errorf("number %d, which acknowledges %d: %v", c.seq, c.acked, e)
		}
	}
	if err := command(4, 3); err != nil {
		t.Fatalf("a command that acknowledges everything: %v", err)
	}
	if err := command(5, 3); err != nil {
		t.Errorf("the next: %v", err)
	}
	sessions := h.replica().sessions
	if n := sessions.bytes; n > 1<<20 {
		t.Errorf("the sessions have %d bytes, of which nothing is wanted any more", n)
	}

	for seq := uint64(7); seq <= 9; seq++ { // 6 was refused, and sleeps
		sessions.command(open.Result.Session, seq, 5, make([]byte, maxSessionBytes/2))
	}
	for _, c := range []struct {
		seq, acked uint64
		taken      bool
	}{{10, 5, false}, {6, 4, false}, {6, 5, true}, {10, 5, false}, {10, 9, true}} {
		if err := command(c.seq, c.acked); (err == nil) != c.taken {
			t.Errorf("number %d, which acknowledges %d, where 7 to 9 fill the session: %v", c.seq, c.acked, err)
		}
	}

	limit := maxSessions(h.replica().cfg.Sessions.Max)
	for _, c := range []struct {
		own, others int
		taken       bool
	}{{1 << 10, limit, false}, {limit, limit / 2, true}, {limit, 2 * limit, false}} {
		s := sessions.byID[open.Result.Session]
		was, all := s.bytes, sessions.bytes
		s.bytes, sessions.bytes = c.own, c.own+c.others // as if it were so
		err := command(s.last+1, s.last)
		s.bytes, sessions.bytes = was, all
		if (err == nil) != c.taken {
			t.Errorf("a session with %d bytes, and %d of others: %v", c.own, c.others, err)
		}
	}
}

// Numbers near to where they overflow are refused, and one that stands in a log all the same can be applied: a window of no power of two would make a ring that never reaches them.
//
// Mutations with which it was seen to fail: the worker takes any number; grow, lookup, acknowledge or resize adds to one.
func TestNumbersThatOverflow(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	session := h.opens()
	ask := func(seq uint64) error {
		_, err := h.request(Request{Kind: KindCommand, Session: session, Sequence: seq, Acknowledged: seq - 1, Commands: [][]byte{[]byte("+a")}})
		return err
	}
	for _, seq := range []uint64{math.MaxUint64, MaxSequence + 1} {
		if err := ask(seq); !errors.Is(err, &Error{Kind: ErrNotProposed, Code: CodeBadRequest}) {
			t.Errorf("%d: %v", seq, err)
		}
	}
	if err := ask(MaxSequence); err != nil {
		t.Error(err)
	}
	const window = 5000
	table, s := newTestSession(window)
	table.command(1, math.MaxUint64-window+1, math.MaxUint64-window, []byte("first"))
	table.command(1, math.MaxUint64, math.MaxUint64-window, []byte("last"))
	for seq, want := range map[uint64]bool{math.MaxUint64 - window: false, math.MaxUint64 - window + 1: true, math.MaxUint64 - 1: false, math.MaxUint64: true, 1: false} {
		if got := s.lookup(seq); (got != nil) != want {
			t.Errorf("outcome of %d: %v", seq, got)
		}
	}
	wantBytes(t, table, s)
	table.command(1, math.MaxUint64, math.MaxUint64-1, nil)
	if o := s.lookup(math.MaxUint64); s.acked != math.MaxUint64-1 || o == nil || string(o.data) != "last" {
		t.Errorf("acknowledged up to %d, and then there is %v", s.acked, o)
	}
	wantBytes(t, table, s)
}
