package state

import (
	"testing"

	"github.com/decree-raft/decree/internal/testkit"
)

// A directory that could not be synced is not believed to be durable because its next sync succeeds: a store that opens at the second attempt survives a loss of power, with what was flushed.
//
// Mutation with which it was seen to fail: makeDir leaves what it has made.
func TestFailedSyncsOfDirectories(t *testing.T) {
	failed := 0
	for nth := 1; ; nth++ {
		fs := testkit.NewForgetfulDirs(nth)
		try := func() (*Store, error) {
			return Open(Options{Dir: "/state", FS: fs, CacheBytes: 1 << 20, Logger: quiet(), OnFatal: func(error) {}})
		}
		s, err := try()
		if err == nil {
			if fs.Failed() {
				t.Errorf("failure %d: nobody said so", nth)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			break
		}
		failed++
		if s, err = try(); err != nil {
			t.Fatalf("failure %d: the second attempt: %v", nth, err)
		}
		h := openShard(t, s, 1)
		h.Set([]byte("key"), []byte("value"))
		flush(t, h, Flush{Index: 1, Meta: []byte("meta"), Journal: []JournalEntry{{Index: 1, Term: 1}}})
		image := fs.Synced()
		h.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s, err = Open(Options{Dir: "/state", FS: image, CacheBytes: 1 << 20, Logger: quiet(), OnFatal: func(error) {}})
		if err != nil {
			t.Errorf("failure %d: after a loss of power: %v", nth, err)
			continue
		}
		if h = openShard(t, s, 1); h.FlushedIndex() != 1 {
			t.Errorf("failure %d: what was flushed is lost", nth)
		}
		h.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if failed < 4 {
		t.Errorf("only %d failures", failed)
	}
}
