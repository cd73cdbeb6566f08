package guard

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/testkit"
)

// A gRPC server behind a guard, with TLS and without: who begins well and then keeps silent is gone after the server's own limit,
// in the middle of TLS or of HTTP/2, and clients get in meanwhile.
func TestGRPCServer(t *testing.T) {
	paths := testkit.NewAuthority(t).Write(t, t.TempDir(), testkit.Subject{Name: "server"})
	pair, err := tls.LoadX509KeyPair(paths.Cert, paths.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		config func() (*tls.Config, error)
		creds  credentials.TransportCredentials
		begin  string
	}{
		"plain": {nil, insecure.NewCredentials(), Preface},
		"TLS": {func() (*tls.Config, error) { return &tls.Config{Certificates: []tls.Certificate{pair}}, nil },
			credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), TLSPreface + "\x01\x02\x00\x01\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var text lines
			log := limitlog.New(slog.New(slog.NewTextHandler(&text, nil)))
			g := New(l, Config{Port: "the test port", Clients: "its clients", Answer: "a test port\n", TLS: c.config != nil, Log: log})
			server := grpc.NewServer(grpc.Creds(Credentials(c.config, "the test port", log)), grpc.ConnectionTimeout(time.Second))
			var serving sync.WaitGroup
			serving.Go(func() { _ = server.Serve(g) }) // ends with Stop
			defer func() {
				if err := g.Close(); err != nil {
					t.Error(err)
				}
				server.Stop()
				serving.Wait()
				eventually(t, "the end of all connections", func() bool { return g.Stats() == Stats{} })
			}()
			var silent []net.Conn
			for range 10 {
				raw, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				raw.SetDeadline(time.Now().Add(patience))
				if _, err := io.WriteString(raw, c.begin); err != nil {
					t.Fatal(err)
				}
				silent = append(silent, raw)
			}
			conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(c.creds))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.Invoke(t.Context(), "/no.Service/Method", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true)); status.Code(err) != codes.Unimplemented {
				t.Errorf("it was not served: %v", err)
			}
			for _, raw := range silent {
				closed(t, raw)
			}
			eventually(t, "one connection", func() bool { return g.Stats() == Stats{Open: 1} })
			if name == "TLS" && text.count("the TLS handshake failed") == 0 {
				t.Error("it was not logged")
			}
		})
	}
}
