package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// blocked is a shard on which commands are at work until they are released. Those that make room are answered.
type blocked struct {
	*replica
	begun, release chan struct{}
}

func (b *blocked) Do(ctx context.Context, r rsm.Request) (rsm.Result, error) {
	if !r.MakesRoom {
		select {
		case b.begun <- struct{}{}: // there is a hold
		case <-time.After(time.Second):
			return rsm.Result{}, errors.New("a request is at work that should have been refused")
		}
		<-b.release
	}
	return b.replica.Do(ctx, r)
}

// newBlocked serves a shard that blocks. hold has a client begin a request, which is at work when hold returns.
func newBlocked(t *testing.T, cfg Config) (s *Server, hold func(ctx context.Context)) {
	_, r := newServer(t)
	b := &blocked{r, make(chan struct{}), make(chan struct{})}
	cfg.Shard = b
	s = New(cfg)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		close(b.release)
		wg.Wait()
		if s.slots.ordinary.taken != 0 || len(s.slots.ordinary.clients) != 0 || s.slots.reserve.taken != 0 || len(s.slots.reserve.clients) != 0 {
			t.Errorf("slots are held, or clients remembered, when nothing is at work: %+v", s.slots)
		}
	})
	return s, func(ctx context.Context) {
		t.Helper()
		failed := make(chan error, 1)
		wg.Go(func() { failed <- postOne(ctx, s) })
		select {
		case <-b.begun:
		case err := <-failed:
			t.Fatalf("not taken: %v", err)
		}
	}
}

func postOne(ctx context.Context, s *Server) error {
	_, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{entry("a", "5")}})
	return err
}

func voidOne(ctx context.Context, s *Server) error {
	_, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{{Id: "c", PendingId: "b", VoidPending: true}}})
	return err
}

// from is the context of a call over gRPC from a host.
func from(host string, port int) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(host), Port: port}})
}

func wantOverloaded(t *testing.T, err error, bound string) {
	t.Helper()
	d := detailOf(err)
	if status.Code(err) != codes.Unavailable || d.Kind != KindNotProposed || d.Code != "overloaded" || d.RetryAfterMs == 0 || !strings.Contains(d.Message, bound) {
		t.Errorf("%v, want overloaded, and %q", err, bound)
	}
}

// Bodies that come slowly, or never, are bounded, and one client's leave room for those of others; what is refused says when to come back, and an upload that breaks off gives back its room.
//
// Mutations with which it was seen to fail: bodies are read whoever sends them; a body without a length counts as none; one that breaks off is not given back.
func TestBodiesAreBounded(t *testing.T) {
	s, r := newServer(t)
	r.version = book.VersionReferences
	s.bodies.bytes = newPool(4 * MaxBodyBytes)
	h := s.HTTP()
	send := func(host string, length int64, body io.Reader) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest("POST", "/v1/entries", body)
		r.RemoteAddr, r.ContentLength = net.JoinHostPort(host, "1"), length
		h.ServeHTTP(w, r)
		return w
	}
	taken := func() int {
		s.bodies.mu.Lock()
		defer s.bodies.mu.Unlock()
		return s.bodies.bytes.taken
	}
	var wg sync.WaitGroup
	var uploads []*io.PipeWriter
	hold := func(host string, length int64) {
		t.Helper()
		before, until := taken(), time.Now().Add(20*time.Second)
		body, w := io.Pipe()
		uploads = append(uploads, w)
		wg.Go(func() { send(host, length, body) })
		for taken() != before+MaxBodyBytes {
			if time.Sleep(time.Millisecond); time.Now().After(until) {
				t.Fatalf("a body of %s counts for %d bytes", host, taken()-before)
			}
		}
	}
	const post = `{"entries": [{"id": "a", "legs": [{"account": "1", "debit": "1"}, {"account": "2", "credit": "1"}]}]}`
	hold("10.0.0.1", MaxBodyBytes)
	hold("10.0.0.1", -1)
	if w := send("10.0.0.1", int64(len(post)), strings.NewReader(post)); w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), "overloaded") {
		t.Errorf("beyond its share: %d %s", w.Code, w.Body)
	}
	if w := send("10.0.0.2", int64(len(post)), strings.NewReader(post)); w.Code != 200 {
		t.Errorf("another client: %d %s", w.Code, w.Body)
	}
	for _, w := range uploads {
		w.CloseWithError(io.ErrUnexpectedEOF)
	}
	wg.Wait()
	if taken() != 0 || len(s.bodies.bytes.clients) != 0 {
		t.Errorf("%d bytes are taken, of %d clients, and nothing comes in", taken(), len(s.bodies.bytes.clients))
	}
}

// As many requests as may be are at work, and one that makes room is taken all the same.
// Mutation with which it was seen to fail: take does not turn to the reserve.
func TestVoidIsTakenWhenAllIsFull(t *testing.T) {
	s, hold := newBlocked(t, Config{})
	for i := range 1024 {
		hold(from(fmt.Sprintf("10.0.%d.%d", i/256, i%256), 1))
	}
	newcomer := from("10.1.0.0", 1)
	wantOverloaded(t, postOne(newcomer, s), "1024 requests are at work")
	mixed := &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{{Id: "c", PendingId: "b", VoidPending: true}, entry("d", "5")}}
	_, err := s.PostEntries(newcomer, mixed)
	wantOverloaded(t, err, "1024 requests are at work")
	for _, client := range []context.Context{newcomer, from("10.0.0.0", 1)} {
		if err := voidOne(client, s); err != nil {
			t.Errorf("a void: %v", err)
		}
	}
	// The reserve is bounded and shared, too.
	for range 64 {
		if _, err := s.slots.take("a", true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.slots.take("a", true); err == nil || !strings.Contains(err.Error(), `client "a" has 64 requests in the slots that are kept`) {
		t.Errorf("above the share of the reserve: %v", err)
	}
	if err := voidOne(newcomer, s); err != nil {
		t.Errorf("a void of another client: %v", err)
	}
	for range 64 {
		s.slots.reserve.give("a", 1)
	}
}

// A client that has its share is refused, over whatever connections it comes; another is served.
// Mutation with which it was seen to fail: has looks at the free slots alone.
func TestOneClientLeavesSlotsToOthers(t *testing.T) {
	s, hold := newBlocked(t, Config{MaxSubmits: 16})
	for i := range 8 {
		hold(from("10.0.0.1", i+1))
	}
	wantOverloaded(t, postOne(from("10.0.0.1", 9), s), `client "10.0.0.1" has 8 requests at work on this node, which is its fair share`)
	over := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/v1/entries", strings.NewReader(`{"entries": [{"id": "a"}]}`))
	r.RemoteAddr = "10.0.0.1:10"
	if s.HTTP().ServeHTTP(over, r); over.Code != 503 || !strings.Contains(over.Body.String(), "fair share") {
		t.Errorf("the same host over HTTP: %d %s", over.Code, over.Body)
	}
	for range 4 {
		hold(from("10.0.0.2", 1))
	}
	wantOverloaded(t, postOne(from("10.0.0.2", 1), s), "fair share")
	hold(from("10.0.0.3", 1))
	if err := voidOne(from("10.0.0.1", 1), s); err != nil {
		t.Errorf("a void of the client that has its share: %v", err)
	}
}

// Whoever has shown its name is one client wherever it calls from, and two names at one host are two.
// Mutation with which it was seen to fail: clientOf returns the host before the name.
func TestClientsAreNames(t *testing.T) {
	var lines []string
	var secrets []string
	for _, name := range []string{"anna", "bert"} {
		secret, line, err := access.NewToken(name, access.Write, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		lines, secrets = append(lines, line), append(secrets, secret)
	}
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.OpenTokens(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	check := (&access.Policy{Tokens: tokens}).Unary(RoleOf)
	as := func(secret, host string) (known context.Context) {
		in := metadata.NewIncomingContext(from(host, 1), metadata.Pairs("authorization", "Bearer "+secret))
		info := &grpc.UnaryServerInfo{FullMethod: ledgerv1.LedgerService_PostEntries_FullMethodName}
		if _, err := check(in, nil, info, func(ctx context.Context, _ any) (any, error) { known = ctx; return nil, nil }); err != nil {
			t.Fatal(err)
		}
		return known
	}
	s, hold := newBlocked(t, Config{MaxSubmits: 2})
	hold(as(secrets[0], "10.0.0.1"))
	wantOverloaded(t, postOne(as(secrets[0], "10.0.0.2"), s), `client "anna" has 1`)
	hold(as(secrets[1], "10.0.0.1"))
}
