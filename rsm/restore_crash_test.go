package rsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/crash"
	"github.com/decree-raft/decree/internal/testkit"
)

// These variables make the test binary the program that restores, from the one directory to the other.
const (
	restoreFromEnv = "DECREE_TEST_RESTORE_FROM"
	restoreToEnv   = "DECREE_TEST_RESTORE_TO"
)

func restoreForCrash(from, to string) error {
	_, err := Restore(context.Background(), RestoreOptions{Backup: from, Cluster: "next", Nodes: nodeDirs(to, 2), segmentBytes: crashSegment})
	return err
}

// TestCrashOfRestore records every system call of a restore of two nodes, and looks at what each crash could have left: a node's directory is complete, and then has all of
// the backup, or Start refuses it, or nothing of it is there yet; and in any case that is not the first, the next restore makes it anew.
//
// Mutations with which it was seen to fail, one by one: the unfinished node.json is written last; the directory is not synced after it; the commit index is left out.
func TestCrashOfRestore(t *testing.T) {
	if from, to := os.Getenv(restoreFromEnv), os.Getenv(restoreToEnv); from != "" {
		err := restoreForCrash(from, to)
		if err == nil {
			_, err = os.NewFile(crash.MarkFD, "marks").WriteString("restored")
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	c := startCluster(t, "", counters{}, patient10s, smallFlushes)
	add(t, c, 1, strings.Repeat("x", 4000), 40)
	add(t, c, 2, "a", 3)
	backup := filepath.Join(t.TempDir(), "backup")
	n := leaderOf(t, c, 1)
	flushed(t, n, 1)
	made, err := n.BackupTo(within(t), backup, BackupOptions{})
	if err != nil || !made.Shards[0].HasSnapshot() {
		t.Fatal(made, err)
	}
	dir := testkit.Scratch(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashOfRestore$")
	cmd.Env = append(os.Environ(), restoreFromEnv+"="+backup, restoreToEnv+"="+dir)
	cmd.Stderr = os.Stderr
	ops, err := crash.Record(cmd, dir, 2*time.Minute)
	if errors.Is(err, crash.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	said := len(ops)
	for i := range ops {
		if ops[i].Kind == crash.Mark {
			said = i
		}
	}
	sample := 400
	if testing.Short() {
		sample = 60
	}
	var complete, not atomic.Int64 // images
	e := crash.Explorer{
		Ops: ops, Seed: *crashSeed, Mixed: 2, Sample: sample, Scratch: testkit.Scratch(t), Limit: 2 * time.Minute,
		Open: func(dir string, _ uint64) any {
			f := inspectRestored(c.cfg.Shards, backup, dir, made.Shards[0].Last())
			if f.complete == 2 {
				complete.Add(1)
			} else {
				not.Add(1)
			}
			return f
		},
		Judge: func(outcome any, first, end int) error {
			f := outcome.(foundRestored)
			if f.err == nil && end > said && f.complete != 2 {
				return fmt.Errorf("%d nodes of a restore that was said to be done are complete", f.complete)
			}
			return f.err
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
	if complete.Load() == 0 || not.Load() == 0 {
		t.Errorf("%d states were complete, %d were not", complete.Load(), not.Load())
	}
}

// foundRestored is what a crash of a restore has left.
type foundRestored struct {
	complete int
	err      error
}

func inspectRestored(shards []ShardConfig, backup, dir string, last uint64) (f foundRestored) {
	for id, d := range nodeDirs(dir, 2) {
		names, err := os.ReadDir(d)
		if err != nil && !os.IsNotExist(err) {
			return foundRestored{err: err}
		}
		if len(names) == 0 || len(names) == 1 && names[0].Name() == "node.json.tmp" {
			continue
		}
		o, err := openOffline(Config{
			Cluster: "next", Node: id, Dir: d, Peers: map[NodeID]string{1: "a:1", 2: "a:2"}, Shards: shards, DiskWatermark: -1, noCompactions: true,
		})
		switch {
		case err == nil:
			for _, s := range shards {
				st, _ := o.engine.workerOf(s.ID).core.Status(s.ID)
				if s.ID == 1 && uint64(st.Commit) != last {
					f.err = fmt.Errorf("node %d opens with shard 1 at %d of %d", id, st.Commit, last)
				}
			}
			o.close()
			f.complete++
		case !strings.Contains(err.Error(), "was being restored"):
			f.err = fmt.Errorf("node %d: %w", id, err)
		}
		if f.err != nil {
			return f
		}
	}
	if f.complete == 0 {
		if err := restoreForCrash(backup, dir); err != nil {
			f.err = fmt.Errorf("another restore: %w", err)
		}
	}
	return f
}
