package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/decree-raft/decree/internal/testkit"
)

// FuzzPort throws bytes at a gRPC server behind a guard, in plain text or with TLS, and then ends its side or says nothing more: the connection is ended in bounded
// time, and the server goes on serving a client.
func FuzzPort(f *testing.F) {
	frame := func(n int, kind, flags byte, rest string) string { // n is what it says it has, on stream 1 unless it is of the connection
		stream := "\x00\x00\x00\x01"
		if kind == 4 || kind == 6 {
			stream = "\x00\x00\x00\x00"
		}
		return string([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}) + stream + rest
	}
	const data, headers, settings, continuation = 0, 1, 4, 9
	greeting := Preface + frame(0, settings, 0, "")
	for _, seed := range []struct {
		tls bool
		say string
	}{
		{false, ""}, {false, Preface[:10]}, {false, Preface}, {false, greeting}, {false, Preface[:20] + "xxxx"},
		{false, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"}, {false, TLSPreface + "\x01\x00\x05\x01\x00\x00\x01\x03"}, {false, "\x00\x01\x02"},
		{false, Preface + frame(1<<24-1, settings, 0, "")}, {false, greeting + frame(1<<24-1, data, 0, "a")},
		{false, greeting + strings.Repeat(frame(0, settings, 0, ""), 300)},
		{false, greeting + frame(2, headers, 0, "\x83\x86")}, {false, greeting + frame(100, headers, 4, "\x83\x86")},
		{false, greeting + frame(1, headers, 0, "\x83") + strings.Repeat(frame(1, continuation, 0, "\x86"), 300)},
		{true, ""}, {true, greeting}, {true, "GET / HTTP/1.1\r\n\r\n"}, {true, TLSPreface}, {true, TLSPreface + "\x01\x02\x00\x01\x00"},
		{true, TLSPreface + "\x01\xff\xff" + strings.Repeat("\x01", 100)}, {true, TLSPreface + "\x01\x00\x05\x01\x00\x00\x01\x03"}, {true, "\x16\x00\x00"},
	} {
		f.Add(seed.tls, false, []byte(seed.say))
	}
	for _, say := range []string{"", Preface[:10], Preface, greeting} { // each takes as long as its server has patience
		f.Add(false, true, []byte(say))
	}
	f.Add(true, true, []byte(TLSPreface+"\x01\x02\x00\x01\x00"))
	paths := testkit.NewAuthority(f).Write(f, f.TempDir(), testkit.Subject{Name: "server"})
	pair, err := tls.LoadX509KeyPair(paths.Cert, paths.Key)
	if err != nil {
		f.Fatal(err)
	}
	type port struct {
		address string
		honest  *grpc.ClientConn
	}
	ports := map[bool]port{}
	for secured, creds := range map[bool]credentials.TransportCredentials{false: insecure.NewCredentials(), true: credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})} {
		var config func() (*tls.Config, error)
		if secured {
			config = func() (*tls.Config, error) { return &tls.Config{Certificates: []tls.Certificate{pair}}, nil }
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.Fatal(err)
		}
		g := New(l, Config{Port: "the test port", Clients: "its clients", Answer: "a test port\n", TLS: secured, Timeout: 200 * time.Millisecond})
		server := grpc.NewServer(grpc.Creds(Credentials(config, "the test port", nil)), grpc.ConnectionTimeout(500*time.Millisecond),
			grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 500 * time.Millisecond, Time: time.Second, Timeout: 200 * time.Millisecond}))
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(g) }) // ends with Stop
		honest, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(creds))
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() {
			honest.Close()
			if err := g.Close(); err != nil {
				f.Error(err)
			}
			server.Stop()
			serving.Wait()
		})
		ports[secured] = port{l.Addr().String(), honest}
	}
	f.Fuzz(func(t *testing.T, secured, stays bool, say []byte) {
		p := ports[secured]
		raw, err := net.Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		_, _ = raw.Write(say) // it may have been ended already, here and below
		if !stays {
			_ = raw.(*net.TCPConn).CloseWrite()
		}
		if n, err := io.Copy(io.Discard, raw); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %v the connection is still there; %d bytes came", patience, n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := p.honest.Invoke(ctx, "/no.Service/Method", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true)); status.Code(err) != codes.Unimplemented {
			t.Errorf("a client is not served any more: %v", err)
		}
	})
}
