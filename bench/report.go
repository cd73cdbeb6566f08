package main

import (
	"fmt"
	"strings"
)

// line is one case on one system: the medians over its rounds.
type line struct {
	System string `json:"system"`
	cell          // its machine is the one that the system ran
	result
	// Rounds are the operations per second of each round, for who wants to judge the noise.
	Rounds []float64 `json:"rounds"`

	asked cell // the cell as it was asked for
}

func newLine(asked cell, c contender, rounds []result) line {
	l := line{System: c.name, cell: asked, asked: asked}
	l.Machine = c.runs(asked.Machine)
	middle := func(value func(result) float64) float64 {
		values := make([]float64, len(rounds))
		for i, r := range rounds {
			values[i] = value(r)
		}
		return median(values)
	}
	l.Seconds = middle(func(r result) float64 { return r.Seconds })
	l.OpsPerS = middle(func(r result) float64 { return r.OpsPerS })
	l.P50ms = middle(func(r result) float64 { return r.P50ms })
	l.P99ms = middle(func(r result) float64 { return r.P99ms })
	l.FsyncsPerS = middle(func(r result) float64 { return r.FsyncsPerS })
	l.CPUs = middle(func(r result) float64 { return r.CPUs })
	for _, r := range rounds {
		l.Rounds = append(l.Rounds, r.OpsPerS)
		l.Ops += r.Ops
		l.Errors += r.Errors
		if l.FirstError == "" {
			l.FirstError = r.FirstError
		}
	}
	return l
}

const (
	ours   = "decree"
	theirs = "dragonboat" // its configurations are dragonboat and dragonboat-something
)

// ratio compares Decree with one configuration of dragonboat in one cell. More than 1 is in Decree's favour.
type ratio struct {
	Kind string `json:"kind"` // "ratio", to tell it from a case's line
	cell
	Against string  `json:"against"`
	Measure string  `json:"measure"` // ops_per_s, or p50_ms
	Ours    float64 `json:"ours"`
	Theirs  float64 `json:"theirs"`
	Ratio   float64 `json:"ratio"`
	Need    float64 `json:"need,omitempty"` // 0: nothing is promised here
	Verdict string  `json:"verdict"`        // PASS, MISS, or nothing
	Errors  int64   `json:"errors"`         // of both; with any, look before you believe
}

// throughProxy is to reach proxyNeed of the embedded rate; so is throughNode, where the proxy is within the node that leads.
const (
	throughProxy = "decree-proxy"
	throughNode  = "decree-proxy-node"
	inSessions   = "decree-session"
	proxyNeed    = 0.6
)

// opponent is whom a promise is measured against.
type opponent int

const (
	defaults opponent = iota // dragonboat, as it comes
	best                     // whichever of its measured configurations did best in the cell
)

// promise is one of the project's targets, as it applies to a cell.
type promise struct {
	against opponent
	latency bool // p50 instead of operations per second
	need    float64
}

// promises are the targets for a cell; the first is always against the defaults. Every comparison without a target is
// shown with a need of 0.
func promises(c cell) []promise {
	many := c.Clients*c.InFlight >= 16
	switch {
	case c.Machine == ledger && c.Mode == write:
		return []promise{{defaults, false, 0.25}}
	case c.Machine != noop:
		return []promise{{defaults, false, 0}}
	case c.Mode == write && many && c.Shards == 64:
		return []promise{{defaults, false, 2}, {best, false, 1}}
	case c.Mode == write && many:
		return []promise{{defaults, false, 1}, {best, false, 0}}
	case c.Mode == mixed && many:
		return []promise{{defaults, false, 1.2}, {best, false, 0}}
	case c.Mode == write && c.Clients == 1:
		return []promise{{defaults, true, 1}, {best, true, 0}}
	case c.Clients == 1:
		return []promise{{defaults, true, 0}}
	}
	return []promise{{defaults, false, 0}, {best, false, 0}}
}

// ratiosOf compares the lines of each cell, in the order in which the cells ran.
func ratiosOf(lines []line) []ratio {
	var ratios []ratio
	for len(lines) > 0 {
		n := 1
		for n < len(lines) && lines[n].asked == lines[0].asked {
			n++
		}
		ratios = append(ratios, cellRatios(lines[:n])...)
		lines = lines[n:]
	}
	return ratios
}

func cellRatios(lines []line) []ratio {
	var us, sessions *line
	var proxied, them []*line
	for i := range lines {
		switch {
		case lines[i].System == ours:
			us = &lines[i]
		case lines[i].System == throughProxy, lines[i].System == throughNode:
			proxied = append(proxied, &lines[i])
		case lines[i].System == inSessions:
			sessions = &lines[i]
		case strings.HasPrefix(lines[i].System, theirs):
			them = append(them, &lines[i])
		}
	}
	if us == nil {
		return nil
	}
	var ratios []ratio
	for _, p := range proxied { // what clients in other processes get of it
		r := newRatio(p, us, promise{need: proxyNeed})
		r.Against = p.System + " against decree"
		ratios = append(ratios, r)
		if sessions != nil { // which do the same for each command
			r = newRatio(p, sessions, promise{})
			r.Against = p.System + " against " + inSessions
			ratios = append(ratios, r)
		}
	}
	for _, p := range promises(us.asked) {
		if other := pick(them, p); other != nil {
			ratios = append(ratios, newRatio(us, other, p))
		}
	}
	return ratios
}

func pick(them []*line, p promise) *line {
	var chosen *line
	for _, l := range them {
		if p.against == defaults {
			if l.System == theirs {
				return l
			}
			continue
		}
		better := chosen == nil || !p.latency && l.OpsPerS > chosen.OpsPerS || p.latency && l.P50ms < chosen.P50ms
		if better {
			chosen = l
		}
	}
	return chosen
}

func newRatio(us, other *line, p promise) ratio {
	r := ratio{Kind: "ratio", cell: us.asked, Against: other.System, Need: p.need, Errors: us.Errors + other.Errors}
	if p.latency {
		r.Measure, r.Ours, r.Theirs = "p50_ms", us.P50ms, other.P50ms
		r.Ratio = over(r.Theirs, r.Ours)
	} else {
		r.Measure, r.Ours, r.Theirs = "ops_per_s", us.OpsPerS, other.OpsPerS
		r.Ratio = over(r.Ours, r.Theirs)
	}
	switch {
	case r.Need == 0:
	case r.Ratio >= r.Need:
		r.Verdict = "PASS"
	default:
		r.Verdict = "MISS"
	}
	return r
}

// over divides; a side that got nothing done makes it 0, which holds no target (and JSON knows no infinity).
func over(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// markdown is the table for people.
func markdown(ratios []ratio) string {
	if len(ratios) == 0 {
		return "No ratios: Decree was not measured beside dragonboat.\n"
	}
	var b strings.Builder
	b.WriteString("| machine | mode | shards | callers | bytes | against | measure | Decree | other | ratio | needed | |\n")
	b.WriteString("| --- | --- | ---: | ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | --- |\n")
	held, promised := 0, 0
	for _, r := range ratios {
		need, note := "", r.Verdict
		if r.Need > 0 {
			need = fmt.Sprintf("%.2f", r.Need)
			promised++
		}
		if r.Verdict == "PASS" {
			held++
		}
		if r.Errors > 0 {
			note += fmt.Sprintf(" (%d errors)", r.Errors)
		}
		format := "%.0f"
		if r.Measure == "p50_ms" {
			format = "%.2f"
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %d | %s | %s | %s | %s | %.2f | %s | %s |\n",
			r.Machine, r.Mode, r.Shards, r.callers(), r.Payload, r.Against, r.Measure,
			fmt.Sprintf(format, r.Ours), fmt.Sprintf(format, r.Theirs), r.Ratio, need, note)
	}
	fmt.Fprintf(&b, "\n%d of %d targets held. Ratios above 1 are in Decree's favour; p50 ratios are other to Decree.\n", held, promised)
	return b.String()
}
