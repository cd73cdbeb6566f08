package rsm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/session"
)

// Client calls one shard, wherever its leader is, exactly once: it keeps a
// session, and asks again under the same number until it knows the outcome. Any
// number of goroutines may use one Client.
type Client struct {
	replica func(NodeID) (*Shard, error)
	next    func(after NodeID) NodeID // whom to ask after a node, where nobody says who leads

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
	return newClient(func(id NodeID) (*Shard, error) {
		if s := replica(id); s != nil {
			return s, nil
		}
		return nil, errUnreachable
	}, func(after NodeID) NodeID { return after%NodeID(n) + 1 })
}

func newClient(replica func(NodeID) (*Shard, error), next func(NodeID) NodeID) *Client {
	c := &Client{replica: replica, next: next, guess: 1}
	c.window.Open = c.open
	return c
}

// Submit has a command decided, exactly once, and returns its reply. It waits until ctx ends, or for a minute if ctx has no deadline: through changes of
// leader, and while the leader refuses commands because its disk is low (the code disk_low) or it has too many (overloaded), as long as these say.
// It does not wait for what would be refused again, such as a command that is too large, or a shard that no node hosts.
//
// When the time is over, the error has the code of the last refusal, and its RetryAfter. It is ErrUnknown only if some attempt may have
// happened, and else ErrNotProposed.
func (c *Client) Submit(ctx context.Context, command []byte) ([]byte, error) {
	replies, err := c.SubmitAll(ctx, command)
	if err != nil {
		return nil, err
	}
	return replies[0], nil
}

// SubmitAll has commands decided together: all or nothing, exactly once. See Submit.
func (c *Client) SubmitAll(ctx context.Context, commands ...[]byte) ([][]byte, error) {
	res, err := c.Do(ctx, Request{Commands: commands})
	return res.Replies, err
}

// Do has a request decided, exactly once: SubmitAll for commands that make room (Request.MakesRoom), or for who wants to know the Index.
// The session and the number are the client's. See Submit.
func (c *Client) Do(ctx context.Context, r Request) (Result, error) {
	if r.Session != 0 || r.Sequence != 0 || r.Acknowledged != 0 {
		return Result{}, session.ErrNumbered
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	return c.do(ctx, r, (*Shard).Do)
}

// do runs a request whose attempts are made with a function.
func (c *Client) do(ctx context.Context, r Request, attempt func(*Shard, context.Context, Request) (Result, error)) (Result, error) {
	claim := session.Claim{MakesRoom: r.MakesRoom}
	for {
		n, err := c.window.Begin(ctx, claim)
		if err != nil {
			return Result{}, err
		}
		inDoubt := false
		var res Result
		var low error // the refusal for which the command was put off, and has no number now
		sure := true  // every attempt under n was answered with ErrNotProposed
		err = c.retry(ctx, &inDoubt, func(s *Shard) error {
			if low != nil {
				again, err := c.window.Begin(ctx, session.Claim{MakesRoom: r.MakesRoom, Back: true})
				if err != nil {
					if ctx.Err() != nil {
						return low
					}
					return err // there is no session any more, and none to be had
				}
				n, low = again, nil
			}
			r.Session, r.Sequence, r.Acknowledged = n.Session, n.Sequence, c.window.Acknowledged(n)
			var err error
			res, err = attempt(s, ctx, r)
			sure = sure && errors.Is(err, ErrNotProposed)
			if sure && session.PutsOff(err) {
				c.window.PutOff(n)
				low = err
			}
			return err
		})
		if low != nil {
			c.window.Leave()
		} else {
			c.window.Finish(n)
		}
		c.saw(res.Index)
		if !errors.Is(err, errSessionExpired) {
			if inDoubt && errors.Is(err, errSequenceAcked) {
				err = inDoubtFor(core.CodeSequenceAcked, err)
			}
			return res, err
		}
		c.window.Forget(n.Session)
		if inDoubt {
			return Result{}, inDoubtFor(core.CodeSessionExpired, err)
		}
	}
}

// inDoubtFor is the error of a command of which an attempt was unknown when its session stopped answering for it.
func inDoubtFor(code Code, err error) error {
	return &Error{Kind: ErrUnknown, Code: code,
		Message: "the session ended or forgot while the outcome was unknown: read from the state whether it happened (" + err.Error() + ")"}
}

var (
	errSessionExpired = &Error{Kind: ErrNotProposed, Code: core.CodeSessionExpired}
	errSequenceAcked  = &Error{Kind: ErrNotProposed, Code: core.CodeSequenceAcked}
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
	return c.retryWith(ctx, inDoubt, func() (NodeID, error) { return c.attempt(f) })
}

// retryWith does it with attempts that say which node was asked.
func (c *Client) retryWith(ctx context.Context, inDoubt *bool, try func() (NodeID, error)) error {
	var last error               // but for the end of the wait: that says nothing about an earlier answer
	without := map[NodeID]bool{} // who has said, since anybody said anything else, that it has no such shard
	for attempt := 0; ctx.Err() == nil; attempt++ {
		asked, err := try()
		e, no := core.Verdict(err)
		switch {
		case err == nil, no != nil:
			return err
		case e == nil: // a stranger's
		case e.Kind != ErrNotProposed:
			*inDoubt = true
		case e.Code.Ended(), e.Code.Final() && !*inDoubt:
			return err
		}
		if last == nil || e == nil || e.Code != core.CodeCancelled {
			last = err
		}
		if e == nil || e.Code != core.CodeNoShard {
			clear(without)
		} else if without[asked] = true; c.all(without, asked) && !*inDoubt {
			return err
		}
		if c.follow(e) && attempt%4 != 3 { // nodes may point at each other
			continue
		}
		wait := min(time.Millisecond<<min(attempt, 5), 20*time.Millisecond)
		if e != nil && e.Code.Busy() {
			wait = max(wait, e.RetryAfter)
			if until, has := ctx.Deadline(); has && time.Until(until) < wait && !*inDoubt {
				return err
			}
		}
		pause(ctx, wait)
	}
	return core.Late(*inDoubt, last, ctx.Err())
}

// all reports whether these are all nodes; from is one of them.
func (c *Client) all(nodes map[NodeID]bool, from NodeID) bool {
	for range nodes {
		if from = c.next(from); !nodes[from] {
			return false
		}
	}
	return true
}

var errUnreachable = &Error{Kind: ErrNotProposed, Code: core.CodeUnreachable, Message: "the node is not running"}

func (c *Client) attempt(f func(*Shard) error) (NodeID, error) {
	c.mu.Lock()
	guess := c.guess
	c.mu.Unlock()
	s, err := c.replica(guess)
	if err == nil {
		err = f(s)
	}
	return guess, err
}

// follow takes the hint of an error, or else tries the next node; it reports
// whether there was a new hint, which is worth an attempt at once.
func (c *Client) follow(e *Error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e != nil {
		if e.Leader != 0 && e.Leader != c.guess {
			c.guess = e.Leader
			return true
		}
		if e.Code.Busy() || e.Code == core.CodeSequenceTooHigh {
			return false // the right node, at the wrong time; others' outcomes make room in a session's window
		}
	}
	c.guess = c.next(c.guess)
	return false
}

// pause waits, but not beyond the end of ctx.
func pause(ctx context.Context, wait time.Duration) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
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
