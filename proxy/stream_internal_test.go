package proxy

import (
	"bytes"
	"context"
	"errors"
	"runtime"
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
	waits := wire.AppendCall(nil, 1, time.Hour, &route.Call{Kind: route.Read, Shard: 1, Query: []byte("q"), Level: core.Session, Token: 1})
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
				c.Level, c.Token = core.Session, 1<<60
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
