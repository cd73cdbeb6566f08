package rsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/session"
)

// Client calls one shard, wherever its leader is, exactly once: it keeps a
// session, and asks again under the same number until it knows the outcome. Any
// number of goroutines may use one Client.
type Client struct {
	replica func(NodeID) *Shard
	nodes   int

	window session.Window

	mu    sync.Mutex
	guess NodeID // who leads
	token Index  // of the latest outcome: what a read at AtToken must see
}

// clientPatience bounds a call whose context has no deadline.
const clientPatience = time.Minute

// NewClient returns a client over nodes with ids 1 to n; replica returns a
// node's replica of the shard, or nil while it cannot be reached.
func NewClient(replica func(NodeID) *Shard, n int) *Client {
	c := &Client{replica: replica, nodes: n, guess: 1}
	c.window.Open = c.open
	return c
}

// Submit has a command decided, exactly once, and returns its reply. It waits
// through changes of leader until ctx ends, or for a minute if ctx has no deadline. Only if it ends
// without an answer is the outcome unknown.
func (c *Client) Submit(ctx context.Context, command []byte) ([]byte, error) {
	replies, err := c.SubmitAll(ctx, command)
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}

// SubmitAll has commands decided together: all or nothing, exactly once.
func (c *Client) SubmitAll(ctx context.Context, commands ...[]byte) ([][]byte, error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	for {
		n, err := c.window.Begin(ctx)
		if err != nil {
			return nil, err
		}
		inDoubt := false
		var res Result
		err = c.retry(ctx, &inDoubt, func(s *Shard) error {
			var err error
			res, err = s.Do(ctx, Request{Commands: commands, Session: n.Session, Sequence: n.Sequence, Acknowledged: c.window.Acknowledged(n)})
			return err
		})
		c.window.Finish(n)
		c.saw(res.Index)
		if !errors.Is(err, errSessionExpired) {
			if inDoubt && errors.Is(err, errSequenceAcked) {
				err = inDoubtFor(core.CodeSequenceAcked, err)
			}
			return res.Replies, err
		}
		c.window.Forget(n.Session)
		if inDoubt {
			return nil, inDoubtFor(core.CodeSessionExpired, err)
		}
	}
}

// inDoubtFor is the error of a command of which an attempt was unknown when its session stopped answering for it.
func inDoubtFor(code Code, err error) error {
	return &Error{Kind: ErrUnknown, Code: code,
		Message: "the session ended or forgot while the outcome was unknown: read from the state whether it happened (" + err.Error() + ")"}
}

var (
	errSessionExpired  = &Error{Kind: ErrNotProposed, Code: core.CodeSessionExpired}
	errSequenceAcked   = &Error{Kind: ErrNotProposed, Code: core.CodeSequenceAcked}
	errSequenceTooHigh = &Error{Code: core.CodeSequenceTooHigh}
)

// Read answers a query. Linearizable reads go to the leader; AtToken sees everything that this client has been told.
func (c *Client) Read(ctx context.Context, level Level, query []byte) ([]byte, error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	c.mu.Lock()
	token := c.token
	c.mu.Unlock()
	var res Result
	inDoubt := false
	err := c.retry(ctx, &inDoubt, func(s *Shard) error {
		var err error
		res, err = s.ReadAt(ctx, level, token, query)
		return err
	})
	c.saw(res.Index)
	return res.Answer, err
}

// Close gives the session back. The client can be used again, with a new one.
func (c *Client) Close(ctx context.Context) error {
	id := c.window.Take()
	if id == 0 {
		return nil
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	inDoubt := false
	return c.retry(ctx, &inDoubt, func(s *Shard) error { return s.CloseSession(ctx, id) })
}

func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, clientPatience)
}

// retry calls f on the replica that is believed to lead, until it has a final answer. inDoubt
// is set when an attempt ended without one.
func (c *Client) retry(ctx context.Context, inDoubt *bool, f func(*Shard) error) error {
	return c.retryWith(ctx, inDoubt, func() error { return c.attempt(f) })
}

func (c *Client) retryWith(ctx context.Context, inDoubt *bool, try func() error) error {
	var last error
	for attempt := 0; ; attempt++ {
		err := try()
		switch {
		case errors.Is(err, errSequenceTooHigh): // the session's window is full: others' outcomes will make room
		case err == nil, errors.Is(err, ErrRejected), errors.Is(err, errSessionExpired), errors.Is(err, errSequenceAcked), futile(err) && !*inDoubt:
			return err
		}
		// A cancelled wait says nothing about an earlier answer.
		if errors.Is(err, ErrUnknown) || errors.Is(err, ErrBroken) {
			*inDoubt = true
		}
		last = err
		if !c.follow(err) || attempt%4 == 3 { // nodes may point at each other
			if e := pause(ctx, attempt); e == nil {
				continue
			}
		} else if ctx.Err() == nil {
			continue
		}
		kind := ErrNotProposed
		if *inDoubt {
			kind = ErrUnknown
		}
		// The last error goes in as words: as a cause, its kind would match too.
		return &Error{Kind: kind, Code: core.CodeCancelled, Message: fmt.Sprintf("no final answer in time; the last was: %v", last), Cause: ctx.Err()}
	}
}

// futile: asking again would not help.
func futile(err error) bool {
	return errors.Is(err, &Error{Code: CodeCommandTooLarge}) || errors.Is(err, &Error{Code: CodeTooManyCommands}) || errors.Is(err, &Error{Code: CodeBadRequest})
}

var errUnreachable = &Error{Kind: ErrNotProposed, Code: core.CodeUnreachable, Message: "the node is not running"}

func (c *Client) attempt(f func(*Shard) error) error {
	c.mu.Lock()
	guess := c.guess
	c.mu.Unlock()
	if s := c.replica(guess); s != nil {
		return f(s)
	}
	return errUnreachable
}

// follow takes the hint of an error, or else tries the next node; it reports
// whether there was a new hint, which is worth an attempt at once.
func (c *Client) follow(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var e *Error
	if errors.Is(err, ErrRejected) {
		return false // the right node
	}
	if errors.As(err, &e) {
		if e.Leader != 0 && e.Leader != c.guess {
			c.guess = e.Leader
			return true
		}
		if e.Code == core.CodeOverloaded || e.Code == core.CodeDiskLow || e.Code == core.CodeSequenceTooHigh {
			return false // the right node, at the wrong time
		}
	}
	c.guess = c.guess%NodeID(c.nodes) + 1
	return false
}

func pause(ctx context.Context, attempt int) error {
	t := time.NewTimer(min(time.Millisecond<<min(attempt, 5), 20*time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// open opens a session.
func (c *Client) open(ctx context.Context) (id SessionID, err error) {
	ignored := false
	err = c.retry(ctx, &ignored, func(s *Shard) error {
		var err error
		id, err = s.OpenSession(ctx)
		return err
	})
	return id, err
}

// saw notes what later reads must see.
func (c *Client) saw(index Index) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = max(c.token, index)
}
