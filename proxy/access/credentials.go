package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/reload"
)

// DialOptions are what a client needs to connect: creds from ClientTLS or Plain (nil: Plain), and a token or nil.
func DialOptions(creds credentials.TransportCredentials, token credentials.PerRPCCredentials) []grpc.DialOption {
	if creds == nil {
		creds = Plain()
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(creds)}
	if token != nil {
		options = append(options, grpc.WithPerRPCCredentials(token))
	}
	return options
}

// Token returns credentials that send a token with every call. They send it over TLS, and over Plain connections that do not
// leave the machine; other calls fail with Unauthenticated, and the token is not sent.
func Token(secret string) credentials.PerRPCCredentials {
	return &bearer{func() (string, error) { return secret, checkSecret(secret) }}
}

// TokenFile is Token with the token in a file, of which it is the only word. The file is read again when it changes. A change
// that cannot be read is logged to log (which may be nil), and the last token stays in use.
func TokenFile(path string, log *slog.Logger) (credentials.PerRPCCredentials, error) {
	f, err := reload.Open("token", []string{path}, tokenLook, log, func() (string, error) { return readSecret(path) })
	if err != nil {
		return nil, err
	}
	return &bearer{func() (string, error) { return f.Current(), nil }}, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	secret := strings.TrimSpace(string(data))
	if err := checkSecret(secret); err != nil {
		return "", fmt.Errorf("token: %s: %w", path, err)
	}
	return secret, nil
}

// checkSecret refuses what no header could carry. It does not repeat it.
func checkSecret(secret string) error {
	if secret == "" || len(secret) > maxToken {
		return fmt.Errorf("the token has %d bytes: 1 to %d", len(secret), maxToken)
	}
	for _, c := range []byte(secret) {
		if c <= ' ' || c > '~' {
			return errors.New("the token has spaces, or characters that are not ASCII: it is one word")
		}
	}
	return nil
}

type bearer struct{ secret func() (string, error) }

// GetRequestMetadata implements credentials.PerRPCCredentials. gRPC asks once it knows the connection that the call will use.
func (b *bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if plain, ok := info.AuthInfo.(plainInfo); !ok || !plain.loopback {
		if err := credentials.CheckSecurityLevel(info.AuthInfo, credentials.PrivacyAndIntegrity); err != nil {
			return nil, status.Error(codes.Unauthenticated, "the token was not sent: the connection is in plain text and leaves this machine, where everybody could read it; connect with TLS (name the servers' authorities)")
		}
	}
	secret, err := b.secret()
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return map[string]string{"authorization": "Bearer " + secret}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. It could only refuse all of plain text, to this machine as
// well, which is why GetRequestMetadata does it.
func (b *bearer) RequireTransportSecurity() bool { return false }
