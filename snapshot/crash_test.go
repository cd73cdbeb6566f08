package snapshot

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// recovered opens an image and says how many snapshots it has, all of which must be whole. Nothing half done may stay behind.
func recovered(t *testing.T, image vfs.FS, path string) (d *Dir, complete int) {
	t.Helper()
	d = openDir(t, image, path)
	for _, s := range d.List() {
		if _, err := Verify(t.Context(), image, s.Dir); err != nil {
			t.Errorf("what a crash left looks complete: %v", err)
		}
	}
	if len(d.Damaged()) > 0 {
		t.Errorf("a crash left damage: %v", d.Damaged())
	}
	if names := strings.Fields(namesT(t, image, path)); len(names) != len(d.List())+len(d.Partial()) {
		t.Errorf("a crash left %v", names)
	}
	return d, len(d.List())
}

// TestCrashOfCut: a snapshot is there whole or not at all.
//
// Mutations with which it was seen to fail, one by one: the manifest is not synced; publish does not sync the directory before the rename.
func TestCrashOfCut(t *testing.T) {
	r := testkit.Random(t)
	w := newWorld(t, vfs.NewMem(), "/s")
	w.fill(r, 2, 100, 500)
	fs := testkit.NewCrashFS(r)
	d := openDir(t, fs, "/snaps")
	images := fs.During(func() { w.cut(d, CutOptions{Info: testInfo(), TableBytes: 8 << 10, ChunkBytes: MinChunkBytes}) })
	for _, image := range images {
		recovered(t, image, "/snaps")
	}
	if _, n := recovered(t, fs.Synced(), "/snaps"); n != 1 {
		t.Error("a snapshot that was cut is lost")
	}
	if len(images) < 20 {
		t.Errorf("only %d crashes", len(images))
	}
}

// TestCrashOfReceive: after a crash at any point the receive goes on where it was, roughly, to the same end.
//
// Mutations with which it was seen to fail, one by one: chunks that lie there are believed without a look; files are not synced; remove
// does not wait for the new name to be durable.
func TestCrashOfReceive(t *testing.T) {
	r := testkit.Random(t)
	x := newSender(t, r)
	b := encoded(t, x.s)
	fs := testkit.NewCrashFS(r)
	d := openDir(t, fs, "/in")
	images := fs.During(func() {
		if _, err := d.Receive(t.Context(), b, x.src, accepted()); err != nil {
			t.Fatal(err)
		}
	})
	for i, image := range images {
		d, n := recovered(t, image, "/in")
		if testing.Short() && i%5 != 0 {
			continue
		}
		got, err := d.Receive(t.Context(), b, x.src, accepted())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), image, got.Dir); err != nil {
			t.Errorf("resumed after a crash (%d complete): %v", n, err)
		}
	}
	if _, n := recovered(t, fs.Synced(), "/in"); n != 1 {
		t.Error("a snapshot that was received is lost")
	}
	if len(images) < x.chunks() {
		t.Errorf("only %d crashes", len(images))
	}

	id := d.List()[0].ID
	images = fs.During(func() {
		if err := d.Remove(id); err != nil {
			t.Fatal(err)
		}
	})
	for _, image := range images {
		recovered(t, image, "/in")
	}
	if _, n := recovered(t, fs.Synced(), "/in"); n != 0 {
		t.Error("a snapshot that was removed is back")
	}
}

// TestErrorsOfTheDisk fails the n-th change of the file system during what there is to do, for all n. The second try succeeds without a restart.
func TestErrorsOfTheDisk(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	b := encoded(t, x.s)
	w := newWorld(t, vfs.NewMem(), "/s")
	w.fill(rand.New(rand.NewPCG(1, 1)), 2, 100, 500)
	receive := func(d *Dir) error {
		s, err := d.Receive(t.Context(), b, x.src, accepted())
		if err == nil {
			_, err = Verify(t.Context(), d.fs, s.Dir)
		}
		return err
	}
	failAll(t, "receive", x.chunks(), func(*Dir) {}, receive)
	failAll(t, "remove", 2, func(d *Dir) {
		if err := receive(d); err != nil {
			t.Fatal(err)
		}
	}, func(d *Dir) error { return d.Remove(x.s.ID) })
	failAll(t, "replace a partial", x.chunks(), func(d *Dir) {
		broken := fetchFunc(func(context.Context, ID, int, int) ([]byte, error) { return nil, context.Canceled })
		m := *x.s.Manifest
		m.Index--
		other, _, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Receive(t.Context(), other, broken, accepted()); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}, receive)
	failAll(t, "cut", 10, func(*Dir) {}, func(d *Dir) error {
		s, err := w.tryCut(d, small)
		if err == nil {
			_, err = Verify(t.Context(), d.fs, s.Dir)
		}
		return err
	})
}

// failAll prepares a directory, has one change fail in do, and does it again.
func failAll(t *testing.T, name string, atLeast int, prepare func(*Dir), do func(*Dir) error) {
	failed := 0
	for n := int32(0); ; n++ {
		mem := vfs.NewMem()
		index := errorfs.OnIndex(-1)
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				return index.MaybeError(op)
			}
			return nil
		}))
		d := openDir(t, fs, "/in")
		prepare(d)
		index.Store(n)
		err := do(d)
		met := index.Load() < 0
		index.Store(-1)
		if err == nil && !met {
			break
		}
		if err != nil {
			failed++
			if !errors.Is(err, errorfs.ErrInjected) {
				t.Errorf("%s, change %d: %v", name, n, err)
			}
			if err := do(d); err != nil {
				t.Fatalf("%s, change %d: the second try: %v", name, n, err)
			}
		}
		recovered(t, mem, "/in")
	}
	if failed < atLeast {
		t.Errorf("%s: only %d failures", name, failed)
	}
}

// A directory that could not be synced is not believed to be durable because its next sync succeeds: what is there at the second try survives a loss of power.
//
// Mutations with which it was seen to fail, one by one: makeDir leaves what it has made; publish leaves the directory of what was received; rename leaves the new name, and says that it has
// failed; Discard does not sync the directory without its manifest.
func TestFailedSyncsOfDirectories(t *testing.T) {
	x := newSender(t, testkit.Random(t))
	w := newWorld(t, vfs.NewMem(), "/s")
	w.fill(rand.New(rand.NewPCG(1, 1)), 2, 100, 500)
	receive := func(d *Dir) error { _, err := d.Receive(t.Context(), encoded(t, x.s), x.src, accepted()); return err }
	for name, test := range map[string]struct {
		prepare, do func(d *Dir) error
		failures    int
		left        int // after a loss of power
	}{
		"receive": {nil, receive, 4, 1},
		"cut":     {nil, func(d *Dir) error { _, err := w.tryCut(d, small); return err }, 4, 1},
		"remove":  {receive, func(d *Dir) error { return d.Remove(x.s.ID) }, 1, 0},
		"discard": {receive, func(d *Dir) error {
			if err := d.Discard(x.s.ID); !errors.Is(err, ErrNotFound) { // there is no second try
				return err
			}
			return nil
		}, 1, 0},
	} {
		failed := 0
		for n := 1; ; n++ {
			fs := testkit.NewForgetfulDirs(0)
			if test.prepare == nil {
				fs.FailNext(n) // as the directory is opened, too
			}
			open := func() (d *Dir, err error) { return Open(Options{Path: "/in", FS: fs, Logger: quiet()}) }
			d, err := open()
			if err != nil {
				d, err = open()
			}
			if err == nil && test.prepare != nil {
				err = test.prepare(d)
				fs.FailNext(n)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err = test.do(d); err != nil {
				err = test.do(d)
			}
			if err != nil {
				t.Fatalf("%s, failure %d: %v", name, n, err)
			}
			if !fs.Failed() {
				break
			}
			failed++
			image := fs.Synced()
			left := openDir(t, image, "/in").List()
			if len(left) != test.left {
				t.Errorf("%s, failure %d: %d are there after a loss of power", name, n, len(left))
			}
			for _, s := range left {
				if _, err := Verify(t.Context(), image, s.Dir); err != nil {
					t.Errorf("%s, failure %d: after a loss of power: %v", name, n, err)
				}
			}
		}
		if failed < test.failures {
			t.Errorf("%s: only %d failures", name, failed)
		}
	}
}
