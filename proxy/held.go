package proxy

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/access"
)

const (
	// receivePatience is how long the message of a unary call may take to come in, from the call's header on.
	receivePatience = 15 * time.Second
	// maxReceiving messages of unary calls of one caller are received at the same time: what has come of each is in memory. Others wait for their turn.
	maxReceiving = 16
	// maxUnsent bounds the answers of one caller that wait on streams of calls, or that gRPC has been given and has not sent, as their client takes no more. A single
	// one may be larger. On a node's own port it is maxUntaken, as all proxies may be one caller there.
	// With more than maxUntaken, which small answers on streams add to, it is given no further stream.
	maxUnsent  = 64 << 20
	maxUntaken = 4 * maxUnsent
	// maxStreamsOfConn bounds the streams of calls on one connection: each may have a frame in memory, or a part of one.
	maxStreamsOfConn = 8
)

// holds counts what callers make a server hold before their calls are at work, and after.
type holds struct {
	mu      sync.Mutex
	callers map[string]*held
	most    int64 // maxUnsent, or what else bounds the answers of a caller
	streams tally // of calls, by connection
}

// held is what one caller makes the server hold: whoever has shown who it is, or else a connection.
type held struct {
	of        *holds
	name      string
	receiving chan struct{} // has one for each message that is being received

	// Guarded by of.mu.
	uses   int // calls, and answers that have not been sent; it is forgotten with the last
	unsent int64
}

func newHolds() *holds { return &holds{callers: map[string]*held{}, most: maxUnsent} }

// nameOf returns the name of who calls.
func nameOf(ctx context.Context, id access.Identity) string {
	if id.Name != "" {
		return id.Name
	}
	return addressOf(ctx)
}

func addressOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// caller returns the record of who calls, until leave.
func (h *holds) caller(ctx context.Context) *held {
	id, _ := access.FromContext(ctx)
	name := nameOf(ctx, id)
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.callers[name]
	if c == nil {
		c = &held{of: h, name: name, receiving: make(chan struct{}, maxReceiving)}
		h.callers[name] = c
	}
	c.uses++
	return c
}

func (c *held) leave() { c.sent(0) }

// sent ends a use: that of an answer with its bytes.
func (c *held) sent(bytes int64) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.unsent -= bytes
	if c.uses--; c.uses == 0 {
		delete(c.of.callers, c.name)
	}
}

// send reports whether an answer of so many bytes may be given to gRPC. Then sent is to be called.
func (c *held) send(bytes int64) bool {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if !c.fits(bytes) {
		return false
	}
	c.uses++
	c.unsent += bytes
	return true
}

// fits reports whether there is room for so many bytes more. of.mu is held.
func (c *held) fits(bytes int64) bool { return c.unsent == 0 || c.unsent+bytes <= c.of.most }

// untaken reports whether there are answers that their callers have not taken. Small ones do not count.
func (h *holds) untaken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.callers {
		if c.unsent > 0 {
			return true
		}
	}
	return false
}

// wait counts so many bytes more that wait on a stream of calls, if there is room for them, or anyway. It reports whether it did. A negative number is of those that
// do not wait any more.
func (c *held) wait(bytes int64, anyway bool) bool {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if !anyway && !c.fits(bytes) {
		return false
	}
	c.unsent += bytes
	return true
}

// begin takes a stream of calls in, until end.
func (h *holds) begin(ctx context.Context) (end func(), err error) {
	c := h.caller(ctx)
	defer c.leave()
	end, ok := h.streams.take(addressOf(ctx), maxStreamsOfConn)
	if !ok {
		return nil, noStream("the connection has %d streams of calls, which is the limit: one is enough for many calls", maxStreamsOfConn)
	}
	h.mu.Lock()
	unsent := c.unsent // of streams that were ended for that, maybe
	h.mu.Unlock()
	if unsent > maxUntaken {
		end()
		return nil, noStream("%d bytes of earlier answers have not been taken: close their connections, or read them", unsent)
	}
	return end, nil
}

func noStream(format string, args ...any) error {
	return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: time.Second, Message: fmt.Sprintf(format, args...)}
}

// bounded registers services whose unary calls have their messages received in time, a few of one caller at once, and whose answers count until they are sent.
type bounded struct {
	grpc.ServiceRegistrar
	service *service
}

// RegisterService implements grpc.ServiceRegistrar.
func (b *bounded) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = slices.Clone(d.Methods)
	for i := range d.Methods {
		handle, name := d.Methods[i].Handler, "/"+d.ServiceName+"/"+d.Methods[i].MethodName
		d.Methods[i].Handler = func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			b.service.open.Add(1)
			defer b.service.open.Add(-1)
			c := b.service.holds.caller(ctx)
			defer c.leave()
			answer, err := handle(srv, ctx, func(m any) error { return b.service.receive(ctx, c, dec, m) }, in)
			if err != nil {
				return nil, err
			}
			return c.counted(name, answer)
		}
	}
	b.ServiceRegistrar.RegisterService(&d, impl)
}

// receive receives the message of a unary call.
func (s *service) receive(ctx context.Context, c *held, dec func(any) error, m any) error {
	late := time.NewTimer(s.receivePatience)
	defer late.Stop()
	select {
	case c.receiving <- struct{}{}:
	default:
		select {
		case c.receiving <- struct{}{}:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-late.C:
			return wire.Status(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: time.Second,
				Message: fmt.Sprintf("%d messages of this caller have been on their way for %v: no more are received", maxReceiving, s.receivePatience)})
		}
	}
	got := make(chan error, 1)
	go func() {
		got <- dec(m)
		<-c.receiving
	}()
	select {
	case err := <-got:
		return err
	case <-late.C: // what is late ends with its call: m is not used any more then
		return wire.Status(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeCancelled,
			Message: fmt.Sprintf("the call's message has not come within %v", s.receivePatience)})
	}
}

// frame is a frame of answers, of which so many bytes have counted up to here. It is sent in any case, and counts until gRPC has done so, unless it is small.
func (c *held) frame(data []byte, counted int64) any {
	f := &codec.Frame{Data: data}
	n := int64(len(data))
	if n <= codec.SmallBytes {
		if counted > 0 {
			c.wait(-counted, true)
		}
		return f
	}
	c.of.mu.Lock()
	c.uses++
	c.unsent += n - counted
	c.of.mu.Unlock()
	return &codec.Counted{Message: f, Sent: sync.OnceFunc(func() { c.sent(n) })}
}

// counted returns an answer that counts for its caller until it is sent. The small ones, which fit into the window of a client that has said nothing else, do not.
func (c *held) counted(method string, answer any) (any, error) {
	m, is := answer.(proto.Message)
	if !is {
		return answer, nil
	}
	n := int64(proto.Size(m))
	if n <= codec.SmallBytes {
		return answer, nil
	}
	if !c.send(n) {
		read := method == decreev1.DecreeService_Read_FullMethodName || method == decreev1.DecreeService_GetTopology_FullMethodName
		return nil, wire.Status(noRoom(int(n), read))
	}
	return &codec.Counted{Message: answer, Sent: func() { c.sent(n) }}, nil
}
