package link

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
)

var epoch = time.Now()

// patience is far more than anything takes, unless it hangs.
const patience = 30 * time.Second

func clock() int64 { return int64(time.Since(epoch)) }

// liar is a server that does with a stream whatever a test wants.
type liar struct {
	decreev1.UnimplementedDecreeServiceServer
	do func(g grpc.ServerStream) error
}

func (l *liar) Connect(g grpc.BidiStreamingServer[decreev1.ConnectRequest, decreev1.ConnectResponse]) error {
	if err := g.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	return l.do(g)
}

// receive returns the calls of the next frame.
func receive(g grpc.ServerStream) (calls []wire.ReceivedCall, err error) {
	var f codec.Frame
	if err := g.RecvMsg(&f); err != nil {
		return nil, err
	}
	err = wire.ParseCalls(f.Data, newCall, func(c wire.ReceivedCall) error { calls = append(calls, c); return nil })
	return calls, err
}

// each has f answer one call after the other, until the stream ends.
func each(g grpc.ServerStream, f func(c wire.ReceivedCall) error) error {
	for {
		calls, err := receive(g)
		if err != nil {
			return err
		}
		for _, c := range calls {
			if err := f(c); err != nil {
				return err
			}
		}
	}
}

func answer(g grpc.ServerStream, id uint64, kind route.Kind, index core.Index, err error) error {
	res := core.Result{Index: index}
	if kind == route.Submit {
		res.Replies = [][]byte{nil}
	}
	return g.SendMsg(&codec.Frame{Data: wire.AppendAnswer(nil, id, kind, &res, err)})
}

// bench is a router whose only target is a link to a server.
type bench struct {
	t      *testing.T
	router *route.Router
	link   *Link
	mu     sync.Mutex
	ups    int
}

// silence sets how long a stream may be silent.
func silence(d time.Duration) func(*Config) { return func(cfg *Config) { cfg.Silence = d } }

func start(t *testing.T, do func(b *bench, g grpc.ServerStream) error, options ...func(*Config)) *bench {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, router: route.New(route.Config{Shard: 1, Any: true})}
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec.Codec{}))
	decreev1.RegisterDecreeServiceServer(s, &liar{do: func(g grpc.ServerStream) error { return do(b, g) }})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	cfg := Config{Options: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, Now: clock, Silence: patience,
		Up: func(*Link) {
			b.mu.Lock()
			b.ups++
			b.mu.Unlock()
			b.router.Up(clock())
		},
		Down: func(l *Link, _ bool, _ error) { b.router.Down(l) }}
	for _, o := range options {
		o(&cfg)
	}
	b.link, err = New(l.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.link.Close)
	b.router.Targets(clock(), []route.Target{b.link})
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				b.router.Tick(clock())
			}
		}
	}()
	return b
}

// awaitUp waits until the stream is open.
func (b *bench) awaitUp() {
	b.t.Helper()
	for until := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		up := b.ups > 0
		b.mu.Unlock()
		if up {
			return
		} else if time.Now().After(until) {
			b.t.Fatal("the stream is not opened")
		}
	}
}

// submit waits for the outcome of a call.
func (b *bench) submit(session core.SessionID, timeout time.Duration) *route.Call {
	b.t.Helper()
	done := make(chan struct{}, 2)
	c := &route.Call{Kind: route.Submit, Shard: 1, Commands: [][]byte{[]byte("c")}, Deadline: clock() + int64(timeout), Done: func(*route.Call) { done <- struct{}{} }}
	if session != 0 {
		c.Session, c.Sequence = session, 1
	}
	b.router.Submit(clock(), c)
	select {
	case <-done:
	case <-time.After(timeout + 10*time.Second):
		b.t.Fatal("a call has no end")
	}
	return c
}

func wantUnknown(t *testing.T, c *route.Call) {
	t.Helper()
	if !errors.Is(c.Err, core.ErrUnknown) || errors.Is(c.Err, core.ErrNotProposed) {
		t.Errorf("it ends with %v", c.Err)
	}
}

// Answers to nobody's question, and second ones, are not listened to; the right one is.
func TestWrongAnswers(t *testing.T) {
	b := start(t, func(_ *bench, g grpc.ServerStream) error {
		return each(g, func(c wire.ReceivedCall) error {
			for _, id := range []uint64{c.ID + 1, c.ID + 1000, c.ID + 1<<slotBits, 1 << 63, c.ID, c.ID} {
				if err := answer(g, id, route.Submit, core.Index(c.ID), nil); err != nil {
					return err
				}
			}
			return nil
		})
	})
	for i := range 50 {
		if c := b.submit(0, patience); c.Err != nil || c.Result.Index != core.Index(i+1)<<slotBits {
			t.Fatalf("call %d: index %d, %v", i+1, c.Result.Index, c.Err)
		}
	}
}

// Which cluster the other side is of can be seen before that is judged: who learns which is ours at that moment looks at it.
func TestClusterIsNotedFirst(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec.Codec{}))
	decreev1.RegisterDecreeServiceServer(s, &greeter{})
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	made, judged := make(chan *Link, 1), make(chan [2]string, 1)
	itself := sync.OnceValue(func() *Link { return <-made })
	link, err := New(l.Addr().String(), Config{Options: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, Now: clock, Check: func(cluster string) error {
		select {
		case judged <- [2]string{cluster, itself().Cluster()}:
		default:
		}
		return errors.New("no")
	}})
	if err != nil {
		t.Fatal(err)
	}
	made <- link
	defer link.Close()
	select {
	case got := <-judged:
		if got != [2]string{"other", "other"} {
			t.Errorf("the cluster %q is judged, and %q is to be seen", got[0], got[1])
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing is judged")
	}
}

// greeter is of the cluster "other".
type greeter struct {
	decreev1.UnimplementedDecreeServiceServer
}

func (greeter) Connect(g grpc.BidiStreamingServer[decreev1.ConnectRequest, decreev1.ConnectResponse]) error {
	if err := g.SendHeader(Greeting("other")); err != nil {
		return err
	}
	<-g.Context().Done()
	return nil
}

// A server that breaks the protocol, or the stream, leaves in doubt what it had been sent: that is not sent again without a session, and is with one.
//
// Mutation with which it was seen to fail: an answer without replies is one.
func TestBrokenStreams(t *testing.T) {
	for name, lie := range map[string]func(g grpc.ServerStream, id uint64) error{
		"another kind": func(g grpc.ServerStream, id uint64) error { return answer(g, id, route.OpenSession, 1, nil) },
		"no reply": func(g grpc.ServerStream, id uint64) error {
			return g.SendMsg(&codec.Frame{Data: wire.AppendAnswer(nil, id, route.Submit, &core.Result{Index: 7}, nil)})
		},
		"two replies": func(g grpc.ServerStream, id uint64) error {
			return g.SendMsg(&codec.Frame{Data: wire.AppendAnswer(nil, id, route.Submit, &core.Result{Index: 7, Replies: [][]byte{nil, nil}}, nil)})
		},
		"garbage": func(g grpc.ServerStream, _ uint64) error { return g.SendMsg(&codec.Frame{Data: []byte{0xff, 0xff}}) },
		"too large": func(g grpc.ServerStream, _ uint64) error {
			return g.SendMsg(&codec.Frame{Data: make([]byte, MaxFrame+1)})
		},
		"the end": func(grpc.ServerStream, uint64) error { return errors.New("over") },
		"closes": func(grpc.ServerStream, uint64) error {
			return wire.Status(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed})
		},
		"closes in order": func(grpc.ServerStream, uint64) error { return errOver },
	} {
		t.Run(name, func(t *testing.T) {
			lied := map[bool]bool{}
			var mu sync.Mutex
			b := start(t, func(_ *bench, g grpc.ServerStream) error {
				for {
					calls, err := receive(g)
					if err != nil {
						return err
					}
					for _, c := range calls {
						mu.Lock()
						first := !lied[c.Call.Session != 0]
						lied[c.Call.Session != 0] = true
						mu.Unlock()
						if !first {
							if err := answer(g, c.ID, route.Submit, 7, nil); err != nil {
								return err
							}
							continue
						}
						if err := lie(g, c.ID); err == errOver {
							return nil
						} else if err != nil {
							return err
						}
					}
				}
			})
			wantUnknown(t, b.submit(0, patience))
			if c := b.submit(9, patience); c.Err != nil || c.Result.Index != 7 {
				t.Errorf("with a session: %v, %v", c.Result, c.Err)
			}
		})
	}
}

var errOver = errors.New("over")

// Silence while calls wait ends the stream; one that says that it lives is waited for, up to the deadline.
func TestSilence(t *testing.T) {
	silent := start(t, func(_ *bench, g grpc.ServerStream) error { <-g.Context().Done(); return nil }, silence(400*time.Millisecond))
	began := time.Now()
	wantUnknown(t, silent.submit(0, 2*patience))
	if took := time.Since(began); took > patience {
		t.Errorf("silence was borne for %v", took)
	}
	const borne = 2 * time.Second // so long that no machine holds up all beats meanwhile
	beating := start(t, func(_ *bench, g grpc.ServerStream) error {
		for {
			if err := g.SendMsg(&codec.Frame{}); err != nil {
				return err
			}
			select {
			case <-g.Context().Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
	}, silence(borne))
	beating.awaitUp()
	wantUnknown(t, beating.submit(9, 2*borne))
	beating.mu.Lock()
	if beating.ups != 1 {
		t.Errorf("the stream was opened %d times", beating.ups)
	}
	beating.mu.Unlock()
	// What is never answered does not stay.
	for until := time.Now().Add(borne + patience); beating.link.waits(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("a call whose time is over is still on the link")
		}
	}
}

// A session without a number is none: who opened it would go on to open one, without a pause.
//
// Mutation with which it was seen to fail: it is one.
func TestNoSession(t *testing.T) {
	b := start(t, func(_ *bench, g grpc.ServerStream) error {
		return each(g, func(c wire.ReceivedCall) error {
			return answer(g, c.ID, c.Call.Kind, 7, nil)
		})
	})
	b.awaitUp()
	done := make(chan struct{})
	c := &route.Call{Kind: route.OpenSession, Shard: 1, Deadline: clock() + int64(time.Second), Done: func(*route.Call) { close(done) }}
	b.router.Submit(clock(), c)
	<-done
	wantUnknown(t, c)
}

// Only who refuses a call as it closes is leaving: a node behind it may have closed while it had the call.
//
// Mutation with which it was seen to fail: the code alone says so.
func TestOnlyARefusalIsLeaving(t *testing.T) {
	var left atomic.Int64
	kinds := make(chan error, 2)
	b := start(t, func(_ *bench, g grpc.ServerStream) error {
		return each(g, func(c wire.ReceivedCall) error {
			return answer(g, c.ID, c.Call.Kind, 7, &core.Error{Kind: <-kinds, Code: core.CodeClosed})
		})
	}, func(cfg *Config) { cfg.Leaving = func(*Link) { left.Add(1) } })
	kinds <- core.ErrUnknown
	wantUnknown(t, b.submit(0, patience))
	kinds <- core.ErrUnknown // the stream goes on: what the answer before did is done
	wantUnknown(t, b.submit(0, patience))
	if left.Load() != 0 {
		t.Error("a doubt is taken for leaving")
	}
	kinds <- core.ErrNotProposed
	kinds <- core.ErrUnknown
	wantUnknown(t, b.submit(0, patience))
	if left.Load() != 1 {
		t.Error("a refusal is not")
	}
}

// A server that takes nothing more for a while, as it is full, and has answers under way or says that it lives, is waited for: nothing is sent again.
//
// Mutation with which it was seen to fail: what is heard does not count while a frame is being sent.
func TestFullServer(t *testing.T) {
	const borne = 2 * time.Second                                                                                                           // so long that no machine holds up all that is said meanwhile
	for name, said := range map[string][]byte{"beats": nil, "an answer": append([]byte{0x7a, 0x80, 0x80, 0x02}, make([]byte, 32<<10)...)} { // in a field that nobody knows
		t.Run(name, func(t *testing.T) {
			began := make(chan struct{}, 10) // streams
			b := start(t, func(_ *bench, g grpc.ServerStream) error {
				if _, err := receive(g); err != nil { // this one waits for ever
					return err
				}
				began <- struct{}{}
				var sending sync.Mutex
				var speaking sync.WaitGroup
				defer speaking.Wait()
				speaking.Go(func() {
					for g.Context().Err() == nil {
						sending.Lock()
						_ = g.SendMsg(&codec.Frame{Data: said}) // the stream may be over
						sending.Unlock()
						time.Sleep(20 * time.Millisecond)
					}
				})
				time.Sleep(2 * borne) // it is full for longer than silence is borne
				return each(g, func(c wire.ReceivedCall) error {
					sending.Lock()
					err := answer(g, c.ID, route.Submit, 7, nil)
					sending.Unlock()
					if err != nil {
						return err
					}
					return nil
				})
			}, silence(borne))
			done := make(chan error, 4)
			submit := func(size int) {
				c := &route.Call{Kind: route.Submit, Shard: 1, Session: 1, Sequence: 1, Commands: [][]byte{make([]byte, size)}, Deadline: clock() + int64(time.Minute)}
				c.Done = func(c *route.Call) { done <- c.Err }
				b.router.Submit(clock(), c)
			}
			submit(1)
			<-began
			for range cap(done) { // more than the window of the stream
				submit(1 << 20)
			}
			for range cap(done) {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.ups != 1 {
				t.Errorf("the stream was opened %d times", b.ups)
			}
		})
	}
}

// A server that takes streams only to end them is not called again without pauses that grow.
func TestNoBusyLoop(t *testing.T) {
	began := time.Now()
	b := start(t, func(*bench, grpc.ServerStream) error { return errors.New("no") })
	time.Sleep(1500 * time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	// Five pauses are short, and five more after a stream that lived for a second, as on a machine that stands still.
	if took := time.Since(began); b.ups > 6+int(took/(100*time.Millisecond)) {
		t.Errorf("%d streams in %v", b.ups, took)
	}
}

func newCall() *route.Call { return &route.Call{} }

// Who has answered several calls at once is about to hear from as many.
func TestExpects(t *testing.T) {
	b := start(t, func(_ *bench, g grpc.ServerStream) error {
		for {
			var frame []byte
			for n := 0; n < 3; {
				calls, err := receive(g)
				if err != nil {
					return err
				}
				for _, c := range calls {
					frame = wire.AppendAnswer(frame, c.ID, c.Call.Kind, &core.Result{}, nil)
				}
				n += len(calls)
			}
			if err := g.SendMsg(&codec.Frame{Data: frame}); err != nil {
				return err
			}
		}
	})
	b.awaitUp()
	ask := func() {
		done := make(chan error, 3)
		for range 3 {
			c := &route.Call{Kind: route.Read, Shard: 1, Deadline: clock() + int64(patience), Done: func(c *route.Call) { done <- c.Err }}
			b.router.Submit(clock(), c)
		}
		for range 3 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
	if b.link.expects() {
		t.Error("calls are expected of those who have said nothing yet")
	}
	ask()
	if !b.link.expects() {
		t.Error("three were answered, and nobody is expected to go on")
	}
	b.link.mu.Lock()
	b.link.saying = 3
	b.link.mu.Unlock()
	if b.link.expects() {
		t.Error("more are expected than were answered")
	}
	b.link.mu.Lock()
	b.link.saying = 0
	b.link.mu.Unlock()
	ask()
}
