package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/client"
)

// errNotAll ends a command that has said what does not hold.
var errNotAll = errors.New("not everything holds")

func runVerify(ctx context.Context, c console, args []string) error {
	f := newFlags(c, "verify", "\n\nAsks every node for an audit of its own replica. Nodes that are at different positions of\n"+
		"the log are asked again, until they have the same or the time is over. -api names all nodes, and no proxies.")
	servers := bindServers(f)
	timeout := f.Duration("timeout", 2*time.Minute, "for the whole command")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	addresses := splitAddresses(servers.api)
	options, err := servers.options()
	if err != nil {
		return err
	}
	if i := duplicate(addresses); i >= 0 {
		fmt.Fprintf(c.err, "-api names %s twice\n", addresses[i])
		return errUsage
	}
	if len(addresses) == 0 {
		return usageError{errors.New("no addresses: -api names the nodes to be audited")}
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	reports, err := auditTogether(ctx, len(addresses), func(ctx context.Context, i int) (*ledgerv1.AuditResponse, error) {
		r, err := client.Audit(ctx, addresses[i], options)
		if err != nil {
			return nil, fmt.Errorf("node at %s: %w", addresses[i], err)
		}
		return r, nil
	})
	if err != nil {
		return err
	}
	return judge(c, reports)
}

// duplicate returns the index of an address that stands there before, or -1.
func duplicate(addresses []string) int {
	for i, a := range addresses {
		if slices.Contains(addresses[:i], a) {
			return i
		}
	}
	return -1
}

// auditTogether audits n replicas, until all are at the same position of the log.
func auditTogether(ctx context.Context, n int, audit func(ctx context.Context, i int) (*ledgerv1.AuditResponse, error)) ([]*ledgerv1.AuditResponse, error) {
	reports := make([]*ledgerv1.AuditResponse, n)
	for {
		if err := auditLaggards(ctx, reports, audit); err != nil {
			return nil, err
		}
		low, high := spread(reports)
		if low == high {
			return reports, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the replicas are at positions %d to %d of the log and were not found at the same one: is something being written?", low, high)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// auditLaggards audits, at the same time, every replica whose report is not of the highest position.
func auditLaggards(ctx context.Context, reports []*ledgerv1.AuditResponse, audit func(context.Context, int) (*ledgerv1.AuditResponse, error)) error {
	_, high := spread(reports)
	failed := make(chan error, len(reports))
	asked := 0
	for i, r := range reports {
		if r != nil && r.GetApplied() == high {
			continue
		}
		asked++
		go func() {
			var err error
			reports[i], err = audit(ctx, i)
			failed <- err
		}()
	}
	var first error
	for ; asked > 0; asked-- {
		if err := <-failed; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func spread(reports []*ledgerv1.AuditResponse) (low, high uint64) {
	for i, r := range reports {
		if i == 0 || r.GetApplied() < low {
			low = r.GetApplied()
		}
		high = max(high, r.GetApplied())
	}
	return low, high
}

// judge prints the reports, and fails if one has a violation or another state.
func judge(c console, reports []*ledgerv1.AuditResponse) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "node\tapplied\tstate hash\taccounts\tentries\tpending\trows\tviolations")
	for _, r := range reports {
		fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%d\t%d\t%d\t%d\n", r.GetNode(), r.GetApplied(), r.GetStateHash(),
			r.GetAccounts(), r.GetEntries(), r.GetPending(), r.GetRows(), r.GetViolationCount())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	if err := writeAssets(c, reports[0].GetAssets()); err != nil {
		return err
	}
	sound := true
	nodes := make(map[uint64]bool)
	for _, r := range reports {
		for _, v := range r.GetViolations() {
			fmt.Fprintf(c.err, "node %d: %s\n", r.GetNode(), v)
		}
		if r.GetViolationCount() > 0 {
			sound = false
		}
		if r.GetStateHash() != reports[0].GetStateHash() {
			sound = false
			fmt.Fprintf(c.err, "nodes %d and %d have different states at position %d\n", reports[0].GetNode(), r.GetNode(), r.GetApplied())
		}
		if r.GetContentHash() != reports[0].GetContentHash() {
			sound = false
			fmt.Fprintf(c.err, "nodes %d and %d hold different bytes at position %d: content hashes %s and %s\n",
				reports[0].GetNode(), r.GetNode(), r.GetApplied(), reports[0].GetContentHash(), r.GetContentHash())
		}
		if nodes[r.GetNode()] {
			sound = false
			fmt.Fprintf(c.err, "node %d answered at two addresses: another node was not audited\n", r.GetNode())
		}
		nodes[r.GetNode()] = true
	}
	if !sound {
		return errNotAll
	}
	fmt.Fprintf(c.out, "\nEvery invariant holds on every node of the %d that were asked, and all have the same state.\n", len(nodes))
	return nil
}

func writeAssets(c console, assets []*ledgerv1.AssetTotal) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "asset\taccounts\tdebits = credits, posted\tpending")
	for _, a := range assets {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", a.GetAsset(), a.GetAccounts(), scaled(a.GetDebitsPosted(), a.GetScale()), scaled(a.GetDebitsPending(), a.GetScale()))
	}
	return w.Flush()
}
