package limitlog

import (
	"testing"
	"time"
)

func TestLog(t *testing.T) {
	l := New(nil)
	k := Key{1, "reason"}
	for i := range 3 {
		if _, ok := l.allow(k); ok != (i == 0) {
			t.Errorf("line %d: %v", i, ok)
		}
	}
	if n := l.Skipped(1); n != 2 {
		t.Errorf("%d were left out", n)
	}
	l.seen[k].at = time.Now().Add(-every)
	if skipped, ok := l.allow(k); !ok || skipped != 2 {
		t.Errorf("after a minute: %v, %d were left out", ok, skipped)
	}
	l.Forget(1)
	if _, ok := l.allow(k); !ok {
		t.Error("not forgotten")
	}
	for i := range uint64(2 * maxKeys) {
		l.allow(Key{i, "other"})
	}
	if len(l.seen) > maxKeys {
		t.Errorf("%d reasons are kept", len(l.seen))
	}
	l.Warn(k, "to nobody")
}
