package admin

import (
	"google.golang.org/grpc"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// RoleOf returns the role that a method of the admin service takes: read for what only looks, admin for everything else, a backup
// among it: it takes a copy of all shards out of the node, as fast as it can.
func RoleOf(method string) access.Role {
	switch method {
	case adminv1.AdminService_Status_FullMethodName, adminv1.AdminService_Members_FullMethodName,
		adminv1.AdminService_ListSnapshots_FullMethodName, adminv1.AdminService_Journal_FullMethodName, adminv1.AdminService_Hash_FullMethodName:
		return access.Read
	}
	return access.Admin
}

// Checked is Register with every call checked by a policy. It is for rsm.Config.Services, whose port the nodes share with each
// other: they need no tokens there, and the service's callers do.
func Checked(p *access.Policy) func(n *rsm.Node, r grpc.ServiceRegistrar) {
	return func(n *rsm.Node, r grpc.ServiceRegistrar) { Register(n, p.Registrar(r, RoleOf)) }
}
