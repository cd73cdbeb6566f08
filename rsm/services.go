package rsm

import (
	"context"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/internal/gate"
)

// services offers Config.Services on the node's port. The port is open before Start has returned: calls wait for that, so that
// no service sees half a node.
func (n *Node) services(r grpc.ServiceRegistrar) {
	n.cfg.Services(n, &gate.Registrar{
		ServiceRegistrar: r,
		Call:             func(ctx context.Context, _ string) (context.Context, error) { return ctx, n.awaitStart(ctx) },
		Stream:           func(s grpc.ServerStream, _ string) (grpc.ServerStream, error) { return s, n.awaitStart(s.Context()) },
	})
}

// awaitStart waits until Start has returned. If it fails, the port is closed, and ctx ends.
func (n *Node) awaitStart(ctx context.Context) error {
	select {
	case <-n.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
