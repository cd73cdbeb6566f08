// Package gate puts a check before every call of the gRPC services that are registered through it, without interceptors: those
// belong to a whole server, and a node's port serves others besides.
package gate

import (
	"context"
	"slices"

	"google.golang.org/grpc"
)

// Registrar registers services whose calls are checked first. method is the full name, "/package.Service/Method".
type Registrar struct {
	grpc.ServiceRegistrar
	// Call is asked before a unary call's request is decoded. The call goes on with the context that it returns.
	Call func(ctx context.Context, method string) (context.Context, error)
	// Stream is asked before a stream's handler is run, with the stream that it returns.
	Stream func(s grpc.ServerStream, method string) (grpc.ServerStream, error)
}

// RegisterService implements grpc.ServiceRegistrar.
func (r *Registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods, d.Streams = slices.Clone(d.Methods), slices.Clone(d.Streams)
	for i := range d.Methods {
		handle, name := d.Methods[i].Handler, "/"+d.ServiceName+"/"+d.Methods[i].MethodName
		d.Methods[i].Handler = func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			ctx, err := r.Call(ctx, name)
			if err != nil {
				return nil, err
			}
			return handle(srv, ctx, dec, in)
		}
	}
	for i := range d.Streams {
		handle, name := d.Streams[i].Handler, "/"+d.ServiceName+"/"+d.Streams[i].StreamName
		d.Streams[i].Handler = func(srv any, s grpc.ServerStream) error {
			s, err := r.Stream(s, name)
			if err != nil {
				return err
			}
			return handle(srv, s)
		}
	}
	r.ServiceRegistrar.RegisterService(&d, impl)
}
