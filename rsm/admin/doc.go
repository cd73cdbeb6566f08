// Package admin lets operators at a node: it offers the gRPC service that the command decree speaks
// (api/decree/admin/v1), in any program that embeds package rsm.
//
//	rsm.Start(rsm.Config{ /* ... */ })
//	admin.Register(node, grpcServer)            // beside the program's own services
//	server, err := admin.Listen(node, addr, tls) // or on a port of its own
//
// Whoever reaches the service may remove members and hand over leaderships: it knows no permissions. Serve it on a
// private address, or with mutual TLS.
//
// It is made of nothing but rsm's public surface. Each call runs on gRPC's goroutine for it; Drain has
// a second one, which ends with the call.
package admin
