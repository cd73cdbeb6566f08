package proxy_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy"
)

var idleFlag = flag.Int("idle.connections", 1000, "of TestIdleConnections; 10000 needs a limit of 21000 open files")

// raw is a client by hand: it does what gRPC's would not do, and has next to no memory of its own.
type raw struct {
	net.Conn
	*http2.Framer
	dec *hpack.Decoder
	t   testing.TB
}

func dialRaw(t testing.TB, address string) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &raw{conn, http2.NewFramer(conn, conn), hpack.NewDecoder(4096, nil), t}
	if _, err = io.WriteString(conn, http2.ClientPreface); err == nil {
		err = r.WriteSettings()
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// begin opens a stream for a call.
func (r *raw) begin(stream uint32, method string, header ...string) {
	r.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	all := append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "test", "content-type", "application/grpc", "te", "trailers"}, header...)
	for i := 0; i < len(all); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: all[i], Value: all[i+1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		r.t.Fatal(err)
	}
}

// headers returns the headers, or the trailers, that come next, and of which stream they are.
func (r *raw) headers() (stream uint32, h map[string]string) {
	r.t.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.t.Fatal(err)
		}
		if f, is := f.(*http2.HeadersFrame); is {
			h = map[string]string{}
			fields, err := r.dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				r.t.Fatal(err)
			}
			for _, f := range fields {
				h[f.Name] = f.Value
			}
			return f.StreamID, h
		}
	}
}

// idle is a client that opens a connection with a stream of calls on it, and says nothing more.
func idle(t *testing.T, address string) net.Conn {
	t.Helper()
	r := dialRaw(t, address)
	r.begin(1, decreev1.DecreeService_Connect_FullMethodName)
	r.headers() // the stream is taken
	return r
}

// Ten thousand idle connections cost less than 400 MiB.
func TestIdleConnections(t *testing.T) {
	if testkit.Race {
		t.Skip("skipped under the race detector, which takes memory of its own")
	}
	c := startCalm(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	used := func() int64 {
		for range 4 { // each halves the stacks that are not used any more
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close() // it is done with
		}
	}()
	conns = append(conns, idle(t, s.Addr()))
	before := used()
	for len(conns) <= *idleFlag {
		conns = append(conns, idle(t, s.Addr()))
	}
	limit := int64(400<<20) / 10_000
	if *idleFlag < 9000 { // what is there once weighs more
		limit += limit / 4
	}
	each := int64(0)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) { // what opening them took is given back
		if each = (used() - before) / int64(*idleFlag); each <= limit || time.Now().After(end) {
			break
		}
	}
	t.Logf("%d idle connections, each with a stream: %d bytes each", *idleFlag, each)
	if each > limit {
		t.Errorf("an idle connection costs %d bytes: at most %d", each, limit)
	}
	if reply, err := dial(t, s.Addr()).Shard(1).Submit(within(t), []byte("a")); sum(t, reply, err) != 1 {
		t.Error("the others are not served")
	}
}

// A connection on which nobody calls is closed, and one with a stream stays.
func TestConnectionsWithoutCalls(t *testing.T) {
	defer proxy.SetMaxIdle(200 * time.Millisecond)()
	_, s := lonely(t)
	_, st := openStream(t, s.Addr())
	if _, err := st.Header(); err != nil {
		t.Fatal(err)
	}
	r := dialRaw(t, s.Addr())
	_ = r.SetDeadline(time.Now().Add(20 * time.Second))
	for {
		f, err := r.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("it stays open")
		} else if err != nil {
			break
		}
		if f, is := f.(*http2.PingFrame); is && !f.IsAck() {
			_ = r.WritePing(true, f.Data) // it may be closed by now
		}
	}
	if err := st.SendMsg(&codec.Frame{Data: submitFrame(1, 50)}); err != nil {
		t.Fatal(err)
	}
	if err := st.RecvMsg(&codec.Frame{}); err != nil {
		t.Errorf("a connection with a stream: %v", err)
	}
}
