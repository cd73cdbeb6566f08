package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// snapshotAt makes a snapshot of a leader that has decided some commands, in dir of the file system fs.
func snapshotAt(t *testing.T, fs *vfs.MemFS, dir string, commands int) *snapshot.Snapshot {
	t.Helper()
	h := newHand(t, Limits{})
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: 4})
	h.settle(1)
	h.lead() // in a later term
	for range commands {
		h.submit("A")
	}
	var cut []byte
	h.in.Calls = append(h.in.Calls, func(w *Worker) {
		w.Cut(t.Context(), 1, true, func(manifest []byte, err error) {
			if err != nil {
				t.Error(err)
			}
			cut = manifest
		})
	})
	var s *snapshot.Snapshot
	for i := 0; i < 50 && cut == nil; i++ {
		h.settle(1)
		for _, c := range h.cuts {
			s = h.cutTo(fs, dir, c)
			h.in.Cuts = append(h.in.Cuts, c)
		}
		h.cuts = nil
	}
	if s == nil {
		t.Fatal("nothing was cut")
	}
	return s
}

func (h *hand) cutTo(fs *vfs.MemFS, dir string, done *CutDone) *snapshot.Snapshot {
	h.t.Helper()
	d, err := snapshot.Open(snapshot.Options{Path: dir, FS: fs, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := h.store.Cut(1)
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	info, err := SnapshotInfo("c", c.Meta())
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := d.Cut(h.t.Context(), c, snapshot.CutOptions{Info: info})
	if err != nil {
		h.t.Fatal(err)
	}
	if done.Manifest, err = s.EncodedManifest(); err != nil {
		h.t.Fatal(err)
	}
	return s
}

// cutFails cuts a snapshot into dir, which must not succeed, and returns why.
func (h *hand) cutFails(dir string) error {
	h.t.Helper()
	d, err := snapshot.Open(snapshot.Options{Path: dir, FS: h.fs, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := h.store.Cut(1)
	if err != nil {
		return err
	}
	defer c.Close()
	info, err := SnapshotInfo("c", c.Meta())
	if err != nil {
		return err
	}
	if _, err = d.Cut(h.t.Context(), c, snapshot.CutOptions{Info: info}); err == nil {
		h.t.Fatal("the cut succeeded")
	}
	return err
}

// offer sends the replica a snapshot as its leader, node 1, would, and has it fetched.
func (h *hand) offer(s *snapshot.Snapshot, term uint64) {
	h.t.Helper()
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: term})
	h.sendSnapshot(s, term)
	h.sync() // term and vote
	h.pass(1)
	if len(h.fetches) != 1 {
		h.t.Fatalf("%d fetches", len(h.fetches))
	}
	h.arrives(s)
}

// sendSnapshot has the replica told of a snapshot by its leader, node 1.
func (h *hand) sendSnapshot(s *snapshot.Snapshot, term uint64) {
	h.t.Helper()
	manifest, err := s.EncodedManifest()
	if err != nil {
		h.t.Fatal(err)
	}
	o := offered{source: 3, manifest: manifest}
	m := s.Manifest
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgSnap, Term: term, Snapshot: raftpb.Snapshot{Data: o.encode(),
		Metadata: raftpb.SnapshotMetadata{Index: m.Index, Term: m.Term, ConfState: raftpb.ConfState{Voters: m.Config.Voters}}}})
	h.pass(1)
}

// arrives ends what is being fetched.
func (h *hand) arrives(s *snapshot.Snapshot) {
	for _, f := range h.fetches {
		f.Snapshot = s
	}
	h.in.Fetched, h.fetches = h.fetches, nil
	h.pass(1)
}

// A crash between the installation of a snapshot and the record of it leaves a log that ends before the state, or contradicts it. The
// next start must make it whole again: what is acknowledged after it must survive the next crash too.
func TestCrashAfterInstall(t *testing.T) {
	for name, old := range map[string][]raftpb.Entry{
		"the log ends before": {{Index: 1, Term: 1}, {Index: 2, Term: 1}},
		"the log contradicts": entriesOf(1, 60, 1),
		"there was no log":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHand(t, Limits{})
			s := snapshotAt(t, h.fs, "snap", 3)
			index := s.Manifest.Index
			log := wal.NewMemory()
			write := func() {
				h.t.Helper()
				h.logTo(log)
			}
			if old != nil {
				h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 1, Entries: old})
				h.pass(1)
				write()
				h.sync()
				h.pass(1)
			}
			manifest := s.Manifest
			if manifest.Term == 1 {
				t.Fatalf("the snapshot is of term 1 itself")
			}
			h.offerWriting(s, 7, write)
			if len(h.installs) != 1 {
				t.Fatalf("%d installations", len(h.installs))
			}
			if err := h.installs[0].Job.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			// The crash: the state is the snapshot's, the log knows nothing of it.
			for range 2 { // and another one after more was acknowledged
				h.reopen(&log)
				if r := h.replica(); uint64(r.applied) != index {
					t.Fatalf("applied %d, the snapshot is of %d", r.applied, index)
				}
				h.pass(1)
				write()
				h.sync()
				last := h.replica().log.last()
				h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 9, Index: last, LogTerm: lastTerm(t, h), Entries: []raftpb.Entry{{Index: last + 1, Term: 9}, {Index: last + 2, Term: 9}}})
				h.pass(1)
				write()
				h.sync()
				h.pass(1)
				if got := h.replica().log.last(); got != last+2 {
					t.Fatalf("the log ends at %d, want %d", got, last+2)
				}
			}
			h.reopen(&log)
			if got := h.replica().log.last(); got != index+4 {
				t.Errorf("entries up to %d were acknowledged, the log ends at %d", index+4, got)
			}
		})
	}
}

func lastTerm(t *testing.T, h *hand) uint64 {
	term, err := h.replica().log.Term(h.replica().log.last())
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func entriesOf(from, to, term uint64) (es []raftpb.Entry) {
	for i := from; i <= to; i++ {
		es = append(es, raftpb.Entry{Index: i, Term: term})
	}
	return es
}

// offerWriting is offer with a log that keeps what is written.
func (h *hand) offerWriting(s *snapshot.Snapshot, term uint64, write func()) {
	h.t.Helper()
	sync := h.onSync
	h.onSync = write
	h.offer(s, term)
	for range 3 {
		h.sync()
		h.pass(1)
	}
	h.onSync = sync
}

// reopen restarts the replica on its disk.
func (h *hand) reopen(log **wal.Memory) {
	h.t.Helper()
	if err := h.tryReopen(log); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hand) tryReopen(log **wal.Memory) error {
	h.t.Helper()
	h.close()
	h.writes, h.flushes, h.in, h.installs, h.sent, h.stopped = nil, nil, Input{}, nil, nil, nil
	reopened, rec, err := (*log).Reopen()
	if err != nil {
		h.t.Fatal(err)
	}
	*log = reopened
	return h.tryOpen(*rec.Shards[1])
}

// A cut that is under way when a snapshot arrives ends some time; the installation waits for it, and for no more than that.
func TestInstallWaitsForACut(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 1, Entries: entriesOf(1, 3, 1), Commit: 3})
	h.pass(1)
	h.sync()
	h.pass(1)
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Cut(t.Context(), 1, true, func([]byte, error) {}) })
	h.pass(1)
	h.sync()
	h.pass(1)
	if len(h.cuts) != 1 {
		t.Fatalf("%d cuts are under way", len(h.cuts))
	}
	h.offer(s, 7)
	if len(h.installs) != 0 {
		t.Fatal("installed beside a cut")
	}
	h.in.Ticks = 1
	h.pass(1)
	if !h.cuts[0].Hurry() {
		t.Error("the cut may rest, and is waited for")
	}
	h.cuts[0].Err = ErrNoSource // any error
	h.in.Cuts, h.cuts = h.cuts, nil
	h.pass(1)
	if len(h.installs) != 1 {
		t.Fatal("the installation does not go on")
	}
	h.finishInstall(nil)
	if r := h.replica(); uint64(r.applied) != s.Manifest.Index || r.writing || r.installing != nil {
		t.Errorf("applied %d of %d, writing %v", r.applied, s.Manifest.Index, r.writing)
	}
}

// finishInstall runs the installation, or has it fail.
func (h *hand) finishInstall(err error) {
	for _, d := range h.installs {
		if d.Err = err; err == nil {
			d.Err = d.Job.Run(h.t.Context())
		}
	}
	h.in.Installed, h.installs = h.installs, nil
	for range 3 {
		h.pass(1)
		h.sync()
	}
	h.pass(1)
}

// A replica that stops in the middle of an installation must not keep others from releasing their log.
func TestStopDuringInstall(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	h.offer(s, 7)
	h.finishInstall(ErrNoSource)
	r := h.replica()
	if h.stopped == nil || r.writing || r.installing != nil {
		t.Fatalf("stopped: %v, writing %v", h.stopped, r.writing)
	}
	h.in.Pinned = []ShardID{1}
	h.pass(1)
	if len(h.writes) == 0 {
		t.Error("it holds back the log")
	}
}

// After a restart the log is told what is flushed: what is at rest would hold it back for ever.
func TestRestartReleasesTheLog(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	for range 50 {
		h.submit("A")
	}
	h.settle(5)
	flushed := h.replica().log.flushed
	if flushed == 0 {
		t.Fatal("nothing was flushed")
	}
	log := wal.ShardLog{HardState: wal.HardState{Term: uint64(h.replica().raftTerm), Commit: flushed}}
	h.close()
	h.released, h.in, h.writes, h.flushes = 0, Input{}, nil, nil
	h.open(log)
	if uint64(h.released) != flushed {
		t.Errorf("the log may release entries up to %d, flushed are %d", h.released, flushed)
	}
}

// A snapshot is refused if it is not what its message says, or not of this shard.
func TestStrangeSnapshots(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	manifest, err := s.EncodedManifest()
	if err != nil {
		t.Fatal(err)
	}
	o := offered{source: 3, manifest: manifest}
	good := o.encode()
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: 7})
	h.settle(2)
	for name, m := range map[string]raftpb.Snapshot{
		"no data":       {Metadata: raftpb.SnapshotMetadata{Index: s.Manifest.Index, Term: s.Manifest.Term}},
		"half":          {Data: good[:len(good)/2], Metadata: raftpb.SnapshotMetadata{Index: s.Manifest.Index, Term: s.Manifest.Term}},
		"another index": {Data: good, Metadata: raftpb.SnapshotMetadata{Index: s.Manifest.Index + 1, Term: s.Manifest.Term}},
		"another term":  {Data: good, Metadata: raftpb.SnapshotMetadata{Index: s.Manifest.Index, Term: s.Manifest.Term + 1}},
		"version 9":     {Data: append([]byte{9}, good[1:]...), Metadata: raftpb.SnapshotMetadata{Index: s.Manifest.Index, Term: s.Manifest.Term}},
	} {
		h.message(raftpb.Message{From: 1, Type: raftpb.MsgSnap, Term: 7, Snapshot: m})
		h.settle(2)
		if h.stopped != nil || len(h.fetches) > 0 || h.replica().applied != 0 {
			t.Errorf("%s: stopped %v, %d fetches", name, h.stopped, len(h.fetches))
		}
	}
}

// A cut that takes long is waited for as long as it gets on, and no longer; who cuts says how far it is.
func TestPatienceWithACut(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("A")
	timeouts := func(n int, bytes uint64) {
		t.Helper()
		for range n {
			c := h.replica().lead.cutting
			h.in.Notes = append(h.in.Notes, Note{From: c.from, Shard: 1, Kind: noteCutting, A: uint64(c.min), B: bytes})
			h.in.Calls = append(h.in.Calls, func(*Worker) { h.replica().lead.snapWanted = true }) // raft asks again
			h.settle(1)
			h.now.Mono += h.replica().electionNanos() / 2
			h.in.Calls = append(h.in.Calls, func(*Worker) { h.replica().lead.snapWanted = true })
			h.settle(1)
			h.now.Mono += h.replica().electionNanos() / 2
		}
	}
	h.in.Calls = append(h.in.Calls, func(*Worker) { h.replica().lead.snapWanted = true })
	h.settle(1)
	c := h.replica().lead.cutting
	if c == nil || c.from == 2 {
		t.Fatalf("nobody else is asked: %+v", c)
	}
	for i := range uint64(4) {
		timeouts(cutPatience/2, i+1)
	}
	if h.replica().lead.cutting != c {
		t.Fatal("a cut that gets on is given up")
	}
	timeouts(cutPatience+1, 4)
	if now := h.replica().lead.cutting; now == nil || now.from == c.from {
		t.Errorf("a cut that does not get on is waited for: %+v", now)
	}

	f := newHand(t, Limits{})
	f.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 1, Entries: entriesOf(1, 3, 1), Commit: 3})
	f.settle(1)
	f.in.Notes = append(f.in.Notes, Note{From: 1, Shard: 1, Kind: noteCutWanted, A: 2})
	f.settle(1)
	if len(f.cuts) != 1 {
		t.Fatalf("%d cuts are under way", len(f.cuts))
	}
	f.cuts[0].Progress(4711)
	f.notes = nil
	f.in.Ticks = 1
	f.pass(1)
	told := slices.ContainsFunc(f.notes, func(n Note) bool { return n.Kind == noteCutting && n.A == 2 && n.B == 4711 })
	if !told {
		t.Errorf("the leader is not told how far the cut is: %+v", f.notes)
	}
}

// A replica that has stopped says so to the leader that wants it to cut. It was asked again and again for sixty election timeouts, with nobody brought up to date meanwhile.
//
// Mutation with which it was seen to fail: it says nothing.
func TestStoppedReplicaCutsNothing(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.replica().stop(broken(CodeStorage, errors.New("a bad sector"), "the state store could not be read"))
	h.notes, h.noted = nil, nil
	h.in.Notes = append(h.in.Notes, Note{From: 3, Shard: 1, Kind: noteCutWanted, A: 7})
	h.pass(1)
	if len(h.notes) != 1 || h.noted[0] != 3 || h.notes[0].Kind != noteCut || h.notes[0].A != 7 || len(h.notes[0].Data) > 0 {
		t.Errorf("it says %v to %v", h.notes, h.noted)
	}
}

// A leader whose cut meets damage gives its place up: it would meet the damage with every attempt, and who needs the snapshot would wait for ever. So does
// whoever is told to cut. One that fails for another reason is begun again.
func TestCutThatMeetsDamage(t *testing.T) {
	for name, damaged := range map[string]bool{"damage": true, "another reason": false} {
		t.Run(name, func(t *testing.T) {
			h := newHand(t, Limits{FlushBytes: 64 << 10})
			h.lead()
			for range 5 {
				h.submit("A")
			}
			want := func() *CutDone {
				t.Helper()
				l := h.replica().lead
				l.snapWanted, l.cutFailed = true, map[NodeID]int64{1: h.now.Mono, 3: h.now.Mono} // nobody else can
				h.replica().wantSnapshot()
				h.settle(1)
				if len(h.cuts) != 1 {
					t.Fatalf("%d cuts are under way", len(h.cuts))
				}
				cut := h.cuts[0]
				h.cuts = nil
				return cut
			}
			cut := want()
			if damaged {
				h.spoilTables()
				cut.Err = h.cutFails("snap")
			} else {
				cut.Err = errors.New("there is no room")
			}
			h.in.Cuts = append(h.in.Cuts, cut)
			h.pass(1)
			if !damaged {
				if h.stopped != nil {
					t.Fatalf("it stops: %v", h.stopped)
				}
				want()
				return
			}
			if !state.IsDamage(cut.Err) {
				t.Fatalf("the cut failed with %v", cut.Err)
			}
			if h.stopped == nil || h.stopped.Code != CodeStorage {
				t.Fatalf("it goes on, and will cut again: it stopped with %v", h.stopped)
			}
			h.stopped = nil
			if st, _ := h.w.Status(1); st.Role == "leader" {
				t.Errorf("it leads: %+v", st)
			}
		})
	}
}

// spoilTables changes bytes all over each of the state store's tables.
func (h *hand) spoilTables() {
	h.t.Helper()
	names, err := h.fs.List("state/pebble")
	if err != nil {
		h.t.Fatal(err)
	}
	spoiled := 0
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		f, err := h.fs.OpenReadWrite("state/pebble/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			h.t.Fatal(err)
		}
		info, err := f.Stat()
		for at := int64(0); err == nil && at < info.Size()/2; at += 50 {
			_, err = f.WriteAt([]byte{0x55}, at)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			h.t.Fatal(err)
		}
		spoiled++
	}
	if spoiled == 0 {
		h.t.Fatal("there are no tables")
	}
}

// A cut may rest as long as there is room for what is logged meanwhile. What was in the journal before it does not count.
func TestCutHurries(t *testing.T) {
	h := newHand(t, smallCache)
	h.lead()
	h.replica().cfg.JournalMaxBytes = 1 << 20
	h.mute = 3 // and lacks all that follows
	write := func(bytes int) {
		for range bytes / (8 << 10) {
			h.submit(strings.Repeat("x", 8<<10))
		}
	}
	write(768 << 10)
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Cut(t.Context(), 1, true, func([]byte, error) {}) })
	h.settle(1)
	if len(h.cuts) != 1 {
		t.Fatalf("%d cuts are under way", len(h.cuts))
	}
	write(128 << 10)
	h.settle(1)
	if h.cuts[0].Hurry() {
		t.Fatal("a cut hurries that has time")
	}
	write(192 << 10)
	h.settle(1)
	if !h.cuts[0].Hurry() {
		t.Error("a cut does not hurry, and more than a quarter of the journal is from after it")
	}
	h.cuts[0].Err = ErrNoSource // any error
	h.in.Cuts, h.cuts = h.cuts, nil
	h.pass(1)
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Cut(t.Context(), 1, true, func([]byte, error) {}) })
	h.settle(1)
	if len(h.cuts) != 1 || h.cuts[0].Hurry() {
		t.Errorf("the next of %d cuts has no time from the start", len(h.cuts))
	}
}

// A snapshot that takes so long that the journal does not continue it any more is of no use. Whoever operates the shard hears of it.
func TestOvertakenSnapshot(t *testing.T) {
	h := newHand(t, smallCache)
	h.w.cfg.JournalMaxBytes = 64 << 10
	h.lead()
	h.submit("x")
	term := uint64(h.replica().raftTerm)
	many := func() {
		for range 3000 {
			h.in.Notes = append(h.in.Notes, Note{From: 3, Shard: 1, Kind: noteFetching}) // if it does
			h.submit("x")
		}
	}
	h.mute = 3
	if many(); !h.replica().cutShort {
		t.Fatal("the journal is not cut short")
	}
	asks := func() {
		h.in.Unreachable = []NodeID{3}
		h.pass(1)
		h.message(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: 3, Term: term})
		h.settle(1)
	}
	sends := func() (index uint64) {
		t.Helper()
		asks()
		l := h.replica().lead
		if l.cutting == nil || l.cutting.from != 1 {
			t.Fatalf("no snapshot is wanted: %+v", l.cutting)
		}
		done := &CutDone{}
		s := h.cutTo(h.fs, fmt.Sprint("snap", h.replica().applied), done)
		h.in.Notes = append(h.in.Notes, Note{From: 1, Shard: 1, Kind: noteCut, A: uint64(l.cutting.min), Data: done.Manifest})
		h.settle(1)
		asks()
		if v, _ := h.w.Members(1); v.Progress[3].State != "snapshot" {
			t.Fatalf("no snapshot is sent: %+v", v.Progress[3])
		}
		return s.Manifest.Index
	}
	arrives := func(index uint64) {
		h.message(raftpb.Message{Type: raftpb.MsgAppResp, From: 3, Term: term, Index: index})
		h.settle(2)
	}
	index := sends()
	many()
	arrives(index)
	if n := h.replica().stats.Overtaken; n != 1 {
		t.Errorf("it was overtaken %d times, want once", n)
	}
	h.replica().lead.offered = nil
	arrives(sends())
	if n := h.replica().stats.Overtaken; n != 1 {
		t.Errorf("one that came in time counts: %d", n)
	}
}

// Who could not cut once is asked again after a while: it may have been repaired since, and this leader may have no room itself.
//
// Mutation with which it was seen to fail: it is never forgotten.
func TestFailedCutIsForgotten(t *testing.T) {
	h := newHand(t, Limits{FlushBytes: 64 << 10})
	h.lead()
	for range 5 {
		h.submit("A")
	}
	r := h.replica()
	asked := func() (who NodeID) {
		t.Helper()
		h.notes, h.noted = nil, nil
		r.lead.snapWanted = true
		r.touch()
		h.pass(1)
		if len(h.cuts) == 1 {
			return 2
		}
		if len(h.notes) != 1 || h.notes[0].Kind != noteCutWanted {
			t.Fatalf("%d cuts are under way, and %v was said", len(h.cuts), h.notes)
		}
		return h.noted[0]
	}
	for _, n := range []NodeID{1, 3} {
		if who := asked(); who != n {
			t.Fatalf("node %d is asked, want %d", who, n)
		}
		h.in.Notes = []Note{{From: n, Shard: 1, Kind: noteCut, A: h.notes[0].A}} // it has stopped
		h.pass(1)
	}
	for _, c := range []struct{ later, want int64 }{{1, 2}, {1000, 2}, {cutPatience * r.electionNanos() / 1e6, 1}} {
		h.now.Mono += c.later * 1e6
		if who := asked(); who != NodeID(c.want) {
			t.Fatalf("%d ms later node %d is asked, want %d", c.later, who, c.want)
		}
		for _, cut := range h.cuts {
			cut.Err = errors.New("there is no room")
		}
		h.in.Cuts, h.cuts = h.cuts, nil
		h.pass(1)
	}
}

// A snapshot that raft is to install, and has not asked for yet, is not replaced by the next one, which raft may have no use for: it has been given the entries meanwhile. One that
// raft does not want keeps no other from being fetched.
//
// Mutations with which it was seen to fail: the next one is fetched too; what raft does not want is kept.
func TestSecondSnapshotBeforeTheFirst(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		h := newHand(t, Limits{})
		first, second := snapshotAt(t, h.fs, "first", 3), snapshotAt(t, h.fs, "second", 6)
		a, b := first.Manifest, second.Manifest
		if a.Index >= b.Index || a.Term != b.Term {
			t.Fatalf("snapshots at %d and %d of terms %d and %d", a.Index, b.Index, a.Term, b.Term)
		}
		term := a.Term + 1
		gets := func(from, to, commit uint64) {
			m := raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: term, Index: from, Commit: commit}
			if from > 0 {
				m.LogTerm = a.Term
			}
			for i := from + 1; i <= to; i++ {
				m.Entries = append(m.Entries, raftpb.Entry{Index: i, Term: a.Term})
			}
			h.message(m)
			h.pass(1)
		}
		h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: term})
		h.sendSnapshot(first, term)
		if wanted {
			h.arrives(first) // the term is being written, and raft is not asked
			gets(a.Index, b.Index, a.Index)
		} else {
			gets(0, a.Index, a.Index)
			h.settle(1)
			h.arrives(first)
		}
		h.sendSnapshot(second, term)
		if n := len(h.fetches); (n == 0) != wanted {
			t.Errorf("wanted %v: %d are fetched", wanted, n)
		}
		h.arrives(second)
		h.sync()
		h.pass(1)
		if h.stopped != nil {
			t.Fatal(h.stopped)
		}
		want := first
		if !wanted {
			want = second
		}
		if len(h.installs) != 1 || h.installs[0].Snapshot != want {
			t.Errorf("wanted %v: %d snapshots are being installed, want that at %d", wanted, len(h.installs), want.Manifest.Index)
		}
	}
}

// Who waits for a cut and leaves keeps nobody else out, while the flush hangs for which all cuts wait.
//
// Mutation with which it was seen to fail: who has left stays.
func TestCutsOfWhoHasLeft(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.hung = true
	h.submit("A")
	ctx, leave := context.WithCancel(t.Context())
	ask := func() (err error) {
		h.w.Cut(ctx, 1, true, func(_ []byte, e error) { err = e })
		h.pass(1)
		return err
	}
	for range maxCuts {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(); err == nil {
		t.Fatalf("%d cuts are waited for", len(h.replica().cuts))
	}
	leave()
	ctx = t.Context()
	if err := ask(); err != nil || len(h.replica().cuts) != 1 {
		t.Errorf("%d cuts are waited for, and the next is told %v", len(h.replica().cuts), err)
	}
}
