package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// world is a state store with one shard, and what that must show.
type world struct {
	t        testing.TB
	fs       vfs.FS
	store    *state.Store
	shard    *state.Shard
	index    uint64
	state    map[string]string
	sessions map[string]string
}

const (
	testCluster = "test"
	testShard   = 7
)

func newWorld(t testing.TB, fs vfs.FS, dir string) *world {
	t.Helper()
	s, err := state.Open(state.Options{Dir: dir, FS: fs, CacheBytes: 1 << 20, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.Shard(testShard)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, fs: fs, store: s, shard: h, state: map[string]string{}, sessions: map[string]string{}}
	t.Cleanup(func() {
		w.shard.Close()
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// fill writes and flushes some transactions.
func (w *world) fill(r *rand.Rand, flushes, keys, valueBytes int) {
	w.t.Helper()
	for range flushes {
		for range keys {
			key := fmt.Sprintf("key %d", r.IntN(4*keys))
			if r.IntN(5) == 0 {
				w.shard.Delete([]byte(key))
				delete(w.state, key)
				continue
			}
			value := make([]byte, r.IntN(valueBytes))
			for i := range value {
				value[i] = byte(r.Uint32())
			}
			w.shard.Set([]byte(key), value)
			w.state[key] = string(value)
		}
		w.index += 1 + r.Uint64N(10)
		session := fmt.Sprint("session ", r.IntN(9))
		w.sessions[session] = fmt.Sprint(w.index)
		w.flush(state.Flush{Sessions: []state.KV{{Key: []byte(session), Value: []byte(w.sessions[session])}}})
	}
}

func (w *world) flush(f state.Flush) {
	w.t.Helper()
	f.Index, f.Meta = w.index, w.meta()
	f.Journal = nil
	if first, last := w.shard.JournalBounds(); first != 0 {
		for i := last + 1; i <= w.index; i++ {
			f.Journal = append(f.Journal, state.JournalEntry{Index: i, Term: 1, Data: []byte("entry")})
		}
	} else {
		f.Journal = []state.JournalEntry{{Index: w.index, Term: 1}}
	}
	if !w.shard.Freeze() {
		w.t.Fatal("a flush is under way")
	}
	j := w.shard.Flush(f)
	if err := j.Run(); err != nil {
		w.t.Fatal(err)
	}
	w.shard.Flushed(j)
}

func (w *world) meta() []byte { return fmt.Appendf(nil, "meta of %d", w.index) }

// same compares what a shard shows, its journal aside, with another world's model.
func (w *world) same(as *world) error {
	if w.shard.FlushedIndex() != as.index || !bytes.Equal(w.shard.Meta(), as.meta()) {
		return fmt.Errorf("index %d, meta %q, want %d", w.shard.FlushedIndex(), w.shard.Meta(), as.index)
	}
	got := map[string]string{}
	for k, v := range w.shard.Scan(nil, nil) {
		got[string(k)] = string(v)
	}
	if !maps.Equal(got, as.state) {
		return fmt.Errorf("%d keys, want %d, or other values", len(got), len(as.state))
	}
	sessions := map[string]string{}
	if err := w.shard.LoadSessions(func(k, v []byte) error { sessions[string(k)] = string(v); return nil }); err != nil {
		return err
	}
	if !maps.Equal(sessions, as.sessions) {
		return fmt.Errorf("sessions %v, want %v", sessions, as.sessions)
	}
	return nil
}

func (w *world) cut(d *Dir, o CutOptions) *Snapshot {
	w.t.Helper()
	s, err := w.tryCut(d, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// tryCut is cut for a directory whose disk may fail.
func (w *world) tryCut(d *Dir, o CutOptions) (*Snapshot, error) {
	w.t.Helper()
	c, err := w.store.Cut(testShard)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if o.Cluster == "" {
		o.Info = testInfo()
	}
	return d.Cut(w.t.Context(), c, o)
}

// install replaces the shard by the snapshot.
func (w *world) install(s *Snapshot) {
	w.t.Helper()
	j, err := w.shard.Install(s.Install())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := j.Run(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.shard.Installed(j)
}

func testInfo() Info {
	return Info{Cluster: testCluster, Term: 3, Config: Config{Voters: []uint64{1, 2, 3}, Learners: []uint64{9}},
		MachineVersion: 2, Time: 1 << 40, Hash: 0x0123456789abcdef}
}

func openDir(t testing.TB, fs vfs.FS, path string) *Dir {
	t.Helper()
	d, err := Open(Options{Path: path, FS: fs, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// small makes many files and chunks of little data.
var small = CutOptions{TableBytes: 16 << 10, ChunkBytes: MinChunkBytes}

func encoded(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	b, err := s.EncodedManifest()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func source(t testing.TB, d *Dir, id ID) *Source {
	t.Helper()
	s, err := d.Source(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func accepted() ReceiveOptions { return ReceiveOptions{Cluster: testCluster, Shard: testShard} }

// fetchFunc is a Fetcher.
type fetchFunc func(ctx context.Context, id ID, file, chunk int) ([]byte, error)

func (f fetchFunc) Fetch(ctx context.Context, id ID, file, chunk int) ([]byte, error) {
	return f(ctx, id, file, chunk)
}

func readT(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeT(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	if err := writeFile(fs, name, b); err != nil {
		t.Fatal(err)
	}
}

func namesT(t testing.TB, fs vfs.FS, dir string) string {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}
