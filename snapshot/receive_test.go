package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// sender is a snapshot to be fetched, and what to do to it.
type sender struct {
	fs  *vfs.MemFS
	d   *Dir
	s   *Snapshot
	src *Source
}

func newSender(t testing.TB, r *rand.Rand) *sender { t.Helper(); return newSenderOf(t, r, 200, small) }

func newSenderOf(t testing.TB, r *rand.Rand, keys int, o CutOptions) *sender {
	t.Helper()
	fs := vfs.NewMem()
	w := newWorld(t, fs, "/s")
	w.fill(r, 3, keys, 1000)
	x := &sender{fs: fs, d: openDir(t, fs, "/cuts")}
	x.s = w.cut(x.d, o)
	x.src = source(t, x.d, x.s.ID)
	if len(x.s.Manifest.Files) < 3 || len(x.s.Manifest.Files[0].Chunks) < 3 {
		t.Fatal("too small")
	}
	return x
}

func (x *sender) chunks() (n int) {
	for i := range x.s.Manifest.Files {
		n += len(x.s.Manifest.Files[i].Chunks)
	}
	return n
}

// TestResume breaks off after every number of chunks, restarts, and goes on: nothing is fetched twice.
func TestResume(t *testing.T) {
	r := testkit.Random(t)
	x := newSender(t, r)
	broken := errors.New("connection lost")
	for stop := range x.chunks() {
		fs := vfs.NewMem()
		d := openDir(t, fs, "/in")
		fetched := 0
		from := fetchFunc(func(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
			if fetched == stop {
				return nil, broken
			}
			fetched++
			return x.src.Fetch(ctx, id, file, chunk)
		})
		if _, err := d.Receive(t.Context(), encoded(t, x.s), from, accepted()); !errors.Is(err, broken) {
			t.Fatalf("broken off: %v", err)
		}
		if r.IntN(2) == 0 {
			d = openDir(t, fs, "/in")
		}
		if len(d.List()) > 0 || len(d.Partial()) != 1 {
			t.Fatalf("complete %v, partial %v", d.List(), d.Partial())
		}
		stop = x.chunks()
		got, err := d.Receive(t.Context(), encoded(t, x.s), from, accepted())
		if err != nil {
			t.Fatal(err)
		}
		if fetched != x.chunks() {
			t.Errorf("%d chunks were fetched, there are %d", fetched, x.chunks())
		}
		if _, err := Verify(t.Context(), fs, got.Dir); err != nil {
			t.Error(err)
		}
		if len(d.Partial()) > 0 || len(openDir(t, fs, "/in").List()) != 1 {
			t.Error("not complete")
		}
	}
}

// TestResumeOfDamage: what lies there is believed no more than what arrives.
func TestResumeOfDamage(t *testing.T) {
	r := testkit.Random(t)
	x := newSender(t, r)
	for range 20 {
		fs := vfs.NewMem()
		d := openDir(t, fs, "/in")
		part := "/in/" + nameOf(x.s.Manifest, x.s.ID) + suffixPart
		stop := 1 + r.IntN(x.chunks()-1)
		fetched := 0
		from := fetchFunc(func(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
			if fetched == stop {
				return nil, errors.New("connection lost")
			}
			fetched++
			return x.src.Fetch(ctx, id, file, chunk)
		})
		if _, err := d.Receive(t.Context(), encoded(t, x.s), from, accepted()); err == nil {
			t.Fatal("complete")
		}
		b := readT(t, fs, part+"/"+fileName(0))
		switch r.IntN(4) {
		case 0:
			b[r.IntN(len(b))] ^= 1
		case 1:
			b = b[:r.IntN(len(b))]
		case 2:
			b = append(b, make([]byte, 1<<20)...)
		case 3:
			clear(b[r.IntN(len(b)):])
		}
		writeT(t, fs, part+"/"+fileName(0), b)
		got, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), fs, got.Dir); err != nil {
			t.Error(err)
		}
	}
}

// forgetfulFS is a disk that fails once, when a file is written or synced for the n-th time. As Linux does, it takes what it could not write for written: to
// sync that file succeeds from then on, and does nothing.
type forgetfulFS struct {
	vfs.FS
	n    int
	lost map[string]bool // by name
}

func (f *forgetfulFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if _, err := f.Stat(name); err != nil {
		delete(f.lost, name) // another file
	}
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return &forgetfulFile{file, f, name}, err
}

type forgetfulFile struct {
	vfs.File
	fs   *forgetfulFS
	name string
}

func (f *forgetfulFile) do(op func() error) error {
	if f.fs.n--; f.fs.n == 0 {
		f.fs.lost[f.name] = true
		return errorfs.ErrInjected
	}
	return op()
}

func (f *forgetfulFile) WriteAt(p []byte, at int64) (n int, err error) {
	err = f.do(func() error { n, err = f.File.WriteAt(p, at); return err })
	return n, err
}

func (f *forgetfulFile) sync(op func() error) error {
	return f.do(func() error {
		if f.fs.lost[f.name] {
			return nil
		}
		return op()
	})
}

func (f *forgetfulFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *forgetfulFile) SyncData() error { return f.sync(f.File.SyncData) }

// What a disk could not write is not believed to be there because the kernel still shows it: a snapshot that was received after all survives a loss of power.
//
// Mutations with which it was seen to fail, one by one: the file stays after WriteAt, SyncData, Sync has failed.
func TestReceiveAfterAFailedSync(t *testing.T) {
	x := newSenderOf(t, testkit.Random(t), 2500, CutOptions{TableBytes: 512 << 10, ChunkBytes: 64 << 10})
	if x.s.Manifest.Bytes() < 2*fetchedSyncEvery {
		t.Fatal("too small")
	}
	failed := 0
	for n := 1; ; n++ {
		mem := vfs.NewCrashableMem()
		fs := &forgetfulFS{FS: mem, n: n, lost: map[string]bool{}}
		d := openDir(t, fs, "/in")
		_, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted())
		if err == nil {
			break
		}
		failed++
		if !errors.Is(err, errorfs.ErrInjected) {
			t.Fatal(err)
		}
		if _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); err != nil {
			t.Fatal(err)
		}
		if _, complete := recovered(t, mem.CrashClone(vfs.CrashCloneCfg{}), "/in"); complete != 1 {
			t.Errorf("failure %d: there are %d snapshots after a loss of power", n, complete)
		}
	}
	if failed < 20 {
		t.Errorf("only %d failures", failed)
	}
}

// TestDamagedChunks: what arrives damaged is asked for again, not for ever.
func TestDamagedChunks(t *testing.T) {
	r := testkit.Random(t)
	x := newSender(t, r)
	fs := vfs.NewMem()
	d := openDir(t, fs, "/in")
	times := map[string]int{}
	spoil := func(limit int) Fetcher {
		return fetchFunc(func(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
			b, err := x.src.Fetch(ctx, id, file, chunk)
			key := fmt.Sprint(file, chunk)
			if times[key]++; times[key] <= limit {
				switch r.IntN(4) {
				case 0:
					b[r.IntN(len(b))] ^= 1
				case 1:
					b = b[:len(b)-1]
				case 2:
					b = append(b, 0)
				case 3:
					b = nil
				}
			}
			return b, err
		})
	}
	_, err := d.Receive(t.Context(), encoded(t, x.s), spoil(chunkAttempts), accepted())
	var damage *DamageError
	if !errors.As(err, &damage) || damage.File != fileName(0) || damage.Offset != 0 {
		t.Errorf("damaged for good: %v", err)
	}
	if times[fmt.Sprint(0, 0)] != chunkAttempts {
		t.Errorf("asked %d times", times[fmt.Sprint(0, 0)])
	}
	clear(times)
	got, err := d.Receive(t.Context(), encoded(t, x.s), spoil(chunkAttempts-1), accepted())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), fs, got.Dir); err != nil {
		t.Error(err)
	}
}

// TestSourceOfDamage: the source notices, and says where, what its disk has done.
func TestSourceOfDamage(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	name := x.s.Tables()[1]
	b := readT(t, x.fs, name)
	b[MinChunkBytes+5] ^= 1
	writeT(t, x.fs, name, b)
	_, err := openDir(t, vfs.NewMem(), "/in").Receive(t.Context(), encoded(t, x.s), x.src, accepted())
	var damage *DamageError
	if !errors.As(err, &damage) || damage.File != name || damage.Offset != MinChunkBytes {
		t.Errorf("%v", err)
	}
	for _, at := range [][2]int{{-1, 0}, {0, -1}, {len(x.s.Manifest.Files), 0}, {0, len(x.s.Manifest.Files[0].Chunks)}} {
		if _, err := x.src.Fetch(t.Context(), x.s.ID, at[0], at[1]); err == nil {
			t.Errorf("chunk %d of file %d", at[1], at[0])
		}
	}
	if _, err := x.src.Fetch(t.Context(), ID{}, 0, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("another snapshot: %v", err)
	}
}

// TestLyingPeer: manifests that are well formed and made up. Nothing may be written for most of them, and nothing outside of the
// directory or beyond the limits for any.
func TestLyingPeer(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	manifest := func(change func(m *Manifest)) []byte {
		m := *x.s.Manifest
		m.Files = append([]File(nil), m.Files...)
		change(&m)
		b, _, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	huge := func(m *Manifest) {
		m.ChunkBytes = MaxChunkBytes
		m.Files = nil
		for range 1000 {
			m.Files = append(m.Files, File{Bytes: MaxFileBytes, Chunks: make([]uint32, MaxFileBytes/MaxChunkBytes)})
		}
	}
	limited := accepted()
	limited.MaxBytes = x.s.Manifest.Bytes() - 1
	later := accepted()
	later.MinIndex = x.s.Manifest.Index + 1
	for name, c := range map[string]struct {
		manifest []byte
		o        ReceiveOptions
		want     error
	}{
		"another cluster": {manifest(func(m *Manifest) { m.Cluster = "other" }), accepted(), ErrForeign},
		"another shard":   {manifest(func(m *Manifest) { m.Shard = 8 }), accepted(), ErrForeign},
		"too old":         {manifest(func(*Manifest) {}), later, ErrStale},
		"over the limit":  {manifest(func(*Manifest) {}), limited, ErrTooLarge},
		"huge":            {manifest(huge), accepted(), ErrNoSpace},
		"not a manifest":  {[]byte("../../etc/passwd"), accepted(), ErrCorrupt},
		"nothing":         {nil, accepted(), ErrCorrupt},
		"too long":        {make([]byte, MaxManifestBytes+1), accepted(), ErrTooLarge},
	} {
		fs := vfs.NewMem()
		fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 1 << 40})
		d := openDir(t, fs, "/in")
		d.o.Reserve = 1 << 20
		if _, err := d.Receive(t.Context(), c.manifest, x.src, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if names := namesT(t, fs, "/in"); names != "" {
			t.Errorf("%s: wrote %s", name, names)
		}
	}

	// The files do not agree with what the manifest says of the whole, though every chunk does.
	fs := vfs.NewMem()
	d := openDir(t, fs, "/in")
	lie := manifest(func(m *Manifest) { m.Files[1].SHA256[0]++ })
	m, id, err := Decode(lie)
	if err != nil {
		t.Fatal(err)
	}
	from := fetchFunc(func(ctx context.Context, _ ID, file, chunk int) ([]byte, error) {
		return x.src.Fetch(ctx, x.s.ID, file, chunk)
	})
	var damage *DamageError
	if _, err := d.Receive(t.Context(), lie, from, accepted()); !errors.As(err, &damage) || !strings.Contains(damage.File, fileName(1)) {
		t.Errorf("a false SHA-256: %v", err)
	}
	if names := namesT(t, fs, "/in"); names != nameOf(m, id)+suffixPart {
		t.Errorf("left: %s", names)
	}
	// Another manifest of the shard takes the place of the one that leads nowhere.
	if _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); err != nil {
		t.Error(err)
	}
	if names := namesT(t, fs, "/in"); names != nameOf(x.s.Manifest, x.s.ID) {
		t.Errorf("left: %s", names)
	}
}

// TestReceiveIsAlone: one per shard at a time, and space is looked at again and again.
func TestReceiveIsAlone(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	fs := vfs.NewMem()
	d := openDir(t, fs, "/in")
	calls := 0
	from := fetchFunc(func(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
		if calls++; calls == 2 {
			if _, err := d.Receive(ctx, encoded(t, x.s), x.src, accepted()); !errors.Is(err, ErrBusy) {
				t.Errorf("second receive: %v", err)
			}
			if err := d.RemovePartial(id); !errors.Is(err, ErrBusy) {
				t.Errorf("remove: %v", err)
			}
			fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 100, TotalBytes: 1000})
		}
		return x.src.Fetch(ctx, id, file, chunk)
	})
	if _, err := d.Receive(t.Context(), encoded(t, x.s), from, accepted()); !errors.Is(err, ErrNoSpace) {
		t.Errorf("the disk is filling up: %v", err)
	}
	fs.TestingSetDiskUsage(vfs.DiskUsage{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Receive(ctx, encoded(t, x.s), x.src, accepted()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	slept := time.Duration(0)
	l := newLimiter(1<<20, nil)
	l.now = func() time.Time { return now }
	l.sleep = func(_ context.Context, d time.Duration) error {
		now = now.Add(d)
		slept += d
		return nil
	}
	for range 100 {
		if err := l.wait(t.Context(), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if slept < 98*time.Second || slept > 100*time.Second {
		t.Errorf("100 MiB at 1 MiB/s took %v", slept)
	}
	now, slept = now.Add(time.Hour), 0 // idleness is not saved up
	for range 10 {
		if err := l.wait(t.Context(), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if slept < 8*time.Second {
		t.Errorf("10 MiB at 1 MiB/s took %v after an hour of rest", slept)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := newLimiter(1, nil).wait(ctx, 1); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
	if err := sleep(ctx, time.Hour); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

// Rests are as long as whoever is asked says, for what was done since the last one. Neither they nor the waiting for a rate count as work.
func TestLimiterRests(t *testing.T) {
	now := time.Unix(1000, 0)
	var slept, worked time.Duration
	l := newLimiter(0, func(d time.Duration) time.Duration { worked += d; return 3 * d })
	l.now, l.woke = func() time.Time { return now }, now
	l.sleep = func(_ context.Context, d time.Duration) error {
		now = now.Add(d)
		slept += d
		return nil
	}
	work := func(d time.Duration) {
		t.Helper()
		now = now.Add(d)
		if err := l.wait(t.Context(), 100<<10); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		work(restAfter / 4)
	}
	if worked != 5*restAfter || slept != 3*worked {
		t.Errorf("after %v of work it slept %v, and says that it worked %v", 5*restAfter, slept, worked)
	}
	l.perSecond, l.next = 1<<20, now.Add(time.Hour) // a rate that takes longer than the rests
	work(restAfter)
	worked, slept = 0, 0
	work(restAfter)
	if worked != restAfter || slept < 90*time.Millisecond {
		t.Errorf("at a rate of a tenth of a second it slept %v, and says that it worked %v instead of %v", slept, worked, restAfter)
	}
	why := errors.New("enough")
	l.sleep = func(context.Context, time.Duration) error { return why }
	now = now.Add(restAfter)
	if err := l.wait(t.Context(), 1); !errors.Is(err, why) {
		t.Errorf("a rest that was broken off: %v", err)
	}
}

// TestSummer: the sums do not depend on how the bytes come.
func TestSummer(t *testing.T) {
	r := testkit.Random(t)
	for _, size := range []int{0, 1, MinChunkBytes - 1, MinChunkBytes, MinChunkBytes + 1, 5 * MinChunkBytes, 5*MinChunkBytes + 7} {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		s := newSummer(MinChunkBytes)
		for rest := b; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			s.write(rest[:n])
			rest = rest[n:]
		}
		f := s.sum()
		if f.Bytes != int64(size) || f.SHA256 != sha256.Sum256(b) || len(f.Chunks) != chunks(f.Bytes, MinChunkBytes) {
			t.Errorf("%d bytes: %+v", size, f)
		}
		m := Manifest{ChunkBytes: MinChunkBytes, Files: []File{f}}
		fs := vfs.NewMem()
		writeT(t, fs, "/f", b)
		if err := checkFile(t.Context(), fs, "/f", &m, 0, make([]byte, MinChunkBytes)); err != nil {
			t.Error(err)
		}
	}
}

// A disk that cannot read, or remove, what may be thrown away keeps no node from starting, and no snapshot from being received: what was received is fetched anew where it cannot be read.
//
// Mutations with which it was seen to fail, one by one: adoptPartial leaves a directory whose manifest cannot be read; an error of it, or of removeLeftover, is one of Open; a chunk that cannot
// be read is an error for good; a cut writes into a leftover of its name.
func TestUnreadableLeftovers(t *testing.T) {
	r := testkit.Random(t)
	x := newSender(t, r)
	lost := errors.New("connection lost")
	begun := func(chunks int) *vfs.MemFS {
		fs := vfs.NewMem()
		from := fetchFunc(func(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
			if chunks--; chunks < 0 {
				return nil, lost
			}
			return x.src.Fetch(ctx, id, file, chunk)
		})
		if _, err := openDir(t, fs, "/in").Receive(t.Context(), encoded(t, x.s), from, accepted()); !errors.Is(err, lost) {
			t.Fatal(err)
		}
		return fs
	}
	part := "/in/" + nameOf(x.s.Manifest, x.s.ID) + suffixPart

	mem := begun(3)
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Path == part+"/"+manifestName && op.Kind == errorfs.OpFileRead {
			return syscall.EIO
		}
		return nil
	}))
	d := openDir(t, fs, "/in")
	if names := namesT(t, mem, "/in"); names != "" || len(d.Partial()) > 0 {
		t.Errorf("what cannot be gone on with is still there: %s, %v", names, d.Partial())
	}

	mem = begun(3)
	w := newWorld(t, mem, "/s")
	w.fill(r, 2, 100, 500)
	cut := fmt.Sprintf("/in/%s%016x-%016x-1%s", namePrefix, testShard, w.index, suffixCut)
	if err := mem.MkdirAll(cut, 0o755); err != nil {
		t.Fatal(err)
	}
	writeT(t, mem, cut+"/"+fileName(1000), []byte("left"))
	writeT(t, mem, part+"/"+manifestName, nil)
	keeps := true
	fs = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if keeps && op.Kind == errorfs.OpRemoveAll {
			return syscall.EIO
		}
		return nil
	}))
	d = openDir(t, fs, "/in")
	if names := strings.Fields(namesT(t, mem, "/in")); len(names) != 2 {
		t.Fatalf("not what this test is about: %v", names)
	}
	keeps = false
	if s := w.cut(d, small); s.Manifest.Index != w.index {
		t.Errorf("the cut is %s", s.Dir)
	}
	if _, complete := recovered(t, mem, "/in"); complete != 1 {
		t.Errorf("%d are complete", complete)
	}

	mem = begun(3)
	gone := false
	fs = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch {
		case op.Path != part+"/"+fileName(0) || gone:
		case op.Kind == errorfs.OpRemove:
			gone = true
		case op.Kind == errorfs.OpFileReadAt && op.Offset == MinChunkBytes:
			return syscall.EIO
		}
		return nil
	}))
	d = openDir(t, fs, "/in")
	if _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); !errors.Is(err, syscall.EIO) || !gone {
		t.Errorf("a chunk that cannot be read: %v, the file is removed: %v", err, gone)
	}
	if _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); err != nil {
		t.Error(err)
	}
	if _, complete := recovered(t, mem, "/in"); complete != 1 {
		t.Errorf("%d are complete", complete)
	}
}
