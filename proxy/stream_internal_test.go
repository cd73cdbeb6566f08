package proxy

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

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
func (s *script) SendMsg(any) error        { return nil }

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
		s.close(0)
		err := wire.FromStatus(<-done)
		if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeClosed || !errors.Is(err, want) {
			t.Errorf("%s: it ends with %v", name, err)
		}
		cancel()
	}
}

// A call that takes long keeps neither the answers of those that came with it, nor the frame that they came in.
func TestSlowCallsKeepLittle(t *testing.T) {
	const frames, padding = 40, 1 << 20
	var all [][]byte
	for id := uint64(1); id <= frames*15; {
		var b []byte
		for i := range 15 {
			c := &route.Call{Kind: route.Read, Shard: 1, Query: []byte("q")}
			if i == 14 {
				c.Level, c.Token = core.AtToken, 1<<60
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
	st := &stream{ServerStream: &script{ctx: ctx, frames: all, read: make(chan struct{})}, service: s, name: "s", kicked: make(chan error, 1), who: caller{role: access.Admin}}
	st.room.L = &st.mu
	all = nil
	done := make(chan error, 1)
	go func() { done <- st.read() }()
	<-st.ServerStream.(*script).read
	var m runtime.MemStats
	for range 100 {
		runtime.GC()
		if runtime.ReadMemStats(&m); m.HeapAlloc < frames<<20/4 {
			break
		}
		time.Sleep(10 * time.Millisecond) // answers are being sent
	}
	if len(backend.kept) != frames {
		t.Errorf("%d slow calls are under way, and not %d", len(backend.kept), frames)
	}
	if m.HeapAlloc >= frames<<20/4 {
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
	<-s.reads
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, m.(*codec.Frame).Data)
	return nil
}

// What has become much while a client did not read goes to it in pieces, each of which tells it that the server lives.
//
// Mutation with which it was seen to fail: all that there is goes as one message.
func TestAnswersGoInPieces(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	g := &reader{script: script{ctx: ctx}, reads: make(chan struct{})}
	st := &stream{ServerStream: g, service: newService(&slowOnes{}, Limits{}.withDefaults()), kicked: make(chan error, 1)}
	st.room.L = &st.mu
	sizes := append(slices.Repeat([]int{1000}, 2000), 1<<20, 100<<10)
	for i, size := range sizes {
		st.mu.Lock()
		st.calls++
		st.mu.Unlock()
		st.done(uint64(i+1), 0, &route.Call{Kind: route.Read, Result: rsm.Result{Answer: make([]byte, size)}})
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
