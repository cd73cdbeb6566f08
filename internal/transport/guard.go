package transport

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	maxUnshaken = 128
	maxConns    = 1024
	// clientPreface is what every HTTP/2 client, and so every gRPC one, says first.
	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	tlsPreface    = "\x16\x03" // a handshake record of TLS 1.x
	// lingering is how long, and maxLinger how much, is read after a refusal:
	// closing a socket with unread bytes resets it, and the answer is lost.
	lingering = time.Second
	maxLinger = 64 << 10

	plainAnswer = "this is a Decree peer port: it speaks gRPC with other Decree nodes, nothing else\n"
	tlsAnswer   = "this is a Decree peer port: it speaks gRPC over mutual TLS with other Decree nodes, nothing else\n"
)

// guard stands between the socket and gRPC, which would drop a stranger without
// a word and let it hold a connection for a long time. It lets through what
// begins as a peer does. As a net.Listener it belongs to the gRPC server.
type guard struct {
	net.Listener
	tls     bool
	timeout time.Duration
	log     *limitedLog
	ready   chan net.Conn
	closing chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  int
	// unshaken holds the connections that have yet to finish the handshake, oldest
	// first. Invariant: at most maxUnshaken; a newcomer displaces the oldest, as a
	// peer speaks at once, and whoever fills the list keeps silent.
	unshaken list.List
}

func newGuard(l net.Listener, tls bool, timeout time.Duration, log *limitedLog) *guard {
	return &guard{Listener: l, tls: tls, timeout: timeout, log: log, ready: make(chan net.Conn), closing: make(chan struct{})}
}

// Accept returns the next connection that has begun as a peer does.
func (g *guard) Accept() (net.Conn, error) {
	select {
	case c := <-g.ready:
		return c, nil
	case <-g.closing:
		return nil, net.ErrClosed
	}
}

// Close closes the socket and every unfinished connection, and waits until the
// guard's goroutines have ended. gRPC calls it once more.
func (g *guard) Close() error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.closing)
	}
	for e := g.unshaken.Front(); e != nil; e = e.Next() {
		e.Value.(*guardedConn).Conn.Close()
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
func (g *guard) accept() {
	for {
		conn, err := g.Listener.Accept()
		if err == nil {
			g.take(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		g.log.warn(logKey{reason: err.Error()}, "cannot accept connections to the peer port for the moment", "err", err)
		select {
		case <-time.After(backoffMin):
		case <-g.closing:
			return
		}
	}
}

func (g *guard) take(conn net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.conns >= maxConns {
		conn.Close()
		if !g.closed {
			g.log.warn(logKey{reason: "connections"}, "refused a connection to the peer port: there are too many",
				"remote", conn.RemoteAddr().String(), "limit", maxConns)
		}
		return
	}
	if g.unshaken.Len() >= maxUnshaken {
		oldest := g.unshaken.Remove(g.unshaken.Front()).(*guardedConn)
		oldest.pending = nil
		oldest.Conn.Close()
		g.log.warn(logKey{reason: "unshaken"}, "closed a connection to the peer port to make room: too many have not finished their handshake",
			"remote", conn.RemoteAddr().String(), "limit", maxUnshaken)
	}
	c := &guardedConn{Conn: conn, guard: g}
	c.pending = g.unshaken.PushBack(c)
	g.conns++
	g.wg.Go(func() { g.admit(c) })
}

// admit looks at the first bytes of a connection.
func (g *guard) admit(c *guardedConn) {
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

var errNotPeer = errors.New("not a peer")

// sniff reads until the connection has begun as a peer does, or shows that it will not.
func (g *guard) sniff(c *guardedConn) ([]byte, error) {
	want := clientPreface
	if g.tls {
		want = tlsPreface
	}
	if err := c.SetReadDeadline(time.Now().Add(g.timeout)); err != nil {
		return nil, err
	}
	buf := make([]byte, len(clientPreface))
	for n := 0; ; {
		m, err := c.Conn.Read(buf[n:])
		n += m
		first := buf[:n]
		if k := min(n, len(want)); string(first[:k]) != want[:k] {
			return first, errNotPeer
		}
		if n >= len(want) {
			return first, c.SetReadDeadline(time.Time{})
		}
		if err != nil {
			return first, err
		}
	}
}

// refuse says why, to the log and to the stranger, and closes the connection.
func (g *guard) refuse(c *guardedConn, first []byte, err error) {
	defer c.Close()
	found := describe(first, err, g.tls)
	if found == "" {
		return
	}
	g.log.warn(logKey{reason: hostOf(c) + found}, "refused a connection to the peer port: it is not a Decree node's",
		"remote", c.RemoteAddr().String(), "found", found, "bytes", fmt.Sprintf("%q", first))
	answer := plainAnswer
	if g.tls {
		answer = tlsAnswer
	}
	c.SetDeadline(time.Now().Add(min(lingering, g.timeout)))
	if _, err := io.WriteString(c.Conn, answer); err != nil {
		return // it is gone, and has been logged
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		io.CopyN(io.Discard, c.Conn, maxLinger)
	}
}

// describe names what came instead of a peer. Empty: not worth a line, as the
// connection was just opened and closed, which is what health checks do, or was
// closed by us.
func describe(first []byte, err error, tls bool) string {
	s := string(first)
	switch {
	case errors.Is(err, net.ErrClosed), len(first) == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
		return ""
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("%d bytes, then silence", len(first))
	case !errors.Is(err, errNotPeer):
		return "the beginning of a greeting, then the end"
	case tls && strings.HasPrefix(clientPreface, s[:min(len(s), len(clientPreface))]):
		return "gRPC without TLS, but this node's peers use TLS"
	case strings.HasPrefix(s, tlsPreface):
		return "TLS, but this node's peers use none"
	case isHTTP1(s):
		return "an HTTP/1 request"
	default:
		return "bytes of another protocol"
	}
}

func isHTTP1(s string) bool {
	for _, method := range []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "CONNECT ", "TRACE ", "PATCH "} {
		if strings.HasPrefix(s, method) {
			return true
		}
	}
	return false
}

func hostOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}

// guardedConn gives back the bytes that were looked at, and is counted until it is closed.
type guardedConn struct {
	net.Conn
	guard  *guard
	prefix []byte // read by one goroutine at a time: first the guard, then gRPC
	closed sync.Once

	pending *list.Element // guarded by guard.mu; nil once the handshake is over
}

func (c *guardedConn) Read(b []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(b, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// handshaken takes the connection out of those that can be displaced.
func (c *guardedConn) handshaken() {
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	c.settle()
}

func (c *guardedConn) settle() {
	if c.pending != nil {
		c.guard.unshaken.Remove(c.pending)
		c.pending = nil
	}
}

func (c *guardedConn) Close() error {
	err := c.Conn.Close()
	c.closed.Do(func() {
		c.guard.mu.Lock()
		defer c.guard.mu.Unlock()
		c.settle()
		c.guard.conns--
	})
	return err
}
