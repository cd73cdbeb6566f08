package wal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/crash"
	"github.com/decree-raft/decree/internal/testkit"
)

// These variables make the test binary the program that is recorded.
const (
	programEnv = "DECREE_TEST_WAL_PROGRAM"
	dirEnv     = "DECREE_TEST_WAL_DIR"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(programEnv); name != "" {
		if err := killed[name].run(os.Getenv(dirEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// killing is a program that opens a log twice. The first was killed: of its syncs after one moment none was begun.
type killing struct {
	appends int // by the first
	size    int // of their entries
	// flushed is up to where the entries are not needed when the first makes its last append.
	flushed uint64
	// last says what the last operation before that moment is.
	last func(o *crash.Op) bool
	// failed says that the first did sync, and died of the answer: the kernel takes for written what is in its memory only.
	failed bool
}

var killed = map[string]killing{
	"writing":   {appends: 3, size: 100, last: isFrame},
	"syncing":   {appends: 3, size: 100, last: isFrame, failed: true},
	"cutting":   {appends: 2, size: 2000, last: func(o *crash.Op) bool { return o.Kind == crash.Rename && strings.HasSuffix(o.Name, ".wal") }},
	"releasing": {appends: 5, size: 2000, flushed: 3, last: isFrame},
	"making":    {last: func(o *crash.Op) bool { return o.Kind == crash.Rename && o.Name == segmentDir }},
}

func isFrame(o *crash.Op) bool { return o.Kind == crash.Write && o.Offset > 0 }

var errKilled = errors.New("killed")

func (k killing) run(dir string) error {
	marks := os.NewFile(crash.MarkFD, "marks")
	opts := Options{Dir: filepath.Join(dir, "wal"), SegmentBytes: tiny}
	if err := k.first(opts); err != nil {
		return err
	}
	if _, err := fmt.Fprint(marks, "killed"); err != nil {
		return err
	}
	w, rec, err := Open(opts)
	if err != nil {
		return err
	}
	n := lastOf(rec)
	if n == 0 { // there is nothing to acknowledge
		n++
		if err := w.Append([]Record{{Shard: 1, Entries: entriesOf(1, n, n, k.size)}}); err != nil {
			return err
		}
	}
	// What Open has returned is acknowledged without another write, such as the entries of a message that comes once more.
	if _, err := fmt.Fprint(marks, "acknowledged ", n); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "end"), nil, 0o600) // a crash behind the mark
}

// first is the one that is killed. After the last of its appends it does nothing any more.
func (k killing) first(opts Options) (err error) {
	n := 0
	opts.onStep = func(step string) {
		if step != "saved" {
			return
		}
		if n++; n == k.appends {
			panic(errKilled)
		}
	}
	w, _, err := Open(opts)
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil && r != errKilled {
			panic(r)
		}
		err = errors.Join(err, w.Close()) // which gives back the locks
	}()
	for i := uint64(1); i <= uint64(k.appends); i++ {
		if i == uint64(k.appends) {
			w.Flushed(1, k.flushed)
		}
		if err := w.Append([]Record{{Shard: 1, Entries: entriesOf(1, i, i, k.size)}}); err != nil {
			return err
		}
	}
	return nil
}

func lastOf(rec *Recovered) uint64 {
	l := rec.Shards[1]
	if l == nil || len(l.Entries) == 0 {
		return 0
	}
	return l.Entries[len(l.Entries)-1].Index
}

// What a process was killed before it had synced is there when the next one opens the log, out of the kernel's memory. It is acknowledged
// then, and so has to be durable: a power cut after that may not take it, nor the names that lead to it.
func TestCrashAfterKill(t *testing.T) {
	for name, k := range killed {
		t.Run(name, func(t *testing.T) {
			dir := testkit.Scratch(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), programEnv+"="+name, dirEnv+"="+dir)
			cmd.Stderr = os.Stderr
			ops, err := crash.Record(cmd, dir, time.Minute)
			if errors.Is(err, crash.ErrUnsupported) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			ops, kill, ack, acked := k.without(t, ops)
			e := crash.Explorer{
				Ops: ops, Mixed: 4, Scratch: testkit.Scratch(t), At: func(i int) bool { return i >= kill },
				Open: func(dir string, _ uint64) any {
					w, rec, err := Open(Options{Dir: filepath.Join(dir, "wal"), SegmentBytes: tiny})
					if err != nil {
						return err
					}
					return cmp.Or[any](w.Close(), lastOf(rec))
				},
				Judge: func(outcome any, first, _ int) error {
					n, ok := outcome.(uint64)
					switch {
					case !ok:
						return outcome.(error)
					case n < acked && first > ack || n+1 < acked:
						return fmt.Errorf("the log ends with entry %d, %d was acknowledged", n, acked)
					}
					return nil
				},
			}
			r, err := e.Run()
			if err != nil {
				t.Fatal(err)
			}
			t.Log(r)
			for i := range r.Failures {
				t.Error(&r.Failures[i])
			}
		})
	}
}

// without leaves out the syncs that the first program did not come to, and returns where it was killed, where the second has acknowledged, and what.
func (k killing) without(t *testing.T, ops []crash.Op) (left []crash.Op, kill, ack int, acked uint64) {
	t.Helper()
	last, end := -1, -1
	for i := range ops {
		switch o := &ops[i]; {
		case o.Kind == crash.Mark && string(o.Data) == "killed":
			end = i
		case o.Kind == crash.Mark:
			if _, err := fmt.Sscanf(string(o.Data), "acknowledged %d", &acked); err != nil {
				t.Fatal(err)
			}
		case end < 0 && k.last(o):
			last = i
		}
	}
	if last < 0 || acked == 0 {
		t.Fatalf("the program does not do what it should: %v", ops)
	}
	for i := range ops {
		switch {
		case i == end:
			kill = len(left)
		case ops[i].Kind == crash.Mark:
			ack = len(left)
		case i >= last && i < end && (ops[i].Kind == crash.Sync || k.failed && i == last):
			continue
		}
		left = append(left, ops[i])
	}
	if len(left) == len(ops) {
		t.Fatal("there is no sync to be left out")
	}
	return left, kill, ack, acked
}
