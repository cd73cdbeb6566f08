package link

import (
	"crypto/tls"

	"google.golang.org/grpc/credentials"

	"github.com/decree-raft/decree/internal/tlsfiles"
)

// TLS are credentials that ask for the configuration of the moment at each handshake, so that certificates can be replaced.
func TLS(config func() (*tls.Config, error)) credentials.TransportCredentials {
	return &tlsfiles.Credentials{Config: config}
}
