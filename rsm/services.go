package rsm

import (
	"context"
	"slices"

	"google.golang.org/grpc"
)

// services offers Config.Services on the node's port. The port is open before Start has returned: calls wait for that, so that
// no service sees half a node.
func (n *Node) services(r grpc.ServiceRegistrar) { n.cfg.Services(n, &gate{n, r}) }

// gate registers services whose calls wait until the node has started.
type gate struct {
	node *Node
	grpc.ServiceRegistrar
}

// RegisterService implements grpc.ServiceRegistrar.
func (g *gate) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods, d.Streams = slices.Clone(d.Methods), slices.Clone(d.Streams)
	for i := range d.Methods {
		handle := d.Methods[i].Handler
		d.Methods[i].Handler = func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			if err := g.pass(ctx); err != nil {
				return nil, err
			}
			return handle(srv, ctx, dec, in)
		}
	}
	for i := range d.Streams {
		handle := d.Streams[i].Handler
		d.Streams[i].Handler = func(srv any, stream grpc.ServerStream) error {
			if err := g.pass(stream.Context()); err != nil {
				return err
			}
			return handle(srv, stream)
		}
	}
	g.ServiceRegistrar.RegisterService(&d, impl)
}

// pass waits until Start has returned. If it fails, the port is closed, and ctx ends.
func (g *gate) pass(ctx context.Context) error {
	select {
	case <-g.node.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
