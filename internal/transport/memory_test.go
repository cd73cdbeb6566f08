package transport

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

type memoryTestNode struct {
	testNode
	*MemoryNode
}

func startMemory(t testing.TB, net *MemoryNetwork, id uint64, change ...func(*Config)) *memoryTestNode {
	t.Helper()
	n := &memoryTestNode{}
	cfg := n.config(id, append([]func(*Config){func(c *Config) {
		c.Peers = map[uint64]string{1: "", 2: "", 3: ""}
		delete(c.Peers, id)
		for p := range c.Peers {
			c.Peers[p] = "-"
		}
	}}, change...)...)
	m, err := net.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.MemoryNode = m
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *memoryTestNode) put(to uint64, item string) bool {
	ok := n.MemoryNode.Append(to, len(item), func(b []byte) []byte { return append(b, item...) })
	n.MemoryNode.Flush()
	return ok
}

func TestMemoryNetwork(t *testing.T) {
	net := NewMemoryNetwork()
	a, b := startMemory(t, net, 1), startMemory(t, net, 2)
	if !a.put(2, "to") || !b.put(1, "fro") {
		t.Fatal("refused")
	}
	b.expect(t, 1, "to")
	a.expect(t, 2, "fro")
	await(t, a.connected, "Connected")

	net.Cut(1, 2)
	if a.put(2, "lost") {
		t.Error("an item for a link that is cut was accepted")
	}
	await(t, a.unreachable, "the cut link")
	if !b.put(1, "other way") {
		t.Error("the other direction is cut too")
	}
	a.expect(t, 2, "other way")
	net.Heal(1, 2)
	a.put(2, "healed")
	b.expect(t, 1, "healed")
	net.Cut(1, 2)
	net.HealAll()
	a.put(2, "healed again")
	b.expect(t, 1, "healed again")

	// Nobody there yet, and nobody there any more.
	a.put(3, "early")
	if got := await(t, a.unreachable, "a node that is not there"); got != 3 {
		t.Errorf("unreachable: %d", got)
	}
	if err := b.MemoryNode.Close(); err != nil {
		t.Fatal(err)
	}
	a.put(2, "late")
	if got := await(t, a.unreachable, "a node that has gone"); got != 2 {
		t.Errorf("unreachable: %d", got)
	}
	b = startMemory(t, net, 2)
	a.put(2, "again")
	b.expect(t, 1, "again")
	if s := a.MemoryNode.Stats()[2]; s.SentItems != 4 || s.DroppedItems != 2 || !s.Connected {
		t.Errorf("stats: %+v", s)
	}

	// A peer that is not one any more.
	a.MemoryNode.UpdatePeers(map[uint64]string{3: "-"})
	if a.put(2, "x") {
		t.Error("a former peer was accepted")
	}
	b.put(1, "x")
	await(t, b.unreachable, "a node that does not know us")
	if _, err := net.Start(new(testNode).config(1)); !errors.Is(err, ErrConfig) {
		t.Errorf("an id in use: %v", err)
	}
	other := startMemory(t, net, 3, func(c *Config) { c.Cluster = "other" })
	if other.put(1, "x"); await(t, other.unreachable, "a node of another cluster") != 1 {
		t.Error("the wrong node")
	}
	if got, want := a.MemoryNode.Addr(), "memory:1"; got != want {
		t.Errorf("address %q", got)
	}
}

// As TestGap, in memory, where each item that is refused leaves a gap, and each frame that finds nobody.
//
// Mutations with which it was seen to fail: a link begins without a gap; every frame has one; a refused item leaves none; a frame that finds nobody leaves none.
func TestMemoryGap(t *testing.T) {
	net, heard := NewMemoryNetwork(), make(chan string, 16)
	a := startMemory(t, net, 1)
	b := func() *memoryTestNode {
		return startMemory(t, net, 2, func(c *Config) {
			c.Receive = func(_ uint64, frame []byte) { heard <- string(frame) }
			c.Gap = func(from uint64) { heard <- fmt.Sprint("gap of ", from) }
		})
	}
	first := b()
	say := func(frame string, want ...string) {
		t.Helper()
		if !a.put(2, frame) {
			t.Fatal("refused")
		}
		for _, w := range want {
			if got := await(t, heard, w); got != w {
				t.Fatalf("%q instead of %q", got, w)
			}
		}
	}
	say("first", "gap of 1", "first")
	say("second", "second")
	net.Cut(1, 2)
	if a.put(2, "lost") {
		t.Fatal("an item for a link that is cut was accepted")
	}
	net.Heal(1, 2)
	say("third", "gap of 1", "third")
	if err := first.MemoryNode.Close(); err != nil {
		t.Fatal(err)
	}
	for len(a.unreachable) > 0 {
		<-a.unreachable
	}
	say("finds nobody")
	await(t, a.unreachable, "a node that has gone")
	b()
	say("fourth", "gap of 1", "fourth")
	say("fifth", "fifth")
}

func TestMemoryOrder(t *testing.T) {
	const producers, each = 4, 12500
	o := newOrder(producers * each)
	net := NewMemoryNetwork()
	a := startMemory(t, net, 1)
	startMemory(t, net, 2, func(c *Config) { c.Receive = o.receive })
	var wg sync.WaitGroup
	for p := range uint32(producers) {
		wg.Go(func() {
			for seq := range uint32(each) {
				if !a.MemoryNode.Append(2, 100, func(b []byte) []byte { return encodeItem(b, p, seq, int(seq%100)) }) {
					t.Error("refused")
				}
				a.MemoryNode.Flush()
			}
		})
	}
	wg.Wait()
	if err := await(t, o.done, "all items"); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryBound(t *testing.T) {
	net, release := NewMemoryNetwork(), make(chan struct{})
	a := startMemory(t, net, 1, func(c *Config) { c.MaxQueueBytes = 1000 })
	startMemory(t, net, 2, func(c *Config) { c.Receive = func(uint64, []byte) { <-release } })
	total := 0
	for a.put(2, "0123456789") {
		if total += 10; total > 1000 {
			t.Fatal("no bound")
		}
	}
	await(t, a.unreachable, "report of dropped items")
	close(release)
}
