// Package client calls the shards of a cluster, exactly once, through proxies or nodes.
//
// A Client keeps one connection, whatever happens behind it, and goes on with another address when it breaks. Every command carries the
// number of a session, and is sent again under that number until its outcome is known: a change of leader, a lost reply or the end of a proxy is
// nothing but latency [G12]. Any number of calls may be under way at once, from any number of goroutines, or from one that does not wait for each (Shard.Go):
// they share one stream, and whatever is ready when the connection is free travels in one message.
//
// Should another cluster be reached than before, by the name that proxies and nodes have for it, commands that may have happened in the old one end as unknown, and
// the client begins anew there: with other sessions, and without a token.
//
// A call belongs to the OpenTelemetry span of its context, if that has one: see Options.Tracer.
package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"

	"github.com/decree-raft/decree/internal/bounds"
	"github.com/decree-raft/decree/internal/clock"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// Options configure a Client; the zero value is a client in plain text, without a token.
type Options struct {
	// TLS, if set, is for the connections: access.ClientTLS makes it of files, and follows their changes.
	TLS credentials.TransportCredentials
	// Credentials, if set, are shown with every connection: a token, for instance.
	Credentials credentials.PerRPCCredentials
	// Patience bounds a call whose context has no deadline. Default a minute, at most a year.
	Patience time.Duration
	// Silence is how long a proxy may say nothing while calls wait for it. Default 3 s, from 1.5 s, as proxies say something every second, to an hour.
	Silence time.Duration
	// Logger gets what happens to connections. Default: none.
	Logger *slog.Logger
	// Tracer, if set, gets a span of each call, under that of its context, with its attempts and waits as events; proxies and nodes go on under it. What is sampled is
	// for the provider to say. Without Tracer they go on under the span of the call's context, if that has one.
	Tracer trace.TracerProvider
}

const (
	// grace is how long after its deadline a call may be told what became of it, which is more than that it is late.
	grace = 20 * time.Millisecond
	// The pause when no address could be reached doubles from the first to the last.
	firstPause = 10 * time.Millisecond
	lastPause  = 300 * time.Millisecond
	// maxHinted bounds the further addresses that errors name.
	maxHinted = 64
)

var epoch = time.Now()

func monotonic() int64 { return int64(time.Since(epoch)) }

// Client calls a cluster. Close it.
type Client struct {
	options   Options
	addresses []string
	log       *slog.Logger
	tracer    trace.Tracer // nil: nothing is traced here
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	clock     *clock.Clock
	broken    chan *link.Link // a link that went down
	leaving   chan *link.Link // a link whose other side closes

	mu      sync.Mutex
	closed  bool
	at      int        // of addresses
	link    *link.Link // to addresses[at]
	cluster string     // that was reached last
	hinted  map[string]*link.Link
	shards  map[rsm.ShardID]*Shard
	failed  int // addresses in a row that could not be reached
}

// Dial returns a client of a cluster whose proxies, or nodes, are found at some addresses (host:port). It connects to one of them, any, and keeps to
// that as long as it lives. It does not wait for the connection: calls do.
func Dial(addresses []string, o Options) (*Client, error) {
	if len(addresses) == 0 {
		return nil, errors.New("client: no addresses: name at least one proxy or node, host:port")
	}
	o.Patience = cmp.Or(o.Patience, time.Minute)
	if err := cmp.Or(
		bounds.Check("Patience", o.Patience, time.Millisecond, route.MaxPatience),
		bounds.Check("Silence", cmp.Or(o.Silence, link.LeastSilence), link.LeastSilence, time.Hour),
	); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{options: o, addresses: slices.Clone(addresses), log: o.Logger, cancel: cancel, clock: clock.New(monotonic), broken: make(chan *link.Link, 1), leaving: make(chan *link.Link, 1),
		at: rand.IntN(len(addresses)), hinted: map[string]*link.Link{}, shards: map[rsm.ShardID]*Shard{}}
	if o.Tracer != nil {
		c.tracer = o.Tracer.Tracer("github.com/decree-raft/decree/proxy/client")
	}
	l, err := c.dial(c.addresses[c.at])
	if err != nil {
		cancel()
		return nil, fmt.Errorf("client: %w", err)
	}
	c.link = l
	c.wg.Go(func() { c.keep(ctx) })
	c.wg.Go(func() { c.clock.Run(ctx, c.each) })
	return c, nil
}

// Close ends all calls, with errors that say whether they may have happened. Sessions are left to expire: see Shard.Close.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	shards := slices.Collect(maps.Values(c.shards))
	c.mu.Unlock()
	c.cancel()
	for _, s := range shards {
		s.router.Close(errClosed)
	}
	c.wg.Wait() // nobody dials any more
	c.mu.Lock()
	links := append(slices.Collect(maps.Values(c.hinted)), c.link)
	c.mu.Unlock()
	for _, l := range links {
		l.Close()
	}
}

var errClosed = &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeClosed, Message: "the client is closed"}

// Shard returns the handle for a shard: always the same.
func (c *Client) Shard(id rsm.ShardID) *Shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.shards[id]
	if s == nil {
		s = &Shard{client: c, id: id, router: route.New(route.Config{Shard: id, Any: true, Resolve: c.resolve, Sooner: c.clock.Sooner})}
		s.window.Open = s.open
		s.router.Targets(monotonic(), []route.Target{c.link})
		if c.closed {
			s.router.Close(errClosed)
		}
		c.shards[id] = s
	}
	return s
}

func (c *Client) dial(address string) (*link.Link, error) {
	options := access.DialOptions(c.options.TLS, c.options.Credentials)
	return link.New(address, link.Config{Options: options, Now: monotonic, Silence: c.options.Silence, Check: c.meet, Up: c.up, Down: c.down, Leaving: c.leave})
}

// each calls f for the router of every shard.
func (c *Client) each(f func(*route.Router)) {
	c.mu.Lock()
	shards := slices.Collect(maps.Values(c.shards)) // f may want c.mu
	c.mu.Unlock()
	for _, s := range shards {
		f(s.router)
	}
}

// meet notices that a stream leads into another cluster than those before, before anything is sent on it.
func (c *Client) meet(cluster string) error {
	if cluster == "" { // a proxy that does not know yet
		return nil
	}
	c.mu.Lock()
	was := c.cluster
	c.cluster = cluster
	shards := slices.Collect(maps.Values(c.shards))
	c.mu.Unlock()
	if was == "" || was == cluster {
		return nil
	}
	c.log.Warn("another cluster is reached: sessions and tokens of the former are forgotten", "cluster", cluster, "before", was)
	for _, s := range shards {
		s.window.Drop()
		s.token.Store(0)
		s.router.EndSessions(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeSessionExpired, Message: "another cluster is reached than the one that knows the session"})
	}
	return nil
}

func (c *Client) up(l *link.Link) {
	c.log.Info("connected", "address", l.Address())
	c.mu.Lock()
	c.failed = 0
	c.mu.Unlock()
	c.each(func(r *route.Router) { r.Up(monotonic()) })
}

func (c *Client) down(l *link.Link, why error) {
	if why == nil {
		return
	}
	c.log.Info("disconnected", "address", l.Address(), "reason", why.Error())
	refused, _ := core.Verdict(why)
	if refused != nil && refused.Code != core.CodeUnauthenticated && refused.Code != core.CodeForbidden {
		refused = nil
	}
	c.each(func(r *route.Router) {
		r.Down(l)
		if refused != nil { // waiting for the deadline would not help
			r.Refuse(refused)
		}
	})
	select {
	case c.broken <- l:
	default:
	}
}

func (c *Client) leave(l *link.Link) {
	select {
	case c.leaving <- l:
	default:
	}
}

// keep goes on with the next address when a link breaks. With one address, the link opens again by itself.
func (c *Client) keep(ctx context.Context) {
	for {
		var l *link.Link
		leaving := false
		select {
		case <-ctx.Done():
			return
		case l = <-c.broken:
		case l = <-c.leaving:
			leaving = true
		}
		c.mu.Lock()
		current := c.link == l
		if current && !leaving {
			c.failed++
		}
		rounds := c.failed / len(c.addresses)
		c.mu.Unlock()
		if !current || len(c.addresses) == 1 {
			continue
		}
		if rounds > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(firstPause<<min(rounds, 8), lastPause)):
			}
		}
		next := (c.at + 1) % len(c.addresses)
		n, err := c.dial(c.addresses[next])
		c.at = next
		if err != nil {
			c.log.Warn("an address cannot be dialled", "address", c.addresses[next], "reason", err.Error())
			continue
		}
		c.mu.Lock()
		c.link = n
		c.mu.Unlock()
		c.each(func(r *route.Router) { r.Targets(monotonic(), []route.Target{n}) })
		if leaving {
			c.wg.Go(func() { l.Retire(ctx) }) // what was on it is still answered
		} else {
			l.Close() // what was on it is lost, and sent again
		}
	}
}

// resolve returns who an error says leads: nodes, unlike proxies, answer for themselves only.
func (c *Client) resolve(e *core.Error) route.Target {
	if e.LeaderAddress == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.hinted[e.LeaderAddress]; l != nil {
		return l
	}
	if c.link.Address() == e.LeaderAddress {
		return c.link
	}
	if c.closed || len(c.hinted) >= maxHinted {
		return nil
	}
	l, err := c.dial(e.LeaderAddress)
	if err != nil {
		return nil
	}
	c.hinted[e.LeaderAddress] = l
	return l
}
