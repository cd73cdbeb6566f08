// Package decreev1 is decree.v1 in Go, generated from decree.proto: what a client speaks, in any language, to a proxy or to a node's own port. The
// conventions, exactly-once and the meaning of every field stand in that file.
//
// A program in Go needs little of it: package proxy/client speaks the protocol, and package proxy offers it. What is here is for those who write another client
// or server: [DecreeServiceClient] has a unary call for each kind of request, and Connect, one stream for many calls. The [Error] among the details of a gRPC
// status, or in an [Answer], says whether the call happened ([Kind]) and why not (its code, one of package rsm's).
package decreev1
