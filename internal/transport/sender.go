package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/limitlog"
)

const (
	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
	// stableAfter is how long a stream must have lived for the next failure to be
	// a new one, rather than one more of the same.
	stableAfter = 10 * time.Second
)

var (
	errHandshakeTimeout = errors.New("the peer did not answer the handshake in time")
	errSpoke            = errors.New("the peer sent a message on a stream that only we send on")
	errNotAccepted      = errors.New("the peer answered, but not as a Decree node does")
)

// counters outlive a change of the peer's address.
type counters struct {
	sentItems, sentFrames, sentBytes atomic.Uint64
	droppedItems, droppedBytes       atomic.Uint64
	receivedFrames, receivedBytes    atomic.Uint64
	droppedReceived, connects        atomic.Uint64
}

func (c *counters) drop(items, bytes int) {
	c.droppedItems.Add(uint64(items))
	c.droppedBytes.Add(uint64(bytes))
}

// peer is the outgoing side of one peer at one address.
type peer struct {
	t      *Transport
	id     uint64
	addr   string
	queue  *queue
	count  *counters
	cancel context.CancelFunc
	// dirty says that something was appended since the last Flush.
	dirty atomic.Bool
	// wake lets the sender look into the queue; poke ends its backoff.
	wake, poke chan struct{}
	calls      callConn

	connected atomic.Bool
	lastError atomic.Pointer[string]
}

// run keeps a stream to the peer for as long as ctx lasts.
func (p *peer) run(ctx context.Context) {
	defer p.calls.close()
	defer p.markLost(false) // what came during a pause
	backoff := backoffMin
	for ctx.Err() == nil {
		started := time.Now()
		err := p.session(ctx)
		p.markLost(p.connected.Swap(false))
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > stableAfter {
			p.t.log.Forget(p.id)
			backoff = backoffMin
		}
		p.report(err)
		if !p.pause(ctx, backoff) {
			return
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// markLost drops what is queued, and reports it or that the stream broke: raft
// sends again what still matters, and after a pause most of it does not.
func (p *peer) markLost(wasUp bool) {
	items, bytes := p.queue.drop()
	p.count.drop(items, bytes)
	if items > 0 || wasUp {
		p.t.notify.mark(p.id)
	}
}

// pause waits for d less up to a quarter, so that nodes that failed together do
// not come back together. A stream from the peer ends it: the peer is up.
func (p *peer) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d - rand.N(d/4))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-p.poke:
	case <-timer.C:
	}
	return true
}

// clientPort is the part of a network error that differs with every attempt.
var clientPort = regexp.MustCompile(`\S+->`)

func (p *peer) report(err error) {
	st := status.Convert(err)
	text := st.Message()
	p.lastError.Store(&text)
	key := limitlog.Key{Peer: p.id, Reason: clientPort.ReplaceAllString(text, "")}
	switch st.Code() {
	case codes.FailedPrecondition, codes.InvalidArgument, codes.ResourceExhausted:
		p.t.log.Warn(key, "a peer refused our stream", "peer", p.id, "addr", p.addr, "reason", text)
	default:
		p.t.log.Warn(key, "no stream to a peer", "peer", p.id, "addr", p.addr, "reason", text)
	}
}

// session opens one connection and one stream, sends until it breaks, and leaves
// nothing running. A connection per session, rather than one that gRPC mends by
// itself: there is one backoff, and the socket can be shut while gRPC is stuck in
// writing to it.
func (p *peer) session(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sock socket
	conn, err := p.dial(&sock)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer sock.close() // first, or conn.Close waits for a writer that may be stuck
	timeout := time.AfterFunc(p.t.cfg.handshakeTimeout, func() { cancel(errHandshakeTimeout) })
	defer timeout.Stop()
	stream, err := p.handshake(ctx, conn, &framesStream, framesMethod)
	if err != nil {
		if errors.Is(context.Cause(ctx), errHandshakeTimeout) {
			return fmt.Errorf("%w (%v)", errHandshakeTimeout, p.t.cfg.handshakeTimeout)
		}
		return err
	}
	if !timeout.Stop() {
		return errHandshakeTimeout
	}
	p.established()
	broken := make(chan error, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() { broken <- p.watch(stream) })
	defer watcher.Wait()
	defer cancel(nil)
	return p.send(ctx, stream, broken)
}

func (p *peer) established() {
	p.connected.Store(true)
	p.lastError.Store(new(string))
	p.count.connects.Add(1)
	p.t.cfg.Logger.Info("connected to a peer", "peer", p.id, "addr", p.addr)
	if p.t.cfg.Connected != nil {
		p.t.cfg.Connected(p.id)
	}
}

func (p *peer) dial(sock *socket) (*grpc.ClientConn, error) {
	// passthrough: the dialer resolves the name, once per attempt.
	return grpc.NewClient("passthrough:///"+p.addr, append(clientOptions(),
		grpc.WithTransportCredentials(p.t.cfg.TLS.clientCredentials()), grpc.WithContextDialer(sock.dial))...)
}

// handshake returns a stream that the peer has accepted.
func (p *peer) handshake(ctx context.Context, conn *grpc.ClientConn, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	h := hello{protocol: protocolMax, cluster: p.t.cfg.Cluster, from: p.t.cfg.Node, to: p.id, incarnation: p.t.incarnation, data: p.t.cfg.Data, address: p.t.cfg.Address}
	stream, err := conn.NewStream(metadata.NewOutgoingContext(ctx, h.metadata()), desc, method, opts...)
	if err != nil {
		return nil, err
	}
	md, err := stream.Header()
	if err != nil {
		return nil, err
	}
	if len(md.Get(keyAccepted)) == 1 {
		data, err := helloValue(md, keyData)
		if err == nil {
			err = p.t.admit(p.id, data)
		}
		return stream, err
	}
	// Refused: the status tells why. (A nil md is how gRPC says that there is one.)
	if md == nil {
		if err := stream.RecvMsg(new(incoming)); err != nil {
			return nil, err
		}
	}
	return nil, errNotAccepted
}

// watch waits for the end of the stream, which SendMsg would notice only with the next frame.
func (p *peer) watch(stream grpc.ClientStream) error {
	if err := stream.RecvMsg(new(incoming)); !errors.Is(err, io.EOF) && err != nil {
		return err
	} else if err == nil {
		return errSpoke
	}
	return errors.New("the peer ended the stream")
}

func (p *peer) send(ctx context.Context, stream grpc.ClientStream, broken <-chan error) error {
	for {
		f, ok := p.queue.take()
		if !ok {
			select {
			case <-p.wake:
				continue
			case err := <-broken:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := p.sendFrame(stream, f); errors.Is(err, io.EOF) {
			return <-broken // EOF only means that the status is to be had there
		} else if err != nil {
			return err
		}
	}
}

// sendFrame may block for as long as the peer does not read.
func (p *peer) sendFrame(stream grpc.ClientStream, f frame) error {
	payload := f.payload()
	if p.t.isBlocked(p.id) {
		p.queue.release(payload)
		p.t.pool.Put(f.buf)
		p.count.drop(f.items, payload)
		p.t.notify.mark(p.id)
		return nil
	}
	sealFrame(*f.buf)
	err := stream.SendMsg(&outgoing{buf: f.buf, pool: &p.t.pool}) // gRPC owns f.buf from here on
	p.queue.release(payload)
	if err != nil {
		p.count.drop(f.items, payload)
		p.t.notify.mark(p.id)
		return err
	}
	p.count.sentItems.Add(uint64(f.items))
	p.count.sentFrames.Add(1)
	p.count.sentBytes.Add(uint64(payload))
	return nil
}

// socket is the connection under a session. gRPC gives up on a connection only
// after it has tried for seconds to say goodbye; shutting the socket spares that.
type socket struct {
	mu     sync.Mutex
	conn   net.Conn
	closed bool
}

func (s *socket) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.conn != nil {
		conn.Close()
		return nil, net.ErrClosed // one connection per session: the first one failed
	}
	s.conn = conn
	return conn, nil
}

func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		s.conn.Close()
	}
}
