package access

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/decree-raft/decree/internal/bind"
	"github.com/decree-raft/decree/internal/tlsfiles"
)

// ServerTLS returns the TLS of a port, from PEM files that are read again when they change: connections that are made from then
// on have what is new. With clientCA, the authorities of clients, nobody gets in without a certificate of theirs; empty: clients
// are not asked for one. A change that cannot be read is logged to log (which may be nil), and what was read last stays in use.
//
// The result is for credentials.NewTLS, and a Clone of it, which it changes, for http.Server.TLSConfig with ServeTLS and no files.
func ServerTLS(cert, key, clientCA string, log *slog.Logger) (*tls.Config, error) {
	if cert == "" || key == "" {
		return nil, errors.New("access: TLS of a port needs a certificate and its key: name both files")
	}
	f, err := tlsfiles.Open(tlsfiles.Paths{Cert: cert, Key: key, CA: clientCA}, log, func(m tlsfiles.Material) *tls.Config {
		c := m.Server()
		c.NextProtos = []string{"h2", "http/1.1"}
		return c
	})
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	// What stands here besides the function is not used for connections: it says what they will be asked.
	c := f.Current().Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.Current(), nil }
	return c, nil
}

// ClientTLS returns the credentials of a client's connections, from PEM files that are read again when they change, as
// ServerTLS does. ca has the authorities that sign the servers' certificates; empty: those of the system. cert and key are shown to
// servers that ask; empty: nothing is. serverName is what the servers' certificates say; empty: the host that is dialled.
func ClientTLS(ca, cert, key, serverName string, log *slog.Logger) (credentials.TransportCredentials, error) {
	f, err := tlsfiles.Open(tlsfiles.Paths{Cert: cert, Key: key, CA: ca}, log, func(m tlsfiles.Material) *tls.Config {
		c := m.Client()
		c.ServerName = serverName
		return c
	})
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	return &tlsfiles.Credentials{Config: func() (*tls.Config, error) { return f.Current(), nil }}, nil
}

// Plain returns the credentials of connections in plain text. Over them tokens are sent to this machine only, see Token.
func Plain() credentials.TransportCredentials { return plain{insecure.NewCredentials()} }

// plain notes where a connection leads: that is the address which was dialled in the end, not a name.
type plain struct {
	credentials.TransportCredentials
}

// plainInfo is what is known of a connection in plain text.
type plainInfo struct {
	credentials.CommonAuthInfo
	loopback bool
}

// AuthType implements credentials.AuthInfo.
func (plainInfo) AuthType() string { return "insecure" }

// ClientHandshake implements credentials.TransportCredentials.
func (plain) ClientHandshake(_ context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return raw, plainInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, bind.Local(raw.RemoteAddr())}, nil
}

// Clone implements credentials.TransportCredentials.
func (p plain) Clone() credentials.TransportCredentials {
	return plain{p.TransportCredentials.Clone()}
}
