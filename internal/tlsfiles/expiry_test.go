package tlsfiles_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/internal/tlsfiles"
)

// A connection ends with the certificates of the other side, on either side, and not because of its own.
func TestConnectionEndsWithItsCertificates(t *testing.T) {
	authority := testkit.NewAuthority(t)
	const life = 7 * time.Second
	for name, who := range map[string]struct {
		server, client time.Duration // that its certificate lives; 0: for long
		closes         string
	}{
		"the client's":  {0, life, "server"},
		"the server's":  {life, 0, "client"},
		"neither's yet": {0, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			closed := make(chan string, 2)
			side := func(life time.Duration, name string, config func(tlsfiles.Material) *tls.Config) *tlsfiles.Credentials {
				s := testkit.Subject{}
				if life > 0 {
					s.Ends = time.Now().Add(life)
				}
				p := authority.Write(t, t.TempDir(), s)
				f, err := tlsfiles.Open(tlsfiles.Paths(p), nil, func(m tlsfiles.Material) *tls.Config {
					c := config(m)
					c.NextProtos = []string{"h2"}
					return c
				})
				if err != nil {
					t.Fatal(err)
				}
				return &tlsfiles.Credentials{Config: func() (*tls.Config, error) { return f.Current(), nil }, Expired: func(_ net.Conn, at time.Time) {
					if time.Now().Before(at) {
						t.Error("too early")
					}
					closed <- name
				}}
			}
			server, client := side(who.server, "server", tlsfiles.Material.Server), side(who.client, "client", tlsfiles.Material.Client)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ended := make(chan error, 2)
			go func() {
				raw, err := l.Accept()
				if err != nil {
					ended <- err
					return
				}
				ended <- readOn(raw, server.ServerHandshake)
			}()
			raw, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				ended <- readOn(raw, func(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
					return client.ClientHandshake(context.Background(), "127.0.0.1", c)
				})
			}()
			if who.closes == "" {
				select {
				case err := <-ended:
					t.Errorf("it ends: %v", err)
				case <-time.After(life):
				}
				_ = raw.Close() // it is done with
				<-ended
				<-ended
				return
			}
			select {
			case side := <-closed:
				if side != who.closes {
					t.Errorf("the %s closes it", side)
				}
			case <-time.After(time.Minute):
				t.Fatalf("nobody closes it: %v, %v", <-ended, <-ended)
			}
			<-ended
			<-ended
		})
	}
}

// readOn shakes hands, and reads until the connection ends.
func readOn(raw net.Conn, handshake func(net.Conn) (net.Conn, credentials.AuthInfo, error)) error {
	defer raw.Close()
	c, _, err := handshake(raw)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

// Each chain ends with the first of its certificates, and any chain will do.
func TestExpiry(t *testing.T) {
	at := func(minutes int) *x509.Certificate {
		return &x509.Certificate{NotAfter: time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute)}
	}
	for want, chains := range map[int][][]*x509.Certificate{
		5: {{at(5), at(9)}},
		4: {{at(9), at(4)}},
		7: {{at(9), at(4)}, {at(9), at(7)}},
	} {
		if got := tlsfiles.Expiry(&tls.ConnectionState{VerifiedChains: chains}); !got.Equal(at(want).NotAfter) {
			t.Errorf("%v, not %d minutes", got, want)
		}
	}
	if !tlsfiles.Expiry(nil).IsZero() || !tlsfiles.Expiry(&tls.ConnectionState{}).IsZero() {
		t.Error("who has shown nothing has an end")
	}
}
