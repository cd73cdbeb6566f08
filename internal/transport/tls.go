package transport

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/tlsfiles"
)

// TLS provides the configurations of mutual TLS. Both functions are called for
// every new connection, at once on several goroutines, so that certificates can
// be replaced while the node runs; connections that exist keep theirs, until these expire. The
// results are not changed. The server's must require and verify the client's
// certificate: anything less is refused by Start, and later per connection.
type TLS struct {
	Server, Client func() (*tls.Config, error)
}

// TLSFiles reads a node's certificate, its key, and the authorities that sign the
// nodes' certificates from PEM files, and reads them again when they change. A
// change that cannot be read is logged to log (which may be nil), and what was
// read last stays in use: the files of a pair are rarely replaced in one instant.
func TLSFiles(certFile, keyFile, caFile string, log *slog.Logger) (*TLS, error) {
	type pair struct{ server, client *tls.Config }
	for _, path := range []string{certFile, keyFile, caFile} {
		if path == "" {
			return nil, fmt.Errorf("transport: TLS needs three files, for the certificate, the key and the authorities: got %q, %q and %q", certFile, keyFile, caFile)
		}
	}
	f, err := tlsfiles.Open(tlsfiles.Paths{Cert: certFile, Key: keyFile, CA: caFile}, log, func(m tlsfiles.Material) pair {
		return pair{m.Server(), m.Client()}
	})
	if err != nil {
		return nil, fmt.Errorf("transport: %w", err)
	}
	return &TLS{
		Server: func() (*tls.Config, error) { return f.Current().server, nil },
		Client: func() (*tls.Config, error) { return f.Current().client, nil },
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
	if _, err := t.clientConfig(); err != nil {
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

func (t *TLS) clientConfig() (*tls.Config, error) {
	cfg, err := t.Client()
	switch {
	case err != nil:
		return nil, fmt.Errorf("TLS configuration of the client: %w", err)
	case cfg == nil || cfg.InsecureSkipVerify:
		return nil, errors.New("TLS configuration of the client must verify the server's certificate")
	}
	return cfg, nil
}

// clientCredentials do the client's side of the handshake with the TLS configuration of the moment.
func (t *TLS) clientCredentials() credentials.TransportCredentials {
	if t == nil {
		return insecure.NewCredentials()
	}
	return &tlsfiles.Credentials{Config: t.clientConfig}
}

// serverCredentials do the server's, behind the guard.
func (t *TLS) serverCredentials(log *limitlog.Log) credentials.TransportCredentials {
	if t == nil {
		return guard.Credentials(nil, peerPort, log)
	}
	return guard.Credentials(t.serverConfig, peerPort, log)
}

// The peer port, for the guard.
const (
	peerPort    = "the peer port"
	plainAnswer = "this is a Decree peer port: it speaks gRPC with other Decree nodes, nothing else\n"
	tlsAnswer   = "this is a Decree peer port: it speaks gRPC over mutual TLS with other Decree nodes, nothing else\n"
)

func newGuard(l net.Listener, cfg Config, log *limitlog.Log) *guard.Guard {
	answer := plainAnswer
	if cfg.TLS != nil {
		answer = tlsAnswer
	}
	return guard.New(l, guard.Config{
		Port: peerPort, Clients: "this node's peers", Answer: answer, TLS: cfg.TLS != nil,
		MaxConns: cfg.maxConns, Timeout: cfg.handshakeTimeout, Log: log,
	})
}
