package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// TestDamageMetByPebble: what pebble meets first, as it looks at the tables' ends after an Open or compacts them, is one shard's. The store goes
// on, says whose it is, and ends.
//
// Mutations with which it was seen to fail: backgroundError sets fatal whatever the error; it tells nobody.
func TestDamageMetByPebble(t *testing.T) {
	t.Run("end", func(t *testing.T) { damageMetByPebble(t, true) })
	t.Run("block", func(t *testing.T) { damageMetByPebble(t, false) })
}

// telling hands on shard and table of the first damage, and of the next when that was taken.
func telling(told chan<- string) func(shard uint64, table string, _ error) {
	return func(shard uint64, table string, _ error) {
		select {
		case told <- fmt.Sprint(shard, " ", table):
		default:
		}
	}
}

func damageMetByPebble(t *testing.T, atEnd bool) {
	r, fs := testkit.Random(t), vfs.NewMem()
	var told chan string // by the last that was opened: one that is closed may still have something to tell
	open := func(compactions bool) *Store {
		told = make(chan string, 1)
		s, err := Open(Options{Dir: "/s", FS: fs, Logger: quiet(), DisableCompactions: !compactions,
			OnFatal:  func(err error) { t.Errorf("fatal: %v", err) },
			OnDamage: telling(told)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(false)
	d, neighbour, tables, names := fillTwo(t, r, s, fs)
	b, err := fs.UnsafeGetFileDataBuffer(fs.PathJoin(s.path(dbDir), names[0]))
	if err != nil {
		t.Fatal(err)
	}
	at := 10 // in the first block
	if atEnd {
		at = len(b) - 1
	}
	b[at] ^= 1

	// It ends while it meets the damage again and again.
	s = open(true)
	hears := func() {
		t.Helper()
		select {
		case got := <-told:
			if want := "1 " + names[0]; got != want {
				t.Errorf("told of shard and table %s, want %s", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Error("nobody is told")
		}
	}
	hears()
	if err := s.Close(); err != nil { // which is one, too, if it takes longer than closePatience
		t.Fatal(err)
	}

	s = open(true)
	if atEnd {
		hears() // compactions may have found another way meanwhile
	}
	other := openShard(t, s, 2)
	neighbour = fill(t, r, other, neighbour, 12)
	j := &InstallJob{store: s, shard: 1, in: Install{Index: d.index, Tables: tables}} // the shard may not open
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	neighbour = fill(t, r, other, neighbour, 12)
	h := openShard(t, s, 1)
	if err := errors.Join(sameDurable(h, installed(d)), sameDurable(other, neighbour)); err != nil {
		t.Error(err)
	}
	h.Close()
	other.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(true)
	defer s.Close()
	select {
	case got := <-told:
		t.Errorf("told of %s after it was replaced", got)
	case <-time.After(200 * time.Millisecond):
	}
}

// Who is told of damage looks into the store, which may be closed meanwhile: it waits for nobody who has been told.
//
// Mutation with which it was seen to fail: Tables does not look whether the store is closed.
func TestDamageToldAtTheEnd(t *testing.T) {
	r, fs := testkit.Random(t), vfs.NewMem()
	s, err := Open(Options{Dir: "/s", FS: fs, Logger: quiet(), DisableCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	h := openShard(t, s, 1)
	fill(t, r, h, newDurable(), 12)
	names, err := s.Tables(1)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := fs.UnsafeGetFileDataBuffer(fs.PathJoin(s.path(dbDir), names[0]))
	if err != nil {
		t.Fatal(err)
	}
	b[10] ^= 1 // in the first block
	for i := range 40 {
		told, opened, closed := make(chan struct{}), make(chan *Store, 1), make(chan struct{})
		looked := make(chan error, 1)
		// A second compaction may know more of the tables, and find a way around what is damaged.
		s, err := Open(Options{Dir: "/s", FS: fs, Logger: quiet(), failedPause: time.Hour,
			OnFatal: func(err error) { t.Errorf("fatal: %v", err) },
			OnDamage: func(uint64, string, error) {
				close(told) // once: it is not met again
				s := <-opened
				for n := 0; ; n++ { // before, during and after Close
					if _, err := s.Tables(1); err != nil {
						looked <- err
						return
					}
					if n == 1000 {
						<-closed
					}
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			t.Fatal("nobody is told")
		}
		if i%2 == 0 {
			opened <- s
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			opened <- s
		}
		close(closed)
		if err := <-looked; !errors.Is(err, ErrClosed) {
			t.Errorf("who looks then gets %v", err)
		}
	}
}

// TestDamageHoldsNobodyUp: while the compaction of a damaged table waits to be run again, other shards take versions and flush, and the node asks for figures.
//
// Mutations with which it was seen to fail: backgroundError waits after a compaction too; patience.noteFailure does not pause ("met again"); resume does not grant
// ("never again").
func TestDamageHoldsNobodyUp(t *testing.T) {
	r, fs := testkit.Random(t), vfs.NewMem()
	var told, logged atomic.Int64
	open := func(compactions bool, pause time.Duration) *Store {
		s, err := Open(Options{Dir: "/s", FS: fs, Logger: slog.New(countHandler{n: &logged}), DisableCompactions: !compactions, failedPause: pause,
			OnFatal:  func(err error) { t.Errorf("fatal: %v", err) },
			OnDamage: func(uint64, string, error) { told.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const others = 16
	s := open(false, 0)
	h := openShard(t, s, 1)
	fill(t, r, h, newDurable(), 12)
	var hs [others]*Shard
	var was [others]durable
	for i := range hs {
		hs[i] = openShard(t, s, uint64(2+i))
		was[i] = fill(t, r, hs[i], newDurable(), 2)
		hs[i].Close()
	}
	names, err := s.Tables(1)
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := fs.UnsafeGetFileDataBuffer(fs.PathJoin(s.path(dbDir), name))
		if err != nil {
			t.Fatal(err)
		}
		b[10] ^= 1 // in the first block
	}

	awaits := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	failed := func() int64 { return s.db.Metrics().Compact.FailedCount }
	within := func(what string, f func()) {
		t.Helper()
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s wait for the compaction of a damaged table", what)
		}
	}
	within("a start and its looks", func() { s = open(true, time.Hour) })
	awaits("nobody is told", func() bool { return told.Load() > 0 })
	for i := range hs {
		within("a shard and its versions", func() {
			hs[i] = openShard(t, s, uint64(2+i))
			v := hs[i].Version()
			if err := sameView(v, was[i].state); err != nil {
				t.Errorf("shard %d: %v", 2+i, err)
			}
			v.Close()
		})
		within("flushes", func() { was[i] = fill(t, r, hs[i], was[i], 2) })
		within("figures", func() { s.Metrics() })
	}
	if n := failed(); n != 1 {
		t.Errorf("the damaged table was met again %d times within its pause", n-1)
	}
	if n := told.Load(); n > 1 {
		t.Errorf("told %d times", n)
	}
	s.patience.resume() // the pause is over, once
	awaits("the compaction is never again run", func() bool { return failed() > 1 })
	if n := logged.Load(); n > 2 {
		t.Errorf("%d errors in the log", n)
	}
	for i := range hs {
		if err := sameDurable(hs[i], was[i]); err != nil {
			t.Errorf("shard %d: %v", 2+i, err)
		}
		hs[i].Close()
	}
	within("the end", func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// countHandler counts errors that are logged.
type countHandler struct {
	slog.Handler
	n *atomic.Int64
}

func (c countHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

func (c countHandler) Handle(context.Context, slog.Record) error {
	c.n.Add(1)
	return nil
}
