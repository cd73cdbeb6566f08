package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// scripted is a node whose answers to PostEntries are written down; after the last one it says "created".
type scripted struct {
	ledgerv1.UnimplementedLedgerServiceServer
	address string

	mu       sync.Mutex
	script   []error
	sessions []*ledgerv1.Session // of the calls
	opened   uint64
	lists    int
}

func (s *scripted) next(session *ledgerv1.Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = append(s.sessions, session)
	if len(s.script) == 0 {
		return nil
	}
	err := s.script[0]
	s.script = s.script[1:]
	return err
}

func (s *scripted) OpenSession(context.Context, *ledgerv1.OpenSessionRequest) (*ledgerv1.OpenSessionResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	return &ledgerv1.OpenSessionResponse{Id: 100 + s.opened}, nil
}

func (s *scripted) PostEntries(_ context.Context, m *ledgerv1.PostEntriesRequest) (*ledgerv1.PostEntriesResponse, error) {
	if err := s.next(m.GetSession()); err != nil {
		return nil, err
	}
	return &ledgerv1.PostEntriesResponse{Results: []*ledgerv1.Result{{Code: "created"}, {Code: "exceeds_credits", Leg: 2}}}, nil
}

func (s *scripted) CreateAccounts(_ context.Context, m *ledgerv1.CreateAccountsRequest) (*ledgerv1.CreateAccountsResponse, error) {
	if err := s.next(m.GetSession()); err != nil {
		return nil, err
	}
	return &ledgerv1.CreateAccountsResponse{Results: []*ledgerv1.Result{{Code: "a code of the future"}}}, nil
}

func (s *scripted) ListAccounts(_ context.Context, m *ledgerv1.ListAccountsRequest) (*ledgerv1.ListAccountsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	zero := &ledgerv1.Balances{DebitsPending: "0", DebitsPosted: "7", CreditsPending: "0", CreditsPosted: "0"}
	r := &ledgerv1.ListAccountsResponse{Accounts: []*ledgerv1.Account{{Id: "1", Name: m.GetNamePrefix(), Asset: "EUR", Balances: zero}}}
	if s.lists == 1 {
		r.NextPageToken = []byte("more")
	} else if string(m.GetPageToken()) != "more" {
		return nil, status.Error(codes.InvalidArgument, "the page token is lost")
	}
	return r, nil
}

func serve(t *testing.T, script ...error) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{address: l.Addr().String(), script: script}
	g := grpc.NewServer()
	ledgerv1.RegisterLedgerServiceServer(g, s)
	go func() { _ = g.Serve(l) }() // ends with Stop
	t.Cleanup(g.Stop)
	return s
}

func withDetail(code codes.Code, d *ledgerv1.ErrorDetail) error {
	st, err := status.New(code, d.GetMessage()).WithDetails(d)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func dial(t *testing.T, nodes ...*scripted) *Remote {
	t.Helper()
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, n.address)
	}
	c, err := Dial(addresses...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func post(t *testing.T, c *Remote) ([]book.Outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.PostEntries(ctx, book.Entry{ID: NewID()})
}

func TestRetriesUnderTheSameNumber(t *testing.T) {
	node := serve(t,
		withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "overloaded"}),
		withDetail(codes.Unknown, &ledgerv1.ErrorDetail{Kind: "unknown", Code: "leadership_lost"}),
		withDetail(codes.Internal, &ledgerv1.ErrorDetail{Kind: "broken", Code: "storage"}),
		status.Error(codes.Unavailable, "no detail: the connection broke"))
	c := dial(t, node)
	outcomes, err := post(t, c)
	if err != nil || len(outcomes) != 2 || outcomes[1] != (book.Outcome{Code: book.ExceedsCredits, Leg: 2}) {
		t.Fatalf("%v, %v", outcomes, err)
	}
	if len(node.sessions) != 5 {
		t.Fatalf("%d attempts", len(node.sessions))
	}
	for _, s := range node.sessions {
		if s.GetId() != 101 || s.GetSequence() != 1 || s.GetAcknowledged() != 0 {
			t.Errorf("attempt under %v", s)
		}
	}
	if _, err := post(t, c); err != nil {
		t.Fatal(err)
	}
	if s := node.sessions[5]; s.GetSequence() != 2 || s.GetAcknowledged() != 1 {
		t.Errorf("the next command under %v", s)
	}
}

func TestFollowsTheLeader(t *testing.T) {
	leader := serve(t)
	follower := serve(t, withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "not_leader", Leader: 9, LeaderApi: leader.address}))
	c := dial(t, follower) // the leader's address is learned
	for range 2 {
		if _, err := post(t, c); err != nil {
			t.Fatal(err)
		}
	}
	if len(follower.sessions) != 1 || len(leader.sessions) != 2 {
		t.Errorf("%d calls to the follower, %d to the leader", len(follower.sessions), len(leader.sessions))
	}
}

func TestTurnsToTheNextNode(t *testing.T) {
	alone := withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "no_leader"})
	first, second := serve(t, alone, alone), serve(t)
	if _, err := post(t, dial(t, first, second)); err != nil {
		t.Fatal(err)
	}
	if len(first.sessions) != 1 || len(second.sessions) != 1 {
		t.Errorf("%d and %d calls", len(first.sessions), len(second.sessions))
	}
}

func TestRejectionIsFinal(t *testing.T) {
	node := serve(t, withDetail(codes.InvalidArgument, &ledgerv1.ErrorDetail{Kind: "rejected", Code: "bad_request", Message: "m"}))
	_, err := post(t, dial(t, node))
	if !errors.Is(err, &rsm.Rejection{Code: "bad_request"}) || !errors.Is(err, rsm.ErrRejected) || len(node.sessions) != 1 {
		t.Errorf("%v after %d calls", err, len(node.sessions))
	}
}

func TestExpiredSessionIsReplaced(t *testing.T) {
	node := serve(t, nil, withDetail(codes.FailedPrecondition, &ledgerv1.ErrorDetail{Kind: "rejected", Code: "session_expired"}))
	c := dial(t, node)
	for range 2 {
		if _, err := post(t, c); err != nil {
			t.Fatal(err)
		}
	}
	last := node.sessions[len(node.sessions)-1]
	if node.opened != 2 || last.GetId() != 102 || last.GetSequence() != 1 {
		t.Errorf("%d sessions, the last call under %v", node.opened, last)
	}
}

func TestGivesUpWithItsContext(t *testing.T) {
	busy := withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "overloaded", Message: "m"})
	lost := withDetail(codes.Unknown, &ledgerv1.ErrorDetail{Kind: "unknown", Code: "leadership_lost"})
	for _, c := range []struct {
		first error
		kind  error
	}{{busy, rsm.ErrNotProposed}, {lost, rsm.ErrUnknown}} {
		script := []error{c.first}
		for range 1000 {
			script = append(script, busy)
		}
		remote := dial(t, serve(t, script...))
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		_, err := remote.PostEntries(ctx, book.Entry{ID: NewID()})
		cancel()
		// The last attempt may have been cut off by the deadline, and then nobody knows.
		if !errors.Is(err, c.kind) && !errors.Is(err, rsm.ErrUnknown) {
			t.Errorf("%v, want %v", err, c.kind)
		}
	}
}

func TestUnknownCode(t *testing.T) {
	if _, err := dial(t, serve(t)).CreateAccounts(context.Background(), book.Account{}); err == nil {
		t.Error("a code of the future was taken for something else")
	}
}

func TestAccountsOfAllPages(t *testing.T) {
	accounts, err := dial(t, serve(t)).Accounts(context.Background(), "Assets")
	if err != nil || len(accounts) != 2 || accounts[1].Name != "Assets" || accounts[0].DebitsPosted != book.U64(7) {
		t.Errorf("%v, %v", accounts, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	node := serve(t)
	c := dial(t, node)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := post(t, c); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := make(map[uint64]bool)
	for _, s := range node.sessions {
		if s.GetAcknowledged() >= s.GetSequence() || seen[s.GetSequence()] {
			t.Errorf("a call under %v", s)
		}
		seen[s.GetSequence()] = true
	}
	if node.opened != 1 || c.acked != 200 || len(c.arrived) != 0 {
		t.Errorf("%d sessions, %d acknowledged, %d apart", node.opened, c.acked, len(c.arrived))
	}
}

func TestDial(t *testing.T) {
	if _, err := Dial(); err == nil {
		t.Error("no addresses")
	}
	if _, err := Dial("%"); err == nil {
		t.Error("a bad address")
	}
	a, b := NewID(), NewID()
	if a == b || a.IsZero() || a.String()[:8] != b.String()[:8] {
		t.Errorf("ids %v and %v", a, b)
	}
}
