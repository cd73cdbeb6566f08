package rsm

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// upgraded is counters in a program of some version: from 1 on, what is added counts double, and under which version it was is kept.
type upgraded struct {
	counters
	limit uint64
}

func (m upgraded) MaxVersion() uint64 { return m.limit }

func (m upgraded) Decide(v View, c Command) ([][]byte, []byte, error) {
	e := append(binary.BigEndian.AppendUint64(nil, number(v, c.Data)+1+c.Version), c.Data...)
	return [][]byte{e}, e[:8:8], nil
}

func (m upgraded) Apply(s State, e Event) {
	m.counters.Apply(s, e)
	s.Set(append([]byte("version of "), e.Data[8:]...), binary.BigEndian.AppendUint64(nil, e.Version))
}

// A rolling restart, from one version of the machine to the next, under load: the new one becomes active when all
// have it, for everybody at the same entry, and events of before are folded as before.
func TestRollingUpgrade(t *testing.T) {
	var mu sync.Mutex
	program := map[NodeID]uint64{}
	c := startCluster(t, t.TempDir(), counters{}, small, func(cfg *Config) {
		mu.Lock()
		defer mu.Unlock()
		for i := range cfg.Shards {
			cfg.Shards[i].Machine = upgraded{limit: program[cfg.Node]}
		}
	})
	stop := make(chan struct{})
	var load sync.WaitGroup
	client := c.Client(1)
	sums := uint64(0)
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			reply, err := client.Submit(within(t), []byte("load"))
			if err != nil {
				t.Errorf("under load: %v", err)
				return
			}
			n := binary.BigEndian.Uint64(reply)
			if by := n - sums; by != 1 && by != 2 {
				t.Errorf("one command added %d", by)
			}
			sums = n
		}
	})
	version := func() uint64 {
		st, err := leaderOf(t, c, 1).Shard(1).Status()
		if err != nil {
			return 0
		}
		return st.Version
	}
	for id := NodeID(1); id <= 3; id++ {
		if v := version(); v != 0 {
			t.Errorf("version %d is active, and node %d cannot run it", v, id)
		}
		c.Kill(id)
		mu.Lock()
		program[id] = 1
		mu.Unlock()
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is back", func() bool {
			st, err := c.Node(id).Shard(1).Status()
			return err == nil && st.Leader != 0 && st.Applied > 0
		})
	}
	eventually(t, "the new version is active", func() bool { return version() == 1 })
	time.Sleep(50 * time.Millisecond) // of load under it
	close(stop)
	load.Wait()
	sameEverywhere(t, c, 1, 1, 2, 3)
	// Back to the old program: it must not run.
	c.Kill(2)
	mu.Lock()
	program[2] = 0
	mu.Unlock()
	if err := c.Restart(2); err == nil {
		eventually(t, "the old program stops", func() bool {
			st, err := c.Node(2).Shard(1).Status()
			return err == nil && st.Err != nil && st.Err.Code == core.CodeUnsupported
		})
		_, err = c.Node(2).Shard(1).Submit(within(t), []byte("x"))
		if !errors.Is(err, &Error{Kind: ErrBroken, Code: core.CodeUnsupported}) {
			t.Errorf("the old program: %v", err)
		}
	}
}
