package admin_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
)

// Every method of the service, called as if by somebody with no idea.
var everyMethod = map[string]func(context.Context, adminv1.AdminServiceClient) error{
	"Status": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Status(ctx, &adminv1.StatusRequest{}))
	},
	"Members": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Members(ctx, &adminv1.MembersRequest{}))
	},
	"AddLearner": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.AddLearner(ctx, &adminv1.AddLearnerRequest{}))
	},
	"Promote": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Promote(ctx, &adminv1.PromoteRequest{}))
	},
	"Remove": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Remove(ctx, &adminv1.RemoveRequest{}))
	},
	"Replace": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Replace(ctx, &adminv1.ReplaceRequest{}))
	},
	"SetAddress": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.SetAddress(ctx, &adminv1.SetAddressRequest{}))
	},
	"Transfer": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Transfer(ctx, &adminv1.TransferRequest{}))
	},
	"Drain": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return drained(c.Drain(ctx, &adminv1.DrainRequest{}))
	},
	"CutSnapshot": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.CutSnapshot(ctx, &adminv1.CutSnapshotRequest{}))
	},
	"ListSnapshots": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{}))
	},
	"Backup": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return drained(c.Backup(ctx, &adminv1.BackupRequest{}))
	},
	"Repair": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Repair(ctx, &adminv1.RepairRequest{}))
	},
	"Journal": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return drained(c.Journal(ctx, &adminv1.JournalRequest{}))
	},
	"Hash": func(ctx context.Context, c adminv1.AdminServiceClient) error {
		return ignore(c.Hash(ctx, &adminv1.HashRequest{}))
	},
}

func ignore[T any](_ T, err error) error { return err }

func drained[T any](s grpc.ServerStreamingClient[T], err error) error {
	for err == nil {
		_, err = s.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// The port of the node and ports of the service's own: without a token, with a wrong one, an expired one, one whose role is too
// small; without a certificate, with one that has expired, with one of other authorities; in plain text. One by one, each refused.
func TestAccess(t *testing.T) {
	ours, theirs := testkit.NewAuthority(t), testkit.NewAuthority(t)
	node := ours.Write(t, t.TempDir(), testkit.Subject{Name: "node"})
	expired := ours.Write(t, t.TempDir(), testkit.Subject{Name: "old", Ends: time.Now().Add(-time.Minute)})
	foreign := theirs.Write(t, t.TempDir(), testkit.Subject{Name: "node"})
	secrets := map[string]string{}
	var lines []string
	for name, role := range map[string]access.Role{"reader": access.Read, "writer": access.Write, "admin": access.Admin, "expired": access.Admin, "wrong": access.Admin} {
		ends := time.Time{}
		if name == "expired" {
			ends = time.Now().Add(-time.Minute)
		}
		secret, line, err := access.NewToken(name, role, ends)
		if err != nil {
			t.Fatal(err)
		}
		if secrets[name] = secret; name != "wrong" {
			lines = append(lines, line)
		}
	}
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.OpenTokens(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	policy := &access.Policy{Tokens: tokens}
	certs, err := rsm.TLSFiles(node.Cert, node.Key, node.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := rsm.StartCluster(rsm.ClusterConfig{
		Dir: t.TempDir(), Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: register{}}},
		Configure: func(cfg *rsm.Config) { cfg.TLS, cfg.Services, cfg.DiskWatermark = certs, admin.Checked(policy), -1 },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	open := func(port access.Port) string {
		t.Helper()
		s, err := admin.Serve(c.Node(1), "127.0.0.1:0", port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s.Addr()
	}
	server, err := access.ServerTLS(node.Cert, node.Key, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	mutual, err := access.ServerTLS(node.Cert, node.Key, node.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	type port struct {
		address       string
		tls, certs    bool
		withoutTokens bool
	}
	ports := map[string]port{
		"node":           {address: c.Node(1).Addr(), tls: true, certs: true},
		"plain":          {address: open(access.Port{Policy: policy})},
		"TLS":            {address: open(access.Port{TLS: server, Policy: policy}), tls: true},
		"mutual":         {address: open(access.Port{TLS: mutual, Policy: policy}), tls: true, certs: true},
		"mutual, no ask": {address: open(access.Port{TLS: mutual}), tls: true, certs: true, withoutTokens: true},
	}
	ask := func(t *testing.T, p port, who *testkit.TLSPaths, ca, token string, f func(context.Context, adminv1.AdminServiceClient) error) error {
		t.Helper()
		var creds credentials.TransportCredentials
		var call credentials.PerRPCCredentials
		var err error
		if who == nil {
			who = &testkit.TLSPaths{}
		}
		if ca != "" {
			if creds, err = access.ClientTLS(ca, who.Cert, who.Key, "", nil); err != nil {
				t.Fatal(err)
			}
		}
		if token != "" {
			call = access.Token(token)
		}
		conn, err := grpc.NewClient("passthrough:///"+p.address, access.DialOptions(creds, call)...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := within(t)
		defer cancel()
		return f(ctx, adminv1.NewAdminServiceClient(conn))
	}
	for name, p := range ports {
		ca, mine := "", (*testkit.TLSPaths)(nil)
		if p.tls {
			ca = node.CA
		}
		if p.certs {
			mine = &node
		}
		for method, f := range everyMethod {
			// What a call needs: the reader may do what looks, the writer no more, and nobody anything without a token.
			looks := strings.Contains("Status Members ListSnapshots Journal Hash", method)
			for who, code := range map[string]codes.Code{
				"": codes.Unauthenticated, "wrong": codes.Unauthenticated, "expired": codes.Unauthenticated,
				"reader": codes.PermissionDenied, "writer": codes.PermissionDenied, "admin": codes.OK,
			} {
				passes := p.withoutTokens || who == "admin" || looks && code == codes.PermissionDenied
				if passes && method == "Drain" {
					continue // it would wait for another node
				}
				err := ask(t, p, mine, ca, secrets[who], f)
				got := status.Code(err)
				if passes && (got == codes.Unauthenticated || got == codes.PermissionDenied || got == codes.Unavailable) {
					t.Errorf("port %s, %q calls %s: %v", name, who, method, err)
				}
				if !passes {
					if got != code {
						t.Errorf("port %s, %q calls %s: %v, want %v", name, who, method, err, code)
					}
					if d := admin.Detail(err); d == nil || !errors.Is(admin.FromDetail(d), rsm.ErrNotProposed) || d.GetMessage() == "" {
						t.Errorf("%v is not said not to have happened", err)
					}
				}
			}
		}
		f := everyMethod["Status"]
		if p.tls {
			for how, err := range map[string]error{
				"plain text":      ask(t, p, nil, "", secrets["admin"], f),
				"trusting others": ask(t, p, mine, foreign.CA, secrets["admin"], f),
			} {
				if status.Code(err) != codes.Unavailable {
					t.Errorf("port %s, %s: %v", name, how, err)
				}
			}
		} else if err := ask(t, p, nil, node.CA, secrets["admin"], f); status.Code(err) != codes.Unavailable {
			t.Errorf("port %s, TLS: %v", name, err)
		}
		if p.certs {
			for how, who := range map[string]*testkit.TLSPaths{"no certificate": nil, "an expired one": &expired, "another authority's": &foreign} {
				if err := ask(t, p, who, node.CA, secrets["admin"], f); status.Code(err) != codes.Unavailable {
					t.Errorf("port %s, %s: %v", name, how, err)
				}
			}
		}
	}
	// A port whose certificate has expired is not spoken to.
	old, err := access.ServerTLS(expired.Cert, expired.Key, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(t, port{address: open(access.Port{TLS: old, Policy: policy})}, nil, node.CA, secrets["admin"], everyMethod["Status"]); !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
	if _, err := admin.Serve(c.Node(1), "0.0.0.0:0", access.Port{}); !errors.Is(err, access.ErrInsecure) {
		t.Error(err)
	}
	if _, err := admin.Listen(c.Node(1), "0.0.0.0:0", nil); !errors.Is(err, access.ErrInsecure) {
		t.Error(err)
	}
}

// A method that somebody adds to the service needs admin until somebody says otherwise, and everyMethod has it.
func TestEveryMethodIsTested(t *testing.T) {
	desc := adminv1.AdminService_ServiceDesc
	if len(everyMethod) != len(desc.Methods)+len(desc.Streams) {
		t.Errorf("%d methods are tested, the service has %d", len(everyMethod), len(desc.Methods)+len(desc.Streams))
	}
	if r := admin.RoleOf("/decree.admin.v1.AdminService/Unheard"); r != access.Admin {
		t.Errorf("it needs %v", r)
	}
}
