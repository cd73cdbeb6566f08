package access

import (
	"crypto/tls"
	"net"

	"github.com/decree-raft/decree/internal/bind"
)

// ErrInsecure is wrapped by the error of a port that would be open to everybody.
var ErrInsecure = bind.ErrInsecure

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
// A policy whose roles are none of the package's is refused, too.
func Listen(address string, p Port) (net.Listener, error) {
	if err := p.Policy.roles(); err != nil {
		return nil, err
	}
	return bind.TCP(address, p.missing())
}

// mutual reports whether connections show a certificate before anything else.
func (p Port) mutual() bool {
	return p.TLS != nil && p.TLS.ClientAuth == tls.RequireAndVerifyClientCert
}

// Strangers reports whether there are connections of which nothing is known before their first call: the port asks for something, and not for certificates.
func (p Port) Strangers() bool { return p.Policy.Asks() && !p.mutual() }

// missing says what the port lacks to be reached by other machines, and what to do about it.
func (p Port) missing() string {
	const otherwise = "; or set Insecure, if everybody who can reach it may do everything"
	certs := p.mutual()
	switch {
	case p.Insecure:
		return ""
	case p.TLS == nil && !p.Policy.Asks():
		return "it has neither TLS nor tokens: give it a certificate and a key, and a file of tokens" + otherwise
	case p.TLS == nil:
		return "it has no TLS, and tokens would cross the network for everybody to read: give it a certificate and a key" + otherwise
	case !certs && !p.Policy.Asks():
		return "it asks nobody who they are: give it a file of tokens, or the authorities of its clients' certificates" + otherwise
	case !certs && p.Policy.Tokens == nil:
		return "its roles come from certificates, and it asks for none: give it the authorities of its clients' certificates, or a file of tokens" + otherwise
	}
	return ""
}
