package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/gate"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/tlsfiles"
)

// Policy is what a port asks of its callers. It is not changed once it is in use. A nil or empty one asks nothing: whoever
// reaches the port is an admin; Listen keeps such a port to the machine. Safe for concurrent use.
type Policy struct {
	// Tokens gives roles to who sends one. Nil: tokens are not looked at.
	Tokens *Tokens
	// Certs gives roles by the name of the certificate that a client has shown: its common name, or one of its URIs. Only
	// certificates count that the port has verified (mutual TLS).
	Certs map[string]Role
	// CertRole is the least role of everyone with such a certificate. Default None: it opens the connection and gives no role.
	CertRole Role
	// Log gets who was refused, and why, at most once a minute for each host and reason. Nil: nobody does.
	Log *slog.Logger

	once sync.Once
	log  *limitlog.Log
}

// Identity is who calls.
type Identity struct {
	// Name is that of the token or the certificate; empty: nobody was asked, or it is not known.
	Name string
	Role Role
	// Source is how it is known: "token", "certificate", or "" where nothing is asked.
	Source string
}

// Asks says whether callers have to show anything to get a role.
func (p *Policy) Asks() bool {
	return p != nil && (p.Tokens != nil || len(p.Certs) > 0 || p.CertRole > None)
}

// roles says which of the policy's roles is none of the package's: a greater number would be an admin.
func (p *Policy) roles() error {
	if p == nil {
		return nil
	}
	if p.CertRole > Admin {
		return fmt.Errorf("access: CertRole is %d: None, Read, Write or Admin, 0 to %d", p.CertRole, Admin)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Certs)) {
		if p.Certs[name] > Admin {
			return fmt.Errorf("access: Certs gives %q the role %d: None, Read, Write or Admin, 0 to %d", clip(name), p.Certs[name], Admin)
		}
	}
	return nil
}

// Check returns who calls, if that may do what needs the role need. ctx is that of a gRPC call that came in. The error is a
// status: Unauthenticated if it is not known who calls, PermissionDenied if the role is too small. It says what to do, and has
// no secrets. Check may be repeated as a stream goes on: tokens expire and are taken out.
func (p *Policy) Check(ctx context.Context, need Role) (Identity, error) {
	if !p.Asks() {
		return Identity{Role: Admin}, nil
	}
	var state *tls.ConnectionState
	remote := "unknown"
	if from, ok := peer.FromContext(ctx); ok {
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			state = &info.State
		}
		if from.Addr != nil {
			remote = from.Addr.String()
		}
	}
	return p.check(metadata.ValueFromIncomingContext(ctx, "authorization"), state, remote, need)
}

func (p *Policy) check(authorization []string, state *tls.ConnectionState, remote string, need Role) (Identity, error) {
	if need == None {
		return Identity{}, nil // everybody's; who it is does not matter
	}
	who, err := p.identify(authorization, state)
	if end := tlsfiles.Expiry(state); err == nil && !end.IsZero() && time.Now().After(end) {
		// The connection was made before, and would be refused now.
		err = status.Errorf(codes.Unauthenticated, "the client certificate of this connection expired at %s: connect with a new one", end.UTC().Format(time.RFC3339))
	}
	if err == nil && who.Role < need {
		err = status.Errorf(codes.PermissionDenied, "%s of %q has the role %v, and this call needs %v: use one with that role, or have an administrator give it",
			who.Source, who.Name, who.Role, need)
	}
	if err != nil {
		p.refused(remote, err)
		return Identity{}, err
	}
	return who, nil
}

func (p *Policy) identify(authorization []string, state *tls.ConnectionState) (Identity, error) {
	if p.Tokens != nil && len(authorization) > 0 {
		return p.byToken(authorization)
	}
	if leaf := verified(state); leaf != nil && (len(p.Certs) > 0 || p.CertRole > None) {
		who := Identity{Name: leaf.Subject.CommonName, Role: p.CertRole, Source: "certificate"}
		for _, name := range certNames(leaf) {
			// The greatest one counts: the order of a certificate's names means nothing.
			if role := p.Certs[name]; role > who.Role {
				who.Name, who.Role = name, role
			}
		}
		if who.Role > None || p.Tokens == nil {
			return who, nil
		}
	}
	if p.Tokens == nil {
		return Identity{}, status.Error(codes.Unauthenticated, "this port wants a client certificate, and the connection has none: connect with TLS and a certificate of its authorities")
	}
	return Identity{}, status.Error(codes.Unauthenticated, "this port wants a token, and the call has none: send the header authorization: Bearer TOKEN (decree token new makes one)")
}

func (p *Policy) byToken(authorization []string) (Identity, error) {
	if len(authorization) > 1 {
		return Identity{}, status.Errorf(codes.Unauthenticated, "the call has %d authorization headers: send one", len(authorization))
	}
	scheme, secret, ok := strings.Cut(authorization[0], " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return Identity{}, status.Error(codes.Unauthenticated, "the authorization header has another form than this port knows: Bearer TOKEN")
	}
	t, ok := p.Tokens.find(strings.TrimSpace(secret))
	switch {
	case !ok:
		return Identity{}, status.Error(codes.Unauthenticated, "the token is not known here: it is mistyped, was taken out, or is for another cluster; ask for a new one")
	case !t.expires.IsZero() && !time.Now().Before(t.expires):
		return Identity{}, status.Errorf(codes.Unauthenticated, "the token of %q expired at %s: ask for a new one", t.name, t.expires.UTC().Format(time.RFC3339))
	}
	return Identity{Name: t.name, Role: t.role, Source: "token"}, nil
}

// verified returns the client's certificate, if the handshake has verified it.
func verified(state *tls.ConnectionState) *x509.Certificate {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return nil
	}
	return state.VerifiedChains[0][0]
}

func certNames(c *x509.Certificate) []string {
	names := []string{c.Subject.CommonName}
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return names
}

func (p *Policy) refused(remote string, err error) {
	p.once.Do(func() { p.log = limitlog.New(p.Log) })
	host, reason := hostOf(remote), status.Convert(err).Message()
	p.log.Warn(limitlog.Key{Reason: host + " " + reason}, "refused a call", "remote", remote, "reason", reason)
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

type identityKey struct{}

// FromContext returns who calls, in a handler behind Unary, Stream, Registrar or HTTP.
func FromContext(ctx context.Context) (Identity, bool) {
	who, ok := ctx.Value(identityKey{}).(Identity)
	return who, ok
}

func (p *Policy) call(ctx context.Context, need Role) (context.Context, error) {
	who, err := p.Check(ctx, need)
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, identityKey{}, who), nil
}

// recheck is how long a stream goes on before its next message has the caller checked again.
const recheck = time.Second

func (p *Policy) stream(s grpc.ServerStream, need Role) (grpc.ServerStream, error) {
	ctx, err := p.call(s.Context(), need)
	if err != nil {
		return nil, err
	}
	return &checkedStream{ServerStream: s, ctx: ctx, policy: p, need: need, sent: time.Now(), received: time.Now()}, nil
}

// checkedStream ends when its caller may not go on.
type checkedStream struct {
	grpc.ServerStream
	ctx    context.Context
	policy *Policy
	need   Role
	// When the caller was last checked, for each of the goroutines that may use a stream at once.
	sent, received time.Time
}

func (s *checkedStream) Context() context.Context { return s.ctx }

func (s *checkedStream) again(last *time.Time) error {
	if time.Since(*last) < recheck {
		return nil
	}
	*last = time.Now()
	_, err := s.policy.Check(s.ctx, s.need)
	return err
}

func (s *checkedStream) SendMsg(m any) error {
	if err := s.again(&s.sent); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

// RecvMsg checks after it has waited: the caller may be another than it was before.
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.again(&s.received)
}

// Unary returns an interceptor that checks every call. need says which role a method ("/package.Service/Method") takes; of
// methods that it does not know it should say Admin.
func (p *Policy) Unary(need func(method string) Role) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, err := p.call(ctx, need(info.FullMethod))
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// Stream is Unary for streams. The caller is checked again while messages pass, at most once a second.
func (p *Policy) Stream(need func(method string) Role) grpc.StreamServerInterceptor {
	return func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		s, err := p.stream(s, need(info.FullMethod))
		if err != nil {
			return err
		}
		return next(srv, s)
	}
}

// Registrar returns r with the checks of Unary and Stream before each call of the services that are registered through it. It is
// for ports that serve other things besides, which are none of the policy's business: a node's, where other nodes call.
func (p *Policy) Registrar(r grpc.ServiceRegistrar, need func(method string) Role) grpc.ServiceRegistrar {
	return &gate.Registrar{
		ServiceRegistrar: r,
		Call:             func(ctx context.Context, method string) (context.Context, error) { return p.call(ctx, need(method)) },
		Stream:           func(s grpc.ServerStream, method string) (grpc.ServerStream, error) { return p.stream(s, need(method)) },
	}
}

// HTTP returns a handler that checks every request before next gets it: the same header, the same certificates. A refusal has
// the status 401 or 403, and the body, with the codes of package rsm, {"code":"unauthenticated" or "forbidden","message":"..."}.
func (p *Policy) HTTP(need func(*http.Request) Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := Identity{Role: Admin}, error(nil)
		if p.Asks() {
			who, err = p.check(r.Header.Values("Authorization"), r.TLS, r.RemoteAddr, need(r))
		}
		if err == nil {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, who)))
			return
		}
		code, name := http.StatusForbidden, "forbidden"
		if status.Code(err) == codes.Unauthenticated {
			code, name = http.StatusUnauthorized, "unauthenticated"
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": name, "message": status.Convert(err).Message()}) // the client may be gone
	})
}
