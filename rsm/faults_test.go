package rsm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// onNode runs a machine with a fault on one node only.
func onNode(id NodeID, m Machine) option {
	return func(cfg *Config) {
		if cfg.Node == id {
			cfg.Shards = slices.Clone(cfg.Shards)
			cfg.Shards[0].Machine = m
		}
	}
}

// followers makes sure that node id does not lead shard 1.
func followers(t *testing.T, c *Cluster, id NodeID) {
	t.Helper()
	eventually(t, "another node leads", func() bool {
		if leaderOf(t, c, 1).ID() != id {
			return true
		}
		_ = c.Node(id).Shard(1).TransferLeadership(within(t), id%3+1) // leadership may have gone meanwhile
		return false
	})
}

func stoppedWith(t *testing.T, s *Shard, code Code) *Error {
	t.Helper()
	eventually(t, "the replica stops", func() bool { return s.stopped.Load() != nil })
	err := s.stopped.Load()
	if err.Code != code || !errors.Is(err, ErrBroken) {
		t.Fatalf("the replica stopped with %v, want code %s", err, code)
	}
	return err
}

// A panic in Apply stops that replica with its reason, and nothing else [G10].
func TestApplyPanicStopsOneReplica(t *testing.T) {
	bad := counters{onApply: func(_ State, e Event) {
		if bytes.HasSuffix(e.Data, []byte("bomb")) {
			panic("boom")
		}
	}}
	c := startCluster(t, "", counters{}, patient10s, onNode(3, bad))
	followers(t, c, 3)
	client, other := c.Client(1), c.Client(2)
	if _, err := client.Submit(within(t), []byte("bomb")); err != nil {
		t.Fatal(err)
	}
	err := stoppedWith(t, c.Node(3).Shard(1), core.CodeApplyPanic)
	if !strings.Contains(err.Message, "boom") {
		t.Errorf("the reason does not say what happened: %v", err)
	}
	if _, err := c.Node(3).Shard(1).Read(within(t), Stale, nil); !errors.Is(err, ErrBroken) {
		t.Errorf("a stopped replica answered a read: %v", err)
	}
	for range 20 {
		if _, err := client.Submit(within(t), []byte("a")); err != nil {
			t.Fatalf("the shard does not go on: %v", err)
		}
		if _, err := other.Submit(within(t), []byte("a")); err != nil {
			t.Fatalf("another shard was taken down: %v", err)
		}
	}
	eventually(t, "the other shard goes on on the same node", func() bool {
		st, err := c.Node(3).Shard(2).Status()
		return err == nil && st.Err == nil && st.Applied > 20
	})
}

// A replica whose Apply does something else stops at that entry and names the key.
func TestDivergenceStopsReplica(t *testing.T) {
	wrong := counters{onApply: func(s State, e Event) {
		if bytes.HasSuffix(e.Data, []byte("odd")) {
			s.Set([]byte("odd"), []byte("12345678"))
		}
	}}
	c := startCluster(t, "", counters{}, patient10s, onNode(2, wrong))
	followers(t, c, 2)
	client := c.Client(1)
	for _, key := range []string{"a", "odd", "b"} {
		if _, err := client.Submit(within(t), []byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	err := stoppedWith(t, c.Node(2).Shard(1), core.CodeDivergence)
	if !strings.Contains(err.Message, `"odd"`) {
		t.Errorf("the key is not named: %v", err)
	}
	// One that forgets a write is found by the count.
	if !strings.Contains(err.Message, "event at 1/") {
		t.Errorf("the event is not named: %v", err)
	}
}

// A command on which the machine panics is rejected, and kills nobody.
func TestPoisonCommandIsRejected(t *testing.T) {
	bad := counters{onApply: func(_ State, e Event) {
		if bytes.HasSuffix(e.Data, []byte("poison")) {
			panic("cannot take this")
		}
	}}
	c := startCluster(t, "", bad, patient10s)
	client := c.Client(1)
	for range 3 {
		_, err := client.Submit(within(t), []byte("poison"))
		if !errors.Is(err, &Rejection{Code: core.CodeMachinePanic}) {
			t.Fatalf("got %v, want a rejection", err)
		}
		if got := sum2(client.Submit(within(t), []byte("a"))); got == 0 {
			t.Fatal("the shard does not go on")
		}
	}
	if answer, err := client.Read(within(t), Linearizable, []byte("poison")); sum(t, answer, err) != 0 {
		t.Error("the rejected command left something behind")
	}
	sameHashes(t, c, 1)
}

func sum2(reply []byte, err error) uint64 {
	if err != nil {
		return 0
	}
	return uint64(reply[7])
}

// A failed write to the log stops the node; nothing is retried, nobody is told success [G10].
func TestLogFailureStopsNode(t *testing.T) {
	stopped := make(chan error, 3)
	c := startCluster(t, "", counters{}, func(cfg *Config) { cfg.OnStop = func(err error) { stopped <- err } })
	n := leaderOf(t, c, 1)
	cause := errors.New("medium error")
	c.disks[n.ID()].log.Fail(cause)
	_, err := n.Shard(1).Submit(within(t), []byte("a"))
	if err == nil || errors.Is(err, ErrRejected) || errors.Is(err, ErrNotProposed) {
		t.Errorf("a command that may be on the other nodes ended with: %v", err)
	}
	select {
	case err := <-stopped:
		if !errors.Is(err, cause) || !errors.Is(err, ErrBroken) {
			t.Errorf("stopped with %v", err)
		}
	case <-within(t).Done():
		t.Fatal("the node goes on after a failed write")
	}
	if _, err := n.Shard(1).Submit(within(t), []byte("a")); err == nil {
		t.Error("a node that has stopped took a command")
	}
	if !errors.Is(n.Err(), cause) {
		t.Errorf("Err is %v", n.Err())
	}
	if _, err := c.Client(1).Submit(within(t), []byte("b")); err != nil {
		t.Errorf("the other two do not go on: %v", err)
	}
}

// Free space below the watermark: commands are refused, reads and what makes room go on, and it heals [G11].
func TestDiskLow(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 30)
	c := startCluster(t, t.TempDir(), counters{}, patient10s, func(cfg *Config) {
		cfg.DiskWatermark = 1 << 20
		cfg.freeBytes = func(string) (uint64, error) { return free.Load(), nil }
	})
	s := leaderOf(t, c, 1).Shard(1)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	free.Store(1000)
	eventually(t, "commands are refused", func() bool {
		_, err := s.Submit(within(t), []byte("a"))
		if err != nil && !(errors.Is(err, ErrNotProposed) && errors.Is(err, &Error{Code: core.CodeDiskLow})) {
			t.Fatalf("refused with %v", err)
		}
		return err != nil
	})
	if _, err := s.Read(within(t), Linearizable, []byte("a")); err != nil {
		t.Errorf("a read was refused: %v", err)
	}
	if _, err := s.Do(within(t), Request{Commands: [][]byte{[]byte("a")}, MakesRoom: true}); err != nil {
		t.Errorf("a command that makes room was refused: %v", err)
	}
	free.Store(1 << 30)
	eventually(t, "it heals", func() bool { _, err := s.Submit(within(t), []byte("a")); return err == nil })
}

// Garbage, strangers and damage are refused in words.
func TestRefusedData(t *testing.T) {
	base := Config{Cluster: "one", Node: 1, Peers: map[NodeID]string{1: "127.0.0.1:0"}, Shards: []ShardConfig{{ID: 1, Machine: counters{}}}}
	quick(&base)
	open := func(dir string, change func(*Config)) error {
		cfg := base
		cfg.Dir = dir
		if change != nil {
			change(&cfg)
		}
		n, err := Start(cfg)
		if err != nil {
			return err
		}
		ctx := within(t)
		if err := n.Shard(1).WaitReady(ctx); err != nil {
			t.Error(err)
		}
		if _, err := n.Shard(1).Submit(ctx, []byte("a")); err != nil {
			t.Errorf("a single node does not take a command: %v", err)
		}
		return n.Close()
	}
	dir := t.TempDir()
	if err := open(dir, nil); err != nil {
		t.Fatal(err)
	}
	if err := open(dir, nil); err != nil {
		t.Fatalf("the same node again: %v", err)
	}
	refused := func(name string, err error, words ...string) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: was not refused", name)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
	refused("another cluster", open(dir, func(c *Config) { c.Cluster = "two" }), `"one"`, `"two"`)
	refused("another node", open(dir, func(c *Config) { c.Node = 2; c.Peers = map[NodeID]string{1: "127.0.0.1:1", 2: "127.0.0.1:0"} }), "node 1", "node 2")

	file := filepath.Join(dir, "node.json")
	original, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(data string) {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"format": 99, "cluster": "one", "node": 1}`)
	refused("newer format", open(dir, nil), "99", "newer")
	write("garbage")
	refused("damaged identity", open(dir, nil), "damaged")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	refused("no identity", open(dir, nil), "node.json")
	write(string(original))
	if err := os.RemoveAll(filepath.Join(dir, "wal")); err != nil {
		t.Fatal(err)
	}
	refused("lost log", open(dir, nil), "lost its log")
}

func TestInvalidConfig(t *testing.T) {
	_, err := Start(Config{HeartbeatInterval: time.Second, ElectionTimeout: time.Second, Limits: Limits{PipelineDepth: -1}})
	if err == nil {
		t.Fatal("started")
	}
	for _, w := range []string{"Cluster", "Node is 0", "Dir", "Shards", "ElectionTimeout", "PipelineDepth"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not name %s: %v", w, err)
		}
	}
}

func TestLimits(t *testing.T) {
	c := startCluster(t, "", counters{}, patient10s, func(cfg *Config) {
		cfg.Limits = Limits{MaxCommandBytes: 1000, MaxKeyBytes: 100, MaxRequestCommands: 4}
	})
	s := leaderOf(t, c, 1).Shard(1)
	for _, test := range []struct {
		name string
		req  Request
		kind error
		code Code
	}{
		{"command", Request{Commands: [][]byte{make([]byte, 1001)}}, ErrNotProposed, core.CodeCommandTooLarge},
		{"commands", Request{Commands: make([][]byte, 5)}, ErrNotProposed, core.CodeTooManyCommands},
		{"none", Request{}, ErrNotProposed, core.CodeBadRequest},
		{"key", Request{Commands: [][]byte{make([]byte, 101)}}, ErrRejected, core.CodeKeyTooLarge},
		{"sequence", Request{Commands: [][]byte{nil}, Session: 1}, ErrNotProposed, core.CodeBadRequest},
	} {
		_, err := s.Do(within(t), test.req)
		if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), string(test.code)) {
			t.Errorf("%s: got %v, want %v with code %s", test.name, err, test.kind, test.code)
		}
	}
	// Asking again does not help: a client says so, and does not ask until its time is over.
	for code, commands := range map[Code][][]byte{CodeCommandTooLarge: {make([]byte, 1001)}, CodeTooManyCommands: make([][]byte, 5), CodeBadRequest: nil} {
		if _, err := c.Client(1).SubmitAll(within(t), commands...); !errors.Is(err, &Error{Kind: ErrNotProposed, Code: code}) {
			t.Errorf("a client is told %v, want %s", err, code)
		}
	}
}

// A node that lost its data is refused by those that knew it, and cannot vote.
func TestNodeWithoutItsDataIsRefused(t *testing.T) {
	dir := t.TempDir()
	c := startCluster(t, dir, counters{})
	client := c.Client(1)
	if _, err := client.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	followers(t, c, 3)
	c.Kill(3)
	if err := os.RemoveAll(filepath.Join(dir, "node3")); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(3); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peers refuse it in words", func() bool {
		st, err := c.Node(3).Status()
		return err == nil && strings.Contains(st.Peers[1].LastError, "lost its data")
	})
	// With it, the remaining two would be a majority of one that knows nothing.
	c.Kill(2)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := client.Submit(ctx, []byte("a")); err == nil {
		t.Error("a command was committed with the vote of a node that lost its data")
	}
}
