// Package link keeps one stream of calls to a proxy or a node, whatever happens to it: it opens it again by itself, and tells the router of
// every call on it what became of it.
package link

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/internal/yield"
)

// Config configures a Link.
type Config struct {
	// Options are how to dial: credentials above all.
	Options []grpc.DialOption
	// Now is the clock, in nanoseconds, of the routers whose calls go over the link.
	Now func() int64
	// Up and Down are called, from the link's goroutine, when the stream is there and when it is gone. Opened: it was there. Why is nil when the link is closed.
	Up   func(*Link)
	Down func(l *Link, opened bool, why error)
	// Check, if set, is told which cluster the other side says that it is of, "" if it does not say: an error keeps the stream from being used. Nothing is sent before.
	Check func(cluster string) error
	// Leaving, if set, is called when the other side refuses a call because it closes: what it has taken it still answers.
	Leaving func(*Link)
	// Silence after which a stream is given up although calls wait: whoever serves one says something every second then. Bytes of an answer that is on its way count, and so do
	// those of calls, as long as the other side has none of those that wait as a whole. Default 3 s.
	Silence time.Duration
	// Own: answers are kept, by who does not know in what they came. Small ones are copied out of large frames.
	Own bool
}

const (
	// maxQueued bounds what waits to be sent. More is not taken.
	maxQueued = 4 << 20
	// maxPending bounds the calls on the link.
	maxPending = 1 << slotBits
	// openPatience bounds the opening of a stream.
	openPatience = 2 * time.Second
	// A stream that lived shorter than this is opened again only after a pause, and a longer one each time.
	shortLife  = time.Second
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
	// KeepaliveTime is how often a silent connection is asked if it lives. Servers must permit it.
	KeepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
	// window of a stream in bytes. It is fixed: gRPC's probing costs latency.
	window = 4 << 20
	// LeastSilence is the least that callers should let users configure for Config.Silence: who serves a stream says something every second.
	LeastSilence = 1500 * time.Millisecond
	// MaxFrame bounds a frame that is received.
	MaxFrame = 64 << 20
	// maxPinned is the largest frame that a small answer may keep in memory, if answers are kept.
	maxPinned = 64 << 10
	// maxFrames is how many frames are remembered that have been sent.
	maxFrames = 64
)

// Link is a stream to an address. It is a route.Target.
type Link struct {
	address string
	cfg     Config
	conn    *grpc.ClientConn
	pulse   pulse
	cancel  context.CancelFunc
	ended   chan struct{}

	mu      sync.Mutex
	up      bool
	cluster string // that the other side says it is of
	out     []byte // calls that are not sent yet
	saying  int    // how many they are
	told    int    // how many had their answers in the frame that came last
	pending pending
	sent    uint64               // up to this id they may have arrived
	heard   int64                // when something came, or the first call after a pause was sent
	frames  [maxFrames]sentFrame // the last that were sent, in a ring
	framed  int                  // frames that were sent on the stream
	seen    seen
	sending atomic.Int64 // since when a frame is being sent, 0: none is
	wake    chan struct{}
}

// sentFrame is a frame of calls.
type sentFrame struct {
	last uint64 // id of a call in it
	end  int64  // of the bytes that are written
}

// seen is what there was at the last look at the pulse.
type seen struct {
	read, delivered int64
	moved           int64 // when something was delivered
}

// New returns a link to an address, which it begins to open. Close it.
func New(address string, cfg Config) (*Link, error) {
	cfg.Silence = cmp.Or(cfg.Silence, 3*time.Second)
	l := &Link{address: address, cfg: cfg, ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	conn, err := grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithContextDialer(l.pulse.dial), grpc.WithChainUnaryInterceptor(l.pulse.unary),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.Codec{}), grpc.MaxCallRecvMsgSize(MaxFrame), grpc.MaxCallSendMsgSize(MaxFrame)),
		grpc.WithDisableRetry(), // what is sent again is decided here
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(2 * window),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: KeepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: openPatience,
			Backoff: backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastPause}}),
	}, cfg.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.conn, l.cancel = conn, cancel
	go l.run(ctx)
	return l, nil
}

// Address returns where the link leads.
func (l *Link) Address() string { return l.address }

// Conn returns the connection, for unary calls.
func (l *Link) Conn() *grpc.ClientConn { return l.conn }

// Connected reports whether calls are taken.
func (l *Link) Connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// Cluster returns the name of the cluster that the other side said it is of when the stream was opened; "" if it has not.
func (l *Link) Cluster() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cluster
}

// clusterKey is the header that names the cluster. -bin: the name is any bytes.
const clusterKey = "decree-cluster-bin"

// Greeting is the header with which a stream is taken: it says of which cluster the server is, if it knows.
func Greeting(cluster string) metadata.MD {
	if cluster == "" {
		return metadata.MD{}
	}
	return metadata.Pairs(clusterKey, cluster)
}

// Quiet returns for how long nothing has been heard, 0 if no call waits.
func (l *Link) Quiet() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending.count == 0 {
		return 0
	}
	return time.Duration(l.cfg.Now() - l.heard)
}

// Retire waits until no call is on the link any more, or ctx ends, and closes it.
func (l *Link) Retire(ctx context.Context) {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for l.waits() && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	l.Close()
}

func (l *Link) waits() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending.count > 0
}

// Close ends the link. Calls on it are lost.
func (l *Link) Close() {
	l.cancel()
	<-l.ended
	_ = l.conn.Close() // a second time is the only error
}

// Send implements route.Target.
func (l *Link) Send(c *route.Call, number uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up || len(l.out)+c.Size() > maxQueued && len(l.out) > 0 || l.pending.count >= maxPending {
		return false
	}
	now := l.cfg.Now()
	if l.pending.count == 0 {
		l.heard = now
	}
	id := l.pending.add(c, number)
	first := l.saying == 0
	l.saying++
	l.out = wire.AppendCall(l.out, id, max(time.Millisecond, time.Duration(c.Deadline-now)), c)
	if first {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// run keeps a stream until ctx ends.
func (l *Link) run(ctx context.Context) {
	defer close(l.ended)
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		opened, err := l.serve(ctx)
		if opened && time.Since(began) > shortLife {
			pause = firstPause
		}
		if ctx.Err() != nil {
			err = nil
		}
		if l.cfg.Down != nil {
			l.cfg.Down(l, opened, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, lastPause)
	}
}

// serve opens a stream and keeps it as long as it lives.
func (l *Link) serve(ctx context.Context) (opened bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stuck := time.AfterFunc(openPatience, cancel)
	stream, err := l.conn.NewStream(ctx, &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName)
	cluster := ""
	if err == nil {
		var header metadata.MD
		if header, err = stream.Header(); err == nil && header == nil { // it was refused before it was taken
			err = stream.RecvMsg(&codec.Frame{})
		}
		if v := header.Get(clusterKey); len(v) == 1 {
			cluster = v[0]
		}
	}
	if !stuck.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return false, wire.FromStatus(err)
	}
	l.mu.Lock()
	l.cluster = cluster // first: whoever learns which cluster is ours meanwhile looks at it
	l.mu.Unlock()
	if l.cfg.Check != nil {
		if err := l.cfg.Check(cluster); err != nil {
			return false, err
		}
	}
	l.mu.Lock()
	l.up, l.heard = true, l.cfg.Now()
	l.framed = 0
	l.mu.Unlock()
	if l.cfg.Up != nil {
		l.cfg.Up(l)
	}
	var beside sync.WaitGroup
	beside.Go(func() { l.write(ctx, stream) })
	beside.Go(func() { l.watch(ctx, cancel) })
	err = l.read(stream)
	cancel()
	beside.Wait()
	l.lose(err)
	return true, err
}

// write sends what there is, all of it in one frame, until ctx ends.
func (l *Link) write(ctx context.Context, stream grpc.ClientStream) {
	defer l.sending.Store(0)
	var turn yield.Yielder
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		runtime.Gosched() // who else has something to say may say it in the same frame
		if l.expects() {
			turn.Yield()
		}
		frame := l.take()
		if len(frame) == 0 {
			continue
		}
		l.sending.Store(l.cfg.Now())
		err := stream.SendMsg(&codec.Frame{Data: frame})
		l.sending.Store(0)
		if err != nil {
			return // the reader learns why
		}
	}
}

// expects reports whether those who were answered last are more than those who have something to say: the others are about to, if they do as before, and are
// readers of connections or woken by one.
func (l *Link) expects() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.saying < l.told
}

// take returns what is to be sent. From here on it may have arrived.
func (l *Link) take() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	frame := l.out
	l.out, l.saying, l.sent = make([]byte, 0, min(cap(frame), 64<<10)), 0, l.pending.last
	if len(frame) == 0 {
		return nil
	}
	begin := l.pulse.written.Load()
	if l.framed > 0 {
		begin = max(begin, l.frames[(l.framed-1)%maxFrames].end)
	}
	l.frames[l.framed%maxFrames] = sentFrame{l.sent, begin + int64(len(frame))}
	l.framed++
	return frame
}

// watch gives the stream up when it is silent for too long, or takes nothing, until ctx ends.
func (l *Link) watch(ctx context.Context, cancel context.CancelFunc) {
	t := time.NewTicker(l.cfg.Silence / 4)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if l.silent() {
			cancel()
			return
		}
	}
}

// silent reports whether nothing was heard for too long, though calls wait, or one is being sent. It also forgets calls whose time is over: their routers have, and whoever answers
// late, or never, must not use up the link.
func (l *Link) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, oldest := l.cfg.Now(), uint64(math.MaxUint64)
	for a := range l.pending.all {
		if a.call.Deadline+int64(l.cfg.Silence) < now {
			l.pending.take(a.id)
		} else {
			oldest = min(oldest, a.id)
		}
	}
	read, delivered := l.pulse.read.Load()-l.pulse.readAside.Load(), l.pulse.delivered()
	if read-l.seen.read >= leastProgress { // an answer is on its way
		l.heard = now
	}
	if delivered-l.pulse.writtenAside.Load()-l.seen.delivered >= leastProgress {
		l.seen.moved = now
		if l.onItsWay(oldest, delivered) { // who has no call yet has nothing to say
			l.heard = now
		}
	}
	l.seen.read, l.seen.delivered = read, delivered-l.pulse.writtenAside.Load()
	// Who does not read may be full, and says what it has to say: what is sent waits for that.
	if since := l.sending.Load(); since != 0 && now-max(since, l.seen.moved, l.heard) > int64(l.cfg.Silence) {
		return true
	}
	return l.pending.count > 0 && now-l.heard > int64(l.cfg.Silence)
}

// onItsWay reports whether the frame of a call has not been delivered. l.mu is held.
func (l *Link) onItsWay(id uint64, delivered int64) bool {
	first := max(0, l.framed-maxFrames)
	for i := first; i < l.framed; i++ {
		if f := l.frames[i%maxFrames]; f.last >= id {
			return f.end > delivered && (i > first || first == 0) // it may have been in one before, which is forgotten
		}
	}
	return false
}

// read takes answers in until the stream ends.
func (l *Link) read(stream grpc.ClientStream) error {
	var got []wire.ReceivedAnswer
	var calls []attempt
	for {
		var f codec.Frame
		if err := stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "the other side closes"}
			}
			return wire.FromStatus(err)
		}
		got, calls = got[:0], calls[:0]
		if err := wire.ParseAnswers(f.Data, func(a *wire.ReceivedAnswer) { got = append(got, *a) }); err != nil {
			return fmt.Errorf("%s answers what cannot be understood: %w", l.address, err)
		}
		if l.cfg.Own && len(f.Data) > maxPinned {
			for i := range got {
				own(&got[i].Result, len(f.Data))
			}
		}
		now := l.cfg.Now()
		l.mu.Lock()
		l.heard, l.told = now, len(got)
		for i := range got {
			var a attempt
			if id := got[i].ID; id <= l.sent { // whoever answers what was not asked is not listened to
				a = l.pending.take(id)
			}
			calls = append(calls, a)
		}
		l.mu.Unlock()
		var lies error
		leaving := false
		for i, a := range calls {
			if e, _ := core.Verdict(got[i].Err); e != nil && e.Code == core.CodeClosed && e.Kind == core.ErrNotProposed { // else a node has said so, behind it
				leaving = true
			}
			switch {
			case a.call == nil:
			case got[i].Err == nil && !fits(&got[i], a.call):
				lies = fmt.Errorf("%s answers a call with what is no outcome of it", l.address)
				a.call.Lost(now, a.number, true, lies)
			default:
				a.call.Answer(now, a.number, got[i].Result, got[i].Err)
			}
		}
		if leaving && l.cfg.Leaving != nil {
			l.cfg.Leaving(l)
		}
		if lies != nil {
			return lies
		}
		clear(got)
		clear(calls)
	}
}

// fits reports whether an answer is one to a call of its kind: callers rely on a reply to each command, and on a session where they opened one.
func fits(a *wire.ReceivedAnswer, c *route.Call) bool {
	switch {
	case a.Kind != c.Kind:
		return false
	case a.Kind == route.Submit:
		return len(a.Result.Replies) == len(c.Commands)
	}
	return a.Kind != route.OpenSession || a.Result.Session != 0
}

// own copies what is small out of a frame of n bytes.
func own(r *core.Result, n int) {
	if size := wire.AnswerBytes(r, nil); size >= n/8 {
		return
	}
	r.Answer = bytes.Clone(r.Answer)
	for i, b := range r.Replies {
		r.Replies[i] = bytes.Clone(b)
	}
}

// lose gives up all calls on the stream.
func (l *Link) lose(why error) {
	l.mu.Lock()
	lost, sent := l.pending, l.sent
	l.up, l.out, l.saying, l.told, l.pending = false, nil, 0, 0, pending{last: lost.last}
	l.mu.Unlock()
	select { // of what is not there any more
	case <-l.wake:
	default:
	}
	now := l.cfg.Now()
	for a := range lost.all {
		a.call.Lost(now, a.number, a.id <= sent, why)
	}
}
