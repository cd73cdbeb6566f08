package rsm

import (
	"context"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/transport"
)

// small makes flushes frequent and the journal short, so that a newcomer, or one that was away, needs a snapshot. Its leaders
// stay in office while a test floods them on a busy machine.
func small(cfg *Config) {
	cfg.HeartbeatInterval, cfg.ElectionTimeout = 100*time.Millisecond, 3*time.Second
	cfg.Limits.FlushBytes, cfg.Limits.LogCacheBytes = 64<<10, 1
	cfg.JournalMaxBytes = 64 << 10
}

// fmtKey is a key that does not compress well, so that tables have many blocks.
func fmtKey(i int) []byte {
	return fmt.Appendf(nil, "key %06d %x", i, sha512.Sum512(binary.BigEndian.AppendUint64(nil, uint64(i))))
}

// fill makes a shard's state larger than what its journal keeps.
func fill(t testing.TB, c *Cluster, id ShardID, from, n int) {
	t.Helper()
	client := c.Client(id) // a leader that waits for a slow disk may be deposed
	var next atomic.Int64
	next.Store(int64(from))
	errs := make(chan error)
	callers := min(n, 1500)
	for range callers {
		go func() {
			for i := next.Add(1) - 1; i < int64(from+n); i = next.Add(1) - 1 {
				if _, err := client.Submit(within(t), fmtKey(int(i))); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// onLeader repeats a change of the members until it is done, or refused for good, wherever the leader is.
func onLeader(t testing.TB, c *Cluster, id ShardID, change func(*Shard) error) error {
	t.Helper()
	ctx := within(t)
	for {
		n, err := c.Leader(ctx, id)
		if err != nil {
			return err
		}
		err = change(n.Shard(id))
		var e *Error
		if !errors.As(err, &e) || e.Code == core.CodeChangeRefused || e.Code == core.CodeCancelled {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, and then: %w", err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// doOnLeader has a numbered request decided, which may be asked for again, wherever the leader is.
func doOnLeader(t testing.TB, c *Cluster, id ShardID, r Request) (res Result, err error) {
	err = onLeader(t, c, id, func(s *Shard) (err error) { res, err = s.Do(within(t), r); return err })
	return res, err
}

// openOnLeader opens a session, and perhaps others that nobody hears of.
func openOnLeader(t testing.TB, c *Cluster, id ShardID) (session SessionID) {
	t.Helper()
	if err := onLeader(t, c, id, func(s *Shard) (err error) { session, err = s.OpenSession(within(t)); return err }); err != nil {
		t.Fatal(err)
	}
	return session
}

func rolesOf(m Members) string {
	s := ""
	for _, m := range m.List {
		s += fmt.Sprintf("%d:%s ", m.Node, m.Role)
	}
	return s
}

// sameEverywhere waits until the replicas of these nodes have the same hash at the same index.
func sameEverywhere(t testing.TB, c *Cluster, id ShardID, nodes ...NodeID) {
	t.Helper()
	eventually(t, "the replicas agree", func() bool {
		var first ShardStatus
		for i, n := range nodes {
			st, err := c.Node(n).Shard(id).Status()
			if err != nil || st.Err != nil {
				t.Fatalf("node %d: %v, %v", n, err, st.Err)
			}
			if i == 0 {
				first = st
			}
			if st.Applied != first.Applied || st.Hash != first.Hash || st.Applied == 0 {
				return false
			}
		}
		return true
	})
}

func TestMembers(t *testing.T) {
	for _, where := range []string{"memory", "disk"} {
		t.Run(where, func(t *testing.T) {
			dir := ""
			if where == "disk" {
				dir = t.TempDir()
			}
			testMembers(t, dir)
		})
	}
}

func testMembers(t *testing.T, dir string) {
	c := startCluster(t, dir, counters{}, small)
	fill(t, c, 1, 0, 3000)
	four, err := c.Join(4)
	if err != nil {
		t.Fatal(err)
	}
	add := func(s *Shard) error { return s.AddLearner(within(t), 4, four.Addr()) }
	if err := onLeader(t, c, 1, add); err != nil {
		t.Fatal(err)
	}
	if err := onLeader(t, c, 1, add); !errors.Is(err, &Error{Code: core.CodeChangeRefused}) {
		t.Errorf("added twice: %v", err)
	}
	sameEverywhere(t, c, 1, 1, 2, 3, 4)
	st, err := four.Shard(1).Status()
	if err != nil || st.Stats.SnapshotsInstalled != 1 {
		t.Errorf("the newcomer installed %d snapshots: %v", st.Stats.SnapshotsInstalled, err)
	}
	fill(t, c, 1, 3000, 1000)
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.Promote(within(t), 4) }); err != nil {
		t.Fatal(err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.Remove(within(t), 1) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed node says so", func() bool {
		_, err := c.Node(1).Shard(1).Submit(within(t), []byte("x"))
		return errors.Is(err, &Error{Kind: ErrBroken, Code: core.CodeRemoved})
	})
	fill(t, c, 1, 4000, 1000)
	sameEverywhere(t, c, 1, 2, 3, 4)
	m, err := leaderOf(t, c, 1).Shard(1).Members()
	if err != nil || rolesOf(m) != "2:voter 3:voter 4:voter " || !slices.Equal(m.Removed, []NodeID{1}) {
		t.Errorf("members %s, removed %v: %v", rolesOf(m), m.Removed, err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), 1, "here:1") }); !errors.Is(err, &Error{Code: core.CodeChangeRefused}) {
		t.Errorf("an id was used again: %v", err)
	}
	// Shard 2 was not touched.
	if m, err := c.Node(1).Shard(2).Members(); err != nil || rolesOf(m) != "1:voter 2:voter 3:voter " {
		t.Errorf("shard 2: %s, %v", rolesOf(m), err)
	}
	// All of it is still so after a restart of everybody.
	for id := NodeID(1); id <= 4; id++ {
		c.Kill(id)
	}
	for id := NodeID(1); id <= 4; id++ {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, c, 1, 5000, 100)
	sameEverywhere(t, c, 1, 2, 3, 4)
	eventually(t, "the removed node still knows", func() bool {
		st, err := c.Node(1).Shard(1).Status()
		return err == nil && st.Err != nil && st.Err.Code == core.CodeRemoved
	})
	fill(t, c, 2, 0, 10)
}

func TestReplace(t *testing.T) {
	c := startCluster(t, "", counters{}, small)
	fill(t, c, 1, 0, 1000)
	for i, old := range []NodeID{1, 2, 3} {
		id := NodeID(4 + i)
		n, err := c.Join(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.AddLearner(within(t), id, n.Addr()) }); err != nil {
			t.Fatal(err)
		}
		if err := onLeader(t, c, 1, func(s *Shard) error { return s.Replace(within(t), old, id) }); err != nil {
			t.Fatal(err)
		}
		fill(t, c, 1, 1000*(i+1), 500)
		eventually(t, "the replaced node says so", func() bool {
			st, err := c.Node(old).Shard(1).Status()
			return err == nil && st.Err != nil && st.Err.Code == core.CodeRemoved
		})
	}
	sameEverywhere(t, c, 1, 4, 5, 6)
	m, err := c.Node(5).Shard(1).Members()
	if err != nil || rolesOf(m) != "4:voter 5:voter 6:voter " {
		t.Errorf("members %s: %v", rolesOf(m), err)
	}
}

// A node that was away when it was removed learns of it when it comes back, however late, and also from nodes that were restarted since.
func TestRemovedNodeComesBackLate(t *testing.T) {
	for _, name := range []string{"with Join", "of the first nodes"} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, t.TempDir(), counters{}, func(cfg *Config) { cfg.farewell = 50 * time.Millisecond })
			gone := NodeID(3)
			if name == "with Join" {
				gone = 4
				four, err := c.Join(gone)
				if err != nil {
					t.Fatal(err)
				}
				for _, id := range []ShardID{1, 2} {
					if err := onLeader(t, c, id, func(s *Shard) error { return s.AddLearner(within(t), gone, four.Addr()) }); err != nil {
						t.Fatal(err)
					}
				}
				sameEverywhere(t, c, 1, 1, 2, 3, 4)
				sameEverywhere(t, c, 2, 1, 2, 3, 4)
			}
			c.Kill(gone)
			for _, id := range []ShardID{1, 2} {
				if err := onLeader(t, c, id, func(s *Shard) error { return s.Remove(within(t), gone) }); err != nil {
					t.Fatal(err)
				}
			}
			for _, restarted := range [][]NodeID{{}, {1, 2}} {
				for _, id := range restarted {
					c.Kill(id)
					if err := c.Restart(id); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, "nobody talks to it any more", func() bool {
					for _, id := range []NodeID{1, 2} {
						if _, talking := c.Node(id).topology.told()[gone]; talking {
							return false
						}
					}
					return true
				})
				if err := c.Restart(gone); err != nil {
					t.Fatal(err)
				}
				for _, id := range []ShardID{1, 2} {
					eventually(t, "it knows", func() bool {
						st, err := c.Node(gone).Shard(id).Status()
						return err == nil && st.Err != nil && st.Err.Code == core.CodeRemoved
					})
				}
				c.Kill(gone)
			}
		})
	}
}

// A follower that was away for longer than the journal reaches gets a snapshot, whoever leads.
func TestCatchUpBySnapshot(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, small)
	fill(t, c, 1, 0, 500)
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		away := NodeID(round + 1)
		c.Kill(away)
		fill(t, c, 1, 1000*(round+1), 3000)
		eventually(t, "the journal does not reach back to it any more", func() bool {
			fill(t, c, 1, 1000*(round+1), 100) // a slow disk may have flushed all of it at once, and the next flush drops that
			st, err := leaderOf(t, c, 1).Shard(1).Status()
			return err == nil && st.JournalShort
		})
		if err := c.Restart(away); err != nil {
			t.Fatal(err)
		}
		fill(t, c, 1, 100, 100)
		sameEverywhere(t, c, 1, 1, 2, 3)
		st, err := c.Node(away).Shard(1).Status()
		if err != nil || st.Stats.SnapshotsInstalled == 0 {
			t.Errorf("node %d came back without a snapshot: %v", away, err)
		}
		if list := c.Node(away).Snapshots(); len(list) == 0 {
			t.Errorf("node %d does not keep what it has installed", away)
		}
	}
}

func TestRemovalThatWouldStopAll(t *testing.T) {
	c := startCluster(t, "", counters{}, func(cfg *Config) { cfg.ElectionTimeout = time.Second }) // it leads all the time
	fill(t, c, 1, 0, 10)
	leader := leaderOf(t, c, 1)
	var others []NodeID
	for id := NodeID(1); id <= 3; id++ {
		if id != leader.ID() {
			others = append(others, id)
		}
	}
	c.Kill(others[0])
	eventually(t, "its silence is noticed", func() bool {
		m, err := leader.Shard(1).Members()
		return err == nil && m.List[others[0]-1].Seen > 2*leader.cfg.ElectionTimeout
	})
	if err := leader.Shard(1).Remove(within(t), others[1]); !errors.Is(err, &Error{Code: core.CodeChangeRefused}) {
		t.Fatalf("the last follower that answers was to be removed: %v", err)
	}
	if err := onLeader(t, c, 1, func(s *Shard) error { return s.Remove(within(t), others[0]) }); err != nil {
		t.Errorf("the one that is gone could not be removed: %v", err)
	}
	fill(t, c, 1, 10, 10)
}

func TestJournal(t *testing.T) {
	c := startCluster(t, "", counters{}, small, func(cfg *Config) { cfg.KeepJournal = true })
	fill(t, c, 1, 0, 2000)
	s := leaderOf(t, c, 1).Shard(1)
	events := 0
	next := Index(1)
	for {
		entries, first, err := s.Journal(within(t), next, 0)
		if err != nil || first != 1 {
			t.Fatalf("from %d: first %d, %v", next, first, err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			if e.Index != next {
				t.Fatalf("entry %d where %d was due", e.Index, next)
			}
			next++
			events += len(e.Events)
			if e.Kind == "decision" && (e.Time == 0 || e.Sequence == 0 || e.Hash == 0) {
				t.Fatalf("%+v", e)
			}
		}
	}
	if events != 2000 {
		t.Errorf("%d events, 2000 commands", events)
	}
	if _, _, err := s.Journal(context.Background(), 0, 1); !errors.Is(err, &Error{Code: core.CodeCompacted}) {
		t.Errorf("entry 0: %v", err)
	}
}

// slowPort holds the first address that it is told until another comes, or a while.
type slowPort struct {
	transport.Peer
	entered, other chan struct{}
	mu             sync.Mutex
	address        string
}

func (p *slowPort) SetPeer(_ uint64, address string) {
	if address == "first:1" {
		close(p.entered)
		select {
		case <-p.other:
		case <-time.After(50 * time.Millisecond):
		}
	} else {
		defer close(p.other)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.address = address
}

// Two workers learn of two addresses of a node, one after the other. The transport must end up with the latter.
func TestAddressesAreToldInOrder(t *testing.T) {
	n := &Node{engine: &engine{}}
	n.topology.shards, n.topology.address = map[ShardID]core.Configuration{}, map[NodeID]string{}
	p := &slowPort{entered: make(chan struct{}), other: make(chan struct{})}
	var port transport.Peer = p
	n.port.Store(&port)
	at := func(i Index, a string) core.Configuration {
		return core.Configuration{Index: i, Voters: []NodeID{2}, Addresses: map[NodeID]string{2: a}}
	}
	var wg sync.WaitGroup
	wg.Go(func() { n.membersChanged(1, at(5, "first:1")) })
	<-p.entered
	n.membersChanged(2, at(9, "second:1"))
	wg.Wait()
	if p.address != "second:1" || n.topology.address[2] != "second:1" {
		t.Errorf("the transport was told %s last, and %s is the latest", p.address, n.topology.address[2])
	}
}
