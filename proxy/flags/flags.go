// Package flags gives programs the flags that decree proxy and decree have for the safety of ports: what protects one, what is shown to nodes, and how
// a client connects. The fields have JSON names as well, for files of settings.
package flags

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"

	"google.golang.org/grpc/credentials"

	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// Port is what protects a port for clients.
type Port struct {
	Cert     string `json:"tls_cert"`
	Key      string `json:"tls_key"`
	ClientCA string `json:"client_ca"`
	Tokens   string `json:"tokens"`
	CertRole string `json:"cert_role"`
	Insecure bool   `json:"insecure"`
}

// Bind declares the flags, with p's values as their defaults.
func (p *Port) Bind(f *flag.FlagSet) {
	f.StringVar(&p.Cert, "tls-cert", p.Cert, "PEM `file` with the certificate to show to clients; with -tls-key, they are spoken to over TLS")
	f.StringVar(&p.Key, "tls-key", p.Key, "PEM `file` with that certificate's key")
	f.StringVar(&p.ClientCA, "client-ca", p.ClientCA, "PEM `file` with the authorities that sign clients' certificates; others are not listened to")
	f.StringVar(&p.Tokens, "tokens", p.Tokens, "`file` of clients' tokens and their roles, as decree token new writes it; who has none is refused")
	f.StringVar(&p.CertRole, "cert-role", p.CertRole, "`role` (read, write or admin) of everyone with a certificate of -client-ca")
	f.BoolVar(&p.Insecure, "insecure", p.Insecure, "listen to other machines in plain text, to everybody who reaches the port")
}

// Validate says which flags contradict each other.
func (p *Port) Validate() error {
	switch {
	case (p.Cert == "") != (p.Key == ""):
		return errors.New("-tls-cert and -tls-key go together")
	case p.CertRole != "" && p.ClientCA == "":
		return errors.New("-cert-role means nothing without -client-ca")
	case p.ClientCA != "" && p.Cert == "":
		return errors.New("-client-ca means nothing without -tls-cert and -tls-key")
	}
	return nil
}

// Access reads the files, and again when they change, and returns what protects the port. log gets who is refused, and files that cannot be read.
func (p *Port) Access(log *slog.Logger) (port access.Port, err error) {
	if err := p.Validate(); err != nil {
		return port, err
	}
	port.Insecure = p.Insecure
	policy := &access.Policy{Log: log}
	if p.Cert != "" {
		if port.TLS, err = access.ServerTLS(p.Cert, p.Key, p.ClientCA, log); err != nil {
			return port, err
		}
	}
	if p.Tokens != "" {
		if policy.Tokens, err = access.OpenTokens(p.Tokens, log); err != nil {
			return port, err
		}
	}
	if p.CertRole != "" {
		if policy.CertRole, err = access.ParseRole(p.CertRole); err != nil {
			return port, fmt.Errorf("-cert-role: %w", err)
		}
	}
	port.Policy = policy
	return port, nil
}

// Nodes is what is shown to nodes on their own ports: by proxies, and by nodes to each other.
type Nodes struct {
	Cert  string `json:"node_cert"`
	Key   string `json:"node_key"`
	CA    string `json:"node_ca"`
	Token string `json:"node_token_file"`
}

// Bind declares the flags, with n's values as their defaults.
func (n *Nodes) Bind(f *flag.FlagSet) {
	f.StringVar(&n.Cert, "node-cert", n.Cert, "PEM `file` with the certificate to show to nodes; with -node-key and -node-ca, they are spoken to over mutual TLS")
	f.StringVar(&n.Key, "node-key", n.Key, "PEM `file` with that certificate's key")
	f.StringVar(&n.CA, "node-ca", n.CA, "PEM `file` with the authorities that sign the nodes' certificates")
	f.StringVar(&n.Token, "node-token-file", n.Token, "`file` with the token to show to nodes")
}

// Validate says which flags contradict each other.
func (n *Nodes) Validate() error {
	if has := n.Cert != ""; has != (n.Key != "") || has != (n.CA != "") {
		return errors.New("-node-cert, -node-key and -node-ca go together: nodes and proxies show each other their certificates")
	}
	return nil
}

// TLS reads the files, and again when they change. Nil without an error: plain text.
func (n *Nodes) TLS(log *slog.Logger) (*rsm.TLS, error) {
	if err := n.Validate(); err != nil || n.Cert == "" {
		return nil, err
	}
	return rsm.TLSFiles(n.Cert, n.Key, n.CA, log)
}

// Proxy is what proxy.Config.TLS and Credentials take: both are nil where no flag says otherwise.
func (n *Nodes) Proxy(log *slog.Logger) (config func() (*tls.Config, error), token credentials.PerRPCCredentials, err error) {
	files, err := n.TLS(log)
	if err != nil {
		return nil, nil, err
	}
	if files != nil {
		config = files.Client
	}
	if n.Token != "" {
		if token, err = access.TokenFile(n.Token, log); err != nil {
			return nil, nil, err
		}
	}
	return config, token, nil
}

// Client is how a client connects.
type Client struct{ Cert, Key, CA, TokenFile string }

// Bind declares the flags, with c's values as their defaults.
func (c *Client) Bind(f *flag.FlagSet) {
	f.StringVar(&c.Cert, "cert", c.Cert, "PEM `file` with the certificate to show, with -key and -ca: mutual TLS")
	f.StringVar(&c.Key, "key", c.Key, "PEM `file` with the certificate's key")
	f.StringVar(&c.CA, "ca", c.CA, "PEM `file` with the authorities that sign the servers' certificates; with it, they are spoken to over TLS")
	f.StringVar(&c.TokenFile, "token-file", c.TokenFile, "`file` with the token to send; in plain text it is sent to this machine only")
}

// Credentials reads the files, and again when they change: what access.DialOptions and proxy/client take. Both are nil where no flag says otherwise.
func (c *Client) Credentials() (creds credentials.TransportCredentials, token credentials.PerRPCCredentials, err error) {
	if c.Cert != "" || c.Key != "" || c.CA != "" {
		if c.CA == "" || (c.Cert == "") != (c.Key == "") {
			return nil, nil, errors.New("TLS needs -ca; -cert and -key go together, for servers that want a certificate")
		}
		if creds, err = access.ClientTLS(c.CA, c.Cert, c.Key, "", nil); err != nil {
			return nil, nil, err
		}
	}
	if c.TokenFile != "" {
		if token, err = access.TokenFile(c.TokenFile, nil); err != nil {
			return nil, nil, err
		}
	}
	return creds, token, nil
}
