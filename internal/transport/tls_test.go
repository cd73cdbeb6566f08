package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/decree-raft/decree/internal/bind"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/testkit"
)

func tlsFor(t testing.TB, dir string, a *testkit.Authority, log *slog.Logger) *TLS {
	t.Helper()
	p := a.Write(t, dir, testkit.Subject{})
	files, err := TLSFiles(p.Cert, p.Key, p.CA, log)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestMutualTLS(t *testing.T) {
	ca := testkit.NewAuthority(t)
	a, b := startPair(t, func(c *Config) { c.TLS = tlsFor(t, t.TempDir(), ca, nil) })
	a.expectUp(t, b)
	b.expectUp(t, a)

	t.Run("no certificate", func(t *testing.T) {
		pool := x509.NewCertPool()
		pool.AddCert(ca.Cert)
		expectNoStream(t, b, &tls.Config{RootCAs: pool})
		b.log.await(t, "the TLS handshake failed", "client didn't provide a certificate")
	})
	t.Run("foreign certificate", func(t *testing.T) {
		cfg, err := tlsFor(t, t.TempDir(), testkit.NewAuthority(t), nil).Client()
		if err != nil {
			t.Fatal(err)
		}
		cfg.InsecureSkipVerify = true
		expectNoStream(t, b, cfg)
		b.log.await(t, "certificate signed by unknown authority")
	})
	t.Run("foreign server", func(t *testing.T) {
		foreign := tlsFor(t, t.TempDir(), testkit.NewAuthority(t), nil)
		n := startNode(t, 3, func(c *Config) { c.Peers, c.TLS = map[uint64]string{2: b.Addr()}, foreign })
		n.log.await(t, "no stream to a peer", "certificate signed by unknown authority")
	})
	t.Run("plain gRPC", func(t *testing.T) {
		n := startNode(t, 3, func(c *Config) { c.Peers = map[uint64]string{2: b.Addr()} })
		b.log.await(t, "gRPC without TLS, but this node's peers use TLS")
		n.log.await(t, "no stream to a peer")
	})
	t.Run("garbage", func(t *testing.T) {
		if got := talk(t, b.Addr(), "GET / HTTP/1.1\r\n\r\n"); got != tlsAnswer {
			t.Errorf("answer %q", got)
		}
		b.log.await(t, "an HTTP/1 request")
		talkAny(t, b.Addr(), guard.TLSPreface+"\x01\x00\x10 and then no TLS")
		b.log.await(t, "the TLS handshake failed")
	})
	a.send(t, 2, "still here")
	b.expect(t, 1, "still here")
}

// talkAny sends and waits until the other side has closed, however it does.
func talkAny(t testing.TB, addr, what string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 100); err == nil; {
		_, err = c.Read(buf)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection stays open")
	}
}

func expectNoStream(t testing.TB, b *testNode, cfg *tls.Config) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+b.Addr(), append(clientOptions(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if s, err := conn.NewStream(t.Context(), &framesStream, framesMethod); err == nil {
		t.Errorf("a stream was opened: %v", s.RecvMsg(new(incoming)))
	}
}

func TestTLSFilesReload(t *testing.T) {
	dir, book := t.TempDir(), newLogbook()
	oldCA, newCA := testkit.NewAuthority(t), testkit.NewAuthority(t)
	files := tlsFor(t, dir, oldCA, slog.New(book))
	leaf := func() *x509.Certificate {
		t.Helper()
		cfg, err := files.Server()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(cfg.Certificates[0].Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	first := leaf()
	if !leaf().Equal(first) {
		t.Error("it changed by itself")
	}
	// Half of a rotation: the pair does not match.
	p := testkit.TLSPaths{Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key")}
	if err := os.WriteFile(p.Key, []byte("no key yet"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !leaf().Equal(first) {
		t.Error("the last good pair was not kept")
	}
	book.await(t, "changed TLS files cannot be used")
	newCA.Write(t, dir, testkit.Subject{})
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(p.Cert, later, later); err != nil {
		t.Fatal(err)
	}
	if leaf().CheckSignatureFrom(newCA.Cert) != nil {
		t.Error("the new certificate is not used")
	}
}

func TestTLSConfigRefused(t *testing.T) {
	good, err := tlsFor(t, t.TempDir(), testkit.NewAuthority(t), nil).Server()
	if err != nil {
		t.Fatal(err)
	}
	lax := good.Clone()
	lax.ClientAuth = tls.RequestClientCert
	for name, cfg := range map[string]*TLS{
		"no client certificate":   staticTLS(lax, &tls.Config{}),
		"unverified server":       staticTLS(good, &tls.Config{InsecureSkipVerify: true}),
		"no server config":        staticTLS(nil, &tls.Config{}),
		"failing server config":   {Server: func() (*tls.Config, error) { return nil, os.ErrNotExist }, Client: func() (*tls.Config, error) { return &tls.Config{}, nil }},
		"failing client config":   {Server: func() (*tls.Config, error) { return good, nil }, Client: func() (*tls.Config, error) { return nil, os.ErrNotExist }},
		"no client config at all": {Server: func() (*tls.Config, error) { return good, nil }},
	} {
		if tr, err := Start(new(testNode).config(1, func(c *Config) { c.TLS = cfg })); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
			if tr != nil {
				tr.Close()
			}
		}
	}
	dir := t.TempDir()
	p := testkit.NewAuthority(t).Write(t, dir, testkit.Subject{})
	if _, err := TLSFiles(p.Cert, p.Key, p.Key, nil); err == nil {
		t.Error("a key was taken for an authority")
	}
	if _, err := TLSFiles(filepath.Join(dir, "none"), p.Key, p.CA, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// In plain text a node listens where other machines do not reach it, unless it is told otherwise; with TLS anywhere.
func TestListensSafely(t *testing.T) {
	ca := testkit.NewAuthority(t)
	everywhere := func() net.Listener {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for name, c := range map[string]struct {
		change  func(*Config)
		refused bool
	}{
		"loopback":                     {func(c *Config) { c.Listen = "127.0.0.1:0" }, false},
		"everywhere":                   {func(c *Config) { c.Listen = ":0" }, true},
		"everywhere, a given listener": {func(c *Config) { c.Listener = everywhere() }, true},
		"everywhere, told so":          {func(c *Config) { c.Listen, c.Insecure = ":0", true }, false},
		"everywhere, with TLS":         {func(c *Config) { c.Listen, c.TLS = ":0", tlsFor(t, t.TempDir(), ca, nil) }, false},
	} {
		cfg := Config{Cluster: "c", Node: 1, Receive: func(uint64, []byte) {}}
		c.change(&cfg)
		n, err := Start(cfg)
		switch {
		case err == nil:
			_ = n.Close() // it is done with
		case cfg.Listener != nil:
			_ = cfg.Listener.Close() // Start did not take it over
		}
		if errors.Is(err, bind.ErrInsecure) != c.refused || (err == nil) == c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A stream between nodes does not outlive the certificates that it was opened with, and is opened again with new ones.
func TestStreamEndsWithItsCertificate(t *testing.T) {
	ca, dir := testkit.NewAuthority(t), t.TempDir()
	files := ca.Write(t, dir, testkit.Subject{Ends: time.Now().Add(7 * time.Second)})
	short, err := TLSFiles(files.Cert, files.Key, files.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	long := tlsFor(t, t.TempDir(), ca, nil)
	a, b := startPair(t, func(c *Config) {
		if c.TLS = long; c.Node == 1 {
			c.TLS = short
		}
	})
	a.expectUp(t, b)
	a.send(t, 2, "with the old one")
	b.expect(t, 1, "with the old one")
	b.log.await(t, "closed a connection to the peer port: the certificate that it was made with has expired")
	b.log.await(t, "the TLS handshake failed", "expired")
	ca.Write(t, dir, testkit.Subject{})
	a.expectUp(t, b)
	a.send(t, 2, "with the new one")
	b.expect(t, 1, "with the new one")
}

// staticTLS uses the same two configurations for good.
func staticTLS(server, client *tls.Config) *TLS {
	return &TLS{
		Server: func() (*tls.Config, error) { return server, nil },
		Client: func() (*tls.Config, error) { return client, nil },
	}
}
