package snapshot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/internal/testkit"
)

// TestRoundTrip cuts, verifies, receives, verifies, installs, goes on, and cuts again.
func TestRoundTrip(t *testing.T) {
	t.Run("memory", func(t *testing.T) { testRoundTrip(t, vfs.NewMem(), "/") })
	t.Run("disk", func(t *testing.T) { testRoundTrip(t, vfs.Default, t.TempDir()+"/") })
}

func testRoundTrip(t *testing.T, fs vfs.FS, root string) {
	r := testkit.Random(t)
	from, to := newWorld(t, fs, root+"from"), newWorld(t, fs, root+"to")
	from.fill(r, 6, 100, 1000)
	to.fill(r, 1, 50, 100) // something else, and older
	from.index += to.index
	from.flush(state.Flush{})
	cuts, received := openDir(t, fs, root+"cuts"), openDir(t, fs, root+"received")

	progress := 0
	o := small
	o.Info = testInfo()
	o.Progress = func(p Progress) { progress++ }
	s := from.cut(cuts, o)
	m := s.Manifest
	if len(m.Files) < 3 || m.Index != from.index || m.Shard != testShard || progress < len(m.Files) {
		t.Fatalf("%d files, index %d, %d calls of Progress", len(m.Files), m.Index, progress)
	}
	if again := from.cut(cuts, small); again != s {
		t.Error("the same state was cut twice into different things")
	}
	if got, err := Verify(t.Context(), fs, s.Dir); err != nil || fmt.Sprint(got) != fmt.Sprint(m) {
		t.Errorf("verify: %v, %v", got, err)
	}

	last := Progress{}
	ro := accepted()
	ro.Progress = func(p Progress) { last = p }
	got, err := received.Receive(t.Context(), encoded(t, s), source(t, cuts, s.ID), ro)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Progress{len(m.Files), m.Bytes(), m.Bytes()}); last != want {
		t.Errorf("progress %+v, want %+v", last, want)
	}
	if _, err := Verify(t.Context(), fs, got.Dir); err != nil {
		t.Error(err)
	}
	if again, err := received.Receive(t.Context(), encoded(t, s), nil, accepted()); again != got || err != nil {
		t.Errorf("receive of what is complete: %v, %v", again, err)
	}
	to.install(got)
	if err := to.same(from); err != nil {
		t.Error(err)
	}
	if err := received.Remove(got.ID); err != nil {
		t.Error(err)
	}
	if names := namesT(t, fs, root+"received"); names != "" {
		t.Errorf("left: %s", names)
	}
	// The installed tables are the store's own.
	to.index, to.state, to.sessions = from.index, from.state, from.sessions
	to.fill(r, 2, 100, 1000)
	if err := to.same(to); err != nil {
		t.Error(err)
	}
	s = to.cut(received, small)
	if _, err := Verify(t.Context(), fs, s.Dir); err != nil {
		t.Error(err)
	}
}

// TestReplicasCutTheSame: what is cut depends on the state and the options alone, so that a receiver can go on with
// another replica that has a snapshot of the same index.
func TestReplicasCutTheSame(t *testing.T) {
	fs := vfs.NewMem()
	one, two := newWorld(t, fs, "/1"), newWorld(t, fs, "/2")
	seed := rand.Uint64()
	one.fill(rand.New(rand.NewPCG(seed, 1)), 4, 100, 500)
	s := one.cut(openDir(t, fs, "/cuts1"), small)
	two.install(s)
	if got := two.cut(openDir(t, fs, "/cuts2"), small); got.ID != s.ID {
		t.Errorf("%v and %v", got.ID, s.ID)
	}
}

// TestCutWhileWriting cuts again and again while the shard is being written to. Each must be exactly one flush.
func TestCutWhileWriting(t *testing.T) {
	fs := vfs.NewMem()
	w := newWorld(t, fs, "/s")
	d := openDir(t, fs, "/cuts")
	transaction := func(n uint64) {
		for i := range 50 {
			w.shard.Set(fmt.Appendf(nil, "key %d", i), fmt.Appendf(nil, "%d", n))
		}
		w.index = n
		w.flush(state.Flush{})
	}
	transaction(1)
	stop := make(chan struct{})
	var cutters sync.WaitGroup
	cutters.Go(func() {
		for n := uint64(2); ; n++ {
			select {
			case <-stop:
				return
			default:
				transaction(n)
			}
		}
	})
	rounds := 30
	if testing.Short() {
		rounds = 10
	}
	for i := range rounds {
		c, err := w.store.Cut(testShard)
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.Cut(t.Context(), c, CutOptions{Info: testInfo()})
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), fs, s.Dir); err != nil {
			t.Fatal(err)
		}
		to := newWorld(t, fs, fmt.Sprint("/to", i))
		to.install(s)
		for k, v := range to.shard.Scan(nil, nil) {
			if string(v) != fmt.Sprint(s.Manifest.Index) {
				t.Fatalf("%s is %s in the snapshot at %d", k, v, s.Manifest.Index)
			}
		}
	}
	close(stop)
	cutters.Wait()
}

// Somebody makes room on a running node with rm -r, and snapshots go on all the same: what has vanished is neither on offer nor in the way.
//
// Mutations with which it was seen to fail, one by one: what cannot be renamed because it is not there is an error of hide; begin does not look whether the directory is there; it
// does not make that of all snapshots; Discard waits for who reads.
func TestVanishedDirectories(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	lost := errors.New("connection lost")
	brokenOff := fetchFunc(func(context.Context, ID, int, int) ([]byte, error) { return nil, lost })
	m := *x.s.Manifest
	m.Index--
	other, _, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, vanished := range []string{"", nameOf(x.s.Manifest, x.s.ID) + suffixPart} {
		for name, next := range map[string][]byte{"the same": encoded(t, x.s), "another": other} {
			fs, in := vfs.Default, filepath.Join(t.TempDir(), "in") // which, unlike one in memory, knows how much room a directory has
			d := openDir(t, fs, in)
			if _, err := d.Receive(t.Context(), encoded(t, x.s), brokenOff, accepted()); !errors.Is(err, lost) {
				t.Fatal(err)
			}
			if err := fs.RemoveAll(filepath.Join(in, vanished)); err != nil {
				t.Fatal(err)
			}
			// Of another one there is nobody who has it, so it comes as far as the first chunk.
			if _, err := d.Receive(t.Context(), next, brokenOff, accepted()); !errors.Is(err, lost) {
				t.Errorf("without %q, %s: %v", vanished, name, err)
			}
			if _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); err != nil {
				t.Errorf("without %q, after %s: %v", vanished, name, err)
			}
			recovered(t, fs, in)
		}
	}

	fs := vfs.NewMem()
	d := openDir(t, fs, "/in")
	s, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted())
	if err != nil {
		t.Fatal(err)
	}
	src := source(t, d, s.ID)
	if err := fs.RemoveAll(s.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := src.Fetch(t.Context(), s.ID, 0, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("fetched from what is not there: %v", err)
	}
	if err := d.Remove(s.ID); !errors.Is(err, ErrBusy) {
		t.Errorf("removed while it is read: %v", err)
	}
	if err := d.Discard(s.ID); err != nil || len(d.List()) > 0 {
		t.Errorf("%v, and %d are on offer", err, len(d.List()))
	}
}

// What must not be used any more is not, even if the disk does not let it be renamed: neither by this process nor by the next.
//
// Mutations with which it was seen to fail: Discard keeps what it could not rename; it leaves the manifest.
func TestDiscardOnAFailingDisk(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	mem := vfs.NewMem()
	failing := false
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing && op.Kind == errorfs.OpRename {
			return errorfs.ErrInjected
		}
		return nil
	}))
	d := openDir(t, fs, "/in")
	s, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted())
	if err != nil {
		t.Fatal(err)
	}
	failing = true
	if err := d.Discard(s.ID); !errors.Is(err, errorfs.ErrInjected) || len(d.List()) > 0 {
		t.Errorf("%v, and %d are on offer", err, len(d.List()))
	}
	failing = false
	if d := openDir(t, fs, "/in"); len(d.List()) > 0 {
		t.Error("it is on offer again after a start")
	}
}

// Who reads from a snapshot that is discarded hears that it is gone, not that it is damaged.
//
// Mutations with which it was seen to fail, one by one: Fetch does not look whether it is there still; neither does Verify.
func TestDiscardUnderReaders(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	discard := func() {}
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpOpen && strings.HasSuffix(op.Path, fileName(1)) {
			do := discard
			discard = func() {}
			do()
		}
		return nil
	}))
	for name, read := range map[string]func(*Dir, *Snapshot) error{
		"fetch": func(d *Dir, s *Snapshot) error {
			_, err := source(t, d, s.ID).Fetch(t.Context(), s.ID, 1, 0)
			return err
		},
		"verify": func(_ *Dir, s *Snapshot) error { _, err := Verify(t.Context(), fs, s.Dir); return err },
	} {
		d := openDir(t, fs, "/"+name)
		s, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted())
		if err != nil {
			t.Fatal(err)
		}
		discard = func() {
			if err := d.Discard(s.ID); err != nil {
				t.Error(err)
			}
		}
		if err := read(d, s); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// duringRename is a file system that does something before a directory gets another name.
type duringRename struct {
	vfs.FS
	do func(to string)
}

func (f *duringRename) Rename(from, to string) error {
	f.do(to)
	return f.FS.Rename(from, to)
}

// A snapshot is received while it is being removed. Either it is there afterwards or it is not.
//
// Mutation with which it was seen to fail: Remove does not hold the lock while it renames.
func TestReceiveDuringRemove(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	fs := &duringRename{FS: vfs.NewMem(), do: func(string) {}}
	d := openDir(t, fs, "/in")
	receive := func() error { _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); return err }
	if err := receive(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	fs.do = func(to string) {
		if !strings.HasSuffix(to, suffixDelete) {
			return
		}
		fs.do = func(string) {}
		go func() { ended <- receive() }()
		select {
		case err := <-ended: // which is what must not be
			ended <- err
		case <-time.After(100 * time.Millisecond): // it waits for the removal
		}
	}
	if err := d.Remove(x.s.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for _, s := range d.List() {
		if _, err := Verify(t.Context(), fs, s.Dir); err != nil {
			t.Errorf("a snapshot that is listed: %v", err)
		}
	}
}

func TestCutEnds(t *testing.T) {
	fs := vfs.NewMem()
	w := newWorld(t, fs, "/s")
	w.fill(testkit.Random(t), 3, 200, 1000)
	d := openDir(t, fs, "/cuts")
	c, err := w.store.Cut(testShard)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	o := small
	o.Info = testInfo()
	o.Progress = func(Progress) { cancel(why) }
	if _, err := d.Cut(ctx, c, o); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 8 << 10, TotalBytes: 1 << 30})
	if _, err := d.Cut(t.Context(), c, small); !errors.Is(err, ErrNoSpace) {
		t.Errorf("without space: %v", err)
	}
	fs.TestingSetDiskUsage(vfs.DiskUsage{})
	for name, o := range map[string]CutOptions{
		"no info": {}, "chunks": {ChunkBytes: 5000}, "tables": {TableBytes: -1}, "rate": {BytesPerSecond: -1},
	} {
		if _, err := d.Cut(t.Context(), c, o); err == nil {
			t.Errorf("%s: cut", name)
		}
	}
	if names := namesT(t, fs, "/cuts"); names != "" || len(d.List()) > 0 {
		t.Errorf("left: %s", names)
	}
}

// A cut asks how long to rest, and does.
func TestCutRests(t *testing.T) {
	fs := vfs.NewMem()
	w := newWorld(t, fs, "/s")
	w.fill(testkit.Random(t), 3, 200, 1000)
	d := openDir(t, fs, "/cuts")
	c, err := w.store.Cut(testShard)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const rest = 5 * time.Millisecond
	asked := 0
	o := small
	o.Info = testInfo()
	o.Rest = func(worked time.Duration) time.Duration {
		if worked < restAfter {
			t.Errorf("asked after %v of work", worked)
		}
		asked++
		return rest
	}
	o.Progress = func(Progress) { // hard work
		for began := time.Now(); time.Since(began) < restAfter; {
			runtime.Gosched()
		}
	}
	began := time.Now()
	if _, err := d.Cut(t.Context(), c, o); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); asked < 3 || took < time.Duration(asked)*rest {
		t.Errorf("%d rests, all of it took %v", asked, took)
	}
}

// TestVerify damages a snapshot in every way and wants to be told where.
func TestVerify(t *testing.T) {
	r := testkit.Random(t)
	fs := vfs.NewMem()
	w := newWorld(t, fs, "/s")
	w.fill(r, 3, 200, 1000)
	s := w.cut(openDir(t, fs, "/cuts"), small)
	if len(s.Manifest.Files) < 2 {
		t.Fatal("too few files")
	}
	dir := s.Dir
	for name, damage := range map[string]func() (want string){
		"flipped bit": func() string {
			i := r.IntN(len(s.Manifest.Files))
			b := readT(t, fs, s.Tables()[i])
			at := r.IntN(len(b))
			b[at] ^= 1 << r.IntN(8)
			writeT(t, fs, s.Tables()[i], b)
			return fmt.Sprintf("%s, offset %d", fileName(i), at/MinChunkBytes*MinChunkBytes)
		},
		"too short": func() string {
			b := readT(t, fs, s.Tables()[1])
			writeT(t, fs, s.Tables()[1], b[:len(b)-1])
			return fileName(1)
		},
		"too long": func() string {
			writeT(t, fs, s.Tables()[1], append(readT(t, fs, s.Tables()[1]), 0))
			return fileName(1)
		},
		"missing": func() string {
			if err := fs.Remove(s.Tables()[1]); err != nil {
				t.Fatal(err)
			}
			return fileName(1)
		},
		"too many": func() string {
			writeT(t, fs, fs.PathJoin(dir, fileName(len(s.Manifest.Files))), nil)
			return fileName(len(s.Manifest.Files))
		},
		"manifest": func() string {
			b := readT(t, fs, fs.PathJoin(dir, manifestName))
			b[r.IntN(len(b))] ^= 0x10
			writeT(t, fs, fs.PathJoin(dir, manifestName), b)
			return manifestName
		},
		"wrong sections": func() string {
			m := *s.Manifest
			m.Sections = append([]state.Section(nil), m.Sections...)
			m.Sections[0].Keys++
			return rewrite(t, fs, dir, &m, manifestName)
		},
		"wrong index": func() string {
			m := *s.Manifest
			m.Index++
			return rewrite(t, fs, dir, &m, manifestName)
		},
		"files in another order": func() string {
			m := *s.Manifest
			m.Files = append([]File(nil), m.Files...)
			m.Files[0], m.Files[1] = m.Files[1], m.Files[0]
			a, b := readT(t, fs, s.Tables()[0]), readT(t, fs, s.Tables()[1])
			writeT(t, fs, s.Tables()[0], b)
			writeT(t, fs, s.Tables()[1], a)
			return rewrite(t, fs, dir, &m, fileName(1))
		},
		"overlapping files": func() string {
			m := *s.Manifest
			m.Files = append([]File(nil), m.Files...)
			m.Files[1] = m.Files[0]
			writeT(t, fs, s.Tables()[1], readT(t, fs, s.Tables()[0]))
			return rewrite(t, fs, dir, &m, fileName(1))
		},
		"another shard's": func() string {
			m := *s.Manifest
			m.Shard++
			return rewrite(t, fs, dir, &m, fileName(0))
		},
	} {
		kept := map[string][]byte{}
		for _, n := range strings.Fields(namesT(t, fs, dir)) {
			kept[n] = readT(t, fs, fs.PathJoin(dir, n))
		}
		want := damage()
		if _, err := Verify(t.Context(), fs, dir); !errors.Is(err, ErrCorrupt) && !errors.Is(err, state.ErrCorrupt) && !errors.Is(err, ErrNewerFormat) ||
			!strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: %v, want it to say %q", name, err, want)
		}
		if err := fs.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := fs.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for n, b := range kept {
			writeT(t, fs, fs.PathJoin(dir, n), b)
		}
		if _, err := Verify(t.Context(), fs, dir); err != nil {
			t.Fatalf("%s: put right: %v", name, err)
		}
	}
}

func rewrite(t *testing.T, fs vfs.FS, dir string, m *Manifest, want string) string {
	t.Helper()
	b, _, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writeT(t, fs, fs.PathJoin(dir, manifestName), b)
	return want
}

// TestOpenClearsUp: what a crash can leave, and what is not ours.
func TestOpenClearsUp(t *testing.T) {
	fs := vfs.NewMem()
	w := newWorld(t, fs, "/s")
	w.fill(testkit.Random(t), 3, 100, 500)
	d := openDir(t, fs, "/snaps")
	s := w.cut(d, small)
	b := encoded(t, s)
	part := "/snaps/" + nameOf(s.Manifest, s.ID) + suffixPart
	mk := func(dir string, manifest []byte) {
		if err := fs.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if manifest != nil {
			writeT(t, fs, dir+"/"+manifestName, manifest)
		}
		writeT(t, fs, dir+"/000001.sst", []byte("some"))
	}
	mk(part, b)
	mk("/snaps/snap-1.part", b)         // called by another name
	mk("/snaps/snap-2.part", nil)       // no manifest yet
	mk("/snaps/snap-3.part", b[:9])     // half of one
	mk("/snaps/snap-4-5-1.cut", nil)    // being cut
	mk("/snaps/snap-4-5-6.del", b)      // being removed
	mk("/snaps/snap-4-5-6.part.del", b) // the same
	mk("/snaps/snap-broken", b[:9])     // once complete
	mk("/snaps/somebody's", nil)        // not ours
	d = openDir(t, fs, "/snaps")
	if l := d.List(); len(l) != 1 || l[0].ID != s.ID {
		t.Errorf("complete: %v", l)
	}
	if p := d.Partial(); len(p) != 1 || p[s.ID] != testShard {
		t.Errorf("partial: %v", p)
	}
	if fmt.Sprint(d.Damaged()) != "[/snaps/snap-broken]" {
		t.Errorf("damaged: %v", d.Damaged())
	}
	want := fmt.Sprintf("somebody's %s %s snap-broken", strings.TrimPrefix(s.Dir, "/snaps/"), strings.TrimPrefix(part, "/snaps/"))
	if got := strings.Fields(namesT(t, fs, "/snaps")); len(got) != 4 {
		t.Errorf("left: %v, want %s", got, want)
	}

	for upTo, left := range map[uint64]int{s.Manifest.Index - 1: 1, s.Manifest.Index: 0} {
		d := openDir(t, fs, "/snaps")
		if err := d.RemovePartials(testShard+1, 1<<60); err != nil {
			t.Error(err)
		}
		if err := d.RemovePartials(testShard, upTo); err != nil {
			t.Error(err)
		}
		if got := len(d.Partial()); got != left {
			t.Errorf("%d partial ones are left of those up to %d, want %d", got, upTo, left)
		}
		if left == 0 {
			mk(part, b) // for what follows
		}
	}
	d = openDir(t, fs, "/snaps")

	src := source(t, d, s.ID)
	if err := d.Remove(s.ID); !errors.Is(err, ErrBusy) {
		t.Errorf("remove of what is served: %v", err)
	}
	src.Close()
	if err := errors.Join(d.Remove(s.ID), d.RemovePartial(s.ID)); err != nil {
		t.Error(err)
	}
	d.refs[s.ID]++ // for the Close of the cleanup
	for name, err := range map[string]error{"complete": d.Remove(s.ID), "partial": d.RemovePartial(s.ID)} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("second remove of what was %s: %v", name, err)
		}
	}
	if _, err := d.Source(s.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("source of what is gone: %v", err)
	}
	if got := strings.Fields(namesT(t, fs, "/snaps")); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

// TestDamagedMakesRoom: one that Open could not use does not keep a whole one of the same name away, cut or received.
func TestDamagedMakesRoom(t *testing.T) {
	for _, how := range []string{"cut", "received"} {
		t.Run(how, func(t *testing.T) {
			fs := vfs.NewMem()
			w := newWorld(t, fs, "/s")
			w.fill(testkit.Random(t), 3, 100, 500)
			s := w.cut(openDir(t, fs, "/snaps"), small)
			b := encoded(t, s)
			from := openDir(t, fs, "/others")
			w.cut(from, small)
			damaged := append([]byte(nil), b...)
			damaged[len(b)/2] ^= 1
			writeT(t, fs, s.Dir+"/"+manifestName, damaged)
			d := openDir(t, fs, "/snaps")
			if len(d.List()) != 0 || len(d.Damaged()) != 1 {
				t.Fatalf("complete %v, damaged %v", d.List(), d.Damaged())
			}
			var again *Snapshot
			if how == "cut" {
				again = w.cut(d, small)
			} else {
				var err error
				if again, err = d.Receive(t.Context(), b, source(t, from, s.ID), ReceiveOptions{Cluster: s.Manifest.Cluster, Shard: testShard}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Verify(t.Context(), fs, again.Dir); err != nil || again.ID != s.ID {
				t.Errorf("%s: %v", again.Dir, err)
			}
		})
	}
}
