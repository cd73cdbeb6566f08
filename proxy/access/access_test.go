package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/decree-raft/decree/internal/testkit"
)

// patience bounds every wait: far more than anything takes, unless it hangs.
const patience = 20 * time.Second

func TestMain(m *testing.M) { testkit.MainWithoutLeaks(m) }

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

// book is a file of tokens, and who has them.
type book struct {
	path  string
	lines []string
	*Tokens
}

func newBook(t testing.TB) *book {
	b := &book{path: filepath.Join(t.TempDir(), "tokens")}
	b.write(t)
	return b
}

// write replaces the file in one instant, as tools do.
func (b *book) write(t testing.TB) {
	t.Helper()
	if err := os.WriteFile(b.path+".new", []byte(strings.Join(b.lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.path+".new", b.path); err != nil {
		t.Fatal(err)
	}
}

func (b *book) add(t testing.TB, name string, role Role, expires time.Time) string {
	t.Helper()
	secret, line, err := NewToken(name, role, expires)
	if err != nil {
		t.Fatal(err)
	}
	b.lines = append(b.lines, line)
	b.write(t)
	return secret
}

func (b *book) open(t testing.TB) *Tokens {
	t.Helper()
	tokens, err := openTokens(b.path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// The service of the tests answers with who called.
var roles = map[string]Role{"/test.Service/Read": Read, "/test.Service/Write": Write, "/test.Service/Watch": Read, "/test.Service/Free": None}

func roleOf(method string) Role {
	if r, ok := roles[method]; ok {
		return r
	}
	return Admin
}

func desc() *grpc.ServiceDesc {
	d := &grpc.ServiceDesc{ServiceName: "test.Service"}
	for _, name := range []string{"Read", "Write", "Admin", "Free"} {
		d.Methods = append(d.Methods, grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
			if err := dec(&emptypb.Empty{}); err != nil {
				return nil, err
			}
			answer := func(ctx context.Context, _ any) (any, error) {
				who, _ := FromContext(ctx)
				return &emptypb.Empty{}, grpc.SetTrailer(ctx, metadata.Pairs("who", who.Source+" "+who.Name+" "+who.Role.String()))
			}
			if in == nil {
				return answer(ctx, nil)
			}
			return in(ctx, nil, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Service/" + name}, answer)
		}})
	}
	d.Streams = []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		for {
			if err := s.RecvMsg(&emptypb.Empty{}); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := s.SendMsg(&emptypb.Empty{}); err != nil {
				return err
			}
		}
	}}}
	return d
}

// serve offers the service under a policy: with interceptors, or with a registrar.
func serve(t testing.TB, cfg *tls.Config, p *Policy, registrar bool) string {
	t.Helper()
	l, err := Listen("127.0.0.1:0", Port{TLS: cfg, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	creds := insecure.NewCredentials()
	if cfg != nil {
		creds = credentials.NewTLS(cfg)
	}
	options := []grpc.ServerOption{grpc.Creds(creds), grpc.ConnectionTimeout(patience)}
	if !registrar {
		options = append(options, grpc.ChainUnaryInterceptor(p.Unary(roleOf)), grpc.ChainStreamInterceptor(p.Stream(roleOf)))
	}
	s := grpc.NewServer(options...)
	r := grpc.ServiceRegistrar(s)
	if registrar {
		r = p.Registrar(s, roleOf)
	}
	r.RegisterService(desc(), nil)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) }) // ends with Stop
	t.Cleanup(func() { s.Stop(); serving.Wait() })
	return l.Addr().String()
}

func dial(t testing.TB, address string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// call returns who the service says has called.
func call(ctx context.Context, conn *grpc.ClientConn, method string) (string, error) {
	var trailer metadata.MD
	err := conn.Invoke(ctx, "/test.Service/"+method, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Trailer(&trailer))
	return strings.Join(trailer.Get("who"), ","), err
}

func refused(t testing.TB, err error, code codes.Code, sentence string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), sentence) {
		t.Errorf("got %v, want %v with %q", err, code, sentence)
	}
	if err != nil && strings.Contains(err.Error(), tokenPrefix) {
		t.Errorf("a token is in %v", err)
	}
}

// Every way to be refused, with interceptors and with a registrar, for calls and for streams.
func TestTokens(t *testing.T) {
	b := newBook(t)
	reader, writer, admin := b.add(t, "rita", Read, time.Time{}), b.add(t, "walt", Write, time.Now().Add(time.Hour)), b.add(t, "ada", Admin, time.Time{})
	old := b.add(t, "olaf", Admin, time.Now().Add(-time.Minute))
	other, _, err := NewToken("mallory", Admin, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for name, registrar := range map[string]bool{"interceptors": false, "registrar": true} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			p := &Policy{Tokens: b.open(t), Log: slog.New(slog.NewTextHandler(&log, nil))}
			address := serve(t, nil, p, registrar)
			for name, c := range map[string]struct {
				header   []string
				method   string
				code     codes.Code
				sentence string
			}{
				"none":              {nil, "Read", codes.Unauthenticated, "the call has none"},
				"wrong":             {[]string{"Bearer " + other}, "Read", codes.Unauthenticated, "not known here"},
				"cut":               {[]string{"Bearer " + admin[:len(admin)-1]}, "Read", codes.Unauthenticated, "not known here"},
				"the hash":          {[]string{fmt.Sprintf("Bearer %x", sha256.Sum256([]byte(admin)))}, "Read", codes.Unauthenticated, "not known here"},
				"long":              {[]string{"Bearer " + strings.Repeat("x", 8000)}, "Read", codes.Unauthenticated, "not known here"},
				"empty":             {[]string{"Bearer "}, "Read", codes.Unauthenticated, "not known here"},
				"expired":           {[]string{"Bearer " + old}, "Read", codes.Unauthenticated, `the token of "olaf" expired at`},
				"another scheme":    {[]string{"Basic " + admin}, "Read", codes.Unauthenticated, "Bearer TOKEN"},
				"no scheme":         {[]string{admin}, "Read", codes.Unauthenticated, "Bearer TOKEN"},
				"two":               {[]string{"Bearer " + reader, "Bearer " + admin}, "Read", codes.Unauthenticated, "send one"},
				"reader writes":     {[]string{"Bearer " + reader}, "Write", codes.PermissionDenied, `token of "rita" has the role read, and this call needs write`},
				"writer as admin":   {[]string{"Bearer " + writer}, "Admin", codes.PermissionDenied, "needs admin"},
				"reader, a stream":  {[]string{"Bearer " + other}, "Watch", codes.Unauthenticated, "not known here"},
				"reader reads":      {[]string{"bearer " + reader}, "Read", codes.OK, "token rita read"},
				"writer reads":      {[]string{"Bearer " + writer}, "Read", codes.OK, "token walt write"},
				"writer writes":     {[]string{"Bearer " + writer}, "Write", codes.OK, "token walt write"},
				"admin":             {[]string{"Bearer " + admin}, "Admin", codes.OK, "token ada admin"},
				"everybody's":       {nil, "Free", codes.OK, ""},
				"everybody's, junk": {[]string{"Bearer junk"}, "Free", codes.OK, ""},
			} {
				t.Run(name, func(t *testing.T) {
					conn := dial(t, address, grpc.WithTransportCredentials(insecure.NewCredentials()))
					ctx := within(t)
					for _, h := range c.header {
						ctx = metadata.AppendToOutgoingContext(ctx, "authorization", h)
					}
					who, err := "", error(nil)
					if c.method == "Watch" {
						_, err = watch(ctx, conn)
					} else {
						who, err = call(ctx, conn, c.method)
					}
					if c.code != codes.OK {
						refused(t, err, c.code, c.sentence)
					} else if err != nil || !strings.Contains(who, c.sentence) {
						t.Errorf("%q, %v", who, err)
					}
				})
			}
			for _, secret := range []string{reader, writer, admin, old, other} {
				if strings.Contains(log.String(), secret[:20]) {
					t.Error("a token was logged")
				}
			}
			if !strings.Contains(log.String(), "127.0.0.1:") || !strings.Contains(log.String(), "not known here") {
				t.Errorf("the log has %q", log.String())
			}
		})
	}
}

// watch opens a stream and has one message go to and fro.
func watch(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Service/Watch")
	if err != nil {
		return nil, err
	}
	return s, ping(s)
}

func ping(s grpc.ClientStream) error {
	if err := s.SendMsg(&emptypb.Empty{}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return s.RecvMsg(&emptypb.Empty{}) // has the status, if the stream has ended
}

// A token that is taken out ends the streams that it opened, too; one that is added works.
func TestReload(t *testing.T) {
	b := newBook(t)
	secret := b.add(t, "rita", Read, time.Time{})
	p := &Policy{Tokens: b.open(t)}
	address := serve(t, nil, p, false)
	conn := dial(t, address, DialOptions(nil, Token(secret))...)
	s, err := watch(within(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	// A mistake takes nobody's token away.
	good := b.lines
	b.lines = append(b.lines, "rubbish")
	b.write(t)
	if _, err := call(within(t), conn, "Read"); err != nil {
		t.Error(err)
	}
	b.lines = good[:0]
	second := b.add(t, "rita", Write, time.Time{})
	_, err = call(within(t), conn, "Read")
	refused(t, err, codes.Unauthenticated, "not known here")
	eventually(t, "the stream's end", func() bool { err = ping(s); return err != nil })
	refused(t, err, codes.Unauthenticated, "not known here")
	if who, err := call(within(t), dial(t, address, DialOptions(nil, Token(second))...), "Write"); err != nil || who != "token rita write" {
		t.Errorf("%q, %v", who, err)
	}
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	if _, err := call(within(t), dial(t, address, DialOptions(nil, Token(second))...), "Write"); err != nil {
		t.Errorf("without the file: %v", err)
	}
}

// Tokens come and go while calls run: the one that stays is never refused.
func TestReloadUnderLoad(t *testing.T) {
	b := newBook(t)
	stays := b.add(t, "stays", Write, time.Time{})
	p := &Policy{Tokens: b.open(t)}
	address := serve(t, nil, p, true)
	conn := dial(t, address, DialOptions(nil, Token(stays))...)
	ctx, cancel := context.WithCancel(within(t))
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for ctx.Err() == nil {
				if _, err := call(context.WithoutCancel(ctx), conn, "Write"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 30 {
		comes := b.add(t, "comes", Admin, time.Time{})
		if who, ok := p.Tokens.find(comes); !ok || who.role != Admin {
			t.Errorf("round %d: a token that was added is not known", i)
		}
		b.lines = b.lines[:1]
		b.write(t)
		if _, ok := p.Tokens.find(comes); ok {
			t.Errorf("round %d: a token that was taken out is known", i)
		}
	}
	cancel()
	calls.Wait()
}

// In use, the file is looked at once a second, not for every call.
func TestLooksNowAndThen(t *testing.T) {
	b := newBook(t)
	b.add(t, "one", Read, time.Time{})
	tokens, err := OpenTokens(b.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	second := b.add(t, "two", Read, time.Time{})
	eventually(t, "the new token", func() bool { _, ok := tokens.find(second); return ok })
}

func TestNilPolicyAsksNothing(t *testing.T) {
	for _, p := range []*Policy{nil, {}} {
		if who, err := call(within(t), dial(t, serve(t, nil, p, false), DialOptions(nil, nil)...), "Admin"); err != nil || who != "  admin" {
			t.Errorf("%q, %v", who, err)
		}
	}
}

// A token is sent over TLS or within the machine, and else the call fails without it.
func TestTokenOverPlainText(t *testing.T) {
	b := newBook(t)
	secret := b.add(t, "rita", Read, time.Time{})
	address := serve(t, nil, &Policy{Tokens: b.open(t)}, false)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromFile, err := TokenFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []credentials.PerRPCCredentials{Token(secret), fromFile} {
		if _, err := call(within(t), dial(t, address, DialOptions(nil, token)...), "Read"); err != nil {
			t.Error(err)
		}
		away := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			return elsewhere{c}, err
		})
		_, err := call(within(t), dial(t, address, append(DialOptions(nil, token), away)...), "Read")
		refused(t, err, codes.Unauthenticated, "the token was not sent")
		// Credentials that do not know where they lead are not trusted.
		_, err = call(within(t), dial(t, address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(token)), "Read")
		refused(t, err, codes.Unauthenticated, "the token was not sent")
	}
	for name, content := range map[string]string{"empty": "", "two words": "decree_a b", "long": strings.Repeat("x", 257), "binary": "a\x00b"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := TokenFile(file, nil); err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "decree_a") {
			t.Errorf("%s: %v", name, err)
		}
		_, err := call(within(t), dial(t, address, DialOptions(nil, Token(content))...), "Read")
		refused(t, err, codes.Unauthenticated, "the token has")
	}
	if _, err := TokenFile(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// elsewhere is a connection that seems to leave the machine.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func TestHTTP(t *testing.T) {
	b := newBook(t)
	secret := b.add(t, "rita", Read, time.Time{})
	p := &Policy{Tokens: b.open(t)}
	need := func(r *http.Request) Role {
		if r.Method == http.MethodGet {
			return Read
		}
		return Write
	}
	handler := p.HTTP(need, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := FromContext(r.Context())
		fmt.Fprint(w, who.Name)
	}))
	for name, c := range map[string]struct {
		method, header string
		code           int
		body           string
	}{
		"none":   {"GET", "", 401, `{"code":"unauthenticated","message":"this port wants a token`},
		"wrong":  {"GET", "Bearer decree_wrong", 401, "not known here"},
		"role":   {"POST", "Bearer " + secret, 403, `{"code":"forbidden","message":"token of \"rita\"`},
		"reader": {"GET", "Bearer " + secret, 200, "rita"},
	} {
		r, w := httptest.NewRequest(c.method, "/", nil), httptest.NewRecorder()
		if c.header != "" {
			r.Header.Set("Authorization", c.header)
		}
		handler.ServeHTTP(w, r)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) || (c.code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	open := (*Policy)(nil).HTTP(need, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	w := httptest.NewRecorder()
	if open.ServeHTTP(w, httptest.NewRequest("POST", "/", nil)); w.Code != 200 {
		t.Error(w.Code)
	}
}

func TestListen(t *testing.T) {
	tokens := &Policy{Tokens: newBook(t).open(t)}
	certs := &Policy{CertRole: Write}
	server := &tls.Config{}
	mutual := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}
	for name, c := range map[string]struct {
		address string
		port    Port
		missing string // empty: it is listened on
	}{
		"loopback":               {"127.0.0.1:0", Port{}, ""},
		"localhost":              {"localhost:0", Port{}, ""},
		"everywhere":             {"0.0.0.0:0", Port{}, "neither TLS nor tokens"},
		"no host":                {":0", Port{}, "neither TLS nor tokens"},
		"IPv6":                   {"[::]:0", Port{}, "neither TLS nor tokens"},
		"empty policy":           {":0", Port{Policy: &Policy{}}, "neither TLS nor tokens"},
		"told so":                {":0", Port{Insecure: true}, ""},
		"tokens in plain text":   {":0", Port{Policy: tokens}, "has no TLS"},
		"TLS for everybody":      {":0", Port{TLS: server}, "asks nobody"},
		"roles of certificates":  {":0", Port{TLS: server, Policy: certs}, "asks for none"},
		"TLS and tokens":         {":0", Port{TLS: server, Policy: tokens}, ""},
		"mutual TLS":             {":0", Port{TLS: mutual}, ""},
		"mutual TLS with tokens": {":0", Port{TLS: mutual, Policy: tokens}, ""},
	} {
		l, err := Listen(c.address, c.port)
		if l != nil {
			l.Close()
		}
		switch {
		case c.missing == "" && err != nil:
			if name != "IPv6" {
				t.Errorf("%s: %v", name, err)
			}
		case c.missing != "" && (!errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), c.missing) || !strings.Contains(err.Error(), "set Insecure")):
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Listen("nowhere", Port{}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Error(err)
	}
}

func TestRoles(t *testing.T) {
	for r := Read; r <= Admin; r++ {
		if got, err := ParseRole(r.String()); err != nil || got != r {
			t.Errorf("%v: %v, %v", r, got, err)
		}
	}
	for _, name := range []string{"", "none", "ADMIN", "role 7"} {
		if r, err := ParseRole(name); err == nil || r != None {
			t.Errorf("%q: %v", name, r)
		}
	}
	if s := Role(7).String(); s != "role 7" {
		t.Error(s)
	}
}

// BenchmarkCheck is what a call pays.
func BenchmarkCheck(b *testing.B) {
	tokens := newBook(b)
	secret := tokens.add(b, "rita", Write, time.Time{})
	for i := range 1000 {
		_, line, err := NewToken(fmt.Sprint("other", i), Read, time.Time{})
		if err != nil {
			b.Fatal(err)
		}
		tokens.lines = append(tokens.lines, line)
	}
	tokens.write(b)
	opened, err := OpenTokens(tokens.path, nil)
	if err != nil {
		b.Fatal(err)
	}
	p := &Policy{Tokens: opened}
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs("authorization", "Bearer "+secret))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Check(ctx, Write); err != nil {
			b.Fatal(err)
		}
	}
}
