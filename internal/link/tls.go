package link

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// TLS are credentials that ask for the configuration of the moment at each handshake, so that certificates can be replaced.
func TLS(config func() (*tls.Config, error)) credentials.TransportCredentials {
	return &current{config}
}

type current struct {
	config func() (*tls.Config, error)
}

func (c *current) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
}

// ServerHandshake is never called: these credentials are a client's.
func (c *current) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("link: a client's credentials were used by a server")
}

func (c *current) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (c *current) Clone() credentials.TransportCredentials { clone := *c; return &clone }

// OverrideServerName is asked for by the interface; the configuration has the name.
func (c *current) OverrideServerName(string) error { return nil }
