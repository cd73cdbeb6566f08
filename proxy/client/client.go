// Package client calls the shards of a cluster, exactly once, through proxies or nodes.
//
// A Client keeps one connection, whatever happens behind it, and goes on with another address when it breaks. Every command carries the
// number of a session, and is sent again under that number until its outcome is known: a change of leader, a lost reply or the end of a proxy is
// nothing but latency [G12]. Any number of calls may be under way at once, from any number of goroutines, or from one that does not wait for each (Shard.Go):
// they share one stream, and whatever is ready when the connection is free travels in one message.
//
// Should another cluster be reached than before, by the name that proxies and nodes have for it, commands that may have happened in the old one end as unknown, and
// the client begins anew there: with other sessions, and without a token. What did not happen, and reads, go there too. Only the address that the client keeps to says which
// cluster it is, not those that errors name.
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
	"math"
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
	// Silence is how long a proxy may say nothing while calls wait for it. Default 3 s, from 1.5 s, as proxies say something every second, to an hour. Bytes of what is large, and on
	// its way, count.
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
	// hintedFor is how long one of them that cannot be reached is tried.
	hintedFor = 2 * time.Minute
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

	mu       sync.Mutex
	closed   bool
	at       int        // of addresses
	link     *link.Link // to addresses[at]: the main one, which alone says which cluster is reached
	mains    uint64     // links that have been the main one: its number
	cluster  string     // that was reached last
	hinted   map[string]*hinted
	shards   map[rsm.ShardID]*Shard
	failed   int    // addresses in a row that could not be reached
	refusals int    // addresses in a row that refused the client, up to now
	refused  uint64 // main link that was counted there last
}

// hinted is a link to an address that an error named.
type hinted struct {
	link  *link.Link
	since int64 // that it is not connected; 0: it is
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
		at: rand.IntN(len(addresses)), hinted: map[string]*hinted{}, shards: map[rsm.ShardID]*Shard{}}
	if o.Tracer != nil {
		c.tracer = o.Tracer.Tracer("github.com/decree-raft/decree/proxy/client")
	}
	if err := c.lead(c.at); err != nil {
		cancel()
		return nil, fmt.Errorf("client: %w", err)
	}
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
		s.stay.Load().router.Close(errClosed)
	}
	c.wg.Wait() // nobody dials any more
	c.mu.Lock()
	links := []*link.Link{c.link}
	for _, h := range c.hinted {
		links = append(links, h.link)
	}
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
		s = &Shard{client: c, id: id}
		s.stay.Store(c.stay(s))
		if c.closed {
			s.stay.Load().router.Close(errClosed)
		}
		c.shards[id] = s
	}
	return s
}

// stay returns a new stay of a shard, in the cluster to which the main link leads. c.mu is held.
func (c *Client) stay(s *Shard) *stay {
	st := &stay{shard: s}
	st.router = route.New(route.Config{Shard: s.id, Any: true, Resolve: func(e *core.Error) route.Target { return c.resolve(st, e) }, Sooner: c.clock.Sooner})
	st.window.Open = st.open
	st.router.Targets(monotonic(), []route.Target{c.link})
	return st
}

// lead makes a new link the main one.
func (c *Client) lead(at int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	number := c.mains + 1
	l, err := c.dial(c.addresses[at], link.Config{
		Check:   func(cluster string) error { return c.meet(number, cluster) },
		Up:      func(l *link.Link) { c.up(number, l) },
		Down:    func(l *link.Link, opened bool, why error) { c.down(number, l, opened, why) },
		Leaving: c.leave,
	})
	if err == nil {
		c.link, c.mains = l, number // before the link can ask who it is: that takes c.mu
	}
	return err
}

func (c *Client) dial(address string, cfg link.Config) (*link.Link, error) {
	cfg.Options, cfg.Now, cfg.Silence = access.DialOptions(c.options.TLS, c.options.Credentials), monotonic, c.options.Silence
	cfg.Own = true // by whoever calls
	return link.New(address, cfg)
}

// each calls f for the router of every shard, that of its present stay.
func (c *Client) each(f func(*route.Router)) {
	c.mu.Lock()
	shards := slices.Collect(maps.Values(c.shards)) // f may want c.mu
	c.mu.Unlock()
	for _, s := range shards {
		f(s.stay.Load().router)
	}
}

var (
	errNameless = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable, Message: "the server does not say of which cluster it is"}
	errReplaced = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable, Message: "another address has taken this one's place"}
	errForeign  = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable, Message: "the node that is found there is of another cluster"}
	errMoved    = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeSessionExpired, Message: "another cluster is reached than the one that was asked"}
)

// meet notices that the main link leads into another cluster than those before, before anything is sent on it. Who does not say of which it is could be of any.
func (c *Client) meet(number uint64, cluster string) error {
	if cluster == "" {
		return errNameless
	}
	c.mu.Lock()
	was := c.cluster
	switch {
	case c.closed || number != c.mains:
		c.mu.Unlock()
		return errReplaced
	case was == "" || was == cluster:
		c.cluster = cluster
		c.mu.Unlock()
		return nil
	}
	c.cluster = cluster
	var left []*stay
	for _, s := range c.shards {
		left = append(left, s.stay.Swap(c.stay(s)))
	}
	for address, h := range c.hinted {
		c.forget(address, h)
	}
	c.mu.Unlock()
	c.log.Warn("another cluster is reached: sessions and tokens of the former are forgotten", "cluster", cluster, "before", was)
	for _, st := range left { // from here on they send nothing
		st.router.Close(errMoved)
	}
	return nil
}

func (c *Client) up(number uint64, l *link.Link) {
	c.log.Info("connected", "address", l.Address())
	c.mu.Lock()
	if number == c.mains {
		c.failed, c.refusals, c.refused = 0, 0, 0
	}
	c.mu.Unlock()
	c.each(func(r *route.Router) { r.Up(monotonic()) })
}

func (c *Client) down(number uint64, l *link.Link, opened bool, why error) {
	if why == nil {
		return
	}
	c.log.Info("disconnected", "address", l.Address(), "reason", why.Error())
	c.each(func(r *route.Router) { r.Down(l) })
	if refusal := c.refusal(number, opened, why); refusal != nil { // waiting for the deadline would not help
		c.each(func(r *route.Router) { r.Refuse(refusal) })
	}
	select {
	case c.broken <- l:
	default:
	}
}

// refusal notes what became of an opening of a main link, and returns an error if by now every address has refused the client, one after the other. A stream that was open says
// nothing about that: what was shown when it was opened may have been replaced since.
func (c *Client) refusal(number uint64, opened bool, why error) *core.Error {
	e, _ := core.Verdict(why)
	refused := !opened && e != nil && (e.Code == core.CodeUnauthenticated || e.Code == core.CodeForbidden)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case number != c.mains:
		return nil
	case !refused:
		c.refusals, c.refused = 0, 0
		return nil
	case c.refused != number: // the same address once more is no other
		c.refusals, c.refused = c.refusals+1, number
	}
	if c.refusals < len(c.addresses) {
		return nil
	}
	return e
}

func (c *Client) leave(l *link.Link) {
	select {
	case c.leaving <- l:
	default:
	}
}

// keep goes on with the next address when a link breaks, or its other side closes. With one address, the link opens again by itself when it broke; who leaves is left
// also then, as somebody else may be found there.
func (c *Client) keep(ctx context.Context) {
	led := time.Now() // when the main link was replaced
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
		if !current || !leaving && len(c.addresses) == 1 {
			continue
		}
		var pause time.Duration
		if rounds > 0 {
			pause = min(firstPause<<min(rounds, 8), lastPause)
		}
		if leaving { // everybody may
			pause = max(pause, lastPause-time.Since(led))
		}
		if pause > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			c.mu.Lock()
			back := c.failed == 0
			c.mu.Unlock()
			if back && !leaving { // it is up again, and may have calls
				continue
			}
		}
		led = time.Now()
		c.at = (c.at + 1) % len(c.addresses)
		if err := c.lead(c.at); err != nil {
			c.log.Warn("an address cannot be dialled", "address", c.addresses[c.at], "reason", err.Error())
			continue
		}
		c.mu.Lock()
		n := c.link
		c.mu.Unlock()
		c.each(func(r *route.Router) { r.Targets(monotonic(), []route.Target{n}) })
		if leaving {
			c.wg.Go(func() { l.Retire(ctx) }) // what was on it is still answered
		} else {
			l.Close() // what was on it is lost, and sent again
		}
	}
}

// resolve returns who an error says leads, if that one is reached: nodes, unlike proxies, answer for themselves only. To another nothing could be sent, and who gave the hint would
// be asked again at once. A stay that is over gets nobody.
func (c *Client) resolve(st *stay, e *core.Error) route.Target {
	if e.LeaderAddress == "" {
		return nil
	}
	if l := c.hint(st, e); l != nil && l.Connected() {
		return l
	}
	return nil
}

// hint returns the link to the address that an error names, new if there is none.
func (c *Client) hint(st *stay, e *core.Error) *link.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || st.over() {
		return nil
	}
	if h := c.hinted[e.LeaderAddress]; h != nil {
		return h.link
	}
	if c.link.Address() == e.LeaderAddress {
		return c.link
	}
	if len(c.hinted) >= maxHinted && !c.makeRoom() {
		return nil
	}
	cluster := c.cluster // of which the one who gave the hint is
	l, err := c.dial(e.LeaderAddress, link.Config{
		Check: func(is string) error {
			if is != cluster {
				return errForeign
			}
			return nil
		},
		Up:   func(l *link.Link) { c.hintedUp(l) },
		Down: func(l *link.Link, _ bool, why error) { c.hintedDown(l, why) },
	})
	if err != nil {
		return nil
	}
	c.hinted[e.LeaderAddress] = &hinted{link: l, since: monotonic()}
	return l
}

// makeRoom forgets the hinted address that has not been reached for longest, and reports whether there was one. A router that believes it to lead loses nothing: it asks
// the main link instead. c.mu is held.
func (c *Client) makeRoom() bool {
	oldest, since := "", int64(math.MaxInt64)
	for address, h := range c.hinted {
		if h.since != 0 && h.since < since {
			oldest, since = address, h.since
		}
	}
	if oldest == "" {
		return false
	}
	c.forget(oldest, c.hinted[oldest])
	return true
}

// forget closes a hinted link. c.mu is held, and the client is not closed.
func (c *Client) forget(address string, h *hinted) {
	delete(c.hinted, address)
	c.wg.Go(h.link.Close)
}

func (c *Client) hintedUp(l *link.Link) {
	c.log.Info("connected", "address", l.Address())
	c.mu.Lock()
	if h := c.hinted[l.Address()]; h != nil && h.link == l {
		h.since = 0
	}
	c.mu.Unlock()
	c.each(func(r *route.Router) { r.Up(monotonic()) })
}

func (c *Client) hintedDown(l *link.Link, why error) {
	c.each(func(r *route.Router) { r.Down(l) })
	if why == nil {
		return
	}
	c.log.Info("disconnected", "address", l.Address(), "reason", why.Error())
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hinted[l.Address()]
	if h == nil || h.link != l || c.closed {
		return
	}
	now := monotonic()
	if h.since == 0 {
		h.since = now
	}
	if now-h.since > int64(hintedFor) {
		c.forget(l.Address(), h)
	}
}
