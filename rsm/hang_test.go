package rsm

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
)

// stuck hangs in Decide when it is told so, as a read of a dead disk would.
type stuck struct {
	counters
	in, out chan struct{}
}

func (m stuck) Decide(v View, c Command) ([][]byte, []byte, error) {
	if string(c.Data) == "hang" {
		m.in <- struct{}{}
		<-m.out
	}
	return m.counters.Decide(v, c)
}

// A pass that does not return keeps nobody waiting when the node stops, and when it returns late it still ends what was inside, once.
func TestCallsOfAPassThatHangs(t *testing.T) {
	m := stuck{in: make(chan struct{}), out: make(chan struct{})}
	c := startCluster(t, "", m, patient10s, func(cfg *Config) { cfg.Workers = 1 })
	n := leaderOf(t, c, 1)
	s := n.Shard(1)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}

	hung := s.Go(Request{Commands: [][]byte{[]byte("hang")}})
	<-m.in
	behind, read := s.Go(Request{Commands: [][]byte{[]byte("a")}}), s.GoRead(Linearizable, 0, []byte("a"))
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	for _, call := range []struct {
		name string
		call *Call
		want error
	}{{"inside", hung, ErrUnknown}, {"behind", behind, ErrBroken}, {"read", read, ErrBroken}} {
		if _, err := call.call.Wait(within(t)); !errors.Is(err, call.want) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: ended with %v, want %v", call.name, err, call.want)
		}
	}
	<-n.Done()
	close(m.out)
}

// Callbacks of what is inside such a pass come when it returns.
func TestCallbacksOfAPassThatHung(t *testing.T) {
	m := stuck{in: make(chan struct{}), out: make(chan struct{})}
	c := startCluster(t, "", m, patient10s, func(cfg *Config) { cfg.Workers = 1 })
	n := leaderOf(t, c, 1)
	told := make(chan error, 2)
	if err := n.Shard(1).GoFunc(Request{Commands: [][]byte{[]byte("hang")}}, func(_ Result, err error) { told <- err }); err != nil {
		t.Fatal(err)
	}
	<-m.in
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	<-n.Done()
	close(m.out)
	select {
	case err := <-told:
		if err == nil {
			t.Error("it was told that it happened")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the callback did not come")
	}
	if len(told) > 0 {
		t.Error("it came twice")
	}
}

// A node that closes waits for an audit that somebody has begun, as the files that it reads would stay open otherwise, and the same process could not start the node again.
//
// Mutation with which it was seen to fail: Audit holds up nobody.
func TestCloseBesideAudit(t *testing.T) {
	c := single(t, t.TempDir())
	in, out, audited := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, _, err := c.Node(1).Shard(1).Audit(func(View) error { close(in); <-out; return nil })
		audited <- err
	}()
	<-in
	closed := make(chan error, 1)
	go func() { closed <- c.Node(1).Close() }()
	select {
	case <-closed:
		t.Error("it was not waited for")
	case <-time.After(100 * time.Millisecond):
	}
	close(out)
	if err := <-audited; err != nil {
		t.Error(err)
	}
	c.Kill(1) // which is over when Close is
	if err := c.Restart(1); err != nil {
		t.Errorf("the files are still open: %v", err)
	}
}

// A pass that comes back after its node was given up does nothing more for those who have left, and lets go of what it has taken for them meanwhile.
//
// Mutations with which it was seen to fail, one by one: who leaves as the node is given up does not say so (with the race detector also in Audit, which then shares its results with the
// worker); nothing is let go of; what was begun is said to be not proposed.
func TestQuestionsToAPassThatComesBack(t *testing.T) {
	c := single(t, t.TempDir())
	n := c.Node(1)
	e := n.engine
	w := e.workerOf(1)
	waiting := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.in.Calls)
	}
	in, out := make(chan struct{}), make(chan struct{})
	w.post(func(i *core.Input) {
		i.Calls = append(i.Calls, func(*core.Worker) { close(in); <-out })
	})
	<-in
	// All of this is for the next pass, in this order.
	asked, left := make(chan error, 1), make(chan error, 3)
	begun, goOn, late := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		asked <- e.callOr(context.Background(), 1, func(*core.Worker) { close(begun); <-goOn }, func() { close(late) })
	}()
	eventually(t, "the first waits", func() bool { return waiting() == 1 })
	go func() {
		_, _, err := n.Shard(1).Audit(func(View) error { t.Error("it is audited"); return nil })
		left <- err
	}()
	go func() { _, err := n.pin(context.Background(), 1); left <- err }()
	go func() { _, _, err := n.Shard(1).Journal(context.Background(), 1, 1); left <- err }()
	eventually(t, "the others wait", func() bool { return waiting() == 4 })
	close(out)
	<-begun
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	if err := <-asked; !errors.Is(err, &Error{Kind: ErrUnknown, Code: core.CodeClosed}) {
		t.Errorf("what was begun ended with %v", err)
	}
	for range cap(left) {
		if err := <-left; !errors.Is(err, errClosed) {
			t.Errorf("what was not begun ended with %v", err)
		}
	}
	close(goOn)
	<-w.done
	select {
	case <-late:
	default:
		t.Error("what was begun is not let go of")
	}
	select {
	case <-e.bg.over():
	case <-time.After(20 * time.Second):
		t.Error("something is held for ever")
	}
	if n := n.store.Metrics().OpenVersions; n > 0 {
		t.Errorf("%d versions are held", n)
	}
}

// Who has asked a worker for something hears as the node ends whether it may have taken effect: it may if the worker had begun. Of what only reads nothing is in doubt.
//
// Mutations with which it was seen to fail, one by one: callOr says errClosed whatever became of the question; it says ErrUnknown of what was not begun; lookOr is callOr.
func TestEndOfTheNodeWithinAQuestion(t *testing.T) {
	c := onHungDisk(t, newHungDisk(), func(cfg *Config) { cfg.Workers = 2 })
	n := c.Node(1)
	type ask func(context.Context, ShardID, func(*core.Worker)) error
	out := make(chan struct{})
	defer close(out)
	begun := func(id ShardID, q ask) chan error {
		in, left := make(chan struct{}), make(chan error, 1)
		go func() { left <- q(context.Background(), id, func(*core.Worker) { close(in); <-out }) }()
		<-in
		return left
	}
	acts, looks := begun(1, n.engine.call), begun(2, n.engine.look)
	waits := make(chan error, 1)
	go func() {
		waits <- n.engine.call(context.Background(), 1, func(*core.Worker) { t.Error("it is done after all") })
	}()
	eventually(t, "it waits for the worker", func() bool {
		w := n.engine.workerOf(1)
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.in.Calls) > 0
	})
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	for _, test := range []struct {
		name string
		left chan error
		kind error
	}{{"begun", acts, ErrUnknown}, {"not begun", waits, ErrNotProposed}, {"only read", looks, ErrNotProposed}} {
		if err, ok := soon(func() error { return <-test.left }); !ok || !errors.Is(err, &Error{Kind: test.kind, Code: core.CodeClosed}) {
			t.Errorf("%s: it ended: %v, with %v", test.name, ok, err)
		}
	}
}

// slowWords is an error that takes long to say what it is.
type slowWords struct{ in, out chan struct{} }

func (e slowWords) Error() string { close(e.in); <-e.out; return "said at last" }

// Who asks whether a replica can be repaired, and leaves as the node is given up, shares nothing with the worker, which is at the answer still.
//
// Mutation with which it was seen to fail, with the race detector: the worker answers into repairable's results.
func TestRepairableIsLeft(t *testing.T) {
	n := onHungDisk(t, newHungDisk()).Node(1)
	words := slowWords{make(chan struct{}), make(chan struct{})}
	if err := n.engine.call(within(t), 1, func(w *core.Worker) { w.Stop(&Error{Kind: ErrBroken, Code: core.CodeUnsupported, Cause: words}) }); err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() { _, _, err := n.Shard(1).repairable(context.Background()); left <- err }()
	<-words.in
	go func() { <-n.Done(); close(words.out) }() // as who asks leaves, neither before the other
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	if err, ok := soon(func() error { return <-left }); !ok || !errors.Is(err, errClosed) && !isCode(err, core.CodeRepair) { // as the worker may be quicker
		t.Errorf("it ended: %v, with %v", ok, err)
	}
	<-n.engine.workerOf(1).done
}

// closedBesideRepair closes a node, in the background, while its disk hangs in the repair of a replica.
func closedBesideRepair(t *testing.T, hang func(errorfs.Op) bool, repair func(*Shard)) (*hungDisk, *Node, chan error) {
	t.Helper()
	disk := newHungDisk()
	t.Cleanup(disk.release)
	_, s := stoppedByDamage(t, func(cfg *Config) { cfg.wrapFS = disk.wrap })
	disk.hang(hang)
	repair(s)
	disk.wait(t)
	closed := make(chan error, 1)
	go func() { closed <- s.node.Close() }()
	return disk, s.node, closed
}

// A node that closes waits for the repair that somebody has asked for, as long as it fetches: the directory of snapshots must not have two who write into it. What comes later does not begin.
//
// Mutations with which it was seen to fail, one by one: Repair fetches beside the engine; its context does not end with the engine; foreground begins always.
func TestCloseBesideRepair(t *testing.T) {
	repaired := make(chan error, 1)
	disk, n, closed := closedBesideRepair(t, func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpFileWriteAt && strings.HasSuffix(filepath.Dir(op.Path), ".part")
	}, func(s *Shard) { go func() { repaired <- s.Repair(context.Background()) }() })
	select {
	case <-closed:
		t.Error("it was not waited for")
	case <-time.After(300 * time.Millisecond):
	}
	disk.release()
	if err, ok := soon(func() error { return <-repaired }); !ok || !isCode(err, core.CodeRepair) || !strings.Contains(err.Error(), errClosed.Message) {
		t.Errorf("it ended: %v, with %v", ok, err)
	}
	if err, ok := soon(func() error { return <-closed }); !ok || err != nil {
		t.Errorf("it is closed: %v, %v", ok, err)
	}
	if err := n.engine.foreground(t.Context(), func(context.Context) { t.Error("it begins") }); !errors.Is(err, errClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// A node that closes while a replica that it repairs by itself is given its new state waits for the disk, and not for a worker to take note, which none does any more.
//
// Mutation with which it was seen to fail: Repair waits for the node's end, which waits for it.
func TestCloseBesideAnInstallation(t *testing.T) {
	disk, n, closed := closedBesideRepair(t, func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpFileSync && strings.Contains(op.Path, "/ingest/")
	}, func(s *Shard) {
		s.node.engine.background(func(ctx context.Context) { _ = s.Repair(ctx) }) // as repairStopped does
	})
	<-n.engine.quit
	disk.release()
	if err, ok := soon(func() error { return <-closed }); !ok || err != nil {
		t.Errorf("it is closed: %v, %v", ok, err)
	}
}

// inIngest is the sync of a table that is to be installed.
func inIngest(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSync && strings.Contains(op.Path, "/ingest/")
}

// Who asked for a repair and goes is not kept until the disk has done it: the installation goes on, and is what its node is still doing.
//
// Mutation with which it was seen to fail: install looks at the node's end only.
func TestLeavesAnInstallation(t *testing.T) {
	disk := newHungDisk()
	t.Cleanup(disk.release)
	_, s := stoppedByDamage(t, func(cfg *Config) { cfg.wrapFS = disk.wrap })
	disk.hang(inIngest)
	ctx, leave := context.WithCancel(t.Context())
	repaired := make(chan error, 1)
	go func() { repaired <- s.Repair(ctx) }()
	disk.wait(t)
	leave()
	if err, ok := soon(func() error { return <-repaired }); !ok || !errors.Is(err, ErrUnknown) || !isCode(err, core.CodeRepair) || !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves is told: %v, %v", ok, err)
	}
	disk.release()
	eventually(t, "the replica is in service", func() bool { return s.stopped.Load() == nil })
}
