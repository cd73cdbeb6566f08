package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	rpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/limitlog"
)

const (
	// The windows are fixed, which also switches off gRPC's probing for the
	// bandwidth: pings that cost latency.
	streamWindow = 4 << 20
	connWindow   = 2 * streamWindow
	// ioBuffer is what one system call reads or writes at most.
	ioBuffer = 128 << 10

	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
	maxIdle          = 30 * time.Second
	maxHeaderBytes   = 16 << 10
	maxStreams       = 16
)

func serverOptions(cfg Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(serverCodec{others: codec.Codec{}}),
		grpc.MaxRecvMsgSize(cfg.maxMessage()),
		grpc.WaitForHandlers(true), // Stop then waits for Serve, and for Services
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ReadBufferSize(ioBuffer),
		grpc.ConnectionTimeout(cfg.handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: cfg.maxIdle, Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	}
}

func clientOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})),
		// No retries: gRPC would keep a second reference to what it has sent.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithNoProxy(), // peers are direct, whatever the environment says
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithReadBufferSize(ioBuffer),
		// Also sets TCP_USER_TIMEOUT: bytes that are not acknowledged for 3 s end the connection.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
	}
}

// inbound is an accepted stream of one sender.
type inbound struct {
	t     *Transport
	hello hello
	count *counters
	// kicked gets the status with which the stream is to end, at most one.
	kicked chan error
	gap    bool // something may be missing before the next frame; of who has turn's token
	// turn's token is taken while some stream of the sender is being read. A stream
	// that was replaced may still be in Receive; the newer one waits for it.
	turn *turn
}

// frames serves one stream (gRPC's goroutine). It does not read the stream
// itself: gRPC's RecvMsg can be interrupted only by returning from here.
func (t *Transport) frames(_ any, stream grpc.ServerStream) error {
	in, err := t.accept(stream.Context())
	if err != nil {
		st := status.Convert(err)
		t.log.Warn(limitlog.Key{Reason: st.Message()}, "refused a stream on the peer port",
			"remote", remoteAddr(stream.Context()), "reason", st.Message())
		return err
	}
	defer t.leave(in)
	ended := make(chan error, 1)
	if !t.spawn(func() {
		defer t.endTurn(in)
		ended <- in.read(stream)
	}) {
		return errClosing
	}
	select {
	case err = <-ended:
	case err = <-in.kicked:
	}
	return in.verdict(err, remoteAddr(stream.Context()))
}

var errClosing = status.Error(codes.Unavailable, "this node is shutting down")

// introduce reads the handshake of a stream or a call and checks it. The error is a status.
func (t *Transport) introduce(ctx context.Context) (hello, error) {
	h, err := readHello(ctx)
	if err != nil {
		return h, err
	}
	if err := t.checkHello(h); err != nil {
		return h, err
	}
	if err := t.allowed(h.from); err != nil {
		return h, err
	}
	return h, t.admit(h.from, h.data)
}

// accepted is how this node introduces itself in return.
func (t *Transport) accepted() metadata.MD {
	return metadata.Pairs(keyAccepted, strconv.FormatUint(t.incarnation, 16), keyData, t.cfg.Data)
}

// accept checks the handshake and makes the stream the sender's only one.
func (t *Transport) accept(ctx context.Context) (*inbound, error) {
	h, err := t.introduce(ctx)
	if err != nil {
		return nil, err
	}
	in, err := t.register(h)
	if err != nil {
		return nil, err
	}
	// Again, as who was removed meanwhile has been looked for in the register already.
	if err := t.allowed(h.from); err != nil {
		t.leave(in)
		t.endTurn(in)
		return nil, err
	}
	if t.cfg.Met != nil && h.address != "" {
		t.cfg.Met(h.from, h.address)
	}
	return in, nil
}

func (t *Transport) register(h hello) (*inbound, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosing
	}
	in := &inbound{t: t, hello: h, gap: true, kicked: make(chan error, 1), turn: t.turn(h.from)}
	old := t.inbound[h.from]
	if p := (*t.peers.Load())[h.from]; p != nil {
		in.count = p.count
		signal(p.poke)
	} else if old != nil {
		in.count = old.count
	} else {
		in.count = &counters{}
	}
	if old != nil {
		t.replace(old, h)
	}
	t.inbound[h.from] = in
	return in, nil
}

// replace ends old in favour of a newer stream. Two processes that both claim to
// be the same node take turns here, which somebody should know.
func (t *Transport) replace(old *inbound, h hello) {
	if old.hello.incarnation != h.incarnation {
		t.log.Warn(limitlog.Key{Peer: h.from, Reason: "incarnation"}, "a peer's stream is replaced by that of another process with the same node id: "+
			"it was restarted, or two processes use the id", "peer", h.from)
	}
	old.kick(status.Error(codes.Aborted, "replaced: this node has accepted a newer stream from the same sender"))
}

// turn is held while a stream of one sender is being read. It outlives the sender's
// being a peer, as a Receive might.
type turn struct {
	token chan struct{}
	users int // streams that hold or await it; guarded by Transport.mu
}

// turn returns the sender's, which endTurn gives back. The caller holds t.mu.
func (t *Transport) turn(from uint64) *turn {
	if t.turns[from] == nil {
		t.turns[from] = &turn{token: make(chan struct{}, 1)}
	}
	t.turns[from].users++
	return t.turns[from]
}

func (t *Transport) endTurn(in *inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if in.turn.users--; in.turn.users == 0 {
		delete(t.turns, in.hello.from)
	}
}

// leave takes in out of the register, unless a newer stream is there.
func (t *Transport) leave(in *inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inbound[in.hello.from] == in {
		delete(t.inbound, in.hello.from)
	}
}

func (in *inbound) kick(err error) {
	select {
	case in.kicked <- err:
	default: // it is ending already
	}
}

// read hands on frames until the stream ends. The error is a status, or nil.
func (in *inbound) read(stream grpc.ServerStream) error {
	select {
	case in.turn.token <- struct{}{}:
		defer func() { <-in.turn.token }()
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	if err := stream.SendHeader(in.t.accepted()); err != nil {
		return err
	}
	for {
		var msg incoming
		if err := stream.RecvMsg(&msg); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if n, most := len(msg.data), in.t.cfg.MaxFrameBytes+frameHeaderSize; n > most {
			// As gRPC says it, whose own limit may be higher for other methods' sake.
			return status.Errorf(codes.ResourceExhausted, "received message larger than max (%d vs. %d)", n, most)
		}
		payload, err := openFrame(msg.data, in.t.cfg.MaxFrameBytes)
		if err != nil {
			return err
		}
		if stream.Context().Err() != nil {
			return nil // replaced, removed or closed meanwhile
		}
		in.deliver(payload)
	}
}

func (in *inbound) deliver(payload []byte) {
	if in.t.isBlocked(in.hello.from) {
		in.count.droppedReceived.Add(1)
		in.gap = true
		return
	}
	if in.gap && in.t.cfg.Gap != nil {
		in.t.cfg.Gap(in.hello.from)
	}
	in.gap = false
	in.count.receivedFrames.Add(1)
	in.count.receivedBytes.Add(uint64(len(payload)))
	in.t.cfg.Receive(in.hello.from, payload)
}

// verdict turns the reason why a stream ended into its status, and logs it where
// it is not just a connection that went away.
func (in *inbound) verdict(err error, remote string) error {
	switch {
	case errors.Is(err, errFrameVersion):
		err = status.Errorf(codes.FailedPrecondition, "stream refused: %v", err)
	case errors.Is(err, errBadFrame):
		err = status.Errorf(codes.InvalidArgument, "stream refused: %v", err)
	case status.Code(err) == codes.ResourceExhausted:
		// gRPC's own limit, which it has told the sender already; this is for the log.
		err = status.Errorf(codes.ResourceExhausted, "stream refused: a frame is larger than MaxFrameBytes of this node, %d: %s",
			in.t.cfg.MaxFrameBytes, status.Convert(err).Message())
	case err == nil, errors.Is(err, context.Canceled), isQuiet(status.Code(err)):
		return err
	}
	text := status.Convert(err).Message()
	in.t.log.Warn(limitlog.Key{Peer: in.hello.from, Reason: text}, "ended a peer's stream", "peer", in.hello.from, "remote", remote, "reason", text)
	return err
}

// isQuiet: the connection went away, the stream was replaced, or this node stops.
func isQuiet(c codes.Code) bool {
	return c == codes.Canceled || c == codes.Aborted || c == codes.Unavailable
}

// strangers answers calls of what nobody has registered.
func (t *Transport) strangers(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	err := fmt.Sprintf("this is a Decree peer port: it serves %s, not %s", framesMethod, clip(method))
	t.log.Warn(limitlog.Key{Reason: err}, "refused a stream on the peer port", "remote", remoteAddr(stream.Context()), "reason", err)
	return status.Error(codes.Unimplemented, err)
}

func remoteAddr(ctx context.Context) string {
	if p, ok := rpcpeer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return "unknown"
}
