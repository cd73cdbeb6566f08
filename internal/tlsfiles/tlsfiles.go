// Package tlsfiles reads certificates, keys and authorities from PEM files, and makes gRPC's credentials of TLS configurations
// that may be another for every connection. The ports of nodes (internal/transport) and of everything else (proxy/access) use it.
package tlsfiles

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/decree-raft/decree/internal/reload"
)

// Paths name PEM files. Cert and Key go together; those that are empty are not read.
type Paths struct {
	Cert, Key string // this side's certificate, and its key
	CA        string // the authorities that sign the other side's certificates
}

// Material is what the files say.
type Material struct {
	Certificates []tls.Certificate // none or one
	Authorities  *x509.CertPool    // nil: no file was named
}

// Open reads the files, makes something of them, and does so again whenever they have changed, see package reload.
func Open[T any](p Paths, log *slog.Logger, make func(Material) T) (*reload.Files[T], error) {
	if (p.Cert == "") != (p.Key == "") {
		return nil, errors.New("TLS files: a certificate and its key go together: name both, or none")
	}
	paths := slices.DeleteFunc([]string{p.Cert, p.Key, p.CA}, func(s string) bool { return s == "" })
	return reload.Open("TLS files", paths, 0, log, func() (T, error) {
		m, err := p.read()
		if err != nil {
			var none T
			return none, err
		}
		return make(m), nil
	})
}

func (p Paths) read() (m Material, err error) {
	if p.Cert != "" {
		cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
		if err != nil {
			return m, fmt.Errorf("TLS certificate %s and key %s: %w", p.Cert, p.Key, err)
		}
		m.Certificates = []tls.Certificate{cert}
	}
	if p.CA == "" {
		return m, nil
	}
	pem, err := os.ReadFile(p.CA)
	if err != nil {
		return m, fmt.Errorf("TLS authorities: %w", err)
	}
	m.Authorities = x509.NewCertPool()
	if !m.Authorities.AppendCertsFromPEM(pem) {
		return m, fmt.Errorf("TLS authorities: no certificate in %s", p.CA)
	}
	return m, nil
}

// Server returns the configuration of a port: it asks its clients for certificates if authorities are known.
func (m Material) Server() *tls.Config {
	// No tickets: who comes back with one is let in by what was verified then, whatever the authorities are by now. Connections live long.
	c := &tls.Config{Certificates: m.Certificates, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	if m.Authorities != nil {
		c.ClientCAs, c.ClientAuth = m.Authorities, tls.RequireAndVerifyClientCert
	}
	return c
}

// Client returns the configuration of a client. Without authorities those of the system sign servers' certificates.
func (m Material) Client() *tls.Config {
	return &tls.Config{Certificates: m.Certificates, RootCAs: m.Authorities, MinVersion: tls.VersionTLS13}
}

// Credentials do the handshakes of connections, each with the configuration of the moment, and close a connection when the certificates end that the other
// side has shown: it would be refused anew. Embed it to see the handshakes.
type Credentials struct {
	// Config is asked for every connection. Nil: plain text.
	Config func() (*tls.Config, error)
	// Expired, if set, is told of a connection before it is closed because of its certificates, and when they ended.
	Expired func(conn net.Conn, end time.Time)
}

func (c *Credentials) now() (credentials.TransportCredentials, error) {
	if c.Config == nil {
		return insecure.NewCredentials(), nil
	}
	cfg, err := c.Config()
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(cfg), nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *Credentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	creds, err := c.now()
	if err != nil {
		return nil, nil, err
	}
	conn, info, err := creds.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	return c.limited(conn, info), info, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *Credentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	creds, err := c.now()
	if err != nil {
		return nil, nil, err
	}
	conn, info, err := creds.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	return c.limited(conn, info), info, nil
}

// Info implements credentials.TransportCredentials.
func (c *Credentials) Info() credentials.ProtocolInfo {
	if c.Config == nil {
		return insecure.NewCredentials().Info()
	}
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c *Credentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName is asked for by the interface; the configuration has the name.
func (c *Credentials) OverrideServerName(string) error { return nil }
