package proxy_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// Every call on a proxy's port takes its role: without a token, with a wrong or an expired one, with a role that is too small, it is refused, at once and as
// one that certainly did not happen. So over TLS, and with certificates that are expired or of other authorities the connection is.
func TestAccess(t *testing.T) {
	c := startCalm(t)
	dir := t.TempDir()
	secrets := map[string]string{"none": "", "wrong": ""}
	file := ""
	for name, role := range map[string]access.Role{"reader": access.Read, "writer": access.Write, "expired": access.Write, "wrong": access.Write} {
		expires := time.Time{}
		if name == "expired" {
			expires = time.Now().Add(-time.Hour)
		}
		secret, line, err := access.NewToken(name, role, expires)
		if err != nil {
			t.Fatal(err)
		}
		secrets[name] = secret
		if name != "wrong" {
			file += line + "\n"
		}
	}
	path := filepath.Join(dir, "tokens")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.OpenTokens(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	authority := testkit.NewAuthority(t)
	good := authority.Write(t, dir, testkit.Subject{})
	tlsPort, err := access.ServerTLS(good.Cert, good.Key, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	policy := &access.Policy{Tokens: tokens}
	p, err := proxy.New(proxy.Config{Nodes: anyNode(c)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for name, port := range map[string]access.Port{"plain": {Policy: policy}, "TLS": {Policy: policy, TLS: tlsPort}} {
		s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Access: port})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		creds := access.Plain()
		if port.TLS != nil {
			if creds, err = access.ClientTLS(good.CA, "", "", "", nil); err != nil {
				t.Fatal(err)
			}
		}
		for who, want := range map[string][2]core.Code{ // of a command and of a read
			"none": {core.CodeUnauthenticated, core.CodeUnauthenticated}, "wrong": {core.CodeUnauthenticated, core.CodeUnauthenticated},
			"expired": {core.CodeUnauthenticated, core.CodeUnauthenticated}, "reader": {core.CodeForbidden, ""}, "writer": {"", ""},
		} {
			var token credentials.PerRPCCredentials
			if secrets[who] != "" {
				token = access.Token(secrets[who])
			}
			cl, err := client.Dial([]string{s.Addr()}, client.Options{TLS: creds, Credentials: token})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, write := cl.Shard(1).Submit(within(t), []byte(name+who))
			_, read := cl.Shard(1).Read(within(t), rsm.Linearizable, []byte(name+who))
			for i, err := range []error{write, read} {
				var e *rsm.Error
				errors.As(err, &e)
				switch {
				case want[i] == "" && err != nil, want[i] != "" && (e == nil || e.Code != want[i] || e.Kind != rsm.ErrNotProposed):
					t.Errorf("%s, %s, call %d: %v; wanted %q", name, who, i, err, want[i])
				}
			}
			if took := time.Since(began); took > 40*time.Second {
				t.Errorf("%s, %s: an answer took %v", name, who, took)
			}
			cl.Close()
			conn, err := grpc.NewClient(s.Addr(), access.DialOptions(creds, token)...)
			if err != nil {
				t.Fatal(err)
			}
			_, err = decreev1.NewDecreeServiceClient(conn).Submit(within(t), &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("unary")}})
			var e *rsm.Error
			if errors.As(wire.FromStatus(err), &e); want[0] == "" && err != nil || want[0] != "" && (e == nil || e.Code != want[0]) {
				t.Errorf("%s, %s, a unary command: %v; wanted %q", name, who, err, want[0])
			}
			_ = conn.Close() // it is done with
		}
	}
	mutual, err := access.ServerTLS(good.Cert, good.Key, good.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Access: access.Port{TLS: mutual, Policy: &access.Policy{CertRole: access.Write}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	other := testkit.NewAuthority(t).Write(t, t.TempDir(), testkit.Subject{})
	expired := authority.Write(t, t.TempDir(), testkit.Subject{Ends: time.Now().Add(-time.Hour)})
	for name, files := range map[string]testkit.TLSPaths{"good": good, "expired": expired, "of another authority": {CA: good.CA, Cert: other.Cert, Key: other.Key}} {
		creds, err := access.ClientTLS(files.CA, files.Cert, files.Key, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient(s.Addr(), access.DialOptions(creds, nil)...)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decreev1.NewDecreeServiceClient(conn).Submit(within(t), &decreev1.SubmitRequest{Shard: 1, Commands: [][]byte{[]byte("unary")}})
		if (err == nil) != (name == "good") {
			t.Errorf("a certificate that is %s: %v", name, err)
		}
		_ = conn.Close() // it is done with
	}
	if _, err := p.Serve(proxy.ServerConfig{Listen: ":0"}); !errors.Is(err, access.ErrInsecure) {
		t.Errorf("a port for everybody: %v", err)
	}
}
