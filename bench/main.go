// The command bench measures Decree side by side with dragonboat: the same shapes of load, in the same run, in turns.
// README.md in this directory says what is compared with what, and why that is fair.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"
)

// contenders are all systems that the benchmark knows, in the order of its tables. A new one is one line here. The
// report goes by the names: decree, dragonboat for the defaults, and dragonboat-something for its other configurations.
func contenders() []contender {
	return []contender{
		{name: "decree", about: "this library, with its defaults", machines: decreeMachines, start: startDecree, workload: decreeWorkload},
		{name: inSessions, extra: true, about: "the same, each command exactly once: 16 rsm.Clients that wait", machines: decreeMachines, start: startSessions, workload: decreeWorkload},
		{name: throughProxy, extra: true, about: "the same through a proxy, with 16 client connections", machines: decreeMachines, start: startProxied, workload: decreeWorkload},
		{name: throughNode, extra: true, about: "the same through a proxy within the node that leads", machines: decreeMachines, start: startNodeProxied, workload: decreeWorkload},
		{name: "dragonboat", about: "tan, a log per shard, 16 step workers", machines: dragonboatMachines, start: startDragonboat(tanLog)},
		{name: "dragonboat-best", about: "tan, a log per step worker, 16 step workers", machines: dragonboatMachines, start: startDragonboat(tanMuxLog)},
		{name: "dragonboat-best-one", about: "one pebble, one step worker", machines: dragonboatMachines, start: startDragonboat(onePebble)},
		{name: "dragonboat-pebble", extra: true, about: "a pebble per step worker, 16 step workers", machines: dragonboatMachines, start: startDragonboat(pebbleLog)},
	}
}

// settings are the command line's.
type settings struct {
	cells   []cell
	systems []string
	seconds time.Duration
	warm    time.Duration
	rounds  int
	procs   int
	dir     string
	json    bool
	report  string
}

func main() {
	err := run()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	all := contenders()
	s, task, err := parse(os.Args[1:], all)
	if err != nil {
		return err
	}
	if task != "" {
		return runChild(all, task)
	}
	runtime.LockOSThread() // children end with the thread that starts them
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	base, err := os.MkdirTemp(s.dir, "decree-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	if err := describe(os.Stderr, base, s); err != nil {
		return err
	}
	lines, err := compare(ctx, all, s, base)
	ratios := ratiosOf(lines)
	if s.json {
		for _, r := range ratios {
			err = errors.Join(err, emit(r))
		}
	}
	table := markdown(ratios)
	fmt.Fprintf(os.Stderr, "\n%s", table)
	if s.report != "" {
		err = errors.Join(err, os.WriteFile(s.report, []byte(table), 0o644))
	}
	return err
}

func parse(args []string, all []contender) (s settings, task string, err error) {
	var names []string
	usage := ""
	for _, c := range all {
		if !c.extra {
			names = append(names, c.name)
		}
		usage += fmt.Sprintf("\n%s: %s", c.name, c.about)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	cells := f.String("cells", "quick", "`which` cells: quick, full, or a filter on full: machine=noop,shards=1|64,clients=16|64x64,payload=128,mode=write")
	systems := f.String("systems", strings.Join(names, ","), "the `systems`, separated by commas"+usage)
	seconds := f.Float64("seconds", 2, "seconds measured in each round")
	warm := f.Float64("warm", 1, "seconds of warm-up before each")
	f.IntVar(&s.rounds, "rounds", 3, "rounds of each cell; the systems take turns, and the medians count")
	f.IntVar(&s.procs, "gomaxprocs", 16, "GOMAXPROCS of every system")
	f.StringVar(&s.dir, "dir", os.TempDir(), "where the data goes: a directory on a real disk")
	f.BoolVar(&s.json, "json", true, "print a JSON line per cell and system, and per ratio, on standard output")
	f.StringVar(&s.report, "report", "", "also write the table of ratios to this `file`")
	f.StringVar(&task, "child", "", "internal: run one system for one cell")
	if err := f.Parse(args); err != nil || task != "" {
		return s, task, err
	}
	s.seconds, s.warm = time.Duration(*seconds*float64(time.Second)), time.Duration(*warm*float64(time.Second))
	if s.seconds <= 0 || s.warm < 0 || s.rounds < 1 || s.procs < 1 {
		return s, "", errors.New("-seconds, -rounds and -gomaxprocs must be positive, and -warm not negative")
	}
	s.systems = strings.Split(*systems, ",")
	for _, name := range s.systems {
		if _, err := find(all, name); err != nil {
			return s, "", err
		}
	}
	s.cells, err = selectCells(*cells)
	return s, "", err
}

// describe says where the figures come from, and refuses a file system on which they would mean nothing.
func describe(w io.Writer, dir string, s settings) error {
	memory, err := inMemory(dir)
	if err != nil {
		return err
	}
	if memory {
		return fmt.Errorf("%s is in memory, where fsync costs nothing; choose a directory on a disk with -dir", dir)
	}
	sync, err := syncTime(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%d cells, %d systems, %d rounds of %v after %v; %s, %d CPUs, GOMAXPROCS %d; %s, write and fsync of 4 KiB there: %.2f ms\n",
		len(s.cells), len(s.systems), s.rounds, s.seconds, s.warm,
		runtime.Version(), runtime.NumCPU(), s.procs, dir, float64(sync)/float64(time.Millisecond))
	return nil
}

// syncTime is the median time of an append of 4 KiB and its fsync.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	times := make([]time.Duration, 101)
	block := make([]byte, 4096)
	for i := range times {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times[i] = time.Since(start)
	}
	return median(times), nil
}

// compare measures cell after cell. On an error it returns the lines that it has.
func compare(ctx context.Context, all []contender, s settings, base string) ([]line, error) {
	var lines []line
	for i, c := range s.cells {
		fmt.Fprintf(os.Stderr, "[%d/%d] %v\n", i+1, len(s.cells), c)
		got, err := compareCell(ctx, all, s, base, c)
		if err != nil {
			return lines, fmt.Errorf("%v: %w", c, err)
		}
		for _, l := range got {
			if s.json {
				if err := emit(l); err != nil {
					return lines, err
				}
			}
		}
		lines = append(lines, got...)
	}
	return lines, nil
}

// compareCell starts every system anew and lets them measure in turns, another one first in each round.
func compareCell(ctx context.Context, all []contender, s settings, base string, c cell) (lines []line, err error) {
	children := make([]*child, len(s.systems))
	defer func() {
		for _, ch := range children {
			if ch != nil {
				err = errors.Join(err, ch.stop())
			}
		}
	}()
	for i, name := range s.systems {
		if children[i], err = startChild(ctx, name, c, base, s.procs); err != nil {
			return nil, err
		}
	}
	rounds := make([][]result, len(children))
	for round := range s.rounds {
		for i := range children {
			turn := (i + round) % len(children)
			r, err := measuredRound(children, turn, s)
			if err != nil {
				return nil, err
			}
			rounds[turn] = append(rounds[turn], r)
		}
	}
	for i, name := range s.systems {
		contender, err := find(all, name)
		if err != nil {
			return nil, err
		}
		lines = append(lines, newLine(c, contender, rounds[i]))
	}
	return lines, nil
}

// measuredRound is one system's turn, with a note of how quiet the machine was meanwhile.
func measuredRound(children []*child, turn int, s settings) (result, error) {
	idle := func() (sum time.Duration) {
		for i, ch := range children {
			if i != turn {
				sum += ch.cpu()
			}
		}
		return sum
	}
	ch := children[turn]
	start, machine, own, waiting := time.Now(), machineCPU(), ch.cpu(), idle()
	r, err := ch.round(s.warm, s.seconds)
	if err != nil {
		return r, err
	}
	took := time.Since(start)
	machine, own, waiting = machineCPU()-machine, ch.cpu()-own, idle()-waiting
	share := func(cpu time.Duration) float64 { return max(0, cpu.Seconds()/took.Seconds()) }
	fmt.Fprintf(os.Stderr, "    %-18s %9.0f/s  p50 %7.2f ms  p99 %7.2f ms  fsyncs %6.0f/s  CPUs: own %.2f, waiting systems %.2f, others %.2f",
		ch.name, r.OpsPerS, r.P50ms, r.P99ms, r.FsyncsPerS, r.CPUs, share(waiting), share(machine-own-waiting))
	if r.Errors > 0 {
		fmt.Fprintf(os.Stderr, "  %d ERRORS, the first: %s", r.Errors, r.FirstError)
	}
	fmt.Fprintln(os.Stderr)
	return r, nil
}

// emit prints one JSON line.
func emit(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// median sorts values and returns the middle one, of an even number the greater.
func median[T interface{ ~int64 | ~float64 }](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}
