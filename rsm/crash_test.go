package rsm

import (
	"errors"
	goflag "flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/crash"
	"github.com/decree-raft/decree/internal/testkit"
)

var (
	crashAll  = goflag.Bool("crash.all", false, "open every state that a crash could leave, not a sample")
	crashSeed = goflag.Uint64("crash.seed", 1, "what the sample and the mixtures are drawn from")
)

// These variables make the test binary the program that is recorded, or, with the second, a broken one.
const (
	crashEnv = "DECREE_TEST_CRASH_DIR"
	earlyEnv = "DECREE_TEST_CRASH_EARLY"
)

func runCrashLoad(dir string) {
	l := crashLoad{dir: dir, early: os.Getenv(earlyEnv) != ""}
	if err := l.run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// history is a recording, and what the program had said at each operation.
type history struct {
	ops              []crash.Op
	submitted, acked []map[ShardID]uint64 // before each operation, and at the end
	sessions         map[ShardID]SessionID
	cuts, acks       int
}

func record(t *testing.T, env ...string) *history {
	t.Helper()
	dir := testkit.Scratch(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), crashEnv+"="+dir), env...)
	cmd.Stderr = os.Stderr
	start := time.Now()
	ops, err := crash.Record(cmd, dir, 2*time.Minute)
	if errors.Is(err, crash.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(t, ops)
	d := crash.NewDisk()
	for i := range ops {
		d.Apply(&ops[i])
	}
	left, err := crash.ReadImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Whole().Same(left); err != nil {
		t.Fatalf("the recording is not complete: replayed, then left: %v", err)
	}
	t.Logf("recorded %d operations in %v, %d commands acknowledged, %d segments cut", len(ops), time.Since(start).Round(time.Millisecond), h.acks, h.cuts)
	return h
}

func newHistory(t *testing.T, ops []crash.Op) *history {
	h := &history{ops: ops, sessions: map[ShardID]SessionID{}}
	submitted, acked := map[ShardID]uint64{}, map[ShardID]uint64{}
	for i := range ops {
		h.submitted, h.acked = append(h.submitted, submitted), append(h.acked, acked)
		switch o := &ops[i]; {
		case o.Kind == crash.Rename && strings.HasSuffix(o.Name, ".wal"):
			h.cuts++
		case o.Kind == crash.Mark:
			var what string
			var shard ShardID
			var n uint64
			if _, err := fmt.Sscan(string(o.Data), &what, &shard, &n); err != nil {
				t.Fatal(err)
			}
			switch what {
			case "session":
				h.sessions[shard] = SessionID(n)
			case "submit":
				submitted = with(submitted, shard, n)
			case "ack":
				acked = with(acked, shard, n)
				h.acks++
			}
		}
	}
	h.submitted, h.acked = append(h.submitted, submitted), append(h.acked, acked)
	return h
}

// with returns a copy of m with another value.
func with(m map[ShardID]uint64, shard ShardID, n uint64) map[ShardID]uint64 {
	c := map[ShardID]uint64{shard: n}
	for k, v := range m {
		if k != shard {
			c[k] = v
		}
	}
	return c
}

// judge says whether what was found is right after a crash right behind operation first, and up to end.
func (h *history) judge(outcome any, first, end int) error {
	f := outcome.(found)
	if f.err != nil {
		return f.err
	}
	for _, id := range crashShards {
		if f.n[id] < h.acked[end][id] {
			return fmt.Errorf("shard %d has %d commands, %d were acknowledged before operation %d", id, f.n[id], h.acked[end][id], end)
		}
		if f.n[id] > h.submitted[first][id] {
			return fmt.Errorf("shard %d has %d commands, %d were submitted before operation %d", id, f.n[id], h.submitted[first][id], first)
		}
	}
	return nil
}

func (h *history) explorer(t *testing.T) crash.Explorer {
	return crash.Explorer{
		Ops: h.ops, Seed: *crashSeed, Mixed: 4, Scratch: testkit.Scratch(t), Judge: h.judge,
		Open: func(dir string, sum uint64) any { return inspect(crashConfig(dir), h.sessions, sum%4 == 0) },
	}
}

// A node is recorded, system call by system call, and its directory opened in the states that a crash at
// each of them could leave [G8, G9]: it opens, has all that was acknowledged, nothing that was not submitted, and
// every shard's state is exactly that of some number of commands. See internal/crash for the model.
func TestCrashStates(t *testing.T) {
	testkit.SkipUnderRace(t)
	h := record(t)
	e := h.explorer(t)
	switch {
	case *crashAll:
		e.Limit = time.Hour
	case testing.Short():
		e.Sample, e.Limit = 200, time.Minute
	default:
		e.Sample, e.Limit = 800, time.Minute
	}
	r, err := e.Run()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	for i := range r.Failures {
		t.Error(&r.Failures[i])
	}
	if r.Opened < 100 {
		t.Errorf("only %d states were opened", r.Opened)
	}
}

// The controls: what a product would leave that goes about it in a wrong way. The explorer must see the difference.
func TestCrashControls(t *testing.T) {
	testkit.SkipUnderRace(t)
	const pebble = "data/node/state/pebble"
	h := record(t)
	for name, drop := range map[string]func(i int, o *crash.Op) bool{
		"no fsync of the log": func(_ int, o *crash.Op) bool {
			return strings.HasSuffix(o.Path, ".wal")
		},
		"no fsync of the log's directory when it is cut": func(_ int, o *crash.Op) bool {
			return o.Path == "data/node/wal/log"
		},
		"no fsync of the log's directory when it is made": func(_ int, o *crash.Op) bool {
			return strings.HasPrefix(o.Path, "data/node/wal/log.new") && !strings.HasSuffix(o.Path, ".wal")
		},
		"no fsync above the data directory": func(_ int, o *crash.Op) bool {
			return o.Path == "data" || o.Path == "."
		},
		"no fsync of the identity": func(_ int, o *crash.Op) bool {
			return o.Path == "data/node/node.json.tmp"
		},
		"no fsync of the tables of a flush": func(_ int, o *crash.Op) bool {
			return strings.HasPrefix(o.Path, "data/node/state/ingest/")
		},
		"no fsync of the directory of the tables": func(_ int, o *crash.Op) bool {
			return o.Path == pebble
		},
		"no fsync of the manifest": func(_ int, o *crash.Op) bool {
			return strings.HasPrefix(o.Path, pebble+"/MANIFEST-")
		},
		"no fsync between a marker and the removal of the one before": func(i int, o *crash.Op) bool {
			return o.Path == pebble && h.ops[i-1].Kind == crash.Create && isMarker(&h.ops[i-1])
		},
	} {
		if testing.Short() && !strings.HasSuffix(name, "is made") || !*crashAll && strings.Contains(name, "tables") {
			continue // these take long to be found
		}
		t.Run(name, func(t *testing.T) {
			var ops []crash.Op
			for i := range h.ops {
				if o := &h.ops[i]; o.Kind != crash.Sync || !drop(i, o) {
					ops = append(ops, *o)
				}
			}
			dropped := len(h.ops) - len(ops)
			if dropped == 0 {
				t.Fatal("the program does no such fsync at all")
			}
			var at func(int) bool
			switch { // there are few such moments
			case strings.Contains(name, "marker"):
				at = func(i int) bool { return ops[i].Kind == crash.Unlink && isMarker(&ops[i]) }
			case strings.HasSuffix(name, "is made"): // before Open syncs it once more
				open := slices.IndexFunc(ops, func(o crash.Op) bool { return o.Kind == crash.Sync && o.Path == "data/node/wal/log" })
				at = func(i int) bool { return i < open }
			}
			wantFailures(t, newHistory(t, ops), dropped, at)
		})
	}
	t.Run("acknowledged before it is written", func(t *testing.T) {
		wantFailures(t, record(t, earlyEnv+"=1"), 0, nil)
	})
}

func isMarker(o *crash.Op) bool { return strings.HasPrefix(o.Name, "marker.") }

// wantFailures explores samples, each larger than the one before, until something wrong is found.
func wantFailures(t *testing.T, h *history, dropped int, at func(int) bool) {
	t.Helper()
	opened := 0
	for sample := 12; sample <= 3200; sample *= 2 {
		e := h.explorer(t)
		e.At = at
		e.Sample, e.Failures, e.Limit, e.Seed = sample, 1, 20*time.Second, *crashSeed+uint64(sample)
		r, err := e.Run()
		if err != nil {
			t.Fatal(err)
		}
		opened += r.Opened
		if len(r.Failures) > 0 {
			t.Logf("%d fsyncs left out, found in %d states: %.300s", dropped, opened, &r.Failures[0])
			return
		}
	}
	t.Errorf("%d fsyncs left out, and nothing is wrong with %d states", dropped, opened)
}
