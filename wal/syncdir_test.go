package wal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A directory that could not be synced is not believed to be durable because its next sync succeeds: what was to be made durable is gone from it, and is made anew.
//
// Mutations with which it was seen to fail, one by one: makeDir leaves the directory; open leaves the log that it has made; cut leaves the new segment.
func TestFailedSyncsOfDirectories(t *testing.T) {
	failures := 0
	for nth := 1; ; nth++ {
		dir := filepath.Join(t.TempDir(), "wal")
		errSync := errors.New("the disk fails")
		left, held := nth, false // whether what was made is there when its sync fails
		names := func() int {
			found, err := listSegments(filepath.Join(dir, segmentDir))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			return len(found)
		}
		before := 0
		o := Options{Dir: dir, SegmentBytes: tiny, syncDir: func(d string) error {
			if left--; left == 0 {
				held, before = true, names()
				return errSync
			}
			return syncDir(d)
		}}
		acknowledged := uint64(0)
		run := func() error {
			w, rec, err := Open(o)
			if err != nil {
				return err
			}
			defer w.Close()
			have := 0
			if l := rec.Shards[1]; l != nil {
				have = len(l.Entries)
			}
			if uint64(have) < acknowledged {
				t.Errorf("sync %d: %d entries are there, %d were acknowledged", nth, have, acknowledged)
			}
			for i := acknowledged + 1; i <= 4; i++ {
				if err := w.Append([]Record{{Shard: 1, Entries: entriesOf(1, i, i, tiny)}}); err != nil {
					return err
				}
				acknowledged = i
			}
			return nil
		}
		err := run()
		if !held {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		failures++
		if !errors.Is(err, errSync) {
			t.Fatalf("sync %d: %v", nth, err)
		}
		if _, serr := os.Stat(dir); serr == nil && nth == 1 {
			t.Error("the directory of the log is there")
		}
		if after := names(); before > 0 && after != before-1 {
			t.Errorf("sync %d: there were %d segments as it failed, and are %d", nth, before, after)
		}
		if err := run(); err != nil {
			t.Errorf("sync %d: the second try: %v", nth, err)
		}
	}
	if failures < 5 {
		t.Errorf("only %d failures", failures)
	}
}
