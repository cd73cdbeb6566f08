// Package client calls a ledger: Remote over gRPC, wherever the leader is, and
// Local within the process of an embedded cluster. Both have the same methods.
package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// maxPending is how many commands of one Remote wait for their answers at once: well within a session's window.
const maxPending = 1024

// Remote calls the ledger's nodes over gRPC. It follows the leader by the hints
// that the nodes give, and asks again, under the same session number, until it knows the outcome or its context ends. Any
// number of goroutines may use one Remote.
type Remote struct {
	slots chan struct{} // one for each command that waits

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
	c := &Remote{slots: make(chan struct{}, maxPending)}
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
	var results []*ledgerv1.Result
	err := c.submit(ctx, func(rpc ledgerv1.LedgerServiceClient, s *ledgerv1.Session) error {
		m.Session = s
		r, err := rpc.CreateAccounts(ctx, m)
		results = r.GetResults()
		return err
	})
	if err != nil {
		return nil, err
	}
	return book.OutcomesFromProto(results)
}

// PostEntries records entries in one command. See book.Machine for the outcomes.
func (c *Remote) PostEntries(ctx context.Context, entries ...book.Entry) ([]book.Outcome, error) {
	m := &ledgerv1.PostEntriesRequest{Entries: make([]*ledgerv1.Entry, len(entries))}
	for i := range entries {
		m.Entries[i] = entries[i].Proto()
	}
	var results []*ledgerv1.Result
	err := c.submit(ctx, func(rpc ledgerv1.LedgerServiceClient, s *ledgerv1.Session) error {
		m.Session = s
		r, err := rpc.PostEntries(ctx, m)
		results = r.GetResults()
		return err
	})
	if err != nil {
		return nil, err
	}
	return book.OutcomesFromProto(results)
}

// Accounts returns all accounts whose name begins with prefix.
func (c *Remote) Accounts(ctx context.Context, prefix string) ([]book.AccountState, error) {
	return allAccounts(prefix, func(m *ledgerv1.ListAccountsRequest) (page *ledgerv1.ListAccountsResponse, err error) {
		err = c.retry(ctx, func(rpc ledgerv1.LedgerServiceClient) error {
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

// submit calls f under the next number of the session.
func (c *Remote) submit(ctx context.Context, f func(ledgerv1.LedgerServiceClient, *ledgerv1.Session) error) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return &rsm.Error{Kind: rsm.ErrNotProposed, Code: codeCancelled, Message: "too many commands of this client wait", Cause: ctx.Err()}
	}
	for {
		id, sequence, err := c.begin(ctx)
		if err != nil {
			return err
		}
		err = c.retry(ctx, func(rpc ledgerv1.LedgerServiceClient) error {
			return f(rpc, &ledgerv1.Session{Id: id, Sequence: sequence, Acknowledged: c.acknowledged(id, sequence)})
		})
		c.finish(id, sequence)
		if !errors.Is(err, errSessionExpired) {
			return err
		}
		// The session is gone, and with it what it knew. Ids still keep anything from being booked twice: ask
		// again in a new one; what did happen is answered "exists".
		c.forget(id)
	}
}

var errSessionExpired = &rsm.Rejection{Code: "session_expired"}

// begin returns the session, opened if there is none, and the next number.
func (c *Remote) begin(ctx context.Context) (id, sequence uint64, err error) {
	for {
		c.mu.Lock()
		if c.id != 0 {
			c.last++
			id, sequence = c.id, c.last
			c.mu.Unlock()
			return id, sequence, nil
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
	err := c.retry(ctx, func(rpc ledgerv1.LedgerServiceClient) (err error) {
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
	return err
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

// retry calls f on the node that is believed to lead, until it gives a final answer or ctx ends.
func (c *Remote) retry(ctx context.Context, f func(ledgerv1.LedgerServiceClient) error) error {
	inDoubt := false
	for attempt := 0; ; attempt++ {
		c.mu.Lock()
		used := c.guess
		n := c.nodes[used]
		c.mu.Unlock()
		err := callError(f(n.rpc))
		if err == nil || errors.Is(err, rsm.ErrRejected) {
			return err
		}
		inDoubt = inDoubt || !errors.Is(err, rsm.ErrNotProposed)
		if c.follow(used, err) && ctx.Err() == nil {
			continue
		}
		if pause(ctx, attempt) == nil {
			continue
		}
		kind := rsm.ErrNotProposed
		if inDoubt {
			kind = rsm.ErrUnknown
		}
		return &rsm.Error{Kind: kind, Code: codeCancelled, Message: "no final answer in time", Cause: errors.Join(ctx.Err(), err)}
	}
}

// follow takes the hint of an error, which is worth an attempt at once, or else turns to the next node.
func (c *Remote) follow(used int, err error) (hinted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guess != used {
		return false // another call has turned already
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
	// No word from a server: the request may have arrived, or may not.
	return &rsm.Error{Kind: rsm.ErrUnknown, Code: "unreachable", Message: st.Message(), Cause: err}
}
