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
	openings []error // answers to OpenSession, as script
	freeze   chan struct{}
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
	if len(s.openings) > 0 {
		err := s.openings[0]
		if s.openings = s.openings[1:]; err != nil {
			return nil, err
		}
	}
	s.opened++
	return &ledgerv1.OpenSessionResponse{Id: 100 + s.opened}, nil
}

func (s *scripted) PostEntries(_ context.Context, m *ledgerv1.PostEntriesRequest) (*ledgerv1.PostEntriesResponse, error) {
	if s.freeze != nil {
		<-s.freeze
	}
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
	return c.PostEntries(ctx, book.Entry{ID: NewID()}, book.Entry{ID: NewID()})
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

var (
	testBusy    = withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "overloaded"})
	testLost    = withDetail(codes.Unknown, &ledgerv1.ErrorDetail{Kind: "unknown", Code: "leadership_lost"})
	testExpired = withDetail(codes.FailedPrecondition, &ledgerv1.ErrorDetail{Kind: "rejected", Code: "session_expired"})
)

// What may have happened in one session stays in doubt, whatever is said about the attempts in later ones.
func TestDoubtOutlivesTheSession(t *testing.T) {
	tooLarge := withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "command_too_large"})
	rejected := withDetail(codes.InvalidArgument, &ledgerv1.ErrorDetail{Kind: "rejected", Code: "machine_panic"})
	for name, after := range map[string]error{"busy": testBusy, "too large": tooLarge, "rejected": rejected} {
		script := []error{testLost, testExpired}
		for range 1000 {
			script = append(script, after)
		}
		remote := dial(t, serve(t, script...))
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		_, err := remote.PostEntries(ctx, book.Entry{ID: NewID()})
		cancel()
		if !errors.Is(err, rsm.ErrUnknown) || errors.Is(err, rsm.ErrNotProposed) || errors.Is(err, rsm.ErrRejected) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// No new session can be had.
	node := serve(t, testLost, testExpired)
	node.openings = []error{nil, withDetail(codes.Unavailable, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "command_too_large"})}
	if _, err := post(t, dial(t, node)); !errors.Is(err, rsm.ErrUnknown) {
		t.Errorf("no new session: %v", err)
	}
	// Without a doubt, what is said holds.
	node = serve(t, testBusy, testExpired, rejected)
	if _, err := post(t, dial(t, node)); !errors.Is(err, rsm.ErrRejected) {
		t.Errorf("no doubt: %v", err)
	}
	node = serve(t)
	node.openings = []error{testLost, tooLarge}
	if _, err := post(t, dial(t, node)); err != nil {
		t.Errorf("an opening in doubt: %v", err)
	}
}

// A chain that may be booked would fail in a new session, for its first entry exists.
func TestChainInDoubtIsNotAskedForAgain(t *testing.T) {
	for _, first := range []error{testLost, testBusy} {
		node := serve(t, first, testExpired)
		c := dial(t, node)
		_, err := c.PostEntries(t.Context(), book.Entry{ID: NewID(), Flags: book.Linked}, book.Entry{ID: NewID()})
		if first == testLost && !errors.Is(err, rsm.ErrUnknown) || first == testBusy && err != nil {
			t.Errorf("after %v: %v", first, err)
		}
		if _, err := post(t, c); err != nil { // in a new session
			t.Error(err)
		}
	}
}

// A frozen node costs one attempt, not the whole call.
func TestFrozenNode(t *testing.T) {
	frozen, sound := serve(t), serve(t)
	frozen.freeze = make(chan struct{})
	t.Cleanup(func() { close(frozen.freeze) })
	c := dial(t, frozen, sound)
	c.attempt = 50 * time.Millisecond
	begin := time.Now()
	if _, err := post(t, c); err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

func TestPermanentErrors(t *testing.T) {
	for _, err := range []error{
		withDetail(codes.InvalidArgument, &ledgerv1.ErrorDetail{Kind: "not_proposed", Code: "command_too_large"}),
		status.Error(codes.ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"),
		status.Error(codes.Unimplemented, "unknown method"),
		status.Error(codes.Internal, "grpc: error unmarshalling request: x"),
	} {
		node := serve(t, err)
		if _, got := post(t, dial(t, node)); !errors.Is(got, rsm.ErrNotProposed) || len(node.sessions) != 1 {
			t.Errorf("%v: %v after %d calls", err, got, len(node.sessions))
		}
		if _, got := post(t, dial(t, serve(t, testLost, err))); got != nil {
			t.Errorf("%v, when in doubt: %v", err, got)
		}
	}
	// It is this side that cannot write it down.
	if _, got := dial(t, serve(t)).PostEntries(t.Context(), book.Entry{ID: NewID(), Memo: "\xff"}); !errors.Is(got, rsm.ErrNotProposed) {
		t.Errorf("not UTF-8: %v", got)
	}
}

func TestPatience(t *testing.T) {
	ctx, cancel := patient(context.Background())
	defer cancel()
	if at, ok := ctx.Deadline(); !ok || time.Until(at) > patience {
		t.Errorf("deadline %v, %v", at, ok)
	}
}

func TestSequenceTooHigh(t *testing.T) {
	tooHigh := withDetail(codes.FailedPrecondition, &ledgerv1.ErrorDetail{Kind: "rejected", Code: "sequence_too_high"})
	node := serve(t, tooHigh, tooHigh)
	if _, err := post(t, dial(t, node)); err != nil || len(node.sessions) != 3 || node.sessions[2].GetSequence() != 1 {
		t.Errorf("%v after %v", err, node.sessions)
	}
	// A window that is full is waited for.
	c := dial(t, serve(t))
	if _, err := post(t, c); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.last = c.acked + maxUnacknowledged
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.PostEntries(ctx, book.Entry{ID: NewID()}); !errors.Is(err, rsm.ErrNotProposed) {
		t.Errorf("beyond the window: %v", err)
	}
	c.mu.Lock()
	c.acked++
	c.mu.Unlock()
	if _, err := post(t, c); err != nil {
		t.Error(err)
	}
}

func TestAnswerOfAnotherLength(t *testing.T) {
	if got, err := dial(t, serve(t)).PostEntries(t.Context(), book.Entry{ID: NewID()}); !errors.Is(err, rsm.ErrUnknown) {
		t.Errorf("two outcomes for one entry: %v, %v", got, err)
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
