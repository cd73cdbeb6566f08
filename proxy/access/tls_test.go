package access

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/testkit"
)

func serverTLS(t testing.TB, p testkit.TLSPaths, clients bool) *tls.Config {
	t.Helper()
	ca := ""
	if clients {
		ca = p.CA
	}
	cfg, err := ServerTLS(p.Cert, p.Key, ca, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func clientTLS(t testing.TB, ca string, p testkit.TLSPaths) credentials.TransportCredentials {
	t.Helper()
	creds, err := ClientTLS(ca, p.Cert, p.Key, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

// Who connects with what, to ports of each kind.
func TestTLS(t *testing.T) {
	ours, theirs := testkit.NewAuthority(t), testkit.NewAuthority(t)
	past := time.Now().Add(-time.Minute)
	server := ours.Write(t, t.TempDir(), testkit.Subject{Name: "server"})
	expired := ours.Write(t, t.TempDir(), testkit.Subject{Name: "old", Ends: past})
	client := ours.Write(t, t.TempDir(), testkit.Subject{Name: "alice"})
	stranger := theirs.Write(t, t.TempDir(), testkit.Subject{Name: "alice"})
	nothing := testkit.TLSPaths{}
	b := newBook(t)
	secret := b.add(t, "rita", Write, time.Time{})
	tokens := &Policy{Tokens: b.open(t)}
	certs := &Policy{CertRole: Read}

	plainPort := serve(t, nil, tokens, false)
	tlsPort := serve(t, serverTLS(t, server, false), tokens, false)
	mutualPort := serve(t, serverTLS(t, server, true), certs, false)
	oldPort := serve(t, serverTLS(t, expired, false), tokens, false)
	for name, c := range map[string]struct {
		port     string
		creds    credentials.TransportCredentials
		code     codes.Code
		sentence string
	}{
		"TLS":                                 {tlsPort, clientTLS(t, server.CA, nothing), codes.OK, "token rita write"},
		"TLS with a certificate":              {tlsPort, clientTLS(t, server.CA, client), codes.OK, "token rita write"},
		"plain text to TLS":                   {tlsPort, Plain(), codes.Unavailable, ""},
		"TLS to plain text":                   {plainPort, clientTLS(t, server.CA, nothing), codes.Unavailable, ""},
		"server of other authorities":         {tlsPort, clientTLS(t, stranger.CA, nothing), codes.Unavailable, "unknown authority"},
		"server not of the system's":          {tlsPort, clientTLS(t, "", nothing), codes.Unavailable, "unknown authority"},
		"server's certificate has expired":    {oldPort, clientTLS(t, server.CA, nothing), codes.Unavailable, "expired"},
		"mutual":                              {mutualPort, clientTLS(t, server.CA, client), codes.OK, "certificate alice read"},
		"mutual without a certificate":        {mutualPort, clientTLS(t, server.CA, nothing), codes.Unavailable, ""},
		"mutual in plain text":                {mutualPort, Plain(), codes.Unavailable, ""},
		"client's certificate has expired":    {mutualPort, clientTLS(t, server.CA, expired), codes.Unavailable, ""},
		"client's certificate from elsewhere": {mutualPort, clientTLS(t, server.CA, stranger), codes.Unavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			who, err := call(within(t), dial(t, c.port, DialOptions(c.creds, Token(secret))...), "Read")
			if c.code != codes.OK {
				refused(t, err, c.code, c.sentence)
			} else if err != nil || who != c.sentence {
				t.Errorf("%q, %v", who, err)
			}
		})
	}
	t.Run("TLS 1.2", func(t *testing.T) {
		c, err := tls.Dial("tcp", tlsPort, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
		if err == nil {
			c.Close()
			t.Error("it was accepted")
		}
	})
}

// What a certificate is worth is the policy's to say; a token that is sent counts alone.
func TestCertificateRoles(t *testing.T) {
	ours := testkit.NewAuthority(t)
	server := ours.Write(t, t.TempDir(), testkit.Subject{Name: "server"})
	alice := ours.Write(t, t.TempDir(), testkit.Subject{Name: "alice", URI: "spiffe://test/ops"})
	b := newBook(t)
	secret := b.add(t, "rita", Read, time.Time{})
	tokens := b.open(t)
	for name, c := range map[string]struct {
		policy  *Policy
		token   credentials.PerRPCCredentials
		who     string // empty: refused
		reading string
	}{
		"no roles":              {&Policy{Tokens: tokens}, nil, "", "wants a token"},
		"a role for all":        {&Policy{CertRole: Write}, nil, "certificate alice write", ""},
		"by common name":        {&Policy{Certs: map[string]Role{"alice": Write, "bob": Admin}}, nil, "certificate alice write", ""},
		"by URI":                {&Policy{Certs: map[string]Role{"alice": Write, "spiffe://test/ops": Admin}}, nil, "certificate spiffe://test/ops admin", ""},
		"more than all have":    {&Policy{CertRole: Read, Certs: map[string]Role{"alice": Write}}, nil, "certificate alice write", ""},
		"another's":             {&Policy{Certs: map[string]Role{"bob": Admin}}, nil, "", `certificate of "alice" has the role none`},
		"another's, and tokens": {&Policy{Tokens: tokens, Certs: map[string]Role{"bob": Admin}}, nil, "", "wants a token"},
		"a token besides":       {&Policy{Tokens: tokens, CertRole: Admin}, Token(secret), "token rita read", ""},
		"a wrong one besides":   {&Policy{Tokens: tokens, CertRole: Admin}, Token("decree_x"), "", "not known here"},
		"one that nobody wants": {&Policy{CertRole: Write}, Token("decree_x"), "certificate alice write", ""},
	} {
		t.Run(name, func(t *testing.T) {
			address := serve(t, serverTLS(t, server, true), c.policy, false)
			who, err := call(within(t), dial(t, address, DialOptions(clientTLS(t, server.CA, alice), c.token)...), "Read")
			switch {
			case c.who != "" && (err != nil || who != c.who):
				t.Errorf("%q, %v", who, err)
			case c.who == "" && !strings.Contains(status.Convert(err).Message(), c.reading):
				t.Errorf("%q, %v", who, err)
			}
		})
	}
	// A certificate that the port has asked for and not verified is none.
	lax := serverTLS(t, server, false)
	lax.GetConfigForClient, lax.ClientAuth = nil, tls.RequestClientCert
	address := serve(t, lax, &Policy{CertRole: Admin}, false)
	_, err := call(within(t), dial(t, address, DialOptions(clientTLS(t, server.CA, alice), nil)...), "Read")
	refused(t, err, codes.Unauthenticated, "wants a client certificate")
}

// All certificates, and their authority, are replaced while connections are made: no connection fails that uses what both know.
func TestTLSReload(t *testing.T) {
	first, second := testkit.NewAuthority(t), testkit.NewAuthority(t)
	dir, clientDir := t.TempDir(), t.TempDir()
	server, client := first.Write(t, dir, testkit.Subject{Name: "server"}), first.Write(t, clientDir, testkit.Subject{Name: "one"})
	p := &Policy{CertRole: Read}
	address := serve(t, serverTLS(t, server, true), p, false)
	creds := clientTLS(t, client.CA, client)
	ask := func() (string, error) {
		conn := dial(t, address, DialOptions(creds, nil)...)
		defer conn.Close()
		return call(within(t), conn, "Read")
	}
	if who, err := ask(); err != nil || who != "certificate one read" {
		t.Fatalf("%q, %v", who, err)
	}
	// Half a rotation: what was there stays.
	if err := os.WriteFile(server.Key, []byte("not yet"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(); err != nil {
		t.Fatal(err)
	}
	// Renewed by the same authority, again and again, under load.
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := ask(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		first.Write(t, dir, testkit.Subject{Name: "server"})
	}
	close(stop)
	asking.Wait()
	second.Write(t, dir, testkit.Subject{Name: "server"})
	if _, err := ask(); err == nil {
		t.Error("the old authority is still trusted")
	}
	second.Write(t, clientDir, testkit.Subject{Name: "two"})
	if who, err := ask(); err != nil || who != "certificate two read" {
		t.Errorf("%q, %v", who, err)
	}
	// A certificate that has expired meanwhile lets nobody in.
	second.Write(t, clientDir, testkit.Subject{Name: "two", Ends: time.Now().Add(-time.Second)})
	if _, err := ask(); err == nil {
		t.Error("a certificate that has expired got in")
	}
}

func TestTLSFilesRefused(t *testing.T) {
	p := testkit.NewAuthority(t).Write(t, t.TempDir(), testkit.Subject{})
	for name, err := range map[string]error{
		"no key":          second(ServerTLS(p.Cert, "", "", nil)),
		"no file":         second(ServerTLS(p.Cert+"x", p.Key, "", nil)),
		"no authority":    second(ServerTLS(p.Cert, p.Key, p.Key, nil)),
		"client, no key":  second(ClientTLS(p.CA, p.Cert, "", "", nil)),
		"client, no file": second(ClientTLS(p.CA+"x", "", "", "", nil)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// The same configuration serves HTTP, with certificates as in gRPC.
func TestHTTPOverTLS(t *testing.T) {
	ours := testkit.NewAuthority(t)
	server := ours.Write(t, t.TempDir(), testkit.Subject{Name: "server"})
	cfg := serverTLS(t, server, true)
	l, err := Listen("127.0.0.1:0", Port{TLS: cfg})
	if err != nil {
		t.Fatal(err)
	}
	p := &Policy{CertRole: Read}
	s := &http.Server{TLSConfig: cfg, ReadHeaderTimeout: patience, Handler: p.HTTP(func(*http.Request) Role { return Read }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := FromContext(r.Context())
		w.Header().Set("Who", who.Name+" "+r.Proto)
	}))}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.ServeTLS(l, "", "") }) // ends with Close
	defer func() { s.Close(); serving.Wait() }()
	pair, err := tls.LoadX509KeyPair(server.Cert, server.Key)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 200 || r.Header.Get("Who") != "server HTTP/2.0" {
		t.Errorf("%d %q", r.StatusCode, r.Header.Get("Who"))
	}
}

// Who comes back is verified again: what was verified once says nothing of authorities that have been replaced.
func TestNoResumption(t *testing.T) {
	files := testkit.NewAuthority(t).Write(t, t.TempDir(), testkit.Subject{Name: "one"})
	l, err := tls.Listen("tcp", "127.0.0.1:0", serverTLS(t, files, true))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x")) // with it would come a ticket
			_ = c.Close()
		}
	}()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(files.CA)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	for range 3 {
		c, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("nobody verified who this is")
		}
		_ = c.Close() // it is done with
	}
}

// A request over a connection whose certificate has expired is refused, whatever token it has: HTTP servers keep their connections.
func TestExpiredCertificateOfAConnection(t *testing.T) {
	b := newBook(t)
	secret := b.add(t, "rita", Write, time.Time{})
	for name, c := range map[string]struct {
		policy *Policy
		end    time.Time
		code   int
	}{
		"good, a token":            {&Policy{Tokens: b.open(t)}, time.Now().Add(time.Hour), 200},
		"expired, a token":         {&Policy{Tokens: b.open(t)}, time.Now().Add(-time.Second), 401},
		"good, the certificate":    {&Policy{CertRole: Write}, time.Now().Add(time.Hour), 200},
		"expired, the certificate": {&Policy{CertRole: Write}, time.Now().Add(-time.Second), 401},
	} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Authorization", "Bearer "+secret)
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{NotAfter: c.end}}}}
		w := httptest.NewRecorder()
		c.policy.HTTP(func(*http.Request) Role { return Write }, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
