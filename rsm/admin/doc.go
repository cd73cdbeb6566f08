// Package admin lets operators at a node: it offers the gRPC service that the command decree speaks
// (api/decree/admin/v1), in any program that embeds package rsm.
//
//	rsm.Start(rsm.Config{ /* ... */ Services: admin.Register})  // on the node's own port
//	rsm.Start(rsm.Config{ /* ... */ Services: admin.Checked(policy)})
//	server, err := admin.Listen(node, addr, tls)                // on a port of its own, for whoever has a certificate
//	server, err := admin.Serve(node, addr, access.Port{TLS: tls, Policy: policy})
//	admin.Register(node, grpcServer)                            // beside the program's own services
//
// Whoever reaches the service may remove members, unless a policy (package access) says who they are and what they may do: RoleOf
// has the role that each call takes. What it refuses has the status Unauthenticated or PermissionDenied, and did not happen.
//
// It is made of nothing but rsm's public surface. Each call runs on gRPC's goroutine for it; Drain has
// a second one, which ends with the call.
package admin
