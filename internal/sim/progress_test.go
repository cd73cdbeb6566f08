package sim

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// progress is the line that tells how far a run of many seeds is: on a terminal one that is written over, else a new one now and then.
type progress struct {
	out      io.Writer
	terminal bool
	seeds    int
	started  time.Time
	shown    time.Time
	told     int // failures
}

func newProgress(f *os.File, seeds int) *progress {
	info, err := f.Stat()
	return &progress{out: f, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, seeds: seeds, started: time.Now(), shown: time.Now()}
}

func (p *progress) show(r *report) {
	for _, f := range r.Failures[p.told:] { // at once: the rest may take an hour
		why, _, _ := strings.Cut(f.Failure, "\n")
		p.end()
		fmt.Fprintf(p.out, "sim: seed %d FAILS: %s (make sim %s shows it)\n", f.Seed, why, again(f.Seed))
	}
	p.told = len(r.Failures)
	every := 5 * time.Second
	if p.terminal {
		every = 200 * time.Millisecond
	}
	if time.Since(p.shown) < every {
		return
	}
	p.shown = time.Now()
	if p.terminal {
		fmt.Fprintf(p.out, "\r%s\x1b[K", p.line(r))
	} else {
		fmt.Fprintln(p.out, p.line(r))
	}
}

// end leaves the line as it is.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprintln(p.out)
	}
}

func (p *progress) line(r *report) string {
	took := time.Since(p.started).Seconds()
	return fmt.Sprintf("sim: %d of %d seeds, %.1f seeds/s, %.0f simulated s/s, %d operations checked, %d faults, %d failures",
		r.Seeds, p.seeds, float64(r.Seeds)/took, r.Virtual.Seconds()/took, r.Stats.Operations(), r.Stats.Injected(), len(r.Failures))
}

// table is what the runs have seen.
func (r *report) table() string {
	var b strings.Builder
	s := &r.Stats
	row := func(name string, n int) { fmt.Fprintf(&b, "  %-32s %12d\n", name, n) }
	b.WriteString("operations checked\n")
	row("commands that happened", s.Acked)
	row("commands rejected", s.Rejected)
	row("commands refused by a session", s.Refused)
	row("reads answered", s.Reads)
	b.WriteString("attempts without an outcome\n")
	row("not proposed", s.NotProposed)
	row("unknown", s.Unknown)
	row("repeated", s.Retries)
	b.WriteString("faults injected\n")
	for kind, n := range s.Faults {
		row(faultNames[kind], n)
	}
	b.WriteString("what they did\n")
	row("crashes", s.Crashes)
	row("nodes started", s.Restarts)
	row("nodes stopped by their disk", s.DiskFailures)
	row("frames lost", s.FramesLost)
	row("log writes lost", s.WritesLost)
	row("log writes torn", s.WritesTorn)
	row("disks damaged", s.Rotten)
	row("  nodes refused to start", s.RotRefused)
	row("  replicas stopped", s.RotStopped)
	row("snapshots cut", s.Cuts)
	row("  fetches begun", s.Fetches)
	row("  chunks that arrived", s.Chunks)
	row("  chunks damaged on the way", s.ChunksDamaged)
	row("  snapshots installed", s.Installs)
	row("journals cut short", s.JournalsShort)
	row("changes of members", s.Changes)
	row("  not proposed", s.ChangesRefused)
	row("  replicas that left", s.Left)
	row("versions activated", s.Activations)
	row("  programs exchanged", s.Upgrades)
	row("calls through proxies", s.Proxied)
	row("  ended as unknown", s.ProxyDoubts)
	row("  proxies crashed", s.ProxyCrashes)
	row("  streams broken", s.StreamsBroken)
	row("leaders", s.Leaders)
	row("rollbacks", int(s.Rollbacks))
	row("entries committed", s.Entries)
	row("flushes", s.Flushes)
	b.WriteString("answers with a code\n")
	codes := make([]core.Code, 0, len(s.Codes))
	for c := range s.Codes {
		codes = append(codes, c)
	}
	slices.Sort(codes)
	for _, c := range codes {
		row(string(c), s.Codes[c])
	}
	return b.String()
}
