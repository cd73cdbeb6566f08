package transport

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/testkit"
)

// expectStatus reads the end of a stream and returns its code.
func expectStatus(t testing.TB, s grpc.ClientStream, sentence string) codes.Code {
	t.Helper()
	err := s.RecvMsg(new(incoming))
	if !strings.Contains(status.Convert(err).Message(), sentence) {
		t.Fatalf("got %v, expected %q", err, sentence)
	}
	return status.Code(err)
}

func TestHandshakeRefused(t *testing.T) {
	b := startNode(t, 2, func(c *Config) { c.Peers = map[uint64]string{1: testkit.FreePort(t), 3: testkit.FreePort(t)} })
	for name, c := range map[string]struct {
		change   func(*hello)
		sentence string
	}{
		"cluster":  {func(h *hello) { h.cluster = "other" }, `wrong cluster: the sender belongs to cluster "other", this node to cluster "test"`},
		"receiver": {func(h *hello) { h.to = 3 }, `wrong node: the sender looks for node 3, this is node 2`},
		"self":     {func(h *hello) { h.from = 2 }, `wrong sender: it claims to be node 2, which is this node itself`},
		"unknown":  {func(h *hello) { h.from = 9 }, `unknown sender: node 9 is not a peer of node 2, whose peers are: 1 3`},
		"version":  {func(h *hello) { h.protocol = 2 }, `unsupported protocol: the sender speaks version 2, this node speaks versions 1 to 1`},
		"long":     {func(h *hello) { h.cluster = strings.Repeat("x", 1000) }, `x...", this node`},
	} {
		t.Run(name, func(t *testing.T) {
			h := goodHello()
			c.change(&h)
			s := rawStream(t, b.Addr(), h.metadata(), nil)
			if code := expectStatus(t, s, c.sentence); code != codes.FailedPrecondition {
				t.Errorf("code %v", code)
			}
			b.log.await(t, strings.ReplaceAll(c.sentence, `"`, `\"`))
		})
	}
	for name, change := range map[string]func(metadata.MD){
		"nothing":     func(md metadata.MD) { clear(md) },
		"no cluster":  func(md metadata.MD) { delete(md, keyCluster) },
		"two senders": func(md metadata.MD) { md.Append(keyFrom, "3") },
		"no number":   func(md metadata.MD) { md.Set(keyTo, "two") },
	} {
		t.Run(name, func(t *testing.T) {
			md := goodHello().metadata()
			change(md)
			if code := expectStatus(t, rawStream(t, b.Addr(), md, nil), "no Decree handshake: "); code != codes.InvalidArgument {
				t.Errorf("code %v", code)
			}
		})
	}
}

// TestRefusalOnBothSides has real nodes refuse each other, and go on once they may.
func TestRefusalOnBothSides(t *testing.T) {
	la, lb := listen(t), listen(t)
	peers := map[uint64]string{1: la.Addr().String(), 2: lb.Addr().String()}
	a := startNode(t, 1, func(c *Config) { c.Listener, c.Peers, c.Cluster = la, peers, "red" })
	b := startNode(t, 2, func(c *Config) { c.Listener, c.Peers, c.Cluster = lb, peers, "blue" })
	sentence := `wrong cluster: the sender belongs to cluster \"red\", this node to cluster \"blue\"`
	a.log.await(t, "a peer refused our stream", sentence)
	b.log.await(t, "refused a stream on the peer port", sentence)
	eventually(t, func() bool { return strings.HasPrefix(a.Stats()[2].LastError, "wrong cluster") })
	// It retries, but does not say so each time.
	eventually(t, func() bool { return a.Transport.log.Skipped(2) >= 2 })
	if n := a.log.count("a peer refused our stream"); n != 1 {
		t.Errorf("the refusal was logged %d times", n)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startNode(t, 2, func(c *Config) { c.Listen, c.Peers, c.Cluster = peers[2], peers, "red" })
	a.expectUp(t, b)
}

func TestBadFrames(t *testing.T) {
	good := sealed("payload")
	flipped := bytes.Clone(good)
	flipped[frameHeaderSize+2] ^= 1
	flippedLength := bytes.Clone(good)
	flippedLength[4] ^= 8
	newer := bytes.Clone(good)
	newer[3]++
	b := startNode(t, 2, func(c *Config) {
		c.Peers, c.MaxFrameBytes = map[uint64]string{1: testkit.FreePort(t)}, 1<<20
	})
	for name, c := range map[string]struct {
		frame    []byte
		sentence string
		code     codes.Code
	}{
		"bit flipped":    {flipped, "bad frame: checksum", codes.InvalidArgument},
		"length flipped": {flippedLength, "bad frame: the header announces 15 bytes, 7 came", codes.InvalidArgument},
		"truncated":      {good[:len(good)-1], "bad frame: the header announces 7 bytes, 6 came", codes.InvalidArgument},
		"header cut":     {good[:5], "bad frame: 5 bytes are less than the header", codes.InvalidArgument},
		"no payload":     {[]byte("DPF\x01\x00\x00\x00\x00\x00\x00\x00\x00"), "bad frame: 0 bytes", codes.InvalidArgument},
		"magic":          {[]byte("something else"), `bad frame: it begins with "som"`, codes.InvalidArgument},
		"version":        {newer, "unsupported frame version: 2, this node reads 1", codes.FailedPrecondition},
		"oversized":      {sealed(strings.Repeat("x", 1<<20+1)), "received message larger than max (1048589 vs. 1048588)", codes.ResourceExhausted},
		"empty message":  {nil, "bad frame: 0 bytes are less", codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s := rawStream(t, b.Addr(), goodHello().metadata(), nil)
			if err := sendRaw(s, good); err != nil {
				t.Fatal(err)
			}
			b.expect(t, 1, "payload")
			if err := sendRaw(s, c.frame); err != nil {
				t.Fatal(err)
			}
			if code := expectStatus(t, s, c.sentence); code != c.code {
				t.Errorf("code %v", code)
			}
			b.log.await(t, "ended a peer's stream")
		})
	}
	b.log.await(t, "a frame is larger than MaxFrameBytes of this node, 1048576")
	if len(b.frames) != 0 {
		t.Error("a bad frame was received")
	}
}

func TestOtherMethod(t *testing.T) {
	b := startNode(t, 2)
	conn, err := (&peer{t: b.Transport, addr: b.Addr()}).dial(&socket{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := conn.NewStream(t.Context(), &framesStream, "/some.Service/Call")
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, s, "this is a Decree peer port: it serves /decree.peer.v1.Peer/Frames, not /some.Service/Call")
}

// talk sends what to a port and returns the answer.
func talk(t testing.TB, addr, what string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %q: %v", answer, err)
	}
	return string(answer)
}

func TestGarbageOnThePort(t *testing.T) {
	short := func(c *Config) { c.handshakeTimeout = time.Second }
	a, b := startPair(t, short)
	a.expectUp(t, b)
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	noise[0] = 0
	for name, c := range map[string]struct{ send, found string }{
		"noise":        {string(noise), "bytes of another protocol"},
		"HTTP/1":       {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "an HTTP/1 request"},
		"half preface": {guard.Preface[:10], "10 bytes, then silence"},
		"silence":      {"", "0 bytes, then silence"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := talk(t, b.Addr(), c.send); got != plainAnswer {
				t.Errorf("answer %q", got)
			}
			b.log.await(t, "refused a connection to the peer port", c.found, "remote=127.0.0.1:")
		})
	}
	t.Run("TLS", func(t *testing.T) {
		if c, err := tls.Dial("tcp", b.Addr(), &tls.Config{InsecureSkipVerify: true}); err == nil {
			c.Close()
			t.Error("TLS was accepted")
		}
		b.log.await(t, "TLS, but this node's peers use none")
	})
	a.send(t, 2, "still here")
	b.expect(t, 1, "still here")
}

func TestThousandStrangers(t *testing.T) {
	a, b := startPair(t)
	a.expectUp(t, b)
	b.expectUp(t, a) // or it would be this connection that is found below
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 1000 {
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if i%2 == 0 {
			io.WriteString(c, guard.Preface[:12])
		}
	}
	b.log.await(t, "closed a connection to the peer port to make room")
	if unshaken := b.guard.Stats().Unshaken; unshaken > guard.DefaultMaxUnshaken {
		t.Errorf("%d connections are unfinished", unshaken)
	}
	// A peer gets through in spite of them, and lines in the log are few.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = startNode(t, 1, func(c *Config) { c.Listen, c.Peers = a.Addr(), map[uint64]string{2: b.Addr()} })
	a.expectUp(t, b)
	b.expectUp(t, a)
	if n := b.log.count("to make room"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

func TestTooManyConnections(t *testing.T) {
	a, b := startPair(t, func(c *Config) { c.maxConns = 8 })
	a.expectUp(t, b)
	b.expectUp(t, a)
	for b.log.count("there are too many") == 0 {
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, guard.Preface); err != nil {
			break // it was closed at once
		}
	}
	b.log.await(t, "there are too many")
	a.send(t, 2, "still here")
	b.expect(t, 1, "still here")
}
