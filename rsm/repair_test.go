package rsm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/decree-raft/decree/internal/core"
)

// damageTables flips a byte of every large table of a node that is stopped.
func damageTables(t *testing.T, dir string) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(dir, "state", "pebble", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	damaged := 0
	for _, name := range tables {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) < 16<<10 {
			continue // where the node looks when it starts, as it does at each table's first block: it would be refused then
		}
		damaged++
		b[len(b)/2] ^= 0x40
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if damaged == 0 {
		t.Fatal("no table is large enough")
	}
}

// A replica whose tables are damaged says so, serves nothing of it, and is given the state of a peer; it keeps what it has promised.
func TestRepairOfDamage(t *testing.T) {
	dir := t.TempDir()
	c := startCluster(t, dir, counters{}, small, func(cfg *Config) { cfg.noCompactions, cfg.KeepDamage = true, cfg.Node == 2 })
	fill(t, c, 1, 0, 3000)
	sameEverywhere(t, c, 1, 1, 2, 3)
	read := func(s *Shard) (stopped bool) {
		for i := range 3000 {
			res, err := s.ReadAt(within(t), Stale, 0, fmtKey(i))
			switch {
			case errors.Is(err, ErrBroken):
				t.Logf("key %d: %v", i, err)
				return true
			case err != nil:
				t.Fatal(err)
			case sum(t, res.Answer, nil) != 1:
				t.Fatalf("key %d is %d", i, sum(t, res.Answer, nil))
			}
		}
		return false
	}
	for _, id := range []NodeID{1, 2} {
		c.Kill(id)
		damageTables(t, filepath.Join(dir, "node"+string(rune('0'+id))))
		if err := c.Restart(id); err != nil {
			t.Fatalf("node %d: %v", id, err)
		}
	}
	for _, id := range []NodeID{1, 2} {
		// One that leads when it finds the damage has speculative state.
		if err := onLeader(t, c, 1, func(s *Shard) error {
			if s.node.ID() == id {
				return nil
			}
			return s.TransferLeadership(within(t), id)
		}); err != nil {
			t.Fatal(err)
		}
		leaderOf(t, c, 1)
		if !read(c.Node(id).Shard(1)) {
			t.Fatalf("node %d reads damaged tables and finds nothing", id)
		}
	}
	eventually(t, "the damaged replica is repaired by itself", func() bool {
		st, err := c.Node(1).Shard(1).Status()
		return err == nil && st.Err == nil && c.Node(1).Shard(1).repairs.Load() == 1
	})
	s := c.Node(2).Shard(1)
	eventually(t, "the other stays out of service", func() bool {
		st, err := s.Status()
		return err == nil && st.Err != nil && st.Err.Code == core.CodeStorage
	})
	if err := s.Repair(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(within(t)); !errors.Is(err, &Error{Code: core.CodeRepair}) {
		t.Errorf("repaired again: %v", err)
	}
	fill(t, c, 1, 5000, 500)
	sameEverywhere(t, c, 1, 1, 2, 3)
	for id := NodeID(1); id <= 3; id++ {
		if read(c.Node(id).Shard(1)) {
			t.Errorf("node %d is out of service again", id)
		}
	}
	// They lead and vote as before, also after a restart.
	for id := NodeID(1); id <= 3; id++ {
		c.Kill(id)
	}
	for id := NodeID(1); id <= 2; id++ {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, c, 1, 6000, 100)
	sameEverywhere(t, c, 1, 1, 2)
}
