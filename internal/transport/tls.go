package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// TLS provides the configurations of mutual TLS. Both functions are called for
// every new connection, at once on several goroutines, so that certificates can
// be replaced while the node runs; connections that exist keep theirs. The
// results are not changed. The server's must require and verify the client's
// certificate: anything less is refused by Start, and later per connection.
type TLS struct {
	Server, Client func() (*tls.Config, error)
}

// StaticTLS uses the same two configurations for good.
func StaticTLS(server, client *tls.Config) *TLS {
	return &TLS{
		Server: func() (*tls.Config, error) { return server, nil },
		Client: func() (*tls.Config, error) { return client, nil },
	}
}

// TLSFiles reads a node's certificate, its key, and the authorities that sign the
// nodes' certificates from PEM files, and reads them again when they change. A
// change that cannot be read is logged to log (which may be nil), and what was
// read last stays in use: the files of a pair are rarely replaced in one instant.
func TLSFiles(certFile, keyFile, caFile string, log *slog.Logger) (*TLS, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &tlsFiles{paths: [3]string{certFile, keyFile, caFile}, log: newLimitedLog(log)}
	stamps, err := f.stat()
	if err != nil {
		return nil, err
	}
	if f.pair, err = f.read(); err != nil {
		return nil, err
	}
	f.stamps = stamps
	return &TLS{
		Server: func() (*tls.Config, error) { return f.current().server, nil },
		Client: func() (*tls.Config, error) { return f.current().client, nil },
	}, nil
}

type tlsFiles struct {
	paths [3]string // certificate, key, authorities
	log   *limitedLog

	mu     sync.Mutex
	stamps [3]fileStamp
	pair   tlsPair
}

type tlsPair struct{ server, client *tls.Config }

type fileStamp struct {
	modified time.Time
	size     int64
}

func (f *tlsFiles) current() tlsPair {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamps, err := f.stat()
	if err == nil && stamps == f.stamps {
		return f.pair
	}
	var pair tlsPair
	if err == nil {
		pair, err = f.read()
	}
	if err != nil {
		f.log.warn(logKey{reason: err.Error()}, "changed TLS files cannot be used, the last ones stay in use", "err", err)
		return f.pair
	}
	f.pair, f.stamps = pair, stamps
	return pair
}

func (f *tlsFiles) stat() (stamps [3]fileStamp, err error) {
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return stamps, fmt.Errorf("transport: TLS file: %w", err)
		}
		stamps[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return stamps, nil
}

func (f *tlsFiles) read() (tlsPair, error) {
	cert, err := tls.LoadX509KeyPair(f.paths[0], f.paths[1])
	if err != nil {
		return tlsPair{}, fmt.Errorf("transport: TLS certificate %s and key %s: %w", f.paths[0], f.paths[1], err)
	}
	pem, err := os.ReadFile(f.paths[2])
	if err != nil {
		return tlsPair{}, fmt.Errorf("transport: TLS authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return tlsPair{}, fmt.Errorf("transport: TLS authorities: no certificate in %s", f.paths[2])
	}
	certs := []tls.Certificate{cert}
	return tlsPair{
		server: &tls.Config{Certificates: certs, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		client: &tls.Config{Certificates: certs, RootCAs: pool, MinVersion: tls.VersionTLS13},
	}, nil
}

// check tries both configurations. A nil TLS, plain text, is in order.
func (t *TLS) check() error {
	if t == nil {
		return nil
	}
	if t.Server == nil || t.Client == nil {
		return fmt.Errorf("%w: TLS needs both Server and Client", ErrConfig)
	}
	if _, err := t.serverConfig(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if _, err := t.clientCredentials(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

func (t *TLS) serverConfig() (*tls.Config, error) {
	cfg, err := t.Server()
	switch {
	case err != nil:
		return nil, fmt.Errorf("TLS configuration of the server: %w", err)
	case cfg == nil || cfg.ClientAuth != tls.RequireAndVerifyClientCert || cfg.ClientCAs == nil:
		return nil, errors.New("TLS configuration of the server must require and verify the client's certificate, against authorities of its own")
	}
	return cfg, nil
}

func (t *TLS) clientCredentials() (credentials.TransportCredentials, error) {
	if t == nil {
		return insecure.NewCredentials(), nil
	}
	cfg, err := t.Client()
	switch {
	case err != nil:
		return nil, fmt.Errorf("TLS configuration of the client: %w", err)
	case cfg == nil || cfg.InsecureSkipVerify:
		return nil, errors.New("TLS configuration of the client must verify the server's certificate")
	}
	return credentials.NewTLS(cfg), nil
}

// clientCredentials does the client's side of the handshake, for a connection that
// gRPC opens again by itself, with the TLS configuration of the moment.
type clientCredentials struct{ tls *TLS }

func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	creds, err := c.tls.clientCredentials()
	if err != nil {
		return nil, nil, err
	}
	return creds.ClientHandshake(ctx, authority, raw)
}

// ServerHandshake is never called: these credentials are a client's.
func (c *clientCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("transport: a client's credentials were used by a server")
}

func (c *clientCredentials) Info() credentials.ProtocolInfo { return protocolInfo(c.tls) }

func (c *clientCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName is asked for by the interface; the configuration has the name.
func (c *clientCredentials) OverrideServerName(string) error { return nil }

func protocolInfo(t *TLS) credentials.ProtocolInfo {
	if t == nil {
		return insecure.NewCredentials().Info()
	}
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// serverCredentials does the server's side of the handshake with the TLS
// configuration of the moment, logs what gRPC would keep to itself, and tells the
// guard when a connection is through.
type serverCredentials struct {
	tls *TLS
	log *limitedLog
}

func (c *serverCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.handshake(raw)
	if err != nil {
		// A connection that went away, or that the guard has closed and logged, is no news.
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			c.log.warn(logKey{reason: hostOf(raw) + err.Error()}, "refused a connection to the peer port: the TLS handshake failed",
				"remote", raw.RemoteAddr().String(), "reason", err.Error())
		}
		return nil, nil, err
	}
	if g, ok := raw.(*guardedConn); ok {
		g.handshaken()
	}
	return conn, info, nil
}

func (c *serverCredentials) handshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if c.tls == nil {
		return insecure.NewCredentials().ServerHandshake(raw)
	}
	cfg, err := c.tls.serverConfig()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ServerHandshake(raw)
}

// ClientHandshake is never called: these credentials are the server's.
func (c *serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("transport: a server's credentials were used by a client")
}

func (c *serverCredentials) Info() credentials.ProtocolInfo { return protocolInfo(c.tls) }

func (c *serverCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName is asked for by the interface; it concerns clients only.
func (c *serverCredentials) OverrideServerName(string) error { return nil }
