package proxy_test

import (
	"bytes"
	"flag"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy"
)

var idleFlag = flag.Int("idle.connections", 1000, "of TestIdleConnections; 10000 needs a limit of 21000 open files")

// idle is a client that opens a connection with a stream of calls on it, and says nothing more. By hand, so that next to nothing of the memory is its own.
func idle(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, conn)
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/decree.v1.DecreeService/Connect"}, {":authority", address},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	err = framer.WriteSettings()
	if err == nil {
		err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	}
	if err == nil {
		_, err = io.Copy(conn, &out)
	}
	for err == nil {
		var f http2.Frame
		if f, err = framer.ReadFrame(); err == nil && f.Header().Type == http2.FrameHeaders {
			return conn // the stream is taken
		}
	}
	t.Fatal(err)
	return nil
}

// Ten thousand idle connections cost less than 400 MiB.
func TestIdleConnections(t *testing.T) {
	if testkit.Race {
		t.Skip("skipped under the race detector, which takes memory of its own")
	}
	c := startCluster(t)
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
	time.Sleep(100 * time.Millisecond)
	each := (used() - before) / int64(*idleFlag)
	t.Logf("%d idle connections, each with a stream: %d bytes each", *idleFlag, each)
	limit := int64(400<<20) / 10_000
	if *idleFlag < 9000 { // what is there once weighs more
		limit += limit / 4
	}
	if each > limit {
		t.Errorf("an idle connection costs %d bytes: at most %d", each, limit)
	}
	if reply, err := dial(t, s.Addr()).Shard(1).Submit(within(t), []byte("a")); sum(t, reply, err) != 1 {
		t.Error("the others are not served")
	}
}
