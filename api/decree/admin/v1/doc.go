// Package adminv1 is decree.admin.v1 in Go, generated from admin.proto: the operator's side of a node, which says how it stands, and changes members and
// leaders. The conventions and the meaning of every field stand in that file.
//
// Package rsm/admin offers the service on a node and makes Go errors of an [ErrorDetail] again; the command decree is a client of it.
// [AdminServiceClient] is for programs that operate clusters by themselves.
package adminv1
