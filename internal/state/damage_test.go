package state

import (
	"errors"
	"fmt"
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

func damageMetByPebble(t *testing.T, atEnd bool) {
	r, fs := testkit.Random(t), vfs.NewMem()
	told := make(chan string, 1)
	open := func(compactions bool) *Store {
		s, err := Open(Options{Dir: "/s", FS: fs, Logger: quiet(), DisableCompactions: !compactions,
			OnFatal: func(err error) { t.Errorf("fatal: %v", err) },
			OnDamage: func(shard uint64, table string, _ error) {
				select {
				case told <- fmt.Sprint(shard, " ", table):
				default:
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(false)
	h, other := openShard(t, s, 1), openShard(t, s, 2)
	d, neighbour := fill(t, r, h, newDurable(), 12), fill(t, r, other, newDurable(), 3) // enough for a compaction
	tables, _ := cutTo(t, s, fs, 1, "/cut", 0)
	names, err := s.Tables(1)
	if err != nil || len(names) != 12 {
		t.Fatal(names, err)
	}
	h.Close()
	other.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
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
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > closePatience/2 {
		t.Errorf("closed after %v", took)
	}

	s = open(true)
	if atEnd {
		hears() // compactions may have found another way meanwhile
	}
	other = openShard(t, s, 2)
	neighbour = fill(t, r, other, neighbour, 12)
	j := &InstallJob{store: s, shard: 1, in: Install{Index: d.index, Tables: tables}} // the shard may not open
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	neighbour = fill(t, r, other, neighbour, 12)
	h = openShard(t, s, 1)
	if err := errors.Join(sameDurable(h, installed(d)), sameDurable(other, neighbour)); err != nil {
		t.Error(err)
	}
	h.Close()
	other.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for drained := false; !drained; {
		select {
		case <-told:
		default:
			drained = true
		}
	}
	s = open(true)
	defer s.Close()
	select {
	case got := <-told:
		t.Errorf("told of %s after it was replaced", got)
	case <-time.After(200 * time.Millisecond):
	}
}
