package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"
)

func runLoad(ctx context.Context, c console, args []string) error {
	f := newFlags(c, "load", "\n\nPosts random entries between accounts of its own, named Load:*, in the asset LOAD: single ones,\n"+
		"two-phase ones, entries of three legs, and linked chains. Accounts must not be overdrawn, so some are refused.")
	servers := bindServers(f)
	clients := f.Int("clients", 64, "how many post at the same time, each waiting for its answer")
	accounts := f.Int("accounts", 1000, "how many accounts take part, 2 to 100000")
	batch := f.Int("batch", 1, "entries in one command, 1 to 1000")
	duration := f.Duration("duration", 10*time.Second, "how long")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if *clients < 1 || *clients > 10_000 || *accounts < 2 || *accounts > 100_000 || *batch < 1 || *batch > 1000 {
		fmt.Fprintln(c.err, "-clients, -accounts or -batch is out of range")
		return errUsage
	}
	to, err := servers.dial()
	if err != nil {
		return err
	}
	defer to.Close()
	l := newLoad(*accounts, *batch)
	setup, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.prepare(setup, to); err != nil {
		return err
	}
	l.showWhile(newProgress(c.err), "", func() { l.run(ctx, *duration, *clients, func(int) ledger { return to }) })
	r := l.result()
	if err := writeLatencies(c, r); err != nil {
		return err
	}
	return r.err
}

// showWhile shows the load's progress until work returns. Prefix stands in front of it.
func (l *load) showWhile(p *progress, prefix string, work func()) {
	ctx, stop := context.WithCancel(context.Background())
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		p.run(ctx, func() string { return prefix + l.line() })
	}()
	work()
	stop()
	<-shown
}

func writeLatencies(c console, r *loadResult) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "commands\t%s\n", thousands(r.Commands))
	fmt.Fprintf(w, "entries booked\t%s\n", thousands(r.Booked))
	fmt.Fprintf(w, "entries refused\t%s\n", thousands(r.Refused))
	fmt.Fprintf(w, "rate\t%s commands/s, %s entries/s\n", thousands(uint64(r.Rate)), thousands(uint64(r.EntryRate)))
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}} {
		fmt.Fprintf(w, "%s\t%s\n", q.name, milliseconds(r.latency.quantile(q.q)))
	}
	fmt.Fprintf(w, "max\t%s\n", milliseconds(r.latency.max))
	fmt.Fprintf(w, "longest without an answer\t%s\n", milliseconds(r.Silence))
	return w.Flush()
}
