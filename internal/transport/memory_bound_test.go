package transport

import (
	"runtime"
	"testing"
	"time"
)

func heapBytes() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// fill appends until nothing more is taken for a while, and returns the bytes taken.
func fill(t *testing.T, n *testNode, to uint64, most int) int {
	t.Helper()
	item := make([]byte, 1000)
	total, refused := 0, 0
	for refused < 1000 {
		if n.Append(to, len(item), func(b []byte) []byte { return append(b, item...) }) {
			total += len(item)
			refused = 0
		} else {
			refused++
			runtime.Gosched()
		}
		n.Flush()
		if total > most {
			t.Fatalf("%d bytes were taken, at most %d should be", total, most)
		}
	}
	return total
}

func TestMemoryWithPeerThatDoesNotRead(t *testing.T) {
	const limit = 16 << 20
	release := make(chan struct{})
	a, b := startPair(t, func(c *Config) {
		c.MaxQueueBytes = limit
		if c.Node == 2 {
			c.Receive = func(uint64, []byte) { <-release }
		}
	})
	await(t, a.connected, "connection")
	before := heapBytes()
	total := fill(t, a, 2, limit+connWindow+8*softFrameBytes)
	grown := heapBytes() - before
	t.Logf("%d MiB were taken, the heap of both nodes grew by %d MiB", total>>20, grown>>20)
	if grown > 2*limit+connWindow+8*softFrameBytes {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if got := await(t, a.unreachable, "report of dropped items"); got != 2 {
		t.Errorf("unreachable: %d", got)
	}
	if s := a.Stats()[2]; s.QueuedBytes > limit || s.DroppedItems == 0 {
		t.Errorf("stats: %+v", s)
	}
	// Neither side is held up by the other in closing.
	began := time.Now()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("Close took %v", took)
	}
	close(release)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestMemoryWithDeadPeer(t *testing.T) {
	const limit = 16 << 20
	l := listen(t) // takes connections (the kernel does) and never says a word
	n := startNode(t, 1, func(c *Config) {
		c.Peers, c.MaxQueueBytes, c.handshakeTimeout = map[uint64]string{2: l.Addr().String()}, limit, time.Hour
	})
	before := heapBytes()
	total := fill(t, n, 2, limit)
	if total < limit-2000 {
		t.Errorf("only %d bytes were taken", total)
	}
	if grown := heapBytes() - before; grown > limit*3/2 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	await(t, n.unreachable, "report of dropped items")
	began := time.Now()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("Close took %v", took)
	}
}

func TestUnreachableIsLimited(t *testing.T) {
	calls := make(chan time.Time, 1000)
	n := startNode(t, 1, func(c *Config) {
		c.Unreachable = func(p uint64) {
			if p == 7 {
				calls <- time.Now()
			}
		}
	})
	began := time.Now()
	for time.Since(began) < 4*notifyEvery || len(calls) < 2 && time.Since(began) < patience {
		if n.Append(7, 1, func(b []byte) []byte { return append(b, 1) }) {
			t.Fatal("an unknown peer was accepted")
		}
		runtime.Gosched()
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if k, took := len(calls), time.Since(began); k < 2 || k > int(took/notifyEvery)+2 {
		t.Errorf("%d calls in %v", k, took)
	}
	if s := n.Stats()[0]; s.DroppedItems == 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	l := listen(t)
	n := startNode(t, 1, func(c *Config) {
		c.Peers, c.handshakeTimeout = map[uint64]string{2: l.Addr().String()}, 50*time.Millisecond
	})
	n.send(t, 2, "lost")
	await(t, n.unreachable, "loss of what was queued")
	n.log.await(t, errHandshakeTimeout.Error())
	if s := n.Stats()[2]; s.DroppedItems != 1 || s.QueuedBytes != 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestItemLimits(t *testing.T) {
	a, b := startPair(t, func(c *Config) { c.MaxQueueBytes = 8 << 20 })
	a.expectUp(t, b)
	give := func(announced, size int) bool {
		ok := a.Append(2, announced, func(b []byte) []byte { return append(b, make([]byte, size)...) })
		a.Flush()
		return ok
	}
	eventually(t, func() bool { return a.Stats()[2].QueuedBytes == 0 })
	if !give(8<<20, 8<<20) {
		t.Error("the largest item was refused")
	}
	if r := await(t, b.frames, "the largest item"); len(r.frame) != 8<<20 {
		t.Errorf("%d bytes came", len(r.frame))
	}
	eventually(t, func() bool { return a.Stats()[2].QueuedBytes == 0 })
	if give(8<<20+1, 0) || give(1, 8<<20+1) {
		t.Error("an item that is too large was accepted")
	}
	a.log.await(t, "an item is too large to be sent")
	if !give(100, 0) || !give(0, 5) || !give(1<<20, 5) || !give(1, 100_000) {
		t.Error("an item of another size than announced was refused")
	}
	for got := 0; got < 100_010; {
		got += len(await(t, b.frames, "small items").frame)
	}
}
