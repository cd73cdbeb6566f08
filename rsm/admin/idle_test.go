package admin_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
)

// silent is a client of HTTP/2 that has greeted and says nothing more.
func silent(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, guard.Preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil { // with its settings, of which there are none
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second)) // it is open
	return c
}

// Connections on which nobody calls are closed; and those of who has no token, however many there are, keep nobody out who has one.
func TestSilentConnections(t *testing.T) {
	c, err := rsm.StartCluster(rsm.ClusterConfig{Dir: t.TempDir(), Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: register{}}},
		Configure: func(cfg *rsm.Config) { cfg.DiskWatermark = -1 }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // it is done with
	secret, line, err := access.NewToken("reader", access.Read, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.OpenTokens(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	serve := func() *admin.Server {
		s, err := admin.Serve(c.Node(1), "127.0.0.1:0", access.Port{Policy: &access.Policy{Tokens: tokens}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	s := serve()
	for range 128 { // as many as one host may have
		if _, err := silent(t, s.Addr()).Read(make([]byte, 1)); err != nil { // the server's settings
			t.Fatal(err)
		}
	}
	conn, err := grpc.NewClient(s.Addr(), access.DialOptions(nil, access.Token(secret))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := within(t)
	defer cancel()
	if _, err := adminv1.NewAdminServiceClient(conn).Status(ctx, &adminv1.StatusRequest{}); err != nil {
		t.Errorf("an operator beside silent connections: %v", err)
	}

	defer admin.SetMaxIdle(200 * time.Millisecond)()
	if _, err := io.Copy(io.Discard, silent(t, serve().Addr())); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a silent connection stays open")
	}
}
