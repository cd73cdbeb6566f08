package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
)

// summary is what a demo shows at its end.
type summary struct {
	OK       bool
	Failures []string
	Seconds  float64

	Import, ImportAgain imported
	SampleBalances      int // how many were compared

	Commands uint64 // committed, of all kinds
	Booked   uint64 // entries that were acknowledged as booked
	Refused  uint64
	Rate     float64 // commands a second, while transfers ran
	latency  histogram
	Failover failover
	Replicas []replica
	assets   []*ledgerv1.AssetTotal
}

type failover struct {
	Killed, Leader uint64 // nodes: who died, and who led then
	Proxy          string // at this address was the one that was closed
	Silence        time.Duration
}

// replica is what an audit found on a node.
type replica struct {
	Node       uint64 `json:"node"`
	Applied    uint64 `json:"applied"`
	StateHash  string `json:"state_hash"`
	Accounts   uint64 `json:"accounts"`
	Entries    uint64 `json:"entries"`
	Pending    uint64 `json:"pending"`
	Rows       uint64 `json:"statement_rows"`
	Violations uint64 `json:"violations"`
}

func replicaOf(r *ledgerv1.AuditResponse) replica {
	return replica{
		Node: r.GetNode(), Applied: r.GetApplied(), StateHash: r.GetStateHash(), Accounts: r.GetAccounts(),
		Entries: r.GetEntries(), Pending: r.GetPending(), Rows: r.GetRows(), Violations: r.GetViolationCount(),
	}
}

// summaryJSON is the summary as one line for programs. Durations are in milliseconds, amounts in decimal.
type summaryJSON struct {
	OK             bool         `json:"ok"`
	Failures       []string     `json:"failures"`
	Seconds        float64      `json:"seconds"`
	Commands       uint64       `json:"commands"`
	EntriesBooked  uint64       `json:"entries_booked"`
	EntriesRefused uint64       `json:"entries_refused"`
	Rate           float64      `json:"commands_per_second"`
	Latency        latencyJSON  `json:"latency_ms"`
	Failover       failoverJSON `json:"failover"`
	Import         imported     `json:"import"`
	ImportAgain    imported     `json:"import_again"`
	SampleBalances int          `json:"sample_balances"`
	Balances       []assetJSON  `json:"balances"`
	Replicas       []replica    `json:"replicas"`
}

type latencyJSON struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

type failoverJSON struct {
	Killed    uint64  `json:"killed"`
	ThenLed   uint64  `json:"then_led"`
	NoAnswers float64 `json:"no_answers_ms"`
	Proxy     string  `json:"proxy_closed"`
}

// assetJSON is an asset's total of debits, which is its total of credits.
type assetJSON struct {
	Asset   string `json:"asset"`
	Posted  string `json:"posted"`
	Pending string `json:"pending"`
}

func (s *summary) writeJSON(w io.Writer) error {
	ms := func(d time.Duration) float64 {
		return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
	}
	m := summaryJSON{
		OK: s.OK, Failures: append([]string{}, s.Failures...), Seconds: s.Seconds,
		Commands: s.Commands, EntriesBooked: s.Booked, EntriesRefused: s.Refused, Rate: s.Rate,
		Latency:  latencyJSON{ms(s.latency.quantile(0.5)), ms(s.latency.quantile(0.99)), ms(s.latency.max)},
		Failover: failoverJSON{s.Failover.Killed, s.Failover.Leader, ms(s.Failover.Silence), s.Failover.Proxy},
		Import:   s.Import, ImportAgain: s.ImportAgain, SampleBalances: s.SampleBalances, Replicas: s.Replicas,
	}
	for _, a := range s.assets {
		m.Balances = append(m.Balances, assetJSON{a.GetAsset(), scaled(a.GetDebitsPosted(), a.GetScale()), scaled(a.GetDebitsPending(), a.GetScale())})
	}
	return json.NewEncoder(w).Encode(m)
}

// write writes the summary for people.
func (s *summary) write(c console) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\ncommitted\t%s commands, %s entries booked, %s refused\n", thousands(s.Commands), thousands(s.Booked), thousands(s.Refused))
	fmt.Fprintf(w, "rate\t%s commands/s\n", thousands(uint64(s.Rate)))
	fmt.Fprintf(w, "latency\tp50 %s, p99 %s, max %s\n", milliseconds(s.latency.quantile(0.5)), milliseconds(s.latency.quantile(0.99)), milliseconds(s.latency.max))
	fmt.Fprintf(w, "fail-over\tnode %d was killed, node %d took over; nothing was answered for %s\n", s.Failover.Killed, s.Failover.Leader, milliseconds(s.Failover.Silence))
	fmt.Fprintf(w, "proxies\tof %d, the one at %s was closed; its clients went on with the other\n", demoProxies, s.Failover.Proxy)
	fmt.Fprintf(w, "sample book\t%d balances as they must be; the second import booked %d entries\n", s.SampleBalances, s.ImportAgain.Entries)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	if err := writeAssets(c, s.assets); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	w = tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "node\tapplied\tstate hash\taccounts\tentries\tpending\tstatement rows\tviolations")
	for _, r := range s.Replicas {
		fmt.Fprintf(w, "%d\t%d\t%s\t%d\t%d\t%d\t%d\t%d\n", r.Node, r.Applied, r.StateHash, r.Accounts, r.Entries, r.Pending, r.Rows, r.Violations)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range s.Failures {
		fmt.Fprintf(c.out, "\nFAILED: %s\n", f)
	}
	if s.OK {
		fmt.Fprintf(c.out, "\nEverything holds: what was acknowledged is there, once, and balances, on every replica. (%.1f s)\n", s.Seconds)
	}
	return nil
}
