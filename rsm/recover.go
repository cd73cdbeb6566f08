package rsm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// RecoverOptions say what is left of a cluster that has lost its quorum, and what is to be made of it.
type RecoverOptions struct {
	// Survivors are data directories of nodes that are stopped, all that there are: the best log is found among them. They are not changed. Required.
	Survivors []string
	// Backup is a new directory, for a backup of what is found, from which the nodes are then restored. It stays. Required to recover.
	Backup string
	// Cluster, Nodes, Members and Voters are those of the new cluster, as in RestoreOptions. Required to recover.
	Cluster string
	Nodes   map[NodeID]string
	Members []NodeID
	Voters  map[ShardID][]NodeID
	// EvenWithMajority goes on where a majority of the voters of every shard is there. Nothing is lost then, and to start them is all that is needed.
	EvenWithMajority bool
	// Confirm is the token of the plan that Inspect has shown for the same options. Required to recover.
	Confirm string
	// Progress is called now and then on the caller's goroutine; nil: not called.
	Progress func(snapshot.Progress)
	// Logger: default none.
	Logger *slog.Logger
}

// RecoveryPlan is what was found, and what would be done. Its String says it in words.
type RecoveryPlan struct {
	Cluster   string // that has lost its quorum
	Survivors []Survivor
	Shards    []RecoveryShard
	New       string // name of the new cluster
	Members   []NodeID
	// Token has to be given to Recover. It is another as soon as anything is found otherwise, or asked for otherwise.
	Token string
}

// Survivor is a node of which the data is there.
type Survivor struct {
	Node NodeID
	Dir  string
}

// RecoveryShard is what is left of a shard.
type RecoveryShard struct {
	Shard    ShardID
	Voters   []NodeID // by what is known to be committed of the best log
	Outgoing []NodeID // the voters before, while one replaces another: then both majorities count
	Present  []NodeID // of all those, here
	Missing  []NodeID
	Changes  []SurvivorChange // of the members, in the best log after its last flush
	Logs     []SurvivorLog    // by node id
	Best     NodeID           // whose log is the most advanced; 0: nobody here has anything of the shard
}

// SurvivorChange is a change of members that a survivor's log shows.
type SurvivorChange struct {
	Index            Index
	Change           string // in words
	Voters, Outgoing []NodeID
	Committed        bool // it is known to be; otherwise nobody can say whether it took effect
}

// SurvivorLog is what a survivor has of a shard.
type SurvivorLog struct {
	Node     NodeID
	Flushed  Index // its state on disk
	Commit   Index // is known to be committed
	Last     Index // of its log
	LastTerm Term
}

// Majority reports whether a majority of the voters is there, so that nothing is lost. Where it is not known which voters counted in the end, it takes a majority of
// all that may have.
func (s *RecoveryShard) Majority() bool {
	most := func(voters []NodeID) bool {
		here := 0
		for _, v := range voters {
			if slices.ContainsFunc(s.Logs, func(l SurvivorLog) bool { return l.Node == v }) {
				here++
			}
		}
		return 2*here > len(voters)
	}
	all := most(s.Voters) && (len(s.Outgoing) == 0 || most(s.Outgoing))
	for _, c := range s.Changes {
		all = all && (c.Committed || most(c.Voters) && (len(c.Outgoing) == 0 || most(c.Outgoing)))
	}
	return all
}

// commit is up to where the log is known to be committed, by any survivor: whoever has the best log has those entries.
func (s *RecoveryShard) commit() (at Index) {
	for _, l := range s.Logs {
		at = max(at, l.Commit)
	}
	return at
}

// best returns the log of Best.
func (s *RecoveryShard) best() SurvivorLog {
	i := slices.IndexFunc(s.Logs, func(l SurvivorLog) bool { return l.Node == s.Best })
	if i < 0 {
		return SurvivorLog{}
	}
	return s.Logs[i]
}

// String says what was found, what may be lost, and what is kept that may never have been acknowledged.
func (p *RecoveryPlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Cluster %q, what is left of it:\n", p.Cluster)
	for _, s := range p.Survivors {
		fmt.Fprintf(&b, "  node %d in %s\n", s.Node, s.Dir)
	}
	for i := range p.Shards {
		p.Shards[i].describe(&b)
	}
	if p.New != "" {
		fmt.Fprintf(&b, "\nA new cluster %q of the nodes %v is made of it. The directories above are left as they are, and must never be started again.\n", p.New, p.Members)
		fmt.Fprintf(&b, "Sessions go on, but for those that were opened after what is kept: their ids are not given out again, and who holds one is told that it has expired.\n")
		fmt.Fprintf(&b, "If that is what you want, confirm it with the token %s\n", p.Token)
	}
	return b.String()
}

func (s *RecoveryShard) describe(b *strings.Builder) {
	voters := fmt.Sprint(s.Voters)
	if len(s.Outgoing) > 0 {
		voters += fmt.Sprintf(" and, as one was being replaced, still %v", s.Outgoing)
	}
	fmt.Fprintf(b, "\nShard %d: voters %s, of which %v are here and %v are missing.\n", s.Shard, voters, s.Present, s.Missing)
	if s.Best == 0 {
		fmt.Fprintf(b, "  None of the survivors has anything of it. It is not in the new cluster, where it begins empty if it is configured.\n")
		if len(s.Missing) > 0 {
			fmt.Fprintf(b, "  LOST: whatever the missing nodes have acknowledged.\n")
		}
		return
	}
	for _, l := range s.Logs {
		mark := ""
		if l.Node == s.Best {
			mark = "  <- the best log"
		}
		fmt.Fprintf(b, "  node %d: state flushed up to %d, known to be committed up to %d, log up to %d of term %d%s\n", l.Node, l.Flushed, l.Commit, l.Last, l.LastTerm, mark)
	}
	for _, c := range s.Changes {
		to, known := fmt.Sprint(c.Voters), "known to be committed"
		if len(c.Outgoing) > 0 {
			to += fmt.Sprintf(" and still %v", c.Outgoing)
		}
		if !c.Committed {
			known = "not known to be committed: it may have taken effect, and a majority of these voters may have acknowledged what came after it"
		}
		fmt.Fprintf(b, "  entry %d changes the members (%s), to the voters %s; it is %s\n", c.Index, c.Change, to, known)
	}
	best := s.best()
	if s.Majority() {
		fmt.Fprintf(b, "  Nothing is lost: a majority of the voters is here. Start these nodes, and replace the missing ones.\n")
	} else {
		fmt.Fprintf(b, "  MAY BE LOST: every command after entry %d of term %d that was acknowledged by a majority without these nodes. How many there are cannot be known from here.\n", best.Last, best.LastTerm)
	}
	if commit := s.commit(); best.Last > commit {
		fmt.Fprintf(b, "  KEPT: the entries %d to %d are not known to be committed. They take effect now. Some may have been acknowledged; of others the callers may have been told nothing, that the outcome is unknown, or even that it did not happen.\n",
			commit+1, best.Last)
	}
}

// Inspect looks at what is left of a cluster that has lost its quorum, changes nothing, and says what Recover would do with the same options.
func Inspect(ctx context.Context, o RecoverOptions) (*RecoveryPlan, error) {
	found, err := findSurvivors(o)
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	defer found.close()
	return found.plan, nil
}

// Recover rebuilds a cluster from what is left of one that has lost its quorum: of each shard, from the survivor with the most advanced log, by term and then by index, all of it. It is for
// the day when a majority is gone for ever; acknowledged commands may be lost, see RecoveryPlan. So it needs the token of the plan that Inspect has shown, and
// refuses if a majority is there. What was found is first written as a backup into RecoverOptions.Backup, and then restored.
// The survivors' directories stay as they are. They must never be started again: the new cluster has another name, and refuses them.
func Recover(ctx context.Context, o RecoverOptions) (*RecoveryPlan, *Restored, error) {
	found, err := findSurvivors(o)
	if err != nil {
		return nil, nil, fmt.Errorf("recover: %w", err)
	}
	err = found.mayRecover(o)
	if err == nil {
		err = found.backUp(ctx, o)
	}
	if err = errors.Join(err, found.close()); err != nil {
		return found.plan, nil, fmt.Errorf("recover: %w", err)
	}
	restored, err := Restore(ctx, RestoreOptions{
		Backup: o.Backup, Cluster: o.Cluster, Nodes: o.Nodes, Members: o.Members, Voters: o.Voters, Progress: o.Progress, Logger: o.Logger,
	})
	if err != nil {
		return found.plan, nil, fmt.Errorf("recover: what was found is in %s, as a backup, but the nodes could not be made of it: %w. When that is mended, restore that backup "+
			"(`decree restore`), with the same name of the new cluster and the same members", o.Backup, err)
	}
	return found.plan, restored, nil
}

// survivor is a stopped node's data, opened without a change.
type survivor struct {
	Survivor
	identity *identity
	store    *state.Store
	shards   map[uint64]*wal.ShardLog
	stored   map[ShardID]core.Stored // flushed shards
}

// survivors is what is left of a cluster.
type survivors struct {
	byID map[NodeID]*survivor
	plan *RecoveryPlan
}

func (s *survivors) close() error {
	var errs []error
	for _, v := range s.byID {
		errs = append(errs, v.store.Close())
	}
	return errors.Join(errs...)
}

func findSurvivors(o RecoverOptions) (_ *survivors, err error) {
	s := &survivors{byID: map[NodeID]*survivor{}, plan: &RecoveryPlan{New: o.Cluster}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if len(o.Survivors) == 0 {
		return nil, errors.New("RecoverOptions.Survivors is empty: too few nodes, name the data directories of those that are left")
	}
	for _, dir := range o.Survivors {
		v, err := openSurvivor(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if other := s.byID[v.Node]; other != nil {
			return nil, errors.Join(fmt.Errorf("%s and %s both are data of node %d: give the newer one", other.Dir, dir, v.Node), v.store.Close())
		}
		s.byID[v.Node] = v
		s.plan.Survivors = append(s.plan.Survivors, v.Survivor)
	}
	slices.SortFunc(s.plan.Survivors, func(a, b Survivor) int { return cmp.Compare(a.Node, b.Node) })
	if err := s.sameCluster(); err != nil {
		return nil, err
	}
	if err := s.compareLogs(); err != nil {
		return nil, err
	}
	s.plan.Members = slices.Sorted(slices.Values(o.Members))
	if len(o.Members) == 0 {
		s.plan.Members = slices.Sorted(maps.Keys(o.Nodes))
	}
	return s, s.sign(o)
}

// openSurvivor reads a directory without changing it.
func openSurvivor(dir string) (_ *survivor, err error) {
	v := &survivor{Survivor: Survivor{Dir: dir}, stored: map[ShardID]core.Stored{}}
	if v.identity, err = loadIdentity(dir); err != nil {
		return nil, err
	}
	if v.identity == nil {
		return nil, errors.New("there is no node.json: not a node's data, or not all of it")
	}
	v.Node = v.identity.Node
	rec, err := wal.Read(filepath.Join(dir, datadir.WALDir))
	if errors.Is(err, wal.ErrLocked) {
		return nil, fmt.Errorf("the node is running: stop it first: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if rec.Fresh {
		return nil, errors.New("its log is gone: this node has lost what it had promised, and nothing of it can be believed")
	}
	v.shards = rec.Shards
	if v.store, err = state.Open(state.Options{Dir: filepath.Join(dir, datadir.StateDir), ReadOnly: true, CacheBytes: 8 << 20, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.store.Close())
		}
	}()
	ids, err := v.store.ShardIDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		c, err := v.store.Cut(id)
		if err != nil {
			return nil, err
		}
		stored, err := core.DecodeStored(c.Meta())
		index := c.Index()
		c.Close()
		if err == nil && uint64(stored.Applied) != index {
			err = fmt.Errorf("the state is of index %d, its record says %d", index, stored.Applied)
		}
		if err != nil {
			return nil, fmt.Errorf("shard %d: %w", id, err)
		}
		v.stored[ShardID(id)] = stored
	}
	return v, nil
}

// sameCluster makes sure that the directories belong together.
func (s *survivors) sameCluster() error {
	for _, v := range s.byID {
		s.plan.Cluster = cmp.Or(s.plan.Cluster, v.identity.Cluster)
		if v.identity.Cluster != s.plan.Cluster {
			return fmt.Errorf("the directories belong to different clusters, %q and %q", s.plan.Cluster, v.identity.Cluster)
		}
	}
	for _, v := range s.byID {
		for _, other := range s.byID {
			known, met := v.identity.Peers[other.Node]
			if met && known != other.identity.Data {
				return fmt.Errorf("%s is not the data of node %d that node %d (%s) has met: it is of another time or cluster", other.Dir, other.Node, v.Node, v.Dir)
			}
		}
	}
	return nil
}

// compareLogs finds the most advanced log of every shard.
func (s *survivors) compareLogs() error {
	shards := map[ShardID][]NodeID{}
	for _, p := range s.plan.Survivors { // by id: the plan must not depend on chance
		for id, voters := range s.byID[p.Node].identity.Shards {
			if len(shards[id]) == 0 { // one that was added later does not know
				shards[id] = voters
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(shards)) {
		out := RecoveryShard{Shard: id, Voters: shards[id]}
		for _, p := range s.plan.Survivors {
			v := s.byID[p.Node]
			if _, hosted := v.identity.Shards[id]; !hosted {
				continue
			}
			l, err := v.log(id)
			if err != nil {
				return fmt.Errorf("%s: shard %d: %w", v.Dir, id, err)
			}
			out.Logs = append(out.Logs, l)
			if best := out.best(); l.Last > 0 && (l.LastTerm > best.LastTerm || l.LastTerm == best.LastTerm && l.Last > best.Last) {
				out.Best = l.Node
			}
		}
		if err := s.members(&out); err != nil {
			return fmt.Errorf("%s: shard %d: %w", s.byID[out.Best].Dir, id, err)
		}
		s.plan.Shards = append(s.plan.Shards, out)
	}
	return nil
}

// members finds out who took part in a shard: as of the last flush of the best log, and what that changes after it.
func (s *survivors) members(out *RecoveryShard) error {
	if out.Best != 0 {
		best := s.byID[out.Best]
		if last := out.best().Last; out.commit() > last {
			return fmt.Errorf("others know entries up to %d to be committed, but this log, which has the latest term, ends at %d: one of the directories is not what its node has left", out.commit(), last)
		}
		for _, l := range out.Logs { // what is flushed was committed, and whoever has the latest term has it
			flushed := s.byID[l.Node].stored[out.Shard]
			for _, e := range best.entries(out.Shard) {
				if Index(e.Index) == flushed.Applied && Term(e.Term) != flushed.Term {
					return fmt.Errorf("entry %d has term %d here, and node %d has flushed it with term %d: one of the directories is not what its node has left", e.Index, e.Term, l.Node, flushed.Term)
				}
			}
		}
		members := core.Configuration{Voters: out.Voters}
		if m := best.stored[out.Shard].Members; len(m.Voters) > 0 {
			members = m
		}
		changes, err := core.MemberChanges(members, best.entries(out.Shard))
		if err != nil {
			return err
		}
		for _, c := range changes {
			committed := c.Index <= out.commit()
			if committed {
				members = c.Members
			}
			out.Changes = append(out.Changes, SurvivorChange{Index: c.Index, Change: c.Change, Voters: c.Members.Voters, Outgoing: c.Members.Outgoing, Committed: committed})
		}
		out.Voters, out.Outgoing = members.Voters, members.Outgoing
	}
	for _, voter := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(out.Voters, out.Outgoing)))) {
		if s.byID[voter] != nil {
			out.Present = append(out.Present, voter)
		} else {
			out.Missing = append(out.Missing, voter)
		}
	}
	return nil
}

// log looks at what a survivor has of a shard, and refuses one that has lost a part: what is left of it may be older than what it has acknowledged.
func (v *survivor) log(id ShardID) (SurvivorLog, error) {
	stored := v.stored[id]
	l := SurvivorLog{Node: v.Node, Flushed: stored.Applied, Commit: stored.Applied, Last: stored.Applied, LastTerm: stored.Term}
	w := v.shards[uint64(id)]
	if w == nil {
		if l.Flushed > 0 {
			return l, fmt.Errorf("the state is flushed up to %d, but the write-ahead log knows nothing of the shard: this node has lost part of its log", l.Flushed)
		}
		return l, nil
	}
	for _, e := range v.entries(id) {
		if Index(e.Index) != l.Last+1 {
			return l, fmt.Errorf("the write-ahead log has entry %d after %d: a part of it is missing", e.Index, l.Last)
		}
		l.Last, l.LastTerm = Index(e.Index), Term(e.Term)
	}
	if l.Commit = max(l.Commit, Index(w.HardState.Commit)); l.Commit > l.Last {
		return l, fmt.Errorf("entries up to %d are known to be committed, but the log ends at %d: this node has lost part of its log", l.Commit, l.Last)
	}
	return l, nil
}

// entries are those after the flush that a start would take up, and no others.
func (v *survivor) entries(id ShardID) []wal.Entry {
	w := v.shards[uint64(id)]
	if w == nil {
		return nil
	}
	return core.Continuing(v.stored[id].Applied, v.stored[id].Term, w.Entries)
}

// sign draws the token from all that was found and asked for.
func (s *survivors) sign(o RecoverOptions) error {
	all := struct {
		Plan   RecoveryPlan
		Data   map[NodeID]string
		Nodes  map[NodeID]string
		Voters map[ShardID][]NodeID
		Backup string
	}{*s.plan, map[NodeID]string{}, o.Nodes, o.Voters, o.Backup}
	for id, v := range s.byID {
		all.Data[id] = v.identity.Data
	}
	b, err := json.Marshal(all)
	sum := sha256.Sum256(b)
	s.plan.Token = fmt.Sprintf("%x-%x-%x", sum[0:2], sum[2:4], sum[4:6])
	return err
}

func (s *survivors) mayRecover(o RecoverOptions) error {
	something := slices.ContainsFunc(s.plan.Shards, func(r RecoveryShard) bool { return r.Best != 0 })
	needed := slices.ContainsFunc(s.plan.Shards, func(r RecoveryShard) bool { return !r.Majority() })
	switch {
	case o.Confirm == "":
		return errors.New("RecoverOptions.Confirm is empty: inspect first, read what may be lost, and give the token that is shown there")
	case o.Confirm != s.plan.Token:
		return fmt.Errorf("the token %s is not that of what is found and asked for now: inspect again", o.Confirm)
	case !needed && !o.EvenWithMajority:
		return errors.New("a majority of the voters of every shard is here, so nothing is lost: start these nodes, and replace the missing ones; EvenWithMajority goes on nevertheless")
	case !something:
		return errors.New("none of the survivors has anything of any shard: there is nothing to recover")
	case o.Cluster == s.plan.Cluster:
		return fmt.Errorf("the new cluster has the name of the old one, %q: choose another, so that no node of the old cluster can ever talk to one of the new", o.Cluster)
	case o.Backup == "":
		return errors.New("RecoverOptions.Backup is empty: name a new directory for a backup of what was found")
	}
	// What Restore would refuse, before anything is written.
	r := &RestoreOptions{Backup: o.Backup, Cluster: o.Cluster, Nodes: o.Nodes, Members: o.Members}
	if err := r.check(); err != nil {
		return err
	}
	for _, id := range r.nodes() {
		if err := datadir.RefuseUsed(theDisk(), o.Nodes[id]); err != nil {
			return err
		}
	}
	return nil
}

// backUp writes the best log of every shard as a backup.
func (s *survivors) backUp(ctx context.Context, o RecoverOptions) error {
	if err := datadir.MakeDir(theDisk(), o.Backup); err != nil {
		return err
	}
	sink, err := snapshot.NewDirSink(vfs.Default, o.Backup, 0)
	if err != nil {
		return err
	}
	if err = s.backUpTo(ctx, sink, o); err != nil {
		return errors.Join(err, sink.Abort())
	}
	return nil
}

func (s *survivors) backUpTo(ctx context.Context, sink snapshot.Sink, o RecoverOptions) error {
	note := "Made of what was left after the loss of a quorum. Not all of its entries are known to have been committed."
	w, err := snapshot.NewBackupWriter(sink, snapshot.Backup{Cluster: s.plan.Cluster, Library: libraryVersion(), Note: note}, snapshot.BackupOptions{Progress: o.Progress})
	if err != nil {
		return err
	}
	for i := range s.plan.Shards {
		if r := &s.plan.Shards[i]; r.Best != 0 {
			if err := s.byID[r.Best].backUp(ctx, w, s.plan.Cluster, r.Shard); err != nil {
				return fmt.Errorf("shard %d of node %d: %w", r.Shard, r.Best, err)
			}
		}
	}
	_, err = w.Finish()
	return err
}

func (v *survivor) backUp(ctx context.Context, w *snapshot.BackupWriter, cluster string, id ShardID) error {
	source := snapshot.BackupSource{Shard: uint64(id), Entries: allEntries(v.entries(id))}
	if v.stored[id].Applied > 0 {
		cut, err := v.store.Cut(uint64(id))
		if err != nil {
			return err
		}
		defer cut.Close()
		source.Cut = cut
		if source.Info, err = core.SnapshotInfo(cluster, cut.Meta()); err != nil {
			return err
		}
	}
	return w.Add(ctx, source)
}

func allEntries(entries []wal.Entry) iter.Seq2[snapshot.Entry, error] {
	return func(yield func(snapshot.Entry, error) bool) {
		for _, e := range entries {
			if !yield(snapshot.Entry(e), nil) {
				return
			}
		}
	}
}
