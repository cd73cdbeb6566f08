package guard

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/internal/testkit"
)

// patience bounds every wait: far more than anything takes, unless it hangs.
const patience = 20 * time.Second

func TestMain(m *testing.M) { testkit.MainWithoutLeaks(m) }

// lines is what was logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

// served is a guard whose connections are taken, and kept open.
type served struct {
	*Guard
	log   lines
	taken chan net.Conn
}

func serve(t *testing.T, cfg Config) *served {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{taken: make(chan net.Conn, 100)}
	cfg.Port, cfg.Clients, cfg.Answer = "the test port", "its clients", "this is a test port\n"
	cfg.Log = limitlog.New(slog.New(slog.NewTextHandler(&s.log, nil)))
	s.Guard = New(l, cfg)
	var taker sync.WaitGroup
	var mine []net.Conn
	taker.Go(func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			mine = append(mine, c)
			s.taken <- c
		}
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		taker.Wait()
		for _, c := range mine {
			c.Close()
		}
		if st := s.Stats(); st != (Stats{}) || len(s.hosts) != 0 {
			t.Errorf("after the end there are %+v, %v", st, s.hosts)
		}
	})
	return s
}

func (s *served) dial(t *testing.T, say string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, say); err != nil && say != "" {
		t.Log(err) // it may have been refused already
	}
	return c
}

func (s *served) take(t *testing.T) net.Conn {
	t.Helper()
	select {
	case c := <-s.taken:
		return c
	case <-time.After(patience):
		t.Fatal("no connection was handed over")
		return nil
	}
}

// closed waits until the other side has closed.
func closed(t *testing.T, c net.Conn) (said string) {
	t.Helper()
	b, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection stays open")
	}
	return string(b)
}

// What begins as it should is handed over with all that it said; the rest is told what this is.
func TestBeginnings(t *testing.T) {
	for name, c := range map[string]struct {
		cfg   Config
		say   string
		found string // empty: it is let through
	}{
		"gRPC":                   {Config{}, Preface + "and on", ""},
		"TLS":                    {Config{TLS: true}, TLSPreface + "and on", ""},
		"HTTP/1":                 {Config{HTTP1: true}, "GET / HTTP/1.1\r\n\r\n", ""},
		"short HTTP/1":           {Config{HTTP1: true}, "GET /", ""},
		"HTTP/2 beside HTTP/1":   {Config{HTTP1: true}, Preface, ""},
		"HTTP/1 to gRPC":         {Config{}, "GET / HTTP/1.1\r\n\r\n", "an HTTP/1 request"},
		"TLS to plain":           {Config{}, TLSPreface + "\x01\x02\x00", "TLS, but its clients use none"},
		"TLS to HTTP/1":          {Config{HTTP1: true}, TLSPreface + "\x01\x02\x00", "TLS, but its clients use none"},
		"plain to TLS":           {Config{TLS: true}, Preface, "gRPC without TLS, but its clients use TLS"},
		"HTTP/1 in plain to TLS": {Config{TLS: true}, "POST / HTTP/1.1\r\n\r\n", "an HTTP/1 request"},
		"noise":                  {Config{HTTP1: true}, "\x00\x01\x02 and so on", "bytes of another protocol"},
		"almost":                 {Config{}, Preface[:20] + "xxxx", "bytes of another protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, c.cfg)
			client := s.dial(t, c.say)
			if c.found != "" {
				if got := closed(t, client); got != "this is a test port\n" {
					t.Errorf("it was told %q", got)
				}
				eventually(t, "a line", func() bool { return s.log.count(c.found) == 1 })
				return
			}
			got := make([]byte, len(c.say))
			conn := s.take(t)
			conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != c.say {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// Who says nothing, half a greeting, or a byte now and then, is gone after Timeout; bytes do not buy time.
func TestSlowLoris(t *testing.T) {
	s := serve(t, Config{Timeout: time.Second})
	silent, half, drip := s.dial(t, ""), s.dial(t, Preface[:10]), s.dial(t, "")
	var dripping sync.WaitGroup
	begin := time.Now()
	dripping.Go(func() {
		for i := range Preface {
			if _, err := io.WriteString(drip, Preface[i:i+1]); err != nil {
				return
			}
			time.Sleep(300 * time.Millisecond) // the attack; all of it takes 7.2 s
		}
		t.Error("all of the greeting got through")
	})
	for _, c := range []net.Conn{silent, half, drip} {
		closed(t, c)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("it took %v", took)
	}
	dripping.Wait()
	if len(s.taken) != 0 {
		t.Error("one got through")
	}
	eventually(t, "a line", func() bool {
		return s.log.count(`"0 bytes, then silence`) >= 1 && s.log.count(`"10 bytes, then silence`) >= 1
	})
	eventually(t, "room", func() bool { return s.Stats() == Stats{} })
}

// A flood of connections that say nothing keeps out nobody who speaks, and is told in few lines.
func TestFloodOfSilence(t *testing.T) {
	s := serve(t, Config{MaxUnshaken: 16, MaxConns: 18, Timeout: time.Hour})
	first := s.dial(t, Preface)
	Shaken(s.take(t))
	for range 500 {
		s.dial(t, "")
		if st := s.Stats(); st.Unshaken > 16 || st.Open > 17 {
			t.Fatalf("%+v", st)
		}
	}
	eventually(t, "a line", func() bool { return s.log.count("to make room") == 1 })
	s.dial(t, Preface)
	s.take(t)
	// The one that had finished its handshake is still there.
	first.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that was through: %v", err)
	}
	if n := s.log.count("\n"); n > 3 {
		t.Errorf("%d lines", n)
	}
}

// Connections are bounded in all, and of one host, and the room is given back.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		line string
	}{
		"in all":   {Config{MaxConns: 3}, "there are too many\""},
		"per host": {Config{MaxPerHost: 3}, "there are too many from this host"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, c.cfg)
			var inside []net.Conn
			for range 3 {
				s.dial(t, Preface)
				inside = append(inside, s.take(t))
			}
			for range 5 {
				closed(t, s.dial(t, Preface))
			}
			eventually(t, "a line", func() bool { return s.log.count(c.line) == 1 })
			if st := s.Stats(); st.Open != 3 {
				t.Errorf("%+v", st)
			}
			inside[0].Close()
			inside[0].Close() // counts once
			s.dial(t, Preface)
			s.take(t)
			closed(t, s.dial(t, Preface))
		})
	}
}

// Many hosts share a port: the bound of one is not another's.
func TestHostsAreApart(t *testing.T) {
	s := serve(t, Config{MaxPerHost: 1})
	s.dial(t, Preface)
	s.take(t)
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c, err := other.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Skipf("127.0.0.2 is no address of this machine: %v", err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, Preface); err != nil {
		t.Fatal(err)
	}
	s.take(t)
}

// An http.Server behind a guard: idle connections are displaced only before their first request.
func TestHTTPServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := New(l, Config{Port: "p", Clients: "c", Answer: "a\n", HTTP1: true, MaxUnshaken: 4})
	server := &http.Server{ConnState: ConnState, ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(g) }) // ends with Close
	client := &http.Client{Transport: &http.Transport{}}
	get := func() {
		t.Helper()
		r, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
	}
	get()
	for range 20 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	get()
	client.CloseIdleConnections()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	serving.Wait()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

// Little is read from a connection before it is known who calls, and as much as there is from then on. Whoever waits meanwhile learns that it is closed.
func TestStrangers(t *testing.T) {
	s := serve(t, Config{Strangers: true})
	const all = 1 << 20
	began := time.Now()
	out := s.dial(t, Preface)
	go func() { _, _ = out.Write(make([]byte, all)) }()
	c := s.take(t)
	var got atomic.Int64
	rest := make(chan error, 1)
	go func() {
		n, err := int64(0), error(nil)
		for buf := make([]byte, 4<<10); err == nil && n < all; {
			var m int
			m, err = c.Read(buf)
			n = got.Add(int64(m))
		}
		rest <- err
	}()
	eventually(t, "reading what a stranger may send", func() bool { return got.Load() >= strangerBytes })
	for range 100 {
		n, since := got.Load(), time.Since(began)
		if most := strangerBytes + int64(since.Seconds()*strangerRate) + 4<<10 + int64(len(Preface)); n > most {
			t.Fatalf("after %v a stranger has sent %d bytes: at most %d", since, n, most)
		}
		time.Sleep(time.Millisecond)
	}
	s.Known(c.RemoteAddr())
	if err := <-rest; err != nil {
		t.Error(err)
	}
	s.Known(c.RemoteAddr()) // once more does nothing

	const more = 4 * strangerBytes
	s.dial(t, Preface+strings.Repeat("a", more))
	c = s.take(t)
	buf := make([]byte, more)
	for n := 0; n <= more/2; { // with that, nothing more is due for eight seconds
		m, err := c.Read(buf)
		if n += m; err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		_, err := c.Read(buf)
		rest <- err
	}()
	time.Sleep(time.Millisecond) // it mostly waits by then
	c.Close()
	select {
	case err := <-rest:
		if err == nil {
			t.Error("a closed connection is read from")
		}
	case <-time.After(5 * time.Second):
		t.Error("who reads from a stranger does not learn that the connection is closed")
	}
}

// Where there are too many connections, the oldest of a stranger makes room, and none of somebody known.
func TestStrangersMakeRoom(t *testing.T) {
	for name, cfg := range map[string]Config{"in all": {MaxConns: 3}, "of one host": {MaxPerHost: 3}} {
		cfg.Strangers = true
		s := serve(t, cfg)
		enter := func() (net.Conn, net.Conn) {
			out := s.dial(t, Preface)
			in := s.take(t)
			Shaken(in) // those that have yet to finish the handshake are displaced in any case
			return out, in
		}
		_, known := enter()
		s.Known(known.RemoteAddr())
		oldest, _ := enter()
		_, other := enter()
		_, last := enter()
		closed(t, oldest)
		if st := s.Stats(); st.Open != 3 {
			t.Errorf("%s: %+v", name, st)
		}
		s.Known(other.RemoteAddr())
		s.Known(last.RemoteAddr())
		closed(t, s.dial(t, Preface)) // there is none any more
		if st := s.Stats(); st.Open != 3 {
			t.Errorf("%s: %+v", name, st)
		}
		if s.log.count("it has not shown who it is") == 0 {
			t.Errorf("%s: the log does not say so", name)
		}
	}
}

// A network of IPv6 is one host, and so is an address of IPv4, however it is written.
func TestHostOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1", "[::1]:80": "::1", "[fe80::1%eth0]:80": "fe80::1%eth0",
		"[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::/64", "[2001:db8:1:2::1]:80": "2001:db8:1:2::/64", "pipe": "pipe", "name:80": "name",
	} {
		if got := HostOf(addr(address)); got != want {
			t.Errorf("%s: %s, not %s", address, got, want)
		}
	}
}

type addr string

func (a addr) Network() string { return "test" }
func (a addr) String() string  { return string(a) }
