package server

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

var ctx = context.Background()

func account(id string) *ledgerv1.CreateAccountsRequest_Item {
	return &ledgerv1.CreateAccountsRequest_Item{Account: &ledgerv1.Account{Id: id, Asset: "EUR", Scale: 2, Name: "n" + id}}
}

func entry(id string, amount string) *ledgerv1.Entry {
	return &ledgerv1.Entry{Id: id, Legs: []*ledgerv1.Leg{{Account: "1", Debit: amount}, {Account: "2", Credit: amount}}}
}

func wantResults(t *testing.T, results []*ledgerv1.Result, want ...string) {
	t.Helper()
	got := []string{}
	for _, r := range results {
		got = append(got, r.GetCode())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("results %v, want %v", got, want)
	}
}

func TestService(t *testing.T) {
	s, r := newServer(t)
	opened, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{
		Items: []*ledgerv1.CreateAccountsRequest_Item{account("1"), account("2"), account("1"), account("0")}})
	if err != nil {
		t.Fatal(err)
	}
	wantResults(t, opened.Results, "created", "created", "exists", "id_must_not_be_zero")
	posted, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{
		Entries: []*ledgerv1.Entry{entry("a", "5"), entry("a", "6"), entry("b", "7")},
		Session: &ledgerv1.Session{Id: 77, Sequence: 9, Acknowledged: 8}})
	if err != nil {
		t.Fatal(err)
	}
	wantResults(t, posted.Results, "created", "exists_with_different_amount", "created")
	if posted.Results[1].Leg != 1 || posted.Time != int64(r.now) {
		t.Errorf("results %v", posted)
	}
	if q := r.requests[1]; q.Session != 77 || q.Sequence != 9 || q.Acknowledged != 8 {
		t.Errorf("the session becomes %+v", q)
	}

	entries, err := s.GetEntries(ctx, &ledgerv1.GetEntriesRequest{Ids: []string{"b", "c"}})
	if err != nil || len(entries.Entries) != 1 {
		t.Errorf("entries %v, %v", entries, err)
	}
	accounts, err := s.GetAccounts(ctx, &ledgerv1.GetAccountsRequest{Ids: []string{"2"}})
	if err != nil || accounts.Accounts[0].Balances.CreditsPosted != "12" {
		t.Errorf("accounts %v, %v", accounts, err)
	}
	list, err := s.ListAccounts(ctx, &ledgerv1.ListAccountsRequest{NamePrefix: "n", PageSize: 1})
	if err != nil || len(list.Accounts) != 1 || len(list.NextPageToken) == 0 {
		t.Errorf("list %v, %v", list, err)
	}
	statement, err := s.GetStatement(ctx, &ledgerv1.GetStatementRequest{Account: "1", Consistency: ledgerv1.Consistency_CONSISTENCY_STALE})
	if err != nil || len(statement.Rows) != 2 {
		t.Errorf("statement %v, %v", statement, err)
	}
	audit, err := s.Audit(ctx, nil)
	if err != nil || audit.ViolationCount != 0 || audit.Entries != 2 || audit.Node != 1 || audit.Applied != 42 || audit.StateHash != "0000000000000abc" {
		t.Errorf("audit %v, %v", audit, err)
	}
	st, err := s.GetStatus(ctx, nil)
	if err != nil || st.LeaderApi != "one:1" || st.Role != "leader" || st.Term != 3 {
		t.Errorf("status %v, %v", st, err)
	}
	session, err := s.OpenSession(ctx, nil)
	if err != nil || session.Id != 77 {
		t.Errorf("session %v, %v", session, err)
	}
}

// TestReferences: they come in and go out when version 2 of the machine is active, and not before.
func TestReferences(t *testing.T) {
	s, r := newServer(t)
	if _, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{account("1"), account("2")}}); err != nil {
		t.Fatal(err)
	}
	e := entry("a", "5")
	e.Reference = "INV-1"
	for _, c := range []struct {
		version uint64
		code    string
	}{{book.VersionFirst, "reference_needs_version_2"}, {book.VersionReferences, "created"}, {book.VersionReferences, "exists"}} {
		r.version = c.version
		posted, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{e}})
		if err != nil {
			t.Fatal(err)
		}
		wantResults(t, posted.Results, c.code)
		if st, err := s.GetStatus(ctx, nil); err != nil || st.MachineVersion != c.version {
			t.Errorf("status %v, %v", st, err)
		}
	}
	entries, err := s.GetEntries(ctx, &ledgerv1.GetEntriesRequest{Ids: []string{"a"}})
	if err != nil || entries.Entries[0].Reference != "INV-1" {
		t.Errorf("entries %v, %v", entries, err)
	}
	statement, err := s.GetStatement(ctx, &ledgerv1.GetStatementRequest{Account: "1"})
	if err != nil || statement.Rows[0].Reference != "INV-1" {
		t.Errorf("statement %v, %v", statement, err)
	}
	if audit, err := s.Audit(ctx, nil); err != nil || audit.ViolationCount != 0 || audit.References != 1 {
		t.Errorf("audit %v, %v", audit, err)
	}
	r.version = book.VersionFirst // as if the version had been active without its entry in the log
	if audit, err := s.Audit(ctx, nil); err != nil || audit.ViolationCount != 1 {
		t.Errorf("audit %v, %v", audit, err)
	}
}

// More items than a command holds are refused before anything is made of them, and so are more requests than there is room for.
func TestAdmission(t *testing.T) {
	s, r := newServer(t)
	items := make([]*ledgerv1.Entry, book.MaxBatch+1)
	if n := testing.AllocsPerRun(1, func() {
		if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: items}); status.Code(err) != codes.InvalidArgument {
			t.Error(err)
		}
	}); n > 100 {
		t.Errorf("%v allocations to refuse a request", n)
	}
	s = New(Config{Shard: r, MaxSubmits: 1})
	done, err := s.admit(ctx, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{entry("a", "5")}})
	if d := detailOf(err); status.Code(err) != codes.Unavailable || d.GetKind() != KindNotProposed || d.GetCode() != "overloaded" {
		t.Errorf("no room: %v", err)
	}
	done()
	if _, err = s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{entry("a", "5")}}); err != nil {
		t.Errorf("room again: %v", err)
	}
}

// Linearizable reads go to whoever leads, stale ones stay on the node.
func TestReadLevels(t *testing.T) {
	_, own := newServer(t)
	_, other := newServer(t)
	s := New(Config{Node: 1, Replica: own, Shard: other})
	ask := func(c ledgerv1.Consistency) error {
		_, err := s.GetAccounts(ctx, &ledgerv1.GetAccountsRequest{Consistency: c})
		return err
	}
	if err := errors.Join(ask(0), ask(1), ask(2)); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(other.levels, own.levels), fmt.Sprint([]rsm.Level{rsm.Linearizable, rsm.Linearizable}, []rsm.Level{rsm.Stale}); got != want {
		t.Errorf("levels %v, want %v", got, want)
	}
	if err := ask(3); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown consistency: %v", err)
	}
}

// once notes commands, and has them decided by a replica.
type once struct {
	replica  *replica
	commands int
}

func (o *once) Do(ctx context.Context, r rsm.Request) (rsm.Result, error) {
	o.commands++
	return o.replica.Do(ctx, r)
}

// Requests without a session get one; those with a session keep theirs.
func TestOnce(t *testing.T) {
	_, r := newServer(t)
	o := &once{replica: r}
	s := New(Config{Shard: r, Once: o})
	for i, session := range []*ledgerv1.Session{nil, {Id: 77, Sequence: 1}} {
		opened, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{account(fmt.Sprint(i + 1))}, Session: session})
		if err != nil {
			t.Fatal(err)
		}
		wantResults(t, opened.Results, "created")
	}
	if o.commands != 1 || r.requests[1].Session != 77 {
		t.Errorf("%d commands without a session, requests %+v", o.commands, r.requests)
	}
	// What only finishes reservations is said to make room, either way, and nothing else is.
	post, void := entry("c", "5"), entry("d", "5")
	post.PostPending, void.VoidPending = true, true
	for _, session := range []*ledgerv1.Session{nil, {Id: 77, Sequence: 2}} {
		for want, entries := range map[bool][]*ledgerv1.Entry{true: {post, void}, false: {post, entry("e", "5")}} {
			r.requests = nil
			if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: entries, Session: session}); err != nil || len(r.requests) != 1 || r.requests[0].MakesRoom != want {
				t.Errorf("%v in %v: %+v, %v", entries, session, r.requests, err)
			}
		}
	}
	r.err = &rsm.Error{Kind: rsm.ErrNotProposed, Code: "no_leader"}
	if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{entry("a", "5")}}); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

func TestBadRequests(t *testing.T) {
	s, r := newServer(t)
	change := func(f func(e *ledgerv1.Entry)) *ledgerv1.Entry {
		e := entry("a", "5")
		f(e)
		return e
	}
	for name, e := range map[string]*ledgerv1.Entry{
		"id":             change(func(e *ledgerv1.Entry) { e.Id = "x" }),
		"pending id":     change(func(e *ledgerv1.Entry) { e.PendingId = "x" }),
		"user data":      change(func(e *ledgerv1.Entry) { e.UserData = "x" }),
		"date":           change(func(e *ledgerv1.Entry) { e.Date = "yesterday" }),
		"code":           change(func(e *ledgerv1.Entry) { e.Code = 70000 }),
		"assigned":       change(func(e *ledgerv1.Entry) { e.State = "posted" }),
		"no amount":      change(func(e *ledgerv1.Entry) { e.Legs[0].Debit = "" }),
		"two amounts":    change(func(e *ledgerv1.Entry) { e.Legs[0].Credit = "5" }),
		"decimal amount": change(func(e *ledgerv1.Entry) { e.Legs[0].Debit = "5.00" }),
		"leg's account":  change(func(e *ledgerv1.Entry) { e.Legs[0].Account = "x" }),
		"256 legs":       change(func(e *ledgerv1.Entry) { e.Legs = make([]*ledgerv1.Leg, 256); fill(e.Legs) }),
	} {
		if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{e}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, a := range map[string]*ledgerv1.Account{
		"id": {Id: "x"}, "user data": {UserData: "x"}, "scale": {Scale: 256}, "code": {Code: 70000}, "assigned": {Rows: 1},
	} {
		m := &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{{Account: a}}}
		if _, err := s.CreateAccounts(ctx, m); status.Code(err) != codes.InvalidArgument {
			t.Errorf("account's %s: %v", name, err)
		}
	}
	if _, err := s.PostEntries(ctx, nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no entries: %v", err)
	}
	if _, err := s.CreateAccounts(ctx, nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no accounts: %v", err)
	}
	if len(r.requests) != 0 {
		t.Errorf("%d bad requests became commands", len(r.requests))
	}
	if _, err := s.GetStatement(ctx, &ledgerv1.GetStatementRequest{Account: "9"}); status.Code(err) != codes.NotFound {
		t.Errorf("no account: %v", err)
	}
}

func fill(legs []*ledgerv1.Leg) {
	for i := range legs {
		legs[i] = &ledgerv1.Leg{Account: "1", Debit: "1"}
	}
}

// Mutation with which it was seen to fail: what the session does not answer for is unavailable, which says that asking again may help.
func TestErrors(t *testing.T) {
	s, r := newServer(t)
	for _, c := range []struct {
		err  error
		code codes.Code
		want *ledgerv1.ErrorDetail
	}{
		{&rsm.Error{Kind: rsm.ErrNotProposed, Code: "not_leader", Message: "m", Leader: 2, RetryAfter: 5e6}, codes.Unavailable,
			&ledgerv1.ErrorDetail{Kind: KindNotProposed, Code: "not_leader", Message: "m", Leader: 2, LeaderApi: "two:2", RetryAfterMs: 5}},
		{&rsm.Error{Kind: rsm.ErrUnknown, Code: "leadership_lost", Message: "m"}, codes.Unknown,
			&ledgerv1.ErrorDetail{Kind: KindUnknown, Code: "leadership_lost", Message: "m"}},
		{&rsm.Error{Kind: rsm.ErrUnknown, Code: "cancelled", Message: "m", Cause: context.DeadlineExceeded}, codes.DeadlineExceeded,
			&ledgerv1.ErrorDetail{Kind: KindUnknown, Code: "cancelled", Message: "m"}},
		{&rsm.Error{Kind: rsm.ErrUnknown, Code: "cancelled", Message: "m", Cause: context.Canceled}, codes.Canceled,
			&ledgerv1.ErrorDetail{Kind: KindUnknown, Code: "cancelled", Message: "m"}},
		{&rsm.Error{Kind: rsm.ErrBroken, Code: "divergence", Message: "m"}, codes.Internal,
			&ledgerv1.ErrorDetail{Kind: KindBroken, Code: "divergence", Message: "m"}},
		{rsm.Reject(book.CodeBadCommand, "m"), codes.InvalidArgument,
			&ledgerv1.ErrorDetail{Kind: KindRejected, Code: "bad_command", Message: "m"}},
		{rsm.Reject("session_expired", "m"), codes.FailedPrecondition,
			&ledgerv1.ErrorDetail{Kind: KindRejected, Code: "session_expired", Message: "m"}},
		{&rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeSessionExpired, Message: "m"}, codes.FailedPrecondition,
			&ledgerv1.ErrorDetail{Kind: KindNotProposed, Code: "session_expired", Message: "m"}},
		{&rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeSequenceAcked, Message: "m"}, codes.FailedPrecondition,
			&ledgerv1.ErrorDetail{Kind: KindNotProposed, Code: "sequence_acked", Message: "m"}},
		{errors.New("m"), codes.Unknown, &ledgerv1.ErrorDetail{Kind: KindUnknown, Message: "m"}},
	} {
		r.err = c.err
		calls := map[string]func() error{
			"submit": func() error {
				_, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{entry("a", "5")}})
				return err
			},
			"open": func() error {
				_, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{account("1")}})
				return err
			},
			"read":    func() error { _, err := s.GetAccounts(ctx, new(ledgerv1.GetAccountsRequest)); return err },
			"audit":   func() error { _, err := s.Audit(ctx, nil); return err },
			"status":  func() error { _, err := s.GetStatus(ctx, nil); return err },
			"session": func() error { _, err := s.OpenSession(ctx, nil); return err },
		}
		for name, call := range calls {
			err := call()
			if got := detailOf(err); status.Code(err) != c.code || got.String() != c.want.String() {
				t.Errorf("%s, %v: %v with %v, want %v", name, c.err, status.Code(err), got, c.want)
			}
		}
	}
}

// TestOneAudit: an audit costs memory and disk, so that one is made at a time, and whoever else asks is told so at once.
// Mutation with which it was seen to fail: Audit without its slot.
func TestOneAudit(t *testing.T) {
	s, r := newServer(t)
	r.audits = make(chan chan struct{}, 8)
	failed := make(chan error, 8)
	for range 8 {
		go func() {
			_, err := s.Audit(ctx, nil)
			failed <- err
		}()
	}
	wait := <-r.audits
	for range 7 {
		select {
		case err := <-failed:
			if d := detailOf(err); rsm.Code(d.Code) != rsm.CodeOverloaded || d.Kind != KindNotProposed || status.Code(err) != codes.Unavailable {
				t.Errorf("refused with %v", err)
			}
		case <-r.audits:
			t.Fatal("two audits at once")
		}
	}
	close(wait)
	if err := <-failed; err != nil {
		t.Error(err)
	}
	r.audits = nil
	if _, err := s.Audit(ctx, nil); err != nil {
		t.Errorf("one after the other: %v", err)
	}
}

// TestPulse: what is due expires, by as many commands as it takes, and only by the leader.
func TestPulse(t *testing.T) {
	s, r := newServer(t)
	if _, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{account("1"), account("2")}}); err != nil {
		t.Fatal(err)
	}
	var entries []*ledgerv1.Entry
	for n := range book.MaxExpiries + 1 {
		e := entry(fmt.Sprintf("%x", n+1), "5")
		e.Pending, e.TimeoutSeconds = true, 1
		entries = append(entries, e)
	}
	if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: entries}); err != nil {
		t.Fatal(err)
	}
	r.now += 10e9 // the replica's clock has reached their time; the server's is far beyond
	before := len(r.requests)

	r.leader = 2
	if err := s.pulse(ctx); err != nil || len(r.requests) != before {
		t.Errorf("a follower pulsed: %v", err)
	}
	r.leader = 1
	if err := s.pulse(ctx); err != nil || len(r.requests) != before+2 {
		t.Errorf("%d pulses, %v; want 2", len(r.requests)-before, err)
	}
	audit, err := s.Audit(ctx, nil)
	if err != nil || audit.Pending != 0 || audit.ViolationCount != 0 {
		t.Errorf("audit %v, %v", audit, err)
	}
	if err := s.pulse(ctx); err != nil || len(r.requests) != before+2 {
		t.Errorf("nothing is due, but there was a pulse: %v", err)
	}
	r.err = errors.New("x")
	if err := s.pulse(ctx); err == nil {
		t.Error("an error was lost")
	}
}

// TestPulseByTheTimeOfTheLedger: an earlier leader's clock was a year ahead, and what is due by the time that it left is released.
// Mutation with which it was seen to fail: due compares with the node's clock alone.
func TestPulseByTheTimeOfTheLedger(t *testing.T) {
	s, r := newServer(t)
	r.now = rsm.Timestamp(time.Now().AddDate(1, 0, 0).UnixNano())
	if _, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{account("1"), account("2")}}); err != nil {
		t.Fatal(err)
	}
	e := entry("1", "5")
	e.Pending, e.TimeoutSeconds = true, 60
	if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{e}}); err != nil {
		t.Fatal(err)
	}
	before := len(r.requests)
	if err := s.pulse(ctx); err != nil || len(r.requests) != before {
		t.Errorf("%d pulses before it is due, %v", len(r.requests)-before, err)
	}
	r.now += 61e9
	if err := s.pulse(ctx); err != nil {
		t.Fatal(err)
	}
	if audit, err := s.Audit(ctx, nil); err != nil || audit.Pending != 0 || audit.ViolationCount != 0 {
		t.Errorf("audit %v, %v", audit, err)
	}
}

// TestRunPulse: the pulse goes on by itself, and ends with its context.
func TestRunPulse(t *testing.T) {
	s, r := newServer(t)
	if _, err := s.CreateAccounts(ctx, &ledgerv1.CreateAccountsRequest{Items: []*ledgerv1.CreateAccountsRequest_Item{account("1"), account("2")}}); err != nil {
		t.Fatal(err)
	}
	e := entry("a", "5")
	e.Pending, e.TimeoutSeconds = true, 1
	if _, err := s.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{e}}); err != nil {
		t.Fatal(err)
	}
	r.done = make(chan struct{}, 100)
	r.now += 10e9
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.RunPulse(ctx, 1e6)
	}()
	<-r.done
	cancel()
	<-ended
}
