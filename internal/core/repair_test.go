package core

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/snapshot"
	"github.com/decree-raft/decree/wal"
)

// damage takes the replica out of service.
func (h *hand) damage(code Code) {
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.replicas[1].stop(broken(code, nil, "for a test")) })
	h.pass(1)
}

// repair begins the repair from a snapshot, and returns where its outcome will be.
func (h *hand) repair(s *snapshot.Snapshot) *error {
	outcome := errors.New("it is under way")
	h.in.Calls = append(h.in.Calls, func(w *Worker) { w.Repair(1, s, func(err error) { outcome = err }) })
	h.pass(1)
	return &outcome
}

// logging returns a log, and what writes into it what waits to be written.
func (h *hand) logging() (*wal.Memory, func()) {
	log := wal.NewMemory()
	return log, func() {
		h.t.Helper()
		h.logTo(log)
		h.sync()
	}
}

// installed hands back what was installed, without a pass.
func (h *hand) installed() {
	h.t.Helper()
	if len(h.installs) != 1 {
		h.t.Fatalf("%d installations are under way", len(h.installs))
	}
	h.installs[0].Err = h.installs[0].Job.Run(h.t.Context())
	h.in.Installed, h.installs = h.installs, nil
}

// What was being flushed when a replica stopped may be flushed yet, and then a snapshot must have it: nobody is told what one must have before.
//
// Mutation with which it was seen to fail: Repairable does not look at it.
func TestRepairableWhenAtRest(t *testing.T) {
	h := newHand(t, smallCache)
	h.message(raftpb.Message{Type: raftpb.MsgApp, From: 1, Term: 1, Entries: entriesOf(1, 1200, 1), Commit: 1200})
	h.pass(1)
	h.sync()
	h.hung = true
	h.pass(1)
	h.pass(1)
	if len(h.flushes) != 1 {
		t.Fatalf("%d flushes are under way, want one", len(h.flushes))
	}
	h.damage(CodeStorage)
	least, err := Index(0), error(nil)
	ask := func() {
		h.in.Calls = append(h.in.Calls, func(w *Worker) { least, _, err = w.Repairable(1) })
		h.pass(1)
	}
	ask()
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeRepair || e.RetryAfter <= 0 {
		t.Errorf("while it is flushed: %d, %v", least, err)
	}
	index := h.flushes[0].index
	h.hung = false
	h.sync()
	h.pass(1)
	if ask(); err != nil || least != index {
		t.Errorf("a snapshot of %d would do, and %d is flushed: %v", least, index, err)
	}
}

// The log asks a replica to write its records again, at any time. While one is repaired, its old entries lie before those of the snapshot.
func TestLogPressesDuringRepair(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	log, write := h.logging()
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 1, Entries: entriesOf(1, 2, 1), Commit: 2})
	h.pass(1)
	write()
	h.pass(1)
	h.damage(CodeStorage)
	outcome := h.repair(s)
	write() // the snapshot's term comes first
	h.pass(1)
	h.in.Pinned = []ShardID{1}
	h.installed()
	h.pass(1)
	write()
	h.pass(1)
	write()
	if *outcome != nil {
		t.Fatal(*outcome)
	}
	if r := h.replica(); r.broken != nil || uint64(r.applied) != s.Manifest.Index {
		t.Errorf("broken: %v, applied %d of %d", r.broken, r.applied, s.Manifest.Index)
	}
	h.reopen(&log)
	if r := h.replica(); uint64(r.applied) != s.Manifest.Index {
		t.Errorf("applied %d of %d after a restart", r.applied, s.Manifest.Index)
	}
}

// A replica that has lost what it had acknowledged must not go on under its id, whatever state it is given, and however often it is started again.
//
// Mutations with which it was seen to fail: contain does not record the loss ("at rest"); written does not ("writing").
func TestLostLogIsNotRepaired(t *testing.T) {
	t.Run("at rest", func(t *testing.T) { lostLogIsNotRepaired(t, false) })
	t.Run("writing", func(t *testing.T) { lostLogIsNotRepaired(t, true) })
}

func lostLogIsNotRepaired(t *testing.T, writing bool) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	log, write := h.logging()
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 4, Entries: entriesOf(1, 2, 4), Commit: 2})
	h.pass(1)
	write()
	h.pass(1)
	if writing {
		h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 5, Index: 2, LogTerm: 4, Entries: entriesOf(3, 4, 5), Commit: 2})
		h.pass(1)
	}
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgHeartbeat, Term: 5, Commit: 10}) // which this replica acknowledged before it lost them
	h.pass(1)
	for range 3 {
		write()
		h.pass(1)
	}
	if h.stopped == nil || !strings.Contains(h.stopped.Message, "lost part of its log") {
		t.Fatalf("it goes on: %v", h.stopped)
	}
	if err := *h.repair(s); !errors.Is(err, &Error{Kind: ErrNotProposed, Code: CodeRepair}) || !strings.Contains(fmt.Sprint(err), "replace") {
		t.Errorf("repaired: %v", err)
	}
	if len(h.installs) > 0 {
		t.Error("a state is installed")
	}
	h.in.Pinned = []ShardID{1} // what is written again says so too
	h.pass(1)
	write()
	for range 2 {
		if err := h.tryReopen(&log); err == nil || !strings.Contains(err.Error(), "lost part of its log") {
			t.Errorf("started again: %v", err)
		}
	}
}

// A state that this program cannot go on with is not put in the place of one that it can.
func TestRepairWithNewerVersion(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	h.damage(CodeStorage)
	s.Manifest.MachineVersion = 7
	if err := *h.repair(s); !errors.Is(err, &Error{Kind: ErrNotProposed, Code: CodeRepair}) || !strings.Contains(fmt.Sprint(err), "newer program") {
		t.Errorf("got %v", err)
	}
	if len(h.installs) > 0 {
		t.Error("a state is installed")
	}
}

// What a repair that did not end has left on the disk is what the next one begins with.
func TestRepairedTwice(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	_, write := h.logging()
	h.message(raftpb.Message{From: 1, Type: raftpb.MsgApp, Term: 1, Entries: entriesOf(1, 2, 1), Commit: 2})
	h.pass(1)
	write()
	h.pass(1)
	h.damage(CodeStorage)
	outcome := h.repair(s)
	write()
	h.pass(1)
	h.installed()
	h.pass(1)
	term := h.replica().repairing.log.HardState.Term
	h.replica().repairing.log.HardState.Term = 0 // what newReplica refuses
	write()
	h.pass(1)
	if *outcome == nil || h.replica().broken == nil {
		t.Fatal("it is in service")
	}
	h.replica().log.hard.Term = term // as the disk has it
	var least Index
	h.in.Calls = append(h.in.Calls, func(w *Worker) { least, _, _ = w.Repairable(1) })
	h.in.Pinned = []ShardID{1}
	h.pass(1)
	write()
	if uint64(least) != s.Manifest.Index {
		t.Errorf("a snapshot of %d would do, the state is of %d", least, s.Manifest.Index)
	}
	if outcome = h.repair(s); len(h.installs) != 1 {
		t.Fatal(*outcome)
	}
	h.installed()
	h.pass(1)
	write()
	h.pass(1)
	if *outcome != nil {
		t.Error(*outcome)
	}
}

// A machine that panicked in the middle of a scan has left it open.
func TestRepairEndsScans(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	st := h.replica().state
	st.Set([]byte("a"), []byte("b"))
	next, stop := iter.Pull2(st.Scan(nil, nil))
	defer stop()
	if _, _, ok := next(); !ok {
		t.Fatal("nothing is there")
	}
	h.damage(CodeApplyPanic)
	outcome := h.repair(s)
	h.succeeds(outcome)
}

// succeeds goes on with a repair that was begun until it is done, and the replica in service.
func (h *hand) succeeds(outcome *error) {
	h.t.Helper()
	h.sync()
	h.pass(1)
	h.installed()
	h.pass(1)
	h.sync()
	h.pass(1)
	if *outcome != nil || h.replica().broken != nil {
		h.t.Errorf("%v, %v", *outcome, h.replica().broken)
	}
}

// A repair puts a state in place whose term the log has heard of, whatever comes between the two.
func TestRepairPromisesFirst(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	h.damage(CodeStorage)
	outcome := h.repair(s)
	if len(h.installs) > 0 || len(h.writes) != 1 || h.writes[0].Records[0].HardState.Term < s.Manifest.Term {
		t.Fatalf("%d installations, writes %v", len(h.installs), h.writes)
	}
	h.succeeds(outcome)
}

// Who asked for a repair may have left when it turns out that it cannot begin: the log says so as well.
//
// Mutation with which it was seen to fail: only who asked is told.
func TestRepairThatCannotBegin(t *testing.T) {
	h := newHand(t, Limits{})
	s := snapshotAt(t, h.fs, "snap", 3)
	h.damage(CodeStorage)
	outcome := h.repair(s)
	var said bytes.Buffer
	h.replica().logger = slog.New(slog.NewTextHandler(&said, nil))
	s.Manifest.Files = nil // which the state store does not take
	h.sync()
	h.pass(1)
	if *outcome == nil || h.replica().repairing != nil || h.replica().broken == nil {
		t.Errorf("%v; in service: %v", *outcome, h.replica().broken == nil)
	}
	if !strings.Contains(said.String(), "replica not repaired") {
		t.Errorf("the log says %q", said.String())
	}
}

// Raft panics with what it cannot read of the journal. That is damage like any other, which a peer can help with, and not a fault of this program.
//
// Mutation with which it was seen to fail: "damaged-journal".
func TestDamagedJournal(t *testing.T) {
	h := newHand(t, smallCache)
	h.gone = map[uint64]bool{3: true}
	h.lead()
	for range 1500 {
		h.submit("x") // which changes no state: all tables are journal, but for a record
	}
	if first, last := h.replica().state.JournalBounds(); first > h.last[3]+1 || last < 1000 {
		t.Fatalf("the journal has %d to %d, the follower has %d", first, last, h.last[3])
	}
	names, err := h.store.Tables(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := h.fs.UnsafeGetFileDataBuffer("state/pebble/" + name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/3] ^= 1 // in the middle: pebble has looked at its ends, and remembers them
	}
	h.gone = nil
	h.submit("y")
	h.settle(50)
	if h.stopped == nil || h.stopped.Code != CodeStorage || !strings.Contains(h.stopped.Error(), strings.TrimSuffix(names[0], ".sst")) {
		t.Errorf("stopped: %v", h.stopped)
	}
	var repairable error
	h.in.Calls = append(h.in.Calls, func(w *Worker) { _, _, repairable = w.Repairable(1) })
	h.pass(1)
	if repairable != nil {
		t.Error(repairable)
	}
}

// What a repair keeps of the log is one record, and the log has a limit: it takes a snapshot after which little enough comes.
//
// Mutation with which it was seen to fail: nobody looks.
func TestRepairKeepsNoMoreThanARecordTakes(t *testing.T) {
	for _, bytes := range []int{1 << 10, maxRewriteBytes / 16} {
		h := newHand(t, Limits{})
		s := snapshotAt(t, h.fs, "snap", 3)
		m := s.Manifest
		entries := entriesOf(1, m.Index, m.Term)
		data := make([]byte, bytes)
		for i := range uint64(16) { // in memory, all are the same
			entries = append(entries, raftpb.Entry{Index: m.Index + 1 + i, Term: m.Term, Data: data})
		}
		if err := h.replica().log.append(entries); err != nil {
			t.Fatal(err)
		}
		h.damage(CodeStorage)
		outcome := h.repair(s)
		if refused := errors.Is(*outcome, &Error{Code: CodeRepair}); refused != (bytes > 1<<20) {
			t.Errorf("with 16 entries of %d bytes: %v", bytes, *outcome)
		}
	}
}
