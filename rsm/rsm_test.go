package rsm

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/testkit"
)

// counters is the machine of these tests: a command names a key and adds one to it, the reply is the sum.
// "fail ..." is rejected, as is anything while the key "closed" is above 0.
type counters struct {
	onApply func(s State, e Event) // faults
}

func number(v View, key []byte) uint64 {
	if data, ok := v.Get(key); ok {
		return binary.BigEndian.Uint64(data)
	}
	return 0
}

func (counters) Decide(v View, c Command) ([][]byte, []byte, error) {
	if len(c.Data) >= 4 && string(c.Data[:4]) == "fail" {
		return nil, nil, Reject("failed", "as told")
	}
	if number(v, []byte("closed")) > 0 {
		return nil, nil, Reject("closed", "the counters are closed")
	}
	e := append(binary.BigEndian.AppendUint64(nil, number(v, c.Data)+1), c.Data...)
	return [][]byte{e}, e[:8:8], nil
}

func (m counters) Apply(s State, e Event) {
	s.Set(e.Data[8:], e.Data[:8])
	if m.onApply != nil {
		m.onApply(s, e)
	}
}

func (counters) Query(v View, q []byte) ([]byte, error) {
	return binary.BigEndian.AppendUint64(nil, number(v, q)), nil
}

func sum(t testing.TB, reply []byte, err error) uint64 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint64(reply)
}

// hangs is after how long something hangs, on any machine.
const hangs = time.Minute

// within bounds every wait of these tests.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hangs)
	t.Cleanup(cancel)
	return ctx
}

func testLogger(t testing.TB) *slog.Logger {
	if os.Getenv("DECREE_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("test", t.Name())
}

// quick are timeouts for tests that wait for elections. Under the race detector a leader needs more time to be heard.
func quick(cfg *Config) {
	cfg.HeartbeatInterval = 20 * time.Millisecond
	cfg.ElectionTimeout = 200 * time.Millisecond
	if testkit.Race {
		cfg.ElectionTimeout *= 3
	}
}

type option func(*Config)

// patient10s keeps leaders in office where a test floods them on a busy machine.
func patient10s(cfg *Config) {
	cfg.HeartbeatInterval, cfg.ElectionTimeout = 100*time.Millisecond, 10*time.Second
}

func startCluster(t testing.TB, dir string, machine Machine, options ...option) *Cluster {
	t.Helper()
	c, err := StartCluster(ClusterConfig{
		Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: machine}, {ID: 2, Machine: machine}},
		Configure: func(cfg *Config) {
			quick(cfg)
			cfg.Logger = testLogger(t)
			cfg.DiskWatermark = -1
			for _, o := range options {
				o(cfg)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Logf("close: %v", err)
		}
	})
	return c
}

func leaderOf(t testing.TB, c *Cluster, id ShardID) *Node {
	t.Helper()
	n, err := c.Leader(within(t), id)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually waits for a condition that must come true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(hangs); time.Now().Before(deadline); {
		if ok() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("never came true: %s", what)
}

// sameHashes waits until all running replicas have applied the same, and fails if their hashes differ.
func sameHashes(t testing.TB, c *Cluster, id ShardID) {
	t.Helper()
	eventually(t, fmt.Sprintf("all replicas of shard %d have applied the same", id), func() bool {
		var at Index
		var hash uint64
		for i, n := range c.Nodes() {
			st, err := n.Shard(id).Status()
			if err != nil {
				t.Fatal(err)
			}
			if st.Err != nil {
				t.Fatalf("node %d: %v", n.ID(), st.Err)
			}
			if i == 0 {
				at, hash = st.Applied, st.Hash
			}
			if st.Applied != at {
				return false
			}
			if st.Hash != hash {
				t.Fatalf("node %d has hash %x at index %d, node %d has %x", n.ID(), st.Hash, at, c.Nodes()[0].ID(), hash)
			}
		}
		return true
	})
}

// flushed waits until a node has flushed something of each of these shards: without that, a backup has no snapshot of them.
func flushed(t testing.TB, n *Node, ids ...ShardID) {
	t.Helper()
	for _, id := range ids {
		eventually(t, fmt.Sprintf("node %d has flushed something of shard %d", n.ID(), id), func() bool {
			st, err := n.Shard(id).Status()
			return err == nil && st.Flushed > 0
		})
	}
}

// A load has callers increment counters of their own until it is stopped, and keeps what was acknowledged.
type load struct {
	acked  []atomic.Uint64
	errors atomic.Uint64
	stop   chan struct{}
	end    func() // closes stop
	done   chan struct{}
	live   atomic.Int64
}

func startLoad(t testing.TB, c *Cluster, id ShardID, callers int) *load {
	l := &load{acked: make([]atomic.Uint64, callers), stop: make(chan struct{}), done: make(chan struct{})}
	l.live.Store(int64(callers))
	l.end = sync.OnceFunc(func() { close(l.stop) })
	t.Cleanup(func() { l.finish(t) }) // a test that ends early shall say why, and not what callers say of a cluster that is closed
	client := c.Client(id)
	for i := range callers {
		go func() {
			defer func() {
				if l.live.Add(-1) == 0 {
					close(l.done)
				}
			}()
			key := fmt.Appendf(nil, "caller-%d", i)
			for n := uint64(1); ; n++ {
				select {
				case <-l.stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), hangs)
				reply, err := client.Submit(ctx, key)
				cancel()
				if err != nil {
					l.errors.Add(1)
					t.Errorf("caller %d: %v", i, err)
					return
				}
				if got := binary.BigEndian.Uint64(reply); got != n {
					t.Errorf("caller %d: command %d was executed as number %d", i, n, got)
					return
				}
				l.acked[i].Store(n)
			}
		}()
	}
	return l
}

func (l *load) total() (n uint64) {
	for i := range l.acked {
		n += l.acked[i].Load()
	}
	return n
}

func (l *load) finish(t testing.TB) {
	t.Helper()
	l.end()
	select {
	case <-l.done:
	case <-time.After(2 * hangs):
		t.Fatal("callers hang")
	}
}

// check reads every counter: exactly what was acknowledged, no more, no less.
func (l *load) check(t testing.TB, c *Cluster, id ShardID) {
	t.Helper()
	client := c.Client(id)
	for i := range l.acked {
		answer, err := client.Read(within(t), Linearizable, fmt.Appendf(nil, "caller-%d", i))
		if got, want := sum(t, answer, err), l.acked[i].Load(); got != want {
			t.Errorf("caller %d: %d were acknowledged, %d are there", i, want, got)
		}
	}
}
