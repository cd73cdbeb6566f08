package rsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/wal"
)

// A lostCaller counts up a key of its own in a session of its own, and knows where in the log that was acknowledged.
type lostCaller struct {
	num     int
	session SessionID
	asked   uint64 // the last number that it has asked for
	acked   []ackedAt
}

// ackedAt is an acknowledgement. The command's place is not after index, and is index itself if the first attempt was the one that was answered.
type ackedAt struct {
	index Index
	exact bool
}

func (l *lostCaller) key() []byte { return fmt.Appendf(nil, "caller-%d", l.num) }

// request is the command number seq, with so much beside it that states are flushed.
func (l *lostCaller) request(seq uint64) Request {
	beside := fmt.Sprintf("beside %d of %d %s", seq%20, l.num, strings.Repeat("x", 1500))
	return Request{Commands: [][]byte{l.key(), []byte(beside)}, Session: l.session, Sequence: seq, Acknowledged: seq - 1}
}

// run asks for one command after the other, of whoever may lead, until ctx ends.
func (l *lostCaller) run(ctx context.Context, c *Cluster, nodes int, total *atomic.Int64) error {
	for at := 0; ; {
		l.asked++
		for exact := true; ; exact = false {
			res, err := Result{}, error(errClosed)
			if n := c.Node(NodeID(at%nodes + 1)); n != nil {
				var one context.CancelFunc
				var attempt context.Context
				attempt, one = context.WithTimeout(ctx, 2*time.Second)
				res, err = n.Shard(1).Do(attempt, l.request(l.asked))
				one()
			}
			if ctx.Err() != nil {
				return nil // of what was under way it knows nothing
			}
			if err == nil {
				if got := binary.BigEndian.Uint64(res.Replies[0]); got != l.asked {
					return fmt.Errorf("caller %d: command %d was the %d. to happen", l.num, l.asked, got)
				}
				l.acked = append(l.acked, ackedAt{res.Index, exact})
				total.Add(1)
				break
			}
			if errors.Is(err, ErrRejected) {
				return fmt.Errorf("caller %d: %w", l.num, err)
			}
			at++
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
}

// lostCluster is one that loses its quorum.
type lostCluster struct {
	t       *testing.T
	r       *rand.Rand
	nodes   int
	c       *Cluster
	callers []*lostCaller
	opened  map[SessionID]bool // all that were ever opened
}

func (l *lostCluster) open() SessionID {
	l.t.Helper()
	id := openOnLeader(l.t, l.c, 1)
	l.opened[id] = true
	return id
}

// trouble has nodes die and come back and leaders change under load, and ends with all of them dead.
func (l *lostCluster) trouble() {
	l.t.Helper()
	ctx, stop := context.WithCancel(l.t.Context())
	defer stop()
	var total atomic.Int64
	var wg sync.WaitGroup
	for _, caller := range l.callers {
		wg.Go(func() {
			if err := caller.run(ctx, l.c, l.nodes, &total); err != nil {
				l.t.Error(err)
			}
		})
	}
	down := map[NodeID]bool{}
	for range 4 + l.r.IntN(5) {
		until := total.Load() + int64(10+l.r.IntN(60))
		eventually(l.t, "the callers get on", func() bool { return total.Load() >= until })
		switch id := NodeID(1 + l.r.IntN(l.nodes)); {
		case down[id]:
			if err := l.c.Restart(id); err != nil {
				l.t.Fatal(err)
			}
			delete(down, id)
		case 2*(len(down)+1) < l.nodes && l.r.IntN(3) > 0:
			l.c.Kill(id)
			down[id] = true
		case l.r.IntN(2) == 0:
			l.open()
		default:
			to := NodeID(1 + l.r.IntN(l.nodes))
			_ = leaderOf(l.t, l.c, 1).Shard(1).TransferLeadership(within(l.t), to) // which may be down, or lead already
		}
	}
	for _, i := range l.r.Perm(l.nodes) { // one after the other, under load: some have more than others
		l.c.Kill(NodeID(i + 1))
		down[NodeID(i+1)] = true
		if 2*len(down) < l.nodes {
			l.open() // of which who is down knows nothing
		}
	}
	stop()
	wg.Wait()
}

// counts reads the callers' counters.
func (l *lostCluster) counts(c *Cluster) (counts []uint64) {
	l.t.Helper()
	for _, caller := range l.callers {
		answer, err := c.Client(1).Read(within(l.t), Linearizable, caller.key())
		counts = append(counts, sum(l.t, answer, err))
	}
	return counts
}

// Clusters lose their quorum after some trouble, and are rebuilt from any minority that is left. Up to where the log is known to be committed there is exactly what was decided; beyond,
// nothing that nobody asked for. What was acknowledged up to there is there, and once: sessions go on, a retry gets the stored reply. No id of a session is given out again.
//
// Mutations with which it was seen to fail, one by one: entries are not kept after the flush; sessions are not restored; ids of sessions are places alone.
func TestRecoverAtRandom(t *testing.T) {
	r := testkit.Random(t)
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) { recoverAtRandom(t, r) })
	}
}

func recoverAtRandom(t *testing.T, r *rand.Rand) {
	l := &lostCluster{t: t, r: r, nodes: []int{3, 3, 5}[r.IntN(3)], opened: map[SessionID]bool{}}
	flushes, keep := []int64{64 << 10, 256 << 10, 32 << 20}[r.IntN(3)], r.IntN(3) == 0
	configure := func(cfg *Config) {
		quick(cfg)
		cfg.DiskWatermark, cfg.Logger, cfg.KeepJournal, cfg.Limits.FlushBytes = -1, testLogger(t), keep, flushes
	}
	shards := []ShardConfig{{ID: 1, Machine: counters{}}}
	var err error
	if l.c, err = StartCluster(ClusterConfig{Name: "lost", Nodes: l.nodes, Dir: t.TempDir(), Shards: shards, Configure: configure}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.c.Close() })
	for i := range 4 {
		l.callers = append(l.callers, &lostCaller{num: i, session: l.open()})
	}
	l.trouble()

	var left []NodeID
	for _, i := range r.Perm(l.nodes)[:1+r.IntN((l.nodes-1)/2)] {
		left = append(left, NodeID(i+1))
	}
	target, members := t.TempDir(), []int{1, 3}[r.IntN(2)]
	o := RecoverOptions{Survivors: survivorsOf(l.c, left...), Backup: filepath.Join(t.TempDir(), "found"), Cluster: "rebuilt", Nodes: nodeDirs(target, members)}
	plan, err := Inspect(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	s := &plan.Shards[0]
	if s.Best == 0 || s.Majority() {
		t.Fatalf("%v of %d are left, and the plan is %+v", left, l.nodes, s)
	}
	commit, last := s.commit(), s.best().Last
	t.Logf("%d nodes, flushes of %d bytes, journal kept: %v; left are %v; known to be committed up to %d, %d are kept, of which %d are flushed",
		l.nodes, flushes, keep, left, commit, last, s.best().Flushed)
	o.Confirm = plan.Token
	_, restored, err := Recover(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := restored.Shards[0].Index; got != last {
		t.Errorf("the new cluster begins at %d, and %d were there", got, last)
	}
	start := func(r *Restored, dir string) *Cluster {
		t.Helper()
		c, err := StartCluster(ClusterConfig{Name: r.Cluster, Nodes: len(r.Members), Dir: dir, Shards: shards, Configure: configure})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}

	// Up to the commit index it is what was decided, neither more nor less.
	then := t.TempDir()
	known := start(restoreT(t, RestoreOptions{Backup: o.Backup, Cluster: "known", Nodes: nodeDirs(then, 1), Position: map[ShardID]Index{1: commit}}), then)
	decided := l.counts(known)
	for i, caller := range l.callers {
		for seq, a := range caller.acked {
			switch n := uint64(seq + 1); {
			case a.index <= commit && n > decided[i]:
				t.Errorf("command %d of caller %d was acknowledged at %d, and is not in what was decided up to %d", n, i, a.index, commit)
			case a.index > commit && a.exact && n <= decided[i]:
				t.Errorf("command %d of caller %d happened at %d, and is in what was decided up to %d", n, i, a.index, commit)
			}
		}
	}

	again := start(restored, target)
	kept := l.counts(again)
	for i, caller := range l.callers {
		n := kept[i]
		if n < decided[i] || n > caller.asked {
			t.Errorf("caller %d: %d commands are kept, %d were decided, %d were asked for", i, n, decided[i], caller.asked)
		}
		for seq := max(n, 1); seq <= n+2; seq++ { // the last is there, the next two are not
			var res Result
			expired := false
			err := onLeader(t, again, 1, func(s *Shard) (err error) {
				if res, err = s.Do(within(t), caller.request(seq)); isCode(err, core.CodeSessionExpired) {
					expired = true
					return nil
				}
				return err
			})
			if n == 0 && expired {
				break // it was opened after what is kept
			}
			if err != nil || expired {
				t.Fatalf("caller %d, command %d of %d: expired: %v, %v", i, seq, n, expired, err)
			}
			if got := binary.BigEndian.Uint64(res.Replies[0]); got != seq {
				t.Errorf("caller %d: command %d, of which %d are kept, was the %d. to happen", i, seq, n, got)
			}
		}
	}
	for range 40 { // at the places where sessions were opened that are lost
		id := openOnLeader(t, again, 1)
		if l.opened[id] {
			t.Errorf("session %d was given out before", id)
		}
		l.opened[id] = true
	}
	sameHashes(t, again, 1)
}

// A node lost power between the installation of a snapshot and the record of it. What its log has then is of a term before, contradicts the snapshot, and is dropped by a start: it is no part of the
// best log either, and what the snapshot has is not lost to a log that is longer.
//
// Mutation with which it was seen to fail: Continuing takes what contradicts the state.
func TestRecoverAfterAnInstallation(t *testing.T) {
	c, err := StartCluster(ClusterConfig{Name: "lost", Nodes: 5, Dir: t.TempDir(), Shards: []ShardConfig{{ID: 1, Machine: counters{}}},
		Configure: func(cfg *Config) { quick(cfg); cfg.DiskWatermark = -1 }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	count := func(on NodeID, n int) {
		t.Helper()
		var last Index
		for range n {
			res, err := c.Client(1).Do(within(t), Request{Commands: [][]byte{[]byte("sum")}})
			if err != nil {
				t.Fatal(err)
			}
			last = res.Index
		}
		eventually(t, "the replica has everything", func() bool {
			st, err := c.Node(on).Shard(1).Status()
			return err == nil && st.Applied >= last
		})
	}
	lead := leaderOf(t, c, 1).ID()
	behind, installed := lead%5+1, (lead+1)%5+1
	count(behind, 4)
	c.Kill(behind)
	c.Kill(lead) // the next one leads in a later term
	count(installed, 20)
	snap, err := c.Node(installed).Shard(1).CutSnapshot(within(t), true) // which flushes
	if err != nil {
		t.Fatal(err)
	}
	for id := range NodeID(5) {
		c.Kill(id + 1)
	}

	dirs := survivorsOf(c, installed, behind)
	before, err := wal.Read(filepath.Join(dirs[1], datadir.WALDir))
	if err != nil {
		t.Fatal(err)
	}
	common := before.Shards[1].Entries[len(before.Shards[1].Entries)-1]
	if common.Term >= uint64(snap.Term) || common.Index+10 > uint64(snap.Index) {
		t.Fatalf("one node ends with entry %d of term %d, the other has flushed %d of term %d: that is not what this test is about", common.Index, common.Term, snap.Index, snap.Term)
	}
	for i, end := range []Index{snap.Index + 5, snap.Index + 10} { // what its leader could not commit any more
		appendLog(t, dirs[i], func(was wal.HardState) wal.Record {
			rec := wal.Record{Shard: 1, HardState: wal.HardState{Term: was.Term, Vote: was.Vote, Commit: common.Index}}
			for index := common.Index + 1; index <= uint64(end); index++ {
				rec.Entries = append(rec.Entries, wal.Entry{Index: index, Term: common.Term})
			}
			return rec
		})
	}
	for _, survivors := range [][]string{dirs, dirs[:1]} {
		target := t.TempDir()
		o := RecoverOptions{Survivors: survivors, Backup: filepath.Join(t.TempDir(), "found"), Cluster: "rebuilt", Nodes: nodeDirs(target, 1)}
		plan, err := Inspect(within(t), o)
		if err != nil {
			t.Fatal(err)
		}
		s := &plan.Shards[0]
		if got := s.best(); s.Best != installed || got.Last != snap.Index || got.LastTerm != snap.Term {
			t.Errorf("of %d survivors the best log is %+v, that of node %d ends with its snapshot at %d of term %d", len(survivors), got, installed, snap.Index, snap.Term)
		}
		o.Confirm = plan.Token
		_, restored, err := Recover(within(t), o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := StartCluster(ClusterConfig{Name: restored.Cluster, Nodes: 1, Dir: target, Shards: []ShardConfig{{ID: 1, Machine: counters{}}}, Configure: quick})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = again.Close() })
		answer, err := again.Client(1).Read(within(t), Linearizable, []byte("sum"))
		if got := sum(t, answer, err); got != 24 {
			t.Errorf("%d are there, 24 were acknowledged", got)
		}
	}
}

// appendLog adds a record to the log of shard 1 of a node that is stopped.
func appendLog(t *testing.T, dir string, record func(wal.HardState) wal.Record) {
	t.Helper()
	log, recovered, err := wal.Open(wal.Options{Dir: filepath.Join(dir, datadir.WALDir)})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(log.Append([]wal.Record{record(recovered.Shards[1].HardState)}), log.Close()); err != nil {
		t.Fatal(err)
	}
}
