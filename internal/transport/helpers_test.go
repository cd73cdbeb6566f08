package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/decree-raft/decree/internal/testkit"
)

// patience bounds every wait: far more than anything takes, unless it hangs.
const patience = 20 * time.Second

func TestMain(m *testing.M) { testkit.MainWithoutLeaks(m) }

// logbook is a slog handler that tests can wait on.
type logbook struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	text    slog.Handler
	changed chan struct{}
}

func newLogbook() *logbook {
	l := &logbook{changed: make(chan struct{})}
	l.text = slog.NewTextHandler(&l.buf, nil)
	return l
}

func (l *logbook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logbook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logbook) WithGroup(string) slog.Handler            { return l }
func (l *logbook) Handle(ctx context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Handle(ctx, r)
}

// await returns once the log contains every part.
func (l *logbook) await(t testing.TB, parts ...string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		text, changed := l.buf.String(), l.changed
		l.mu.Unlock()
		missing := ""
		for _, p := range parts {
			if !strings.Contains(text, p) {
				missing = p
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the log has no %q:\n%s", missing, text)
		}
	}
}

func (l *logbook) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}

// testNode is a Transport with channels for what it reports.
type testNode struct {
	*Transport
	log         *logbook
	frames      chan received
	connected   chan uint64
	unreachable chan uint64
}

type received struct {
	from  uint64
	frame []byte
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// config fills in what every test needs.
func (n *testNode) config(id uint64, change ...func(*Config)) Config {
	n.log = newLogbook()
	n.frames = make(chan received, 1024)
	n.connected = make(chan uint64, 1024)
	n.unreachable = make(chan uint64, 1024)
	cfg := Config{
		Cluster: "test", Node: id, Listen: "127.0.0.1:0", Logger: slog.New(n.log),
		Receive:     func(from uint64, frame []byte) { n.frames <- received{from, frame} },
		Connected:   func(p uint64) { n.connected <- p },
		Unreachable: func(p uint64) { n.unreachable <- p },
	}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

func startNode(t testing.TB, id uint64, change ...func(*Config)) *testNode {
	t.Helper()
	n := &testNode{}
	tr, err := Start(n.config(id, change...))
	if err != nil {
		t.Fatal(err)
	}
	n.Transport = tr
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// startPair starts nodes 1 and 2 that know each other.
func startPair(t testing.TB, change ...func(*Config)) (a, b *testNode) {
	t.Helper()
	la, lb := listen(t), listen(t)
	peers := map[uint64]string{1: la.Addr().String(), 2: lb.Addr().String()}
	withPeers := func(l net.Listener) func(*Config) {
		return func(c *Config) { c.Listener, c.Peers = l, peers }
	}
	a = startNode(t, 1, append([]func(*Config){withPeers(la)}, change...)...)
	b = startNode(t, 2, append([]func(*Config){withPeers(lb)}, change...)...)
	return a, b
}

func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("timeout: %s", what)
		panic("unreachable")
	}
}

func (n *testNode) send(t testing.TB, to uint64, item string) {
	t.Helper()
	if !n.Append(to, len(item), func(b []byte) []byte { return append(b, item...) }) {
		t.Fatalf("%q was refused", item)
	}
	n.Flush()
}

// expect waits for a frame and compares it.
func (n *testNode) expect(t testing.TB, from uint64, frame string) {
	t.Helper()
	r := await(t, n.frames, "frame "+frame)
	if r.from != from || string(r.frame) != frame {
		t.Fatalf("got %q from %d, expected %q from %d", r.frame, r.from, frame, from)
	}
}

// expectUp waits until n has a stream to peer that carries an item.
func (n *testNode) expectUp(t testing.TB, peer *testNode) {
	t.Helper()
	if got := await(t, n.connected, "connection"); got != peer.cfg.Node {
		t.Fatalf("connected to %d", got)
	}
	n.send(t, peer.cfg.Node, "hello")
	peer.expect(t, n.cfg.Node, "hello")
}

// rawConn is a connection without the Transport's care.
func rawConn(t testing.TB, addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, append(clientOptions(), grpc.WithTransportCredentials(creds))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// rawStream opens a stream as some sender.
func rawStream(t testing.TB, addr string, md metadata.MD, creds credentials.TransportCredentials) grpc.ClientStream {
	t.Helper()
	s, err := rawConn(t, addr, creds).NewStream(metadata.NewOutgoingContext(patient(t), md), &framesStream, framesMethod)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// patient ends when the test does, and earlier if it hangs.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func goodHello() hello {
	return hello{protocol: protocolMax, cluster: "test", from: 1, to: 2, incarnation: 7}
}

func sendRaw(s grpc.ClientStream, frame []byte) error {
	frame = bytes.Clone(frame)
	return s.SendMsg(&outgoing{buf: &frame, pool: new(bufferPool)})
}

func sealed(payload string) []byte {
	f := append(make([]byte, frameHeaderSize), payload...)
	sealFrame(f)
	return f
}

// item is a length, a producer, a number, and bytes that depend on both.
func encodeItem(b []byte, producer, seq uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = binary.LittleEndian.AppendUint32(b, producer)
	b = binary.LittleEndian.AppendUint32(b, seq)
	for i := range n {
		b = append(b, byte(int(seq)+i+int(producer)))
	}
	return b
}

// decodeItems calls f for each item of a frame.
func decodeItems(frame []byte, f func(producer, seq uint32)) error {
	for len(frame) > 0 {
		if len(frame) < 12 {
			return fmt.Errorf("%d stray bytes", len(frame))
		}
		n := int(binary.LittleEndian.Uint32(frame))
		producer, seq := binary.LittleEndian.Uint32(frame[4:]), binary.LittleEndian.Uint32(frame[8:])
		frame = frame[12:]
		if n > len(frame) {
			return fmt.Errorf("item of %d bytes in the last %d", n, len(frame))
		}
		for i, c := range frame[:n] {
			if c != byte(int(seq)+i+int(producer)) {
				return fmt.Errorf("byte %d of item %d of producer %d is wrong", i, seq, producer)
			}
		}
		f(producer, seq)
		frame = frame[n:]
	}
	return nil
}
