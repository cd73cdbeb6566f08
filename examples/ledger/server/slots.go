package server

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// reservePart is the part of Config.MaxSubmits that there is besides, for requests that make room.
const reservePart = 8

// slots are what requests that write hold while they are at work. Safe for concurrent use.
type slots struct {
	mu       sync.Mutex
	ordinary pool
	reserve  pool // for requests that make room, when they get no ordinary slot
}

func newSlots(most int) *slots {
	return &slots{ordinary: newPool(most), reserve: newPool(max(1, most/reservePart))}
}

// take takes a slot for a request of a client, until done is called.
func (s *slots) take(client string, makesRoom bool) (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := &s.ordinary
	if makesRoom && !from.has(client, 1) {
		from = &s.reserve
	}
	if !from.has(client, 1) {
		return nil, overloaded(from.refusal(client, makesRoom))
	}
	from.take(client, 1)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		from.give(client, 1)
	}, nil
}

func overloaded(message string) error {
	return &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeOverloaded, RetryAfter: 50 * time.Millisecond, Message: message}
}

// maxBodies bounds the bytes of bodies over HTTP that are being read: who sends slowly may take half a minute.
const maxBodies = 256 << 20

// bodies is what requests over HTTP hold while their bodies come in. Safe for concurrent use.
type bodies struct {
	mu    sync.Mutex
	bytes pool
}

// take takes room for a body of a client, until done is called. bytes is what it has, negative if that is not known.
func (b *bodies) take(client string, bytes int64) (done func(), err error) {
	n := MaxBodyBytes
	if bytes >= 0 {
		n = int(min(bytes, MaxBodyBytes))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.bytes.has(client, n) {
		return nil, overloaded(fmt.Sprintf("bodies with %d bytes are on their way to this node, %d of them from client %q: at most %d, and a client gets no more than it leaves to others",
			b.bytes.taken, b.bytes.clients[client], client, b.bytes.size))
	}
	b.bytes.take(client, n)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.bytes.give(client, n)
	}, nil
}

// pool is a number of slots that clients share: each gets one more as long as it holds fewer than are free. So one alone gets half of them, two a third each,
// and whoever comes next finds some, for no client can take the last ones but one that has none.
type pool struct {
	size, taken int
	clients     map[string]int // slots by client; invariant: the sum is taken, and none is 0
}

func newPool(size int) pool { return pool{size: size, clients: map[string]int{}} }

func (p *pool) has(client string, n int) bool { return p.clients[client]+n <= p.size-p.taken }

func (p *pool) take(client string, n int) {
	p.taken += n
	if p.clients[client] += n; p.clients[client] == 0 {
		delete(p.clients, client)
	}
}

func (p *pool) give(client string, n int) { p.take(client, -n) }

// refusal says which bound a client has met that gets no slot.
func (p *pool) refusal(client string, makesRoom bool) string {
	what := "requests"
	if makesRoom {
		what = "requests in the slots that are kept for those that make room"
	}
	if p.taken == p.size {
		return fmt.Sprintf("%d %s are at work on this node already", p.taken, what)
	}
	return fmt.Sprintf("client %q has %d %s at work on this node, which is its fair share: %d more may be, and are for others", client, p.clients[client], what, p.size-p.taken)
}

// makesRoom is book.MakesRoom of entries that nothing has been made of yet.
func makesRoom(entries []*ledgerv1.Entry) bool {
	for _, e := range entries {
		if !e.GetPostPending() && !e.GetVoidPending() {
			return false
		}
	}
	return true
}

type hostKey struct{}

// withHost returns the context of a request over HTTP, with the host that it comes from.
func withHost(r *http.Request) context.Context {
	return context.WithValue(r.Context(), hostKey{}, guard.HostOf(remote(r.RemoteAddr)))
}

// remote is an address as http.Request has it.
type remote string

func (remote) Network() string  { return "tcp" }
func (a remote) String() string { return string(a) }

// clientOf returns who calls: the name that it has shown, or else its host, as one may open any number of connections.
func clientOf(ctx context.Context) string {
	if who, _ := access.FromContext(ctx); who.Name != "" {
		return who.Name
	}
	if host, ok := ctx.Value(hostKey{}).(string); ok {
		return host
	}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return guard.HostOf(p.Addr)
	}
	return ""
}
