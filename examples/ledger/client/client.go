// Package client calls a ledger: Remote over gRPC, wherever the leader is, and
// Local within the process of an embedded cluster. Both have the same methods.
package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// KeepaliveTime is how often a Remote asks a connection whose calls are silent if it still lives. Servers must permit it.
const KeepaliveTime = 10 * time.Second

const (
	// maxPending is how many commands of one Remote wait for their answers at once.
	maxPending = 1024
	// maxUnacknowledged is how far the numbers given out may be ahead of the first one whose outcome
	// is not known: the window of a session.
	maxUnacknowledged = 4096
	// attemptPatience bounds one attempt. A node that is frozen, or cut off without a word, is not waited for longer.
	attemptPatience = 2 * time.Second
	// patience bounds a call whose context has no deadline.
	patience = time.Minute
)

// Remote calls the ledger's nodes over gRPC. It follows the leader by the hints
// that the nodes give, and asks again, under the same session number, until it knows the outcome or its context ends, which
// without a deadline it does after a minute. Any number of goroutines may use one Remote.
//
// An error that is rsm.ErrNotProposed says that nothing was booked, by none of the attempts. After an rsm.ErrUnknown, send
// the same ids again.
type Remote struct {
	slots   chan struct{} // one for each command that waits
	attempt time.Duration // how long one attempt may take

	mu    sync.Mutex
	nodes []*node
	guess int // of the node that leads
	session
}

type node struct {
	address string
	conn    *grpc.ClientConn
	rpc     ledgerv1.LedgerServiceClient
}

// session is the Remote's exactly-once window. It belongs to Remote.mu.
type session struct {
	id      uint64 // 0 is none
	opening chan struct{}
	last    uint64 // sequence given out
	acked   uint64 // all answers up to here have arrived
	arrived map[uint64]bool
}

// Dial returns a Remote over the addresses of the cluster's nodes, all or some. It connects when it is used.
func Dial(addresses ...string) (*Remote, error) {
	if len(addresses) == 0 {
		return nil, errors.New("no addresses: name at least one node")
	}
	c := &Remote{slots: make(chan struct{}, maxPending), attempt: attemptPatience}
	c.arrived = make(map[uint64]bool)
	for _, a := range addresses {
		if _, err := c.add(a); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func (c *Remote) add(address string) (int, error) {
	for i, n := range c.nodes {
		if n.address == address {
			return i, nil
		}
	}
	conn, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: KeepaliveTime, Timeout: attemptPatience}),
		// A node that was restarted shall be found soon.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}}))
	if err != nil {
		return 0, fmt.Errorf("address %q: %w", address, err)
	}
	c.nodes = append(c.nodes, &node{address, conn, ledgerv1.NewLedgerServiceClient(conn)})
	return len(c.nodes) - 1, nil
}

// Close closes the connections. Calls under way end.
func (c *Remote) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.conn.Close())
	}
	return errors.Join(errs...)
}

// CreateAccounts opens accounts in one command. See book.Machine for the outcomes.
func (c *Remote) CreateAccounts(ctx context.Context, accounts ...book.Account) ([]book.Outcome, error) {
	m := &ledgerv1.CreateAccountsRequest{Items: make([]*ledgerv1.CreateAccountsRequest_Item, len(accounts))}
	for i := range accounts {
		m.Items[i] = &ledgerv1.CreateAccountsRequest_Item{Account: accounts[i].Proto(), Linked: accounts[i].Linked}
	}
	linked := slices.ContainsFunc(accounts, func(a book.Account) bool { return a.Linked })
	var results []*ledgerv1.Result
	err := c.submit(ctx, linked, func(ctx context.Context, rpc ledgerv1.LedgerServiceClient, s *ledgerv1.Session) error {
		m.Session = s
		r, err := rpc.CreateAccounts(ctx, m)
		results = r.GetResults()
		return err
	})
	if err != nil {
		return nil, err
	}
	return outcomesOf(results, len(accounts))
}

// PostEntries records entries in one command. See book.Machine for the outcomes.
func (c *Remote) PostEntries(ctx context.Context, entries ...book.Entry) ([]book.Outcome, error) {
	m := &ledgerv1.PostEntriesRequest{Entries: make([]*ledgerv1.Entry, len(entries))}
	for i := range entries {
		m.Entries[i] = entries[i].Proto()
	}
	linked := slices.ContainsFunc(entries, func(e book.Entry) bool { return e.Flags&book.Linked != 0 })
	var results []*ledgerv1.Result
	err := c.submit(ctx, linked, func(ctx context.Context, rpc ledgerv1.LedgerServiceClient, s *ledgerv1.Session) error {
		m.Session = s
		r, err := rpc.PostEntries(ctx, m)
		results = r.GetResults()
		return err
	})
	if err != nil {
		return nil, err
	}
	return outcomesOf(results, len(entries))
}

// outcomesOf checks that there is an outcome for each of n items.
func outcomesOf(results []*ledgerv1.Result, n int) ([]book.Outcome, error) {
	outcomes, err := book.OutcomesFromProto(results)
	if err == nil {
		err = checkCount(len(outcomes), n)
	}
	return outcomes, err
}

func checkCount(outcomes, items int) error {
	if outcomes != items {
		return &rsm.Error{Kind: rsm.ErrUnknown, Code: "bad_answer", Message: fmt.Sprintf("%d outcomes for %d items", outcomes, items)}
	}
	return nil
}

// Accounts returns all accounts whose name begins with prefix.
func (c *Remote) Accounts(ctx context.Context, prefix string) ([]book.AccountState, error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	return allAccounts(prefix, func(m *ledgerv1.ListAccountsRequest) (page *ledgerv1.ListAccountsResponse, err error) {
		inDoubt := false
		err = c.retry(ctx, &inDoubt, func(ctx context.Context, rpc ledgerv1.LedgerServiceClient) error {
			page, err = rpc.ListAccounts(ctx, m)
			return err
		})
		return page, err
	})
}

// allAccounts puts the pages of a listing together.
func allAccounts(prefix string, list func(*ledgerv1.ListAccountsRequest) (*ledgerv1.ListAccountsResponse, error)) ([]book.AccountState, error) {
	m := &ledgerv1.ListAccountsRequest{NamePrefix: prefix, PageSize: book.MaxPage}
	var accounts []book.AccountState
	for {
		page, err := list(m)
		if err != nil {
			return nil, err
		}
		for _, a := range page.GetAccounts() {
			state, err := book.AccountStateFromProto(a)
			if err != nil {
				return nil, fmt.Errorf("the answer does not parse: %w", err)
			}
			accounts = append(accounts, state)
		}
		if m.PageToken = page.GetNextPageToken(); len(m.PageToken) == 0 {
			return accounts, nil
		}
	}
}

// Audit audits the node at an address, which must be one that Dial was given.
func (c *Remote) Audit(ctx context.Context, address string) (*ledgerv1.AuditResponse, error) {
	c.mu.Lock()
	i, err := c.add(address)
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	n := c.nodes[i]
	c.mu.Unlock()
	m, err := n.rpc.Audit(ctx, new(ledgerv1.AuditRequest))
	return m, callError(err)
}

// submit calls f under the next number of the session. linked says that items of the command are.
func (c *Remote) submit(ctx context.Context, linked bool, f func(context.Context, ledgerv1.LedgerServiceClient, *ledgerv1.Session) error) error {
	ctx, cancel := patient(ctx)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return &rsm.Error{Kind: rsm.ErrNotProposed, Code: codeCancelled, Message: "too many commands of this client wait", Cause: ctx.Err()}
	}
	inDoubt := false  // an attempt ended, and nobody knows if it was booked
	doubtful := false // in an earlier session
	for {
		id, sequence, err := c.begin(ctx)
		if err == nil {
			err = c.retry(ctx, &inDoubt, func(ctx context.Context, rpc ledgerv1.LedgerServiceClient) error {
				return f(ctx, rpc, &ledgerv1.Session{Id: id, Sequence: sequence, Acknowledged: c.acknowledged(id, sequence)})
			})
			c.finish(id, sequence)
		}
		expired := errors.Is(err, errSessionExpired)
		switch {
		case err == nil:
			return nil
		case expired && !(inDoubt && linked):
			// The session is gone, and with it what it knew. Ids still keep anything from being booked twice: ask
			// again in a new one; what did happen is answered "exists".
			c.forget(id)
			doubtful = inDoubt
		case inDoubt && (expired || doubtful || !errors.Is(err, rsm.ErrRejected)):
			// What is said about this attempt says nothing about one in an earlier session. Nor can a chain
			// that may be booked be asked for in a new one: its entries would exist, which fails it.
			if expired {
				c.forget(id)
			}
			return withKind(err, rsm.ErrUnknown)
		default:
			return err
		}
	}
}

// patient gives a context without a deadline one.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, patience)
}

// withKind is err, saying of whether it happened what kind says, and nothing else.
func withKind(err, kind error) error {
	if err == nil {
		return nil
	}
	changed := &rsm.Error{Kind: kind, Message: err.Error()}
	var e *rsm.Error
	var rejection *rsm.Rejection
	switch {
	case errors.As(err, &e) && e.Kind == kind:
		return err
	case errors.As(err, &e):
		changed.Code, changed.Message, changed.Leader, changed.RetryAfter = e.Code, e.Message, e.Leader, e.RetryAfter
		if e.Cause != nil {
			changed.Cause = errors.New(e.Cause.Error()) // without its kind
		}
	case errors.As(err, &rejection):
		changed.Code, changed.Message = rejection.Code, rejection.Message
	}
	return changed
}

var (
	errSessionExpired  = &rsm.Rejection{Code: "session_expired"}
	errSequenceTooHigh = &rsm.Rejection{Code: "sequence_too_high"}
)

// begin returns the session, opened if there is none, and the next number.
func (c *Remote) begin(ctx context.Context) (id, sequence uint64, err error) {
	for attempt := 0; ; attempt++ {
		c.mu.Lock()
		if c.id != 0 && c.last-c.acked < maxUnacknowledged {
			c.last++
			id, sequence = c.id, c.last
			c.mu.Unlock()
			return id, sequence, nil
		}
		if c.id != 0 { // one command is slow, and the window begins with it
			c.mu.Unlock()
			if pause(ctx, attempt) != nil {
				return 0, 0, &rsm.Error{Kind: rsm.ErrNotProposed, Code: codeCancelled, Message: "too many commands of this client wait for an earlier one", Cause: ctx.Err()}
			}
			continue
		}
		if wait := c.opening; wait != nil {
			c.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return 0, 0, &rsm.Error{Kind: rsm.ErrNotProposed, Code: codeCancelled, Message: "no session in time", Cause: ctx.Err()}
			}
		}
		c.opening = make(chan struct{})
		c.mu.Unlock()
		if err := c.open(ctx); err != nil {
			return 0, 0, err
		}
	}
}

func (c *Remote) open(ctx context.Context) error {
	var m *ledgerv1.OpenSessionResponse
	ignored := false
	err := c.retry(ctx, &ignored, func(ctx context.Context, rpc ledgerv1.LedgerServiceClient) (err error) {
		m, err = rpc.OpenSession(ctx, new(ledgerv1.OpenSessionRequest))
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.opening)
	c.opening = nil
	if err == nil {
		c.id, c.last, c.acked = m.GetId(), 0, 0
		clear(c.arrived)
	}
	// Whether a session was opened does not matter: it expires. The command, which this is about, was not proposed.
	return withKind(err, rsm.ErrNotProposed)
}

func (c *Remote) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.id == id {
		c.id = 0
	}
}

func (c *Remote) acknowledged(id, sequence uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.id != id {
		return 0
	}
	return min(c.acked, sequence-1)
}

// finish notes that nobody will ask for this answer again.
func (c *Remote) finish(id, sequence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.id != id {
		return
	}
	c.arrived[sequence] = true
	for c.arrived[c.acked+1] {
		c.acked++
		delete(c.arrived, c.acked)
	}
}

// retry calls f on the node that is believed to lead, until it gives a final answer or ctx ends. inDoubt is
// set when an attempt ends that may have happened.
func (c *Remote) retry(ctx context.Context, inDoubt *bool, f func(context.Context, ledgerv1.LedgerServiceClient) error) error {
	for attempt := 0; ; attempt++ {
		c.mu.Lock()
		used := c.guess
		n := c.nodes[used]
		c.mu.Unlock()
		err := c.once(ctx, n, f)
		switch {
		case errors.Is(err, errSequenceTooHigh): // the window is full: the outcomes of others make room
		case err == nil, errors.Is(err, rsm.ErrRejected), permanent(err) && !*inDoubt:
			return err
		default:
			*inDoubt = *inDoubt || !errors.Is(err, rsm.ErrNotProposed)
		}
		if c.follow(used, err) && attempt%4 != 3 && ctx.Err() == nil { // nodes may point at each other
			continue
		}
		if pause(ctx, attempt) == nil {
			continue
		}
		kind := rsm.ErrNotProposed
		if *inDoubt {
			kind = rsm.ErrUnknown
		}
		return &rsm.Error{Kind: kind, Code: codeCancelled, Message: "no final answer in time", Cause: errors.Join(ctx.Err(), errors.New(err.Error()))} // the text of err, not its kind
	}
}

func (c *Remote) once(ctx context.Context, n *node, f func(context.Context, ledgerv1.LedgerServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.attempt)
	defer cancel()
	return callError(f(ctx, n.rpc))
}

// permanent reports whether asking again would not help.
func permanent(err error) bool {
	return errors.Is(err, &rsm.Error{Code: codeTooLarge}) || errors.Is(err, &rsm.Error{Code: codeUnsendable})
}

// follow takes the hint of an error, which is worth an attempt at once, or else turns to the next node.
func (c *Remote) follow(used int, err error) (hinted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guess != used {
		return false // another call has turned already
	}
	if errors.Is(err, rsm.ErrRejected) {
		return false // the right node
	}
	var e *remoteError
	if errors.As(err, &e) && e.leaderAPI != "" {
		if i, err := c.add(e.leaderAPI); err == nil && i != used {
			c.guess = i
			return true
		}
	}
	if errors.Is(err, &rsm.Error{Code: "overloaded"}) || errors.Is(err, &rsm.Error{Code: "disk_low"}) {
		return false // the right node at the wrong time
	}
	c.guess = (c.guess + 1) % len(c.nodes)
	return false
}

func pause(ctx context.Context, attempt int) error {
	t := time.NewTimer(min(2*time.Millisecond<<min(attempt, 5), 50*time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// callError turns a gRPC error into one that says whether it happened.
func callError(err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	for _, d := range st.Details() {
		if d, ok := d.(*ledgerv1.ErrorDetail); ok {
			return fromDetail(d, err)
		}
	}
	if unsendable(st) {
		return &rsm.Error{Kind: rsm.ErrNotProposed, Code: codeUnsendable, Message: st.Message(), Cause: err}
	}
	// No word from a server: the request may have arrived, or may not.
	return &rsm.Error{Kind: rsm.ErrUnknown, Code: "unreachable", Message: st.Message(), Cause: err}
}

// unsendable reports whether it is gRPC itself that refuses the request, on this side or the other: no server has
// seen it. An answer cannot be too large for it; a request can.
func unsendable(st *status.Status) bool {
	switch st.Code() {
	case codes.Unimplemented:
		return true
	case codes.ResourceExhausted:
		return strings.Contains(st.Message(), "larger than max")
	case codes.Internal:
		return strings.Contains(st.Message(), "error while marshaling") || strings.Contains(st.Message(), "error unmarshalling request")
	}
	return false
}
