package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
)

// hashReport is what `hash -o json` writes, one for each shard.
type hashReport struct {
	Shard uint64 `json:"shard"`
	// Index at which all were compared; 0: they were not found at the same one.
	Index uint64 `json:"index"`
	// Verdict: equal, differ, or incomplete: those that answered are equal, or were not found at one index.
	Verdict  string        `json:"verdict"`
	Replicas []hashReplica `json:"replicas"`
}

type hashReplica struct {
	Node  uint64 `json:"node"`
	Index uint64 `json:"index"` // that of the report, or the last that was seen
	Hash  string `json:"hash"`
	Error string `json:"error"`
}

// The verdicts.
const (
	equal      = "equal"
	differ     = "differ"
	incomplete = "incomplete"
)

func hashCommand() *command {
	return &command{
		name: "hash", limit: true, shard: "only this `shard`",
		summary: "compare the state of all replicas, each shard at one index",
		help: `Asks every replica of each shard for the running hash of its state, and compares them at an index that all of them passed: two
replicas at the same index must have the same hash. This goes on under load, and costs next to nothing.

Replicas compare with the leader at every entry by themselves, and one that differs stops. Use this to see that they do: after
an upgrade, a restore, a repair. Exit code 1: two differ, or a replica has stopped because it did. Exit code 3: those that
answered are equal, but not all did.

Examples:
  decree hash
  decree hash -shard 1 -o json
`,
		bind: func(*flag.FlagSet) action { return compareHashes },
	}
}

func compareHashes(ctx context.Context, s *session, _ []string) error {
	s.cluster.discover(ctx)
	shards, err := s.cluster.shards(s.opts.shard)
	if err != nil {
		return err
	}
	reports := []hashReport{}
	for _, shard := range shards {
		reports = append(reports, s.compare(ctx, shard))
	}
	worst := equal
	for _, r := range reports {
		if r.Verdict == differ || worst == equal {
			worst = r.Verdict
		}
	}
	if err := s.print(reports, func(w *tabwriter.Writer) { hashTable(w, reports) }); err != nil {
		return err
	}
	switch worst {
	case differ:
		return errNo
	case incomplete:
		return &unreachableError{errors.New("not all replicas were compared")}
	}
	return nil
}

// hashWindows are how long replicas are watched, until an index is found that all of them passed: they need not be at the same one at the same moment.
var hashWindows = []time.Duration{0, 0, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 2 * time.Second, 2 * time.Second, 2 * time.Second}

// hashPatience is how long a replica may take to reach where another one is.
const hashPatience = 10 * time.Second

// hashAnswer is what one replica said.
type hashAnswer struct {
	samples map[uint64]uint64 // hash by index
	last    uint64
	err     error
	stopped bool // it differs from the leader, and has found that itself
}

func (s *session) compare(ctx context.Context, shard uint64) hashReport {
	hosts := s.cluster.hosting(shard)
	answers := make([]hashAnswer, len(hosts))
	at := uint64(0)
	for _, window := range hashWindows {
		s.progress.show("shard %d: looking for an index that all replicas pass", shard)
		round := make(chan struct{})
		for i, n := range hosts {
			go func() {
				if answers[i].err == nil {
					answers[i].ask(ctx, n, shard, at, window)
				}
				round <- struct{}{}
			}()
		}
		for range hosts {
			<-round
		}
		if commonIndex(answers) > 0 || ctx.Err() != nil {
			break
		}
		for _, a := range answers {
			at = max(at, a.last)
		}
	}
	return s.judge(shard, hosts, answers)
}

// ask adds what the replica says now to what it said before.
func (a *hashAnswer) ask(ctx context.Context, n *node, shard, at uint64, window time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, hashPatience)
	defer cancel()
	r, err := n.admin.Hash(ctx, &adminv1.HashRequest{Shard: shard, At: at, Window: int64(window)})
	if err != nil {
		a.err = readError(n, err)
		d := admin.Detail(err)
		a.stopped = d != nil && rsm.Code(d.GetCode()) == rsm.CodeDivergence
		return
	}
	if a.samples == nil {
		a.samples = map[uint64]uint64{}
	}
	for _, sample := range r.GetSamples() {
		a.samples[sample.GetIndex()] = sample.GetHash()
		a.last = max(a.last, sample.GetIndex())
	}
}

// commonIndex returns the highest index at which every replica that answers was seen, or 0.
func commonIndex(answers []hashAnswer) (common uint64) {
	var first *hashAnswer
	for i := range answers {
		if answers[i].err == nil {
			first = &answers[i]
			break
		}
	}
	if first == nil {
		return 0
	}
	for index := range first.samples {
		everywhere := index > common
		for _, a := range answers {
			if _, seen := a.samples[index]; !seen && a.err == nil {
				everywhere = false
			}
		}
		if everywhere {
			common = index
		}
	}
	return common
}

func (s *session) judge(shard uint64, hosts []*node, answers []hashAnswer) hashReport {
	r := hashReport{Shard: shard, Index: commonIndex(answers), Verdict: equal, Replicas: []hashReplica{}}
	first := ""
	for i, n := range hosts {
		a := answers[i]
		h := hashReplica{Node: n.id, Index: r.Index}
		switch {
		case a.err != nil:
			h.Error, h.Index = a.err.Error(), 0
			if a.stopped {
				r.Verdict = differ
			}
		case r.Index == 0:
			h.Index, h.Hash = a.last, hash(a.samples[a.last])
		default:
			h.Hash = hash(a.samples[r.Index])
			if first == "" {
				first = h.Hash
			}
			if h.Hash != first {
				r.Verdict = differ
			}
		}
		if r.Verdict == equal && (h.Error != "" || r.Index == 0) {
			r.Verdict = incomplete
		}
		r.Replicas = append(r.Replicas, h)
	}
	for _, id := range absent(hosts, shard) {
		h := hashReplica{Node: id, Error: "not reached"}
		if a, known := s.cluster.away[id]; known {
			h.Error = a.reason.Error()
		}
		r.Replicas = append(r.Replicas, h)
		if r.Verdict == equal {
			r.Verdict = incomplete
		}
	}
	return r
}

// absent returns the voters of a shard that are not among those reached, as the one of these knows it that has come furthest.
func absent(hosts []*node, shard uint64) (ids []uint64) {
	var newest *adminv1.ShardStatus
	reached := map[uint64]bool{}
	for _, n := range hosts {
		reached[n.id] = true
		if st := n.shard(shard); newest == nil || st.GetApplied() > newest.GetApplied() {
			newest = st
		}
	}
	for _, id := range newest.GetVoters() {
		if !reached[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

func hashTable(w *tabwriter.Writer, reports []hashReport) {
	row(w, "SHARD", "NODE", "INDEX", "HASH")
	for _, r := range reports {
		for _, h := range r.Replicas {
			row(w, r.Shard, h.Node, number(h.Index), dash(h.Hash))
		}
	}
	for _, r := range reports {
		for _, h := range r.Replicas {
			if h.Error != "" {
				fmt.Fprintf(w, "shard %d: node %d: %s\n", r.Shard, h.Node, h.Error)
			}
		}
	}
	for _, r := range reports {
		switch {
		case r.Verdict == equal:
			fmt.Fprintf(w, "shard %d: %s equal at index %d\n", r.Shard, plural(len(r.Replicas), "replica"), r.Index)
		case r.Verdict == differ:
			fmt.Fprintf(w, "shard %d: THE REPLICAS DIFFER\n", r.Shard)
		case r.Index == 0:
			fmt.Fprintf(w, "shard %d: no index was found that all replicas passed\n", r.Shard)
		default:
			fmt.Fprintf(w, "shard %d: those that answered are equal at index %d; not all did\n", r.Shard, r.Index)
		}
	}
}
