package rsm

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// A flush that does not end is spoken of once, with its shard, and its end is too; its age is that of the oldest.
//
// Mutation with which it was seen to fail: nobody watches.
func TestFlushesAreWatched(t *testing.T) {
	var log bytes.Buffer
	e := newEngine(1, slog.New(slog.NewTextHandler(&log, nil)), nil, 0)
	c := &clock{e: e, cfg: &Config{FsyncStall: time.Minute}}
	young, old := &core.FlushDone{Shard: 2}, &core.FlushDone{Shard: 3}
	e.due.begin(young, e.mono())
	c.watchFlushes()
	if log.Len() > 0 {
		t.Errorf("too early: %s", log.String())
	}
	e.due.begin(old, e.mono()-int64(2*time.Minute))
	for range 3 {
		c.watchFlushes()
	}
	if age, shard := e.due.oldest(e.mono()); age < 2*time.Minute || shard != 3 {
		t.Errorf("the oldest is %v old, of shard %d", age, shard)
	}
	if said := log.String(); strings.Count(said, "does not end") != 1 || !strings.Contains(said, "shard=3") {
		t.Errorf("said %q", said)
	}
	e.due.end(old)
	c.watchFlushes()
	if said := log.String(); !strings.Contains(said, "has ended") {
		t.Errorf("said %q", said)
	}
	e.due.end(young)
	if age, _ := e.due.oldest(e.mono()); age != 0 {
		t.Errorf("none is under way, and the oldest is %v old", age)
	}
}

// A flush that gets no turn any more, since the node ends, is not under way any more.
func TestFlushThatGetsNoTurn(t *testing.T) {
	e := newEngine(1, slog.New(slog.DiscardHandler), nil, 0)
	for range maxFlushes {
		e.flushes <- struct{}{}
	}
	f := &core.FlushDone{Shard: 2}
	e.due.begin(f, e.mono()-int64(time.Minute))
	close(e.quit)
	e.bg.add()
	e.runFlush(nil, f)
	if age, shard := e.due.oldest(e.mono()); age != 0 {
		t.Errorf("one of shard %d is under way for %v", shard, age)
	}
}
