package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// MaxCallRequestBytes is the largest request of a call.
	MaxCallRequestBytes = 1 << 20
	// MaxCallReplyBytes is the largest reply: 16 MiB of content, and something to say about it.
	MaxCallReplyBytes = 16<<20 + 64<<10
	// MaxCallsPerPeer and MaxCalls bound the calls that a node serves at once, for one peer and for all. A
	// reply that gRPC has taken over and not sent yet counts among the 16 streams of its connection.
	MaxCallsPerPeer = 4
	MaxCalls        = 16

	// maxCallFault is where the text of an error is cut.
	maxCallFault = 4 << 10
)

// What became of a call that brought no reply: see [CallError]. An error of a
// context is returned where that ended first.
var (
	// ErrUnreachable: no answer came. The peer may have served the call, unless it never was reached.
	ErrUnreachable = errors.New("the peer cannot be reached")
	// ErrRefused: one of the two sides refuses to deal with the other, or with this request. It was not served.
	ErrRefused = errors.New("the call was refused")
	// ErrBusy: the peer serves as many calls as it may. It was not served; try again later. It is an ErrRefused as well.
	ErrBusy = fmt.Errorf("%w for now", ErrRefused)
	// ErrRemote: the peer's Config.Serve returned an error.
	ErrRemote = errors.New("the peer answered with an error")
)

// CallError is the error of every call. It unwraps to what kind it is: one of the
// errors above, context.Canceled or context.DeadlineExceeded.
type CallError struct {
	Peer uint64
	Kind error
	Text string // the sentence of whoever noticed; the peer's own words for ErrRefused and ErrRemote
}

func (e *CallError) Error() string {
	return fmt.Sprintf("transport: call to node %d: %v: %s", e.Peer, e.Kind, e.Text)
}

// Unwrap returns e.Kind.
func (e *CallError) Unwrap() error { return e.Kind }

// checkRequest refuses what the other side would not read.
func checkRequest(to uint64, request []byte) error {
	if len(request) > MaxCallRequestBytes {
		return &CallError{to, ErrRefused, fmt.Sprintf("the request has %d bytes, at most %d are allowed", len(request), MaxCallRequestBytes)}
	}
	return nil
}

func notPeer(to, node uint64) error {
	return &CallError{to, ErrUnreachable, fmt.Sprintf("node %d is not a peer of node %d", to, node)}
}

// Call implements [Peer].
func (t *Transport) Call(ctx context.Context, to uint64, method uint8, request []byte) ([]byte, error) {
	p := (*t.peers.Load())[to]
	if p == nil {
		return nil, notPeer(to, t.cfg.Node)
	}
	if err := checkRequest(to, request); err != nil {
		return nil, err
	}
	m, err := p.call(ctx, callMessage{callRequest, method, request})
	return callResult(ctx, to, m, err)
}

var errBlocked = status.Error(codes.Unavailable, "the peer is blocked")

// callStream describes a call as the client sees it. The server declares it as a
// stream, so that it can refuse a call before it has read any of it: on the wire
// there is no difference.
var callStream = grpc.StreamDesc{StreamName: callName, ClientStreams: true}

// call returns the answer. The error is a status, or else means that there is none.
func (p *peer) call(ctx context.Context, request callMessage) (callMessage, error) {
	var none callMessage
	if p.t.isBlocked(p.id) {
		return none, errBlocked
	}
	conn, err := p.calls.get(p)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream, whatever became of it
	stream, err := p.handshake(ctx, conn, &callStream, callMethod, grpc.MaxCallRecvMsgSize(MaxCallReplyBytes+callHeaderSize))
	if err != nil {
		return none, err
	}
	// A copy, as gRPC may still hold it when ctx has ended and the caller has its own back.
	request.payload = slices.Clone(request.payload)
	if err = stream.SendMsg(&outgoingCall{request}); err == nil {
		err = stream.CloseSend()
	}
	if err != nil && !errors.Is(err, io.EOF) { // EOF only means that the status is to be had below
		return none, err
	}
	var msg incoming
	if err := stream.RecvMsg(&msg); status.Code(err) == codes.ResourceExhausted {
		return none, errors.New(status.Convert(err).Message()) // gRPC's limit here: the peer was not busy
	} else if err != nil {
		return none, err
	}
	m, err := openCall(msg.data, MaxCallReplyBytes)
	switch {
	case err != nil:
		return none, err
	case m.method != request.method || m.kind == callRequest:
		return none, fmt.Errorf("%w: kind %d of method %d is no answer of method %d", errBadCall, m.kind, m.method, request.method)
	case p.t.isBlocked(p.id):
		return none, errBlocked
	}
	return m, nil
}

// callResult is what the caller gets: the reply, or an error that says of which kind it is.
func callResult(ctx context.Context, to uint64, m callMessage, err error) ([]byte, error) {
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, &CallError{to, ctx.Err(), status.Convert(err).Message()}
	case err == nil && m.kind == callFault:
		return nil, &CallError{to, ErrRemote, string(m.payload)}
	case err == nil:
		return m.payload, nil
	}
	st, kind := status.Convert(err), ErrUnreachable
	switch st.Code() {
	case codes.FailedPrecondition, codes.InvalidArgument, codes.Unimplemented:
		kind = ErrRefused
	case codes.ResourceExhausted:
		kind = ErrBusy
	case codes.DeadlineExceeded: // the peer's clock was a little faster than ours
		kind = context.DeadlineExceeded
	}
	return nil, &CallError{to, kind, st.Message()}
}

// callConn is the connection for the calls to one peer. It is not that of the
// frames: a reply of megabytes would hold up the heartbeats behind it. Unlike a
// session it is left to gRPC to mend, as each call fails on its own, and to let go
// when there were no calls for a while.
type callConn struct {
	mu     sync.Mutex
	conn   *grpc.ClientConn // nil until the first call
	closed bool
	// sockets are those that were opened last. gRPC has one, and may have another
	// that was told to go away and ends its calls.
	sockets []net.Conn
}

const maxCallSockets = 4

var errPeerGone = errors.New("the peer was removed, has moved, or this node is shutting down")

func (c *callConn) get(p *peer) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errPeerGone
	}
	if c.conn == nil {
		conn, err := grpc.NewClient("passthrough:///"+p.addr, append(clientOptions(),
			grpc.WithTransportCredentials(p.t.cfg.TLS.clientCredentials()), grpc.WithContextDialer(c.dial),
			grpc.WithIdleTimeout(maxIdle),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: backoffMin, Multiplier: 2, Jitter: 0.25, MaxDelay: backoffMax},
				MinConnectTimeout: p.t.cfg.handshakeTimeout,
			}))...)
		if err != nil {
			return nil, err
		}
		c.conn = conn
	}
	return c.conn, nil
}

// dial returns the connection as it is, in no wrapper: gRPC sets options of a *net.TCPConn.
func (c *callConn) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	if len(c.sockets) == maxCallSockets {
		c.sockets[0].Close()
		c.sockets = slices.Delete(c.sockets, 0, 1)
	}
	c.sockets = append(c.sockets, conn)
	return conn, nil
}

// close ends the calls that are under way, and refuses those to come.
func (c *callConn) close() {
	c.mu.Lock()
	conn := c.conn
	c.closed = true
	for _, s := range c.sockets { // first, as in session
		s.Close()
	}
	c.mu.Unlock() // conn.Close may wait for dial
	if conn != nil {
		conn.Close()
	}
}
