package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// recovered opens an image and says which of the two the shard is in: before or after.
func recovered(t *testing.T, image *vfs.MemFS, id uint64, before, after durable) (isAfter bool) {
	t.Helper()
	s := open(t, image)
	h := openShard(t, s, id)
	berr, aerr := sameDurable(h, before), sameDurable(h, after)
	if berr != nil && aerr != nil {
		t.Errorf("a crash leaves neither:\nbefore: %v\nafter: %v", berr, aerr)
	}
	if ids, err := s.ShardIDs(); err != nil || len(ids) != min(1, len(h.Meta())) {
		t.Errorf("shards %v, %v", ids, err)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return aerr == nil
}

// TestCrash is invariant G9: state, meta, journal and sessions move together, and what
// Run has confirmed stays.
//
// Mutations with which it was seen to fail, one by one:
//   - FlushJob.Run ingests b.paths one after the other instead of in one call
//     (with ownTableBytes at 1, so that there are several): "neither" within the first flushes;
//   - build writes meta and sessions to a table of their own and ingests it before the others: the same;
//   - tables are not synced before they are ingested: a synced image that lacks a confirmed flush,
//     or does not open.
func TestCrash(t *testing.T) {
	testkit.SkipUnderRace(t)
	r := testkit.Random(t)
	fs := testkit.NewCrashFS(r)
	const id = 3
	var s *Store
	for _, image := range fs.During(func() { s = open(t, fs) }) {
		recovered(t, image, id, newDurable(), newDurable())
	}
	h := openShard(t, s, id)
	before, head, count := newDurable(), map[string]string{}, 0
	flushes := 15
	if testing.Short() {
		flushes = 6
	}
	for i := range flushes {
		for range r.IntN(40) {
			key := fmt.Sprint(r.IntN(60))
			if r.IntN(4) == 0 {
				h.Delete([]byte(key))
				delete(head, key)
			} else {
				value := strings.Repeat(fmt.Sprint(i), r.IntN(300))
				h.Set([]byte(key), []byte(value))
				head[key] = value
			}
		}
		f, after := randomFlush(r, before, head)
		if r.IntN(2) == 0 { // a journal in tables of its own
			f.Index++
			e := JournalEntry{Index: f.Index, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, ownTableBytes)}
			f.Journal = append(f.Journal, e)
			after.index = f.Index
			if f.TruncateJournalBelow <= e.Index {
				after.journal = append(after.journal, e)
			}
		}
		h.Freeze()
		j := h.Flush(f)
		images := fs.During(func() {
			if err := j.Run(); err != nil {
				t.Fatal(err)
			}
		})
		for _, image := range images {
			recovered(t, image, id, before, after)
		}
		count += len(images)
		if !recovered(t, fs.Synced(), id, before, after) {
			t.Fatalf("flush %d was confirmed and is lost", i)
		}
		h.Flushed(j)
		before = after
	}
	if count < 6*flushes {
		t.Errorf("only %d crashes in the midst of a flush", count)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A crash during the first Open leaves something that opens.
func TestCrashOfFirstOpen(t *testing.T) {
	testkit.SkipUnderRace(t)
	r := testkit.Random(t)
	for range 20 {
		fs := testkit.NewCrashFS(r)
		var s *Store
		images := fs.During(func() { s = open(t, fs) })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, image := range images {
			recovered(t, image, 1, newDurable(), newDurable())
		}
	}
}

// TestErrorsInRun fails the n-th change of the file system during a flush, for all n.
func TestErrorsInRun(t *testing.T) {
	r := testkit.Random(t)
	everyFailure(t, r, func(r *rand.Rand, n int64) (bool, error, bool) {
		met, err, fatal := failRun(t, r, n)
		if err != nil && !errors.Is(err, errorfs.ErrInjected) && !strings.Contains(err.Error(), errorfs.ErrInjected.Error()) {
			t.Errorf("change %d: %v", n, err)
		}
		return met, err, fatal
	})
}

// everyFailure fails change after change of one and the same thing, until it has none left. Not each must make
// it fail: a removal does not, nor a link where a copy is made instead.
func everyFailure(t *testing.T, r *rand.Rand, do func(r *rand.Rand, n int64) (met bool, err error, fatal bool)) {
	t.Helper()
	seed := [2]uint64{r.Uint64(), r.Uint64()}
	failed, fatals := 0, 0
	for n := int64(0); ; n++ {
		met, err, fatal := do(rand.New(rand.NewPCG(seed[0], seed[1])), n)
		if !met {
			if err != nil || fatal {
				t.Errorf("nothing was made to fail, and yet: %v, fatal: %v", err, fatal)
			}
			break
		}
		if n > 1000 {
			t.Fatal("there is no end of the changes")
		}
		if err != nil {
			failed++
		}
		if fatal {
			fatals++
		}
	}
	if failed < 5 || fatals == 0 || fatals == failed {
		t.Errorf("%d failures, %d of them fatal", failed, fatals)
	}
}

// failNth is a file system one change of which fails.
type failNth struct {
	vfs.FS
	left atomic.Int64 // changes until then, if armed
	on   atomic.Bool
	met  atomic.Bool
}

// arm makes the change after n others fail.
func (f *failNth) arm(n int64) {
	f.left.Store(n)
	f.on.Store(true)
}

func (f *failNth) disarm() { f.on.Store(false) }

func (f *failNth) inject(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && f.on.Load() && f.left.Add(-1) == -1 {
		f.met.Store(true)
		return errorfs.ErrInjected
	}
	return nil
}

func failRun(t *testing.T, r *rand.Rand, n int64) (met bool, err error, fatal bool) {
	mem := vfs.NewCrashableMem()
	fs := &failNth{}
	fs.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(fs.inject))
	var calls atomic.Int64
	// Without compactions the changes are always the same ones, so that each is met.
	s, err := Open(Options{Dir: "/d", FS: fs, Logger: quiet(), DisableCompactions: true, OnFatal: func(error) { calls.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	h := openShard(t, s, 1)
	head := map[string]string{"kept": "1", "gone": "1"}
	for k, v := range head {
		h.Set([]byte(k), []byte(v))
	}
	f, before := randomFlush(r, newDurable(), head)
	flush(t, h, f)
	h.Delete([]byte("gone"))
	h.Set([]byte("new"), []byte("2"))
	delete(head, "gone")
	head["new"] = "2"
	f, after := randomFlush(r, before, head)
	f.Index++
	f.Journal = append(f.Journal, JournalEntry{Index: f.Index, Data: make([]byte, ownTableBytes)})
	f.TruncateJournalBelow = min(f.TruncateJournalBelow, f.Index)
	after.index, after.journal = f.Index, append(after.journal, f.Journal[len(f.Journal)-1])
	h.Freeze()
	j := h.Flush(f)
	fs.arm(n)
	err = j.Run()
	fs.disarm()
	if err != nil {
		checkFailed(t, h, j, head, before)
	}
	if h.FlushedIndex() != before.index {
		t.Error("the index advanced before Flushed")
	}
	fatal = s.fatal.get() != nil
	h.Close()
	cerr := s.Close()
	for i := 0; fatal && calls.Load() == 0 && i < 500; i++ { // OnFatal may be told a little later, on another goroutine
		time.Sleep(10 * time.Millisecond)
	}
	if calls.Load() > 1 || (calls.Load() == 1) != fatal || (cerr != nil) != fatal {
		t.Errorf("fatal: %v, OnFatal was called %d times, close: %v", fatal, calls.Load(), cerr)
	}
	image := mem.CrashClone(vfs.CrashCloneCfg{})
	s = mustOpenAt(t, image, "/d")
	h = openShard(t, s, 1)
	berr, aerr := sameDurable(h, before), sameDurable(h, after)
	switch {
	case err == nil && aerr != nil:
		t.Errorf("change %d: confirmed and lost: %v", n, aerr)
	case err != nil && berr != nil && (!fatal || aerr != nil):
		t.Errorf("change %d (fatal %v): neither before nor after:\n%v\n%v", n, fatal, berr, aerr)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return fs.met.Load(), err, fatal
}

func mustOpenAt(t *testing.T, fs vfs.FS, dir string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, FS: fs, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkFailed: after a failed Run the head is as it was, and Flushed is refused.
func checkFailed(t *testing.T, h *Shard, j *FlushJob, head map[string]string, before durable) {
	t.Helper()
	if err := sameView(h, head); err != nil {
		t.Errorf("head after a failed flush: %v", err)
	}
	v := h.Version() // takes a lock of pebble's
	if err := sameView(v, head); err != nil {
		t.Errorf("version after a failed flush: %v", err)
	}
	v.Close()
	_ = h.store.Metrics()
	if string(h.Meta()) != before.meta {
		t.Error("meta after a failed flush")
	}
	if caught(func() { h.Flushed(j) }) == nil {
		t.Error("a failed job is taken over")
	}
	if caught(func() { _ = j.Run() }) == nil {
		t.Error("a failed job is run again")
	}
}

// TestCorruption flips one byte of a table at a time. A read must give what was written or
// a *ReadError, and Open, Shard and Journal may return errors, but nothing else.
func TestCorruption(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem)
	h := openShard(t, s, 1)
	r := testkit.Random(t)
	head := map[string]string{}
	for i := range 200 {
		k, v := fmt.Sprint(i), fmt.Sprint(r.Uint64())
		h.Set([]byte(k), []byte(v))
		head[k] = v
	}
	f, d := randomFlush(r, newDurable(), head)
	flush(t, h, f)
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name, content := onlyTable(t, mem)
	read, refused := 0, 0
	step := 5
	if testing.Short() {
		step = 50
	}
	for at := 0; at < len(content); at += 1 + r.IntN(2*step) {
		bad := bytes.Clone(content)
		bad[at] ^= 1 << r.IntN(8)
		if err := writeFile(mem, name, bad); err != nil {
			t.Fatal(err)
		}
		switch err := readCorrupt(mem, d); {
		case err == nil:
			read++
		case errors.As(err, new(*ReadError)) || errors.Is(err, errOpen):
			refused++
		default:
			t.Errorf("byte %d of %d: %v", at, len(content), err)
		}
	}
	t.Logf("%d flips had no effect, %d gave an error", read, refused)
	if refused < 9*read {
		t.Error("too few errors: is anything read at all?")
	}
}

var errOpen = errors.New("does not open")

func readCorrupt(mem *vfs.MemFS, d durable) (err error) {
	s, err := Open(Options{Dir: "/data/state", FS: mem, Logger: quiet()})
	if err != nil {
		return errOpen
	}
	defer s.Close()
	h, err := s.Shard(1)
	if err != nil {
		return errOpen
	}
	defer h.Close()
	defer func() {
		if r := recover(); r != nil {
			rerr, ok := r.(*ReadError)
			if !ok {
				panic(r)
			}
			err = rerr
		}
	}()
	if err := sameView(h, d.state); err != nil {
		return err
	}
	if _, err := h.Journal(h.meta.first, h.meta.last+1, 1<<20); err != nil {
		return errOpen
	}
	if err := h.LoadSessions(func(k, v []byte) error { return nil }); err != nil {
		return errOpen
	}
	return sameDurable(h, d)
}

func onlyTable(t *testing.T, fs vfs.FS) (name string, content []byte) {
	t.Helper()
	names, err := fs.List("/data/state/pebble")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".sst") {
			if name != "" {
				t.Fatalf("more than one table: %v", names)
			}
			name = fs.PathJoin("/data/state/pebble", n)
		}
	}
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if content, err = io.ReadAll(f); err != nil {
		t.Fatal(err)
	}
	return name, content
}

func TestFormatMarker(t *testing.T) {
	const marker = "/data/state/" + markerName
	newer := encodeMarker()
	newer[len(storeMagic)+3]++
	for name, b := range map[string][]byte{"bad sum": newer, "short": newer[:5], "empty": {}, "magic": make([]byte, markerLen)} {
		fs := vfs.NewMem()
		s := open(t, fs)
		flush(t, openShard(t, s, 1), Flush{Index: 1})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(fs, marker, b); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: "/data/state", FS: fs}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if err := fs.Remove(marker); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: "/data/state", FS: fs}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("no marker: %v", err)
		}
		if err := writeFile(fs, marker, encodeMarker()); err != nil {
			t.Fatal(err)
		}
		if err := fs.RemoveAll("/data/state/pebble"); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: "/data/state", FS: fs}); err == nil {
			t.Error("a marker without a store is taken for a new store")
		}
	}
}

func marker(version uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte(storeMagic), version)
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

func TestNewerFormats(t *testing.T) {
	if err := checkMarker(marker(storeVersion + 1)); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("marker: %v", err)
	}
	if err := checkMarker(marker(storeVersion)); err != nil {
		t.Error(err)
	}
	if _, err := decodeMeta(1, []byte{metaVersion + 1, 0, 0}); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("meta: %v", err)
	}
	if _, err := decodeJournal(1, []byte{journalVersion + 1, 0, 0}); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("journal: %v", err)
	}
}

func TestMetaRecord(t *testing.T) {
	m := meta{index: 9, first: 2, last: 8, opaque: []byte("opaque")}
	b := m.encode(5)
	got, err := decodeMeta(5, b)
	if err != nil || got.index != 9 || got.first != 2 || got.last != 8 || string(got.opaque) != "opaque" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeMeta(6, b); !errors.Is(err, ErrCorrupt) {
		t.Errorf("under another shard: %v", err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if _, err := decodeMeta(5, bad); err == nil {
			t.Errorf("byte %d is not covered", i)
		}
		if _, err := decodeMeta(5, b[:i]); err == nil {
			t.Errorf("%d bytes are enough", i)
		}
	}
}

// A value that reads as a key that is not there would be the worst of answers.
func TestReadAfterFailureOfTheDisk(t *testing.T) {
	broken := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt || op.Kind == errorfs.OpOpen {
			return errorfs.ErrInjected
		}
		return nil
	})}
	fs := errorfs.Wrap(vfs.NewMem(), broken)
	s := open(t, fs)
	h := openShard(t, s, 1)
	h.Set([]byte("k"), []byte("v"))
	flush(t, h, Flush{Index: 1})
	h.clean = nil
	v := h.Version()
	broken.On()
	for name, read := range map[string]func(){
		"get":              func() { h.Get([]byte("k")) },
		"scan":             func() { collect(h.Scan(nil, nil), -1) },
		"version get":      func() { v.Get([]byte("k")) },
		"version backward": func() { collect(v.ScanBackward(nil, nil), -1) },
	} {
		if err, ok := caught(read).(*ReadError); !ok || !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken.Off()
	if err := sameView(h, map[string]string{"k": "v"}); err != nil {
		t.Error(err)
	}
	v.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestCloseWithOpenVersion(t *testing.T) {
	s := open(t, vfs.NewMem())
	h := openShard(t, s, 1)
	h.Set([]byte("k"), []byte("v"))
	flush(t, h, Flush{Index: 1})
	v := h.Version()
	h.Close()
	if err := s.Close(); !errors.Is(err, ErrInUse) {
		t.Errorf("close: %v", err)
	}
	if err := sameView(v, map[string]string{"k": "v"}); err != nil {
		t.Error(err)
	}
	v.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

// Nobody waits for pebble once it is unfit: its Close does not return as long as a compaction fails and is run again, as it is
// over a damaged table.
func TestGuardGivesUp(t *testing.T) {
	f := &fatal{log: quiet(), broken: make(chan struct{})}
	release := make(chan struct{})
	defer close(release)
	if err := f.guardUntil(time.After(10*time.Millisecond), func() error { <-release; return nil }); err == nil {
		t.Error("it waits no longer, and says nothing")
	}
	if f.get() == nil {
		t.Error("what does not end is no failure")
	}
	f = &fatal{log: quiet(), broken: make(chan struct{})}
	go func() {
		time.Sleep(10 * time.Millisecond)
		f.set(errorfs.ErrInjected)
	}()
	if err := f.guard(func() error { <-release; return nil }); !errors.Is(err, errorfs.ErrInjected) {
		t.Errorf("%v", err)
	}
}
