package access

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// ErrInsecure is wrapped by the error of a port that would be open to everybody.
var ErrInsecure = errors.New("the port would not be safe")

// Port is what protects a port that is to be listened on.
type Port struct {
	// TLS of the port. Nil: plain text.
	TLS *tls.Config
	// Policy says who gets in. Nil, or one that asks nothing: whoever reaches the port, unless TLS asks for certificates.
	Policy *Policy
	// Insecure allows everything, for a network where everybody is trusted.
	Insecure bool
}

// Listen listens on address (host:port; port 0: any), in plain text: TLS is for the server to do. Beyond this machine's loopback
// addresses it listens only if the port is protected: with TLS, so that nobody can listen in, and with tokens or client
// certificates, so that not everybody may do everything. Otherwise it refuses with an error that wraps ErrInsecure and says
// what is missing, unless Insecure is set. Without a host, address means all of the machine's.
func Listen(address string, p Port) (net.Listener, error) {
	// The name is looked up once: what is judged is what is listened on.
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", clip(address), err)
	}
	if err := p.check(a, address); err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp", a)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", clip(address), err)
	}
	return l, nil
}

func (p Port) check(a *net.TCPAddr, address string) error {
	missing := ""
	certs := p.TLS != nil && p.TLS.ClientAuth == tls.RequireAndVerifyClientCert
	switch {
	case p.Insecure || isLocal(a):
		return nil
	case p.TLS == nil && !p.Policy.Asks():
		missing = "it has neither TLS nor tokens: give it a certificate and a key, and a file of tokens"
	case p.TLS == nil:
		missing = "it has no TLS, and tokens would cross the network for everybody to read: give it a certificate and a key"
	case !certs && !p.Policy.Asks():
		missing = "it asks nobody who they are: give it a file of tokens, or the authorities of its clients' certificates"
	case !certs && p.Policy.Tokens == nil:
		missing = "its roles come from certificates, and it asks for none: give it the authorities of its clients' certificates, or a file of tokens"
	default:
		return nil
	}
	return fmt.Errorf("%w: %q can be reached from other machines, and %s; or listen on 127.0.0.1; or set Insecure, if everybody who can reach it may do everything",
		ErrInsecure, clip(address), missing)
}
