package state

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What only grows at its end must go to the bottom at once, whatever is rewritten beside it: else
// compactions copy all of history again and again, and a read of one key asks every table.
func TestGrowingKeysAreNotRewritten(t *testing.T) {
	s := open(t, vfs.NewMem())
	defer s.Close()
	h := openShard(t, s, 1)
	defer h.Close()
	value := make([]byte, 1000)
	n := 0
	for round := range 12 {
		for i := range 20 { // small, rewritten every time, and on both sides
			h.Set(fmt.Appendf(nil, "a%04d", i), value)
			h.Set(fmt.Appendf(nil, "z%04d", i), value)
		}
		for range 2000 {
			n++
			h.Set(fmt.Appendf(nil, "e%08d", n), value)
		}
		flush(t, h, Flush{Index: uint64(round + 1)})
	}
	tables, err := s.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	kind := func(first byte) []byte { return append(prefix(nil, 1, kindData), first) }
	growing := 0
	for level, infos := range tables {
		for _, table := range infos {
			lo, hi := table.Smallest.UserKey, table.Largest.UserKey
			if bytes.Compare(hi, kind('e')) < 0 || bytes.Compare(lo, kind('f')) >= 0 {
				continue
			}
			growing++
			if bytes.Compare(lo, kind('e')) < 0 || bytes.Compare(hi, kind('f')) >= 0 || level != 6 {
				t.Errorf("level %d has a table from %q to %q", level, lo, hi)
			}
		}
	}
	if growing != 12 {
		t.Errorf("%d tables of growing keys, want one of each flush", growing)
	}
}
