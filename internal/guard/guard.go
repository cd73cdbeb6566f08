// Package guard stands between a port's socket and what serves it, which would drop a stranger without a word and let it hold a
// connection for a long time. It bounds the connections, in all and of one host, and how long they may take to begin; it lets
// through what begins as a client does, and tells the others, and the log, what this port is.
//
//	goroutine  how many                              owns                          ends
//	Accept's   the server's                          nothing                       Close
//	accept     one                                   the listening socket          Close
//	admit      one per connection that has to begin  the connection's first bytes  handed over, or refused; Config.Timeout
package guard

import (
	"cmp"
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/limitlog"
)

const (
	// Preface is what every HTTP/2 client, and so every gRPC one, says first.
	Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// TLSPreface is how TLS begins: a handshake record of TLS 1.x.
	TLSPreface = "\x16\x03"
	// lingering is how long, and maxLinger how much, is read after a refusal:
	// closing a socket with unread bytes resets it, and the answer is lost.
	lingering = time.Second
	maxLinger = 64 << 10
	// acceptPause is how long to wait when connections cannot be accepted.
	acceptPause = 50 * time.Millisecond
	// strangerBytes and strangerRate (each second) are what a connection may send before it is known who calls. That is a handshake, the largest header, and a
	// look at the health of a server many times a second.
	strangerBytes = 32 << 10
	strangerRate  = 4 << 10
)

// methods are how HTTP/1 requests begin.
var methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "CONNECT ", "TRACE ", "PATCH "}

// Defaults of Config.
const (
	DefaultMaxConns    = 1024
	DefaultMaxUnshaken = 128
	DefaultTimeout     = 5 * time.Second
)

// Config says what a guard lets through.
type Config struct {
	// Port names the port in the log, as in "the peer port". Required.
	Port string
	// Clients names who may come, as in "this node's peers". Required.
	Clients string
	// Answer is what a stranger is told before its connection is closed: a line with its end. Required.
	Answer string
	// TLS: connections begin with TLS, or they begin in plain text.
	TLS bool
	// HTTP1: in plain text, requests of HTTP/1 are let through as well as HTTP/2, for ports of an http.Server.
	HTTP1 bool
	// MaxConns bounds the connections that are open. Default 1024.
	MaxConns int
	// MaxPerHost bounds those of one host. 0: no bound but MaxConns.
	MaxPerHost int
	// MaxUnshaken bounds the connections that have yet to finish the handshake (see Credentials and ConnState). A newcomer displaces
	// the oldest of them, as a client speaks at once, and whoever fills the list keeps silent. Default 128.
	MaxUnshaken int
	// Timeout is how long a connection may take to say how it begins. What comes afterwards, the TLS handshake and the rest of
	// the greeting, is for the server to limit: grpc.ConnectionTimeout, http.Server.ReadHeaderTimeout. Default 5 s.
	Timeout time.Duration
	// Strangers: the server says who is known, see Known. From the other connections little is read, so that those who have shown nothing can make the
	// server hold little: gRPC keeps what comes in on a stream, up to its window, even when it has refused the call and the other side does not read that.
	// Where there are too many connections, in all or of one host, the oldest of a stranger makes room: whoever fills the port without showing anything, for how
	// long it may be, keeps nobody out who has something to show.
	Strangers bool
	// Log gets what is refused, and why. Nil: nobody does.
	Log *limitlog.Log
}

// Guard is a net.Listener that hands over the connections that have begun as they should. Its connections must be closed, by
// whoever got them from Accept. Safe for concurrent use.
type Guard struct {
	net.Listener
	cfg     Config
	ready   chan net.Conn
	closing chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  int
	hosts  map[string]int // connections by host; invariant: the sum is conns, and none is 0
	// unshaken holds the connections that have yet to finish the handshake, oldest first. Invariant: at most MaxUnshaken.
	unshaken list.List

	// unknown holds the connections of strangers, oldest first.
	unknown list.List

	strangers sync.Map // *net.TCPAddr of the other side, the very one that its connection returns, to *conn
}

// New begins to accept connections from l, which belongs to the guard from then on. Close it, whoever serves it or not.
func New(l net.Listener, cfg Config) *Guard {
	cfg.MaxConns = cmp.Or(cfg.MaxConns, DefaultMaxConns)
	cfg.MaxUnshaken = cmp.Or(cfg.MaxUnshaken, DefaultMaxUnshaken)
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	if cfg.Log == nil {
		cfg.Log = limitlog.New(nil)
	}
	g := &Guard{Listener: l, cfg: cfg, ready: make(chan net.Conn), closing: make(chan struct{}), hosts: map[string]int{}}
	g.wg.Go(g.accept)
	return g
}

// Known says that it is known who calls on the connection from an address, as gRPC's peer or the connection itself returns it: it may send what it likes.
func (g *Guard) Known(remote net.Addr) {
	a, _ := remote.(*net.TCPAddr)
	if c, is := g.strangers.Load(a); is { // mostly it has been said before
		g.mu.Lock()
		defer g.mu.Unlock()
		c.(*conn).acquaint()
	}
}

// Stranger reports whether it is not known yet who calls on the connection from an address, and will be.
func (g *Guard) Stranger(remote net.Addr) bool {
	a, _ := remote.(*net.TCPAddr)
	_, is := g.strangers.Load(a)
	return is
}

// Stats are the connections of a moment.
type Stats struct {
	Open     int // all that are open
	Unshaken int // those that have yet to finish the handshake
}

// Stats counts the connections.
func (g *Guard) Stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{Open: g.conns, Unshaken: g.unshaken.Len()}
}

// Accept returns the next connection that has begun as a peer does.
func (g *Guard) Accept() (net.Conn, error) {
	select {
	case c := <-g.ready:
		return c, nil
	case <-g.closing:
		return nil, net.ErrClosed
	}
}

// Close closes the socket and every connection that has not finished its handshake, and waits until the
// guard's goroutines have ended. A gRPC server calls it once more.
func (g *Guard) Close() error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.closing)
	}
	for e := g.unshaken.Front(); e != nil; e = e.Next() {
		e.Value.(*conn).Conn.Close()
	}
	g.mu.Unlock()
	err := g.Listener.Close()
	g.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept takes connections until Close. Errors pass: mostly there is no file
// descriptor to be had at the moment.
func (g *Guard) accept() {
	for {
		raw, err := g.Listener.Accept()
		if err == nil {
			g.take(raw)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		g.cfg.Log.Warn(limitlog.Key{Reason: err.Error()}, "cannot accept connections to "+g.cfg.Port+" for the moment", "err", err)
		select {
		case <-time.After(acceptPause):
		case <-g.closing:
			return
		}
	}
}

func (g *Guard) take(raw net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	host, remote := HostOf(raw.RemoteAddr()), raw.RemoteAddr().String()
	switch {
	case g.closed:
		raw.Close()
		return
	case g.conns >= g.cfg.MaxConns && !g.displace(""):
		raw.Close()
		g.cfg.Log.Warn(limitlog.Key{Reason: "connections"}, "refused a connection to "+g.cfg.Port+": there are too many",
			"remote", remote, "limit", g.cfg.MaxConns)
		return
	case g.cfg.MaxPerHost > 0 && g.hosts[host] >= g.cfg.MaxPerHost && !g.displace(host):
		raw.Close()
		g.cfg.Log.Warn(limitlog.Key{Reason: "connections of " + host}, "refused a connection to "+g.cfg.Port+": there are too many from this host",
			"remote", remote, "limit", g.cfg.MaxPerHost)
		return
	}
	if g.unshaken.Len() >= g.cfg.MaxUnshaken {
		oldest := g.unshaken.Front().Value.(*conn)
		oldest.Conn.Close()
		oldest.leave() // now, not when its goroutine has seen it: a flood would fill up MaxConns with such
		g.cfg.Log.Warn(limitlog.Key{Reason: "unshaken"}, "closed a connection to "+g.cfg.Port+" to make room: too many have not finished their handshake",
			"remote", remote, "limit", g.cfg.MaxUnshaken)
	}
	c := &conn{Conn: raw, guard: g, host: host}
	if a, is := raw.RemoteAddr().(*net.TCPAddr); is && g.cfg.Strangers {
		c.pacer, c.paced = &stranger{known: make(chan struct{}), budget: strangerBytes, at: time.Now()}, true
		g.strangers.Store(a, c)
		c.unknown = g.unknown.PushBack(c)
	}
	c.pending = g.unshaken.PushBack(c)
	g.conns++
	g.hosts[host]++
	g.wg.Go(func() { g.admit(c) })
}

// displace closes the oldest connection of a stranger, of a host if one is given, and reports whether there was one. g.mu is held.
func (g *Guard) displace(host string) bool {
	for e := g.unknown.Front(); e != nil; e = e.Next() {
		c := e.Value.(*conn)
		if host != "" && c.host != host {
			continue
		}
		c.Conn.Close()
		c.leave()
		g.cfg.Log.Warn(limitlog.Key{Reason: "displaced " + host}, "closed a connection to "+g.cfg.Port+" to make room: it has not shown who it is",
			"remote", c.RemoteAddr().String(), "limit", g.cfg.MaxConns, "limit of one host", g.cfg.MaxPerHost)
		return true
	}
	return false
}

// admit looks at the first bytes of a connection.
func (g *Guard) admit(c *conn) {
	first, err := g.sniff(c)
	if err != nil {
		g.refuse(c, first, err)
		return
	}
	c.prefix = first
	select {
	case g.ready <- c:
	case <-g.closing:
		c.Close()
	}
}

var errStranger = errors.New("begins as no client does")

// beginnings are what a connection may begin with.
func (g *Guard) beginnings() []string {
	switch {
	case g.cfg.TLS:
		return []string{TLSPreface}
	case g.cfg.HTTP1:
		return append([]string{Preface}, methods...)
	}
	return []string{Preface}
}

// sniff reads until the connection has begun as a client does, or shows that it will not.
func (g *Guard) sniff(c *conn) ([]byte, error) {
	want := g.beginnings()
	if err := c.SetReadDeadline(time.Now().Add(g.cfg.Timeout)); err != nil {
		return nil, err
	}
	buf := make([]byte, len(Preface))
	for n := 0; ; {
		m, err := c.Conn.Read(buf[n:])
		n += m
		first := buf[:n]
		switch whole, possible := compare(string(first), want); {
		case whole:
			return first, c.SetReadDeadline(time.Time{})
		case !possible:
			return first, errStranger
		case err != nil:
			return first, err
		}
	}
}

// compare says whether s begins with one of want, and whether it may yet when there is more of it.
func compare(s string, want []string) (whole, possible bool) {
	for _, w := range want {
		whole = whole || strings.HasPrefix(s, w)
		possible = possible || strings.HasPrefix(w, s)
	}
	return whole, possible
}

// refuse says why, to the log and to the stranger, and closes the connection.
func (g *Guard) refuse(c *conn, first []byte, err error) {
	defer c.Close()
	found := g.describe(first, err)
	if found == "" {
		return
	}
	g.cfg.Log.Warn(limitlog.Key{Reason: c.host + found}, "refused a connection to "+g.cfg.Port+": it does not begin as one should",
		"remote", c.RemoteAddr().String(), "found", found, "bytes", fmt.Sprintf("%q", first))
	c.SetDeadline(time.Now().Add(min(lingering, g.cfg.Timeout)))
	if _, err := io.WriteString(c.Conn, g.cfg.Answer); err != nil {
		return // it is gone, and has been logged
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		io.CopyN(io.Discard, c.Conn, maxLinger)
	}
}

// describe names what came instead of a client. Empty: not worth a line, as the
// connection was just opened and closed, which is what health checks do, or was
// closed by us.
func (g *Guard) describe(first []byte, err error) string {
	s := string(first)
	switch {
	case errors.Is(err, net.ErrClosed), len(first) == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("%d bytes, then silence", len(first))
	case !errors.Is(err, errStranger):
		return "the beginning of a greeting, then the end"
	case g.cfg.TLS && strings.HasPrefix(Preface, s[:min(len(s), len(Preface))]):
		return "gRPC without TLS, but " + g.cfg.Clients + " use TLS"
	case strings.HasPrefix(s, TLSPreface):
		return "TLS, but " + g.cfg.Clients + " use none"
	}
	if http, _ := compare(s, methods); http {
		return "an HTTP/1 request"
	}
	return "bytes of another protocol"
}

// HostOf returns the host of an address, or all of it if it has no port. A host with IPv6 has whatever addresses it likes within its network: that, of 64 bits, is the host.
func HostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	ip, err := netip.ParseAddr(host)
	switch ip = ip.Unmap(); {
	case err != nil:
		return host
	case ip.Is6() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast(): // which has one network for all
		return netip.PrefixFrom(ip.WithZone(""), 64).Masked().String()
	}
	return ip.String()
}

// conn gives back the bytes that were looked at, and is counted until it is closed.
type conn struct {
	net.Conn
	guard  *Guard
	host   string
	prefix []byte    // read by one goroutine at a time: first the guard, then the server
	pacer  *stranger // nil: it may send what it likes from the beginning
	paced  bool      // the reader's

	// Guarded by guard.mu.
	left    bool          // it is not counted any more
	pending *list.Element // nil once the handshake is over
	unknown *list.Element // nil once it is known who it is
}

func (c *conn) Read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	if c.paced {
		c.paced = c.pacer.wait()
	}
	n, err := c.Conn.Read(b)
	if c.paced {
		c.pacer.budget -= n
	}
	return n, err
}

// stranger paces the reader of a connection of which nothing is known.
type stranger struct {
	known  chan struct{} // closed when the connection may send what it likes, or is closed
	once   sync.Once
	budget int // bytes that may be read now; less than none after a large read
	at     time.Time
}

// wait waits until there is something to read with, and reports whether the connection still is a stranger's.
func (s *stranger) wait() bool {
	for {
		select {
		case <-s.known:
			return false
		default:
		}
		now := time.Now()
		const enough = 2 * strangerBytes / strangerRate * time.Second // to make up for a large read, too
		if more := int(min(now.Sub(s.at), enough) * strangerRate / time.Second); more > 0 {
			s.budget, s.at = min(s.budget+more, strangerBytes), now
		}
		if s.budget > 0 {
			return true
		}
		t := time.NewTimer(time.Duration(1-s.budget) * time.Second / strangerRate)
		select {
		case <-s.known:
		case <-t.C:
		}
		t.Stop()
	}
}

// acquaint lets the connection send what it likes. The caller holds guard.mu.
func (c *conn) acquaint() {
	if c.unknown != nil {
		c.guard.unknown.Remove(c.unknown)
		c.unknown = nil
	}
	a, _ := c.RemoteAddr().(*net.TCPAddr)
	c.guard.strangers.CompareAndDelete(a, c)
	c.pacer.once.Do(func() { close(c.pacer.known) })
}

// settle takes the connection out of those that can be displaced. The caller holds guard.mu.
func (c *conn) settle() {
	if c.pending != nil {
		c.guard.unshaken.Remove(c.pending)
		c.pending = nil
	}
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	c.leave()
	return err
}

// leave ends the counting of the connection. The caller holds guard.mu.
func (c *conn) leave() {
	if c.left {
		return
	}
	c.left = true
	c.settle()
	if c.pacer != nil {
		c.acquaint() // whoever reads learns that it is closed
	}
	c.guard.conns--
	if c.guard.hosts[c.host]--; c.guard.hosts[c.host] == 0 {
		delete(c.guard.hosts, c.host)
	}
}
