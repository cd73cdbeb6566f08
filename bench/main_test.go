package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The test binary serves as the child of the tests below.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-child" {
		if err := runChild(contenders(), os.Args[2]); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestSelectCells(t *testing.T) {
	if n := len(fullCells()); n != 3*5*3*3+2*3*5*3 {
		t.Errorf("full has %d cells", n)
	}
	cells, err := selectCells("machine=noop,shards=1|64,clients=64x64,payload=128,mode=write")
	if err != nil || len(cells) != 2 || cells[1] != (cell{noop, 64, 64, 64, 128, write}) {
		t.Errorf("got %v, %v", cells, err)
	}
	full := make(map[cell]bool)
	for _, c := range fullCells() {
		full[c] = true
	}
	for _, c := range quickCells() {
		if !full[c] {
			t.Errorf("quick cell %v is not in full", c)
		}
	}
	for _, bad := range []string{"", "fast", "color=red", "shards=2"} {
		if _, err := selectCells(bad); err == nil {
			t.Errorf("-cells %q was taken", bad)
		}
	}
}

// instant answers everything at once, and every hundredth write with an error.
type instant struct {
	writes, reads, failed atomic.Int64
	shards                [8]atomic.Int64 // writes of each
}

func (s *instant) Write(_ context.Context, shard int, _ []byte) error {
	s.shards[shard].Add(1)
	if s.writes.Add(1)%100 == 0 {
		s.failed.Add(1)
		return errors.New("the hundredth")
	}
	return nil
}

func (s *instant) StartWrite(ctx context.Context, shard int, command []byte) (func(context.Context) error, error) {
	return func(ctx context.Context) error { return s.Write(ctx, shard, command) }, nil
}
func (s *instant) StartRead(ctx context.Context, shard int, key []byte) (func(context.Context) error, error) {
	return func(ctx context.Context) error { return s.Read(ctx, shard, key) }, nil
}
func (s *instant) Read(context.Context, int, []byte) error { s.reads.Add(1); return nil }
func (s *instant) Fsyncs() int64                           { return s.writes.Load() }
func (s *instant) Close() error                            { return nil }

func TestMeasure(t *testing.T) {
	work, err := newWorkload(noop, 16)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []cell{
		newCell(noop, 8, "3", 16, write),
		newCell(noop, 8, "3x16", 16, write),
		newCell(noop, 8, "100", 16, mixed),
		newCell(noop, 8, "2x4", 16, read),
		newCell(noop, 8, "3x16", 16, mixed),
	} {
		t.Run(c.String(), func(t *testing.T) {
			var sys instant
			r := measure(&sys, c, work, 0, 100*time.Millisecond)
			all := sys.writes.Load() + sys.reads.Load()
			if r.Ops == 0 || r.Ops+r.Errors > all || r.OpsPerS <= 0 || r.P99ms < r.P50ms {
				t.Errorf("%d operations: %+v", all, r)
			}
			if c.Mode == read {
				return
			}
			if r.Errors == 0 || r.FirstError != "the hundredth" || r.FsyncsPerS <= 0 {
				t.Errorf("%+v", r)
			}
			for shard := range sys.shards {
				if n := sys.shards[shard].Load(); n < sys.writes.Load()/16 {
					t.Errorf("shard %d got %d of %d writes", shard, n, sys.writes.Load())
				}
			}
			if share := float64(sys.writes.Load()) / float64(all); c.Mode == mixed && (share < 0.05 || share > 0.15) {
				t.Errorf("%.2f of the requests are writes", share)
			}
		})
	}
}

func TestRatios(t *testing.T) {
	c := newCell(noop, 64, "256", 128, write)
	one := newCell(noop, 1, "1", 128, write)
	money := newCell(ledger, 1, "2048", 128, write)
	at := func(c cell, system string, ops, p50 float64) line {
		return line{System: system, cell: c, asked: c, result: result{OpsPerS: ops, P50ms: p50}}
	}
	got := ratiosOf([]line{
		at(c, "decree", 100, 1), at(c, "dragonboat", 40, 1), at(c, "dragonboat-best", 90, 1), at(c, "dragonboat-best-one", 110, 1),
		at(one, "decree", 100, 1), at(one, "dragonboat", 200, 0.9),
		at(money, "decree", 100, 1), at(money, "dragonboat", 400, 1),
		at(money, "dragonboat", 400, 1), // Decree was not measured: no line
	})
	want := []struct {
		against string
		ratio   float64
		verdict string
	}{
		{"dragonboat", 2.5, "PASS"},
		{"dragonboat-best-one", 100.0 / 110, "MISS"},
		{"dragonboat", 0.9, "MISS"},
		{"dragonboat", 0.9, ""},
		{"dragonboat", 0.25, "PASS"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d ratios: %+v", len(got), got)
	}
	for i, w := range want {
		if g := got[i]; g.Against != w.against || g.Ratio != w.ratio || g.Verdict != w.verdict {
			t.Errorf("ratio %d: %+v, want %+v", i, g, w)
		}
	}
	if table := markdown(got); !strings.Contains(table, "2 of 4 targets held") {
		t.Error(table)
	}
}

// TestDragonboat runs every configuration of it once, as the benchmark does: in a child, suspended between rounds.
func TestDragonboat(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	s := settings{seconds: 200 * time.Millisecond, warm: 200 * time.Millisecond, rounds: 2, procs: 4}
	for _, c := range contenders() {
		if strings.HasPrefix(c.name, theirs) {
			s.systems = append(s.systems, c.name)
		}
	}
	base := t.TempDir()
	for _, c := range []cell{
		newCell(noop, 8, "4x4", 16, write),
		newCell(kv, 1, "16", 128, mixed),
	} {
		lines, err := compareCell(t.Context(), contenders(), s, base, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if l.Ops == 0 || l.Errors > 0 || l.Machine != c.Machine || len(l.Rounds) != s.rounds {
				t.Errorf("%v on %s: %+v", c, l.System, l)
			}
			if counted := l.System == "dragonboat" || l.System == "dragonboat-best"; counted != (l.FsyncsPerS > 0) {
				t.Errorf("%s counted %.0f fsyncs/s", l.System, l.FsyncsPerS)
			}
		}
	}
	if left, err := filepath.Glob(filepath.Join(base, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
