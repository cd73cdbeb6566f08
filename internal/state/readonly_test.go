package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestReadOnly: a store is read without one change of a file, and a cut of it has everything, the journal too.
//
// Mutation with which it was seen to fail: pebble is not told.
func TestReadOnly(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem)
	h := openShard(t, s, 1)
	d := newDurable()
	for i := range 3 {
		key := fmt.Sprint("key ", i)
		h.Set([]byte(key), []byte("value"))
		d.state[key] = "value"
		f := Flush{Index: uint64(2*i + 2), Meta: []byte("meta"), TruncateJournalBelow: uint64(i + 1)}
		for n := range uint64(2) {
			f.Journal = append(f.Journal, JournalEntry{Index: f.Index - 1 + n, Term: 1, Type: 2, Data: []byte{byte(n)}})
		}
		d.journal = append(d.journal, f.Journal...)
		flush(t, h, f)
	}
	d.journal = d.journal[2:]
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	changes := 0
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && !strings.HasSuffix(op.Path, "/LOCK") { // which is opened to be locked
			changes++
			return errors.New("a change: " + op.Path)
		}
		return nil
	}))
	if s, err := Open(Options{Dir: "/data/state", FS: fs, ReadOnly: true, CacheBytes: 1 << 20, Logger: quiet()}); err == nil {
		defer s.Close()
		ids, err := s.ShardIDs()
		if err != nil || !slices.Equal(ids, []uint64{1}) {
			t.Fatal(ids, err)
		}
		c, err := s.Cut(1)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		first, last := c.JournalBounds()
		var got []JournalEntry
		if err := c.Journal(first, last+9, func(e JournalEntry) error { got = append(got, e); return nil }); err != nil {
			t.Fatal(err)
		}
		if c.Index() != 6 || !slices.EqualFunc(got, d.journal, sameEntry) {
			t.Errorf("cut of %d with the journal %v, want %v", c.Index(), got, d.journal)
		}
		if err := c.Journal(first-1, last, func(JournalEntry) error { return nil }); !errors.Is(err, ErrCompacted) {
			t.Errorf("below the first: %v", err)
		}
		enough := errors.New("enough")
		if err := c.Journal(first, last+1, func(JournalEntry) error { return enough }); !errors.Is(err, enough) {
			t.Errorf("an error of yield: %v", err)
		}
		if err := c.Journal(last+1, last+5, func(JournalEntry) error { return enough }); err != nil {
			t.Errorf("beyond the last: %v", err)
		}
	} else {
		t.Fatal(err)
	}
	if changes > 0 {
		t.Errorf("%d changes", changes)
	}
	if _, err := Open(Options{Dir: "/nothing", FS: fs, ReadOnly: true, Logger: quiet()}); err == nil {
		t.Error("a store that is not there is opened")
	}
}
