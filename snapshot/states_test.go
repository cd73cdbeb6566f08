package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/crash"
	"github.com/decree-raft/decree/internal/testkit"
)

// statesEnv makes the test the program that is recorded.
const statesEnv = "DECREE_TEST_SNAPSHOT_DIR"

// TestCrashStates records every system call by which snapshots are cut, received and removed on a real file
// system, and opens what each crash could have left: whole snapshots, all that were promised, and nothing half done.
//
// Mutations with which it was seen to fail, one by one: publish does not sync the directory that it renames into, or the one that it renames.
func TestCrashStates(t *testing.T) {
	if dir := os.Getenv(statesEnv); dir != "" {
		cutReceiveRemove(t, dir)
		return
	}
	dir := testkit.Scratch(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashStates$")
	cmd.Env = append(os.Environ(), statesEnv+"="+dir)
	cmd.Stderr = os.Stderr
	ops, err := crash.Record(cmd, dir, time.Minute)
	if errors.Is(err, crash.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	said := make([]map[string]bool, 0, len(ops)+1) // before each operation, and at the end
	now := map[string]bool{}
	for i := range ops {
		said = append(said, now)
		if ops[i].Kind == crash.Mark {
			next := map[string]bool{string(ops[i].Data): true}
			for k := range now {
				next[k] = true
			}
			now = next
		}
	}
	said = append(said, now)
	if len(now) != 4 {
		t.Fatalf("the program said %v", now)
	}
	e := crash.Explorer{
		Ops: ops, Seed: 1, Mixed: 4, Sample: 1500, Scratch: testkit.Scratch(t),
		Open: func(dir string, _ uint64) any { return inspectSnapshots(dir) },
		Judge: func(outcome any, first, end int) error {
			f := outcome.(foundSnapshots)
			switch {
			case f.err != nil:
				return f.err
			case said[end]["cut"] && !said[first]["removing"] && f.cut != 1:
				return fmt.Errorf("%d snapshots that were cut, want one", f.cut)
			case said[end]["received"] && f.received != 1:
				return fmt.Errorf("%d snapshots that were received, want one", f.received)
			case said[end]["removed"] && f.cut != 0:
				return errors.New("a snapshot that was removed is back")
			}
			return nil
		},
	}
	report, err := e.Run()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(report)
	for i := range report.Failures {
		t.Error(&report.Failures[i])
	}
	if report.Opened < 100 {
		t.Errorf("only %d states", report.Opened)
	}
}

func cutReceiveRemove(t *testing.T, root string) {
	marks := os.NewFile(crash.MarkFD, "marks")
	say := func(what string) {
		if _, err := marks.WriteString(what); err != nil {
			t.Fatal(err)
		}
	}
	r := testkit.Random(t)
	w := newWorld(t, vfs.NewMem(), "/s")
	w.fill(r, 2, 60, 300)
	cuts, in := openDir(t, vfs.Default, filepath.Join(root, "cuts")), openDir(t, vfs.Default, filepath.Join(root, "in"))
	s := w.cut(cuts, CutOptions{Info: testInfo(), TableBytes: 8 << 10, ChunkBytes: MinChunkBytes})
	say("cut")
	from := source(t, cuts, s.ID)
	if _, err := in.Receive(t.Context(), encoded(t, s), from, accepted()); err != nil {
		t.Fatal(err)
	}
	from.Close()
	say("received")
	say("removing")
	if err := cuts.Remove(s.ID); err != nil {
		t.Fatal(err)
	}
	say("removed")
}

type foundSnapshots struct {
	cut, received int
	err           error
}

func inspectSnapshots(root string) (f foundSnapshots) {
	for _, part := range []struct {
		name  string
		count *int
	}{{"cuts", &f.cut}, {"in", &f.received}} {
		path := filepath.Join(root, part.name)
		d, err := Open(Options{Path: path, FS: vfs.Default, Logger: quiet()})
		if err != nil {
			f.err = err
			return f
		}
		if damaged := d.Damaged(); len(damaged) > 0 {
			f.err = fmt.Errorf("a crash left damage: %v", damaged)
			return f
		}
		for _, s := range d.List() {
			if _, err := Verify(context.Background(), vfs.Default, s.Dir); err != nil {
				f.err = fmt.Errorf("what looks whole is not: %w", err)
				return f
			}
			*part.count++
		}
	}
	return f
}
