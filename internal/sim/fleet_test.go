package sim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// A fleet runs many seeds at once. Runs share raft's source of randomness with their whole process, so each has to
// have one for itself: the test binary starts itself again, once per processor. A worker reads ranges of seeds from its
// standard input and writes a report about each to its standard output.

// seedsAtOnce are one order to a worker: little enough for a progress that moves and an end that comes for all at once.
const seedsAtOnce = 8

type order struct {
	First uint64
	Seeds int
}

// report is what came of an order, or of many.
type report struct {
	Seeds    int
	Virtual  time.Duration
	Stats    Stats
	Failures []seedFailure
}

type seedFailure struct {
	Seed    uint64
	Failure string
}

func (r *report) add(o *report) {
	r.Seeds += o.Seeds
	r.Virtual += o.Virtual
	r.Stats.add(&o.Stats)
	r.Failures = append(r.Failures, o.Failures...)
}

// maxFailures end a run: they are likely to be one.
const maxFailures = 10

// longestRun of real time is far more than any seed takes, on any machine: something waits for ever.
const longestRun = 2 * time.Minute

func (o order) run() *report {
	rep := &report{}
	for seed := o.First; seed < o.First+uint64(o.Seeds); seed++ {
		watchdog := time.AfterFunc(longestRun, func() { panic(fmt.Sprintf("seed %d does not end", seed)) })
		r := runJudged(seed, flagged())
		watchdog.Stop()
		rep.add(&report{Seeds: 1, Virtual: r.Virtual, Stats: r.Stats})
		if r.Failure != nil {
			rep.Failures = append(rep.Failures, seedFailure{seed, r.Failure.Error()})
		}
	}
	return rep
}

// work is a worker's life.
func work(in io.Reader, out io.Writer) error {
	orders, reports := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		switch err := orders.Decode(&o); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
		if err := reports.Encode(o.run()); err != nil {
			return err
		}
	}
}

// runFleet runs seeds in that many processes, or in this one, and tells watch about the sum of what has been done.
func runFleet(first uint64, seeds, procs int, watch func(*report)) (*report, error) {
	var mu sync.Mutex
	total := &report{}
	next := first
	give := func() (o order, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		left := int(first + uint64(seeds) - next)
		if left == 0 || len(total.Failures) >= maxFailures {
			return o, false
		}
		o = order{next, min(seedsAtOnce, left)}
		next += uint64(o.Seeds)
		return o, true
	}
	take := func(r *report) {
		mu.Lock()
		defer mu.Unlock()
		total.add(r)
		watch(total)
	}
	if procs = min(procs, seeds/seedsAtOnce); procs < 2 {
		for o, ok := give(); ok; o, ok = give() {
			take(o.run())
		}
		return total, nil
	}
	var wg sync.WaitGroup
	errs := make([]error, procs)
	for i := range procs {
		wg.Go(func() { errs[i] = drive(give, take) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// drive starts a worker and keeps it busy.
func drive(give func() (order, bool), take func(*report)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-test.run=^TestSim$", "-test.timeout=0", "-sim.worker", "-sim.tune="+*tuneFlag)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	orders, reports := json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))
	for o, ok := give(); ok; o, ok = give() {
		var r report
		if err = orders.Encode(o); err == nil {
			err = reports.Decode(&r)
		}
		if err != nil {
			err = fmt.Errorf("the worker with the seeds %d to %d is gone: %w", o.First, o.First+uint64(o.Seeds)-1, err)
			break
		}
		take(&r)
	}
	_ = in.Close()
	_, _ = io.Copy(io.Discard, out) // what the test binary says in the end
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	return err
}
