package tlsfiles

import (
	"crypto/tls"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// look is how often a connection looks at the clock at least: clocks are set, and machines sleep.
const look = time.Minute

// Expiry returns when the certificates end that the other side has shown and that were verified, or zero, if it has shown none: each chain ends with the
// first of its certificates, and any chain will do.
func Expiry(s *tls.ConnectionState) (end time.Time) {
	if s == nil {
		return end
	}
	for _, chain := range s.VerifiedChains {
		var first time.Time
		for _, c := range chain {
			if first.IsZero() || c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		if first.After(end) {
			end = first
		}
	}
	return end
}

// limited returns a connection that ends when the certificates do with which it was made.
func (c *Credentials) limited(conn net.Conn, info credentials.AuthInfo) net.Conn {
	t, is := info.(credentials.TLSInfo)
	if !is {
		return conn
	}
	end := Expiry(&t.State)
	if end.IsZero() {
		return conn
	}
	m := &mortal{Conn: conn, end: end, expired: c.Expired}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.timer = time.AfterFunc(m.next(), m.look)
	return m
}

// mortal is a connection that is closed when end has come.
type mortal struct {
	net.Conn
	end     time.Time
	expired func(net.Conn, time.Time) // may be nil

	mu     sync.Mutex
	closed bool
	timer  *time.Timer
}

// next is when to look again. A certificate is good to the end of its last second.
func (m *mortal) next() time.Duration { return min(time.Until(m.end)+time.Millisecond, look) }

func (m *mortal) look() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	if !time.Now().After(m.end) {
		m.timer.Reset(m.next())
		m.mu.Unlock()
		return
	}
	m.closed = true
	m.mu.Unlock()
	if m.expired != nil {
		m.expired(m.Conn, m.end)
	}
	_ = m.Conn.Close() // whoever reads or writes notices
}

func (m *mortal) Close() error {
	m.mu.Lock()
	m.closed = true
	m.timer.Stop()
	m.mu.Unlock()
	return m.Conn.Close()
}
