package access_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/proxy/access"
)

// need says which role a method takes: here to look takes read, and everything else admin.
func need(method string) access.Role {
	if method == grpc_health_v1.Health_Check_FullMethodName {
		return access.Read
	}
	return access.Admin
}

// A port with tokens, and a client that shows one. In plain text that is only possible within a machine.
func Example() {
	dir, err := os.MkdirTemp("", "access")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	// The line is the port's, the secret alice's: "decree token new" makes both.
	secret, line, err := access.NewToken("alice", access.Read, time.Time{})
	if err != nil {
		fmt.Println(err)
		return
	}
	tokensFile, aliceFile := filepath.Join(dir, "tokens"), filepath.Join(dir, "alice.token")
	for file, text := range map[string]string{tokensFile: line + "\n", aliceFile: secret + "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			fmt.Println(err)
			return
		}
	}

	tokens, err := access.OpenTokens(tokensFile, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	policy := &access.Policy{Tokens: tokens}
	l, err := access.Listen("127.0.0.1:0", access.Port{Policy: policy})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(policy.Unary(need)), grpc.ChainStreamInterceptor(policy.Stream(need)))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	done := make(chan error)
	go func() { done <- server.Serve(l) }()

	token, err := access.TokenFile(aliceFile, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := grpc.NewClient(l.Addr().String(), access.DialOptions(nil, token)...)
	if err != nil {
		fmt.Println(err)
		return
	}
	client := grpc_health_v1.NewHealthClient(conn)
	answer, err := client.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	fmt.Println(answer.GetStatus(), err)
	_, err = client.List(context.Background(), &grpc_health_v1.HealthListRequest{})
	fmt.Println(status.Code(err))

	_ = conn.Close()
	server.Stop()
	<-done
	// Output:
	// SERVING <nil>
	// PermissionDenied
}

// With TLS on both sides, whose files are read again when they change. A third file for ServerTLS would ask clients for certificates.
func Example_tls() {
	tokens, err := access.OpenTokens("tokens", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	policy := &access.Policy{Tokens: tokens}
	cfg, err := access.ServerTLS("port.crt", "port.key", "", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := access.Listen("0.0.0.0:7443", access.Port{TLS: cfg, Policy: policy})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg)),
		grpc.ChainUnaryInterceptor(policy.Unary(need)), grpc.ChainStreamInterceptor(policy.Stream(need)))
	go func() { fmt.Println(server.Serve(l)) }()

	token, err := access.TokenFile("alice.token", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	creds, err := access.ClientTLS("ca.crt", "", "", "", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := grpc.NewClient("port.example:7443", access.DialOptions(creds, token)...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
}
