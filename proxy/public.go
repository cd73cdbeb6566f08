package proxy

import (
	"context"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/guard"
)

const (
	// maxPublic bounds the unary calls that are open and need no token, of one host's connections of which nothing is known: each costs a goroutine.
	maxPublic = 256
	// maxPublicStreams bounds the streams that need no token on one connection. Clients that check health themselves have one on each, and hundreds of them may be
	// behind one address.
	maxPublicStreams = 4
	// publicPatience is how long such a call may take to say what it asks: a few bytes.
	publicPatience = 5 * time.Second
)

// public registers services that everybody may call. It bounds what strangers can make the server hold with that: gRPC would wait for the rest of a message
// for ever.
type public struct {
	grpc.ServiceRegistrar
	stranger func(remote net.Addr) bool
	patience time.Duration
	open     tally // calls by host, and streams by connection
}

func newPublic(r grpc.ServiceRegistrar, stranger func(remote net.Addr) bool) *public {
	return &public{ServiceRegistrar: r, stranger: stranger, patience: publicPatience}
}

// RegisterService implements grpc.ServiceRegistrar.
func (p *public) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods, d.Streams = slices.Clone(d.Methods), slices.Clone(d.Streams)
	for i := range d.Methods {
		handle := d.Methods[i].Handler
		d.Methods[i].Handler = func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			leave, err := p.enter(ctx, false)
			if err != nil {
				return nil, err
			}
			defer leave()
			return handle(srv, ctx, func(m any) error { return p.promptly(dec, m) }, in)
		}
	}
	for i := range d.Streams {
		handle := d.Streams[i].Handler
		d.Streams[i].Handler = func(srv any, s grpc.ServerStream) error {
			leave, err := p.enter(s.Context(), true)
			if err != nil {
				return err
			}
			defer leave()
			return handle(srv, &prompt{s, p})
		}
	}
	p.ServiceRegistrar.RegisterService(&d, impl)
}

// enter counts a call, or a stream, until leave.
func (p *public) enter(ctx context.Context, stream bool) (leave func(), err error) {
	from, ok := peer.FromContext(ctx)
	if !ok || from.Addr == nil {
		return func() {}, nil
	}
	key, most, what := from.Addr.String(), maxPublicStreams, "streams of this connection"
	if !stream {
		if !p.stranger(from.Addr) { // what it may have at work is bounded elsewhere
			return func() {}, nil
		}
		key, most, what = guard.HostOf(from.Addr), maxPublic, "calls of this host"
	}
	leave, ok = p.open.take(key, most)
	if !ok {
		return nil, status.Errorf(codes.ResourceExhausted, "%d %s that need no token are open, which is the limit: end some", most, what)
	}
	return leave, nil
}

// promptly receives a message in time. What is late ends with its call: m is not used any more then.
func (p *public) promptly(receive func(any) error, m any) error {
	got := make(chan error, 1)
	go func() { got <- receive(m) }()
	t := time.NewTimer(p.patience)
	defer t.Stop()
	select {
	case err := <-got:
		return err
	case <-t.C:
		return status.Errorf(codes.DeadlineExceeded, "the call has not said within %v what it asks", p.patience)
	}
}

// prompt is a stream whose messages come promptly.
type prompt struct {
	grpc.ServerStream
	public *public
}

func (s *prompt) RecvMsg(m any) error { return s.public.promptly(s.ServerStream.RecvMsg, m) }
