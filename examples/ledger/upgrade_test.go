package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/rsm"
)

const (
	upgradeAccounts = 4
	upgradeClients  = 4
)

// upgradeLoad posts entries, every second one with a reference, while nodes are restarted with another program, and
// remembers what it was told.
type upgradeLoad struct {
	t *testing.T
	// allowed: every node may run version 2 by now, so that references may be taken.
	allowed atomic.Bool
	stop    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	booked  map[book.ID]book.Entry
	refused []book.Entry // for their reference
	cited   int          // booked with a reference
}

func upgradeAccount(n int) book.ID { return book.ID{0: 0xA0, 15: byte(1 + n%upgradeAccounts)} }

// startUpgradeLoad opens the accounts, and posts with one goroutine for each ledger.
func startUpgradeLoad(t *testing.T, to ...ledger) *upgradeLoad {
	t.Helper()
	l := &upgradeLoad{t: t, stop: make(chan struct{}), booked: map[book.ID]book.Entry{}}
	var accounts []book.Account
	for n := range upgradeAccounts {
		accounts = append(accounts, book.Account{ID: upgradeAccount(n), Name: fmt.Sprint("Account ", n), Asset: "EUR", Scale: 2})
	}
	outcomes, err := to[0].CreateAccounts(t.Context(), accounts...)
	if err != nil || slices.ContainsFunc(outcomes, func(o book.Outcome) bool { return o.Code != book.Created }) {
		t.Fatalf("%v, %v", outcomes, err)
	}
	for n, to := range to {
		l.wg.Go(func() {
			for i := n; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				e := book.Entry{ID: client.NewID(), Legs: transfer(upgradeAccount(i), upgradeAccount(i+1), uint64(1+i%100))}
				if i%2 == 0 {
					e.Reference = fmt.Sprintf("INV-%d-%d", n, i)
				}
				if !l.post(to, e) {
					return
				}
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

// post posts one entry and notes the outcome. It reports whether the outcome may be.
func (l *upgradeLoad) post(to ledger, e book.Entry) bool {
	ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
	defer cancel()
	outcomes, err := to.PostEntries(ctx, e)
	if err != nil {
		l.t.Errorf("entry %v with the reference %q: %v", e.ID, e.Reference, err)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch code := outcomes[0].Code; {
	case code.OK() && e.Reference != "" && !l.allowed.Load():
		l.t.Errorf("entry %v is %v with the reference %q, and some node cannot run version 2", e.ID, code, e.Reference)
		return false
	case code.OK():
		l.booked[e.ID] = e
		if e.Reference != "" {
			l.cited++
		}
	case code == book.ReferenceNeedsVersion2 && e.Reference != "":
		l.refused = append(l.refused, e)
	default:
		l.t.Errorf("entry %v with the reference %q: %v", e.ID, e.Reference, code)
		return false
	}
	return true
}

// end stops the load and waits for it. What was answered is known after it.
func (l *upgradeLoad) end() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

func (l *upgradeLoad) counts() (booked, cited, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.booked), l.cited, len(l.refused)
}

// goesOn waits until entries have been booked and references refused since now.
func (l *upgradeLoad) goesOn(what string) {
	l.t.Helper()
	booked, _, refused := l.counts()
	awaitThat(l.t, "the load goes on "+what, func() bool {
		b, _, r := l.counts()
		return b >= booked+20 && r >= refused+20 || l.t.Failed()
	})
}

// repost sends what was refused once more, under the same ids.
func (l *upgradeLoad) repost(to ledger) {
	l.t.Helper()
	for _, e := range l.refused {
		if !l.post(to, e) {
			l.t.FailNow()
		}
		if _, ok := l.booked[e.ID]; !ok {
			l.t.Fatalf("entry %v with the reference %q is refused again", e.ID, e.Reference)
		}
	}
	l.refused = nil
}

// check compares what was acknowledged with every replica: booked once each, with its reference, and nothing else.
func (l *upgradeLoad) check(nodes []*rsm.Node) {
	t := l.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reports, err := auditTogether(ctx, len(nodes), func(ctx context.Context, i int) (*ledgerv1.AuditResponse, error) {
		return server.New(server.Config{Node: nodes[i].ID(), Replica: nodes[i].Shard(shardID)}).Audit(ctx, new(ledgerv1.AuditRequest))
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := judge(console{out: &out, err: &out}, reports); err != nil {
		t.Errorf("%v: %s", err, out.String())
	}
	for _, r := range reports {
		if r.GetEntries() != uint64(len(l.booked)) || r.GetReferences() != uint64(l.cited) || r.GetBurnt() != 0 {
			t.Errorf("node %d has %d entries, %d of them with a reference, and %d burnt ids; %d and %d were acknowledged",
				r.GetNode(), r.GetEntries(), r.GetReferences(), r.GetBurnt(), len(l.booked), l.cited)
		}
	}
	debits, credits := map[book.ID]uint64{}, map[book.ID]uint64{}
	for _, e := range l.booked {
		debits[e.Legs[0].Account] += e.Legs[0].Amount.Lo
		credits[e.Legs[1].Account] += e.Legs[1].Amount.Lo
	}
	for _, n := range nodes {
		_, _, err := n.Shard(shardID).Audit(func(v rsm.View) error {
			for id, e := range l.booked {
				if got, ok := book.LookupEntry(v, id); !ok || got.Reference != e.Reference || !slices.Equal(got.Legs, e.Legs) {
					return fmt.Errorf("entry %v was acknowledged as %+v, and is %+v (there: %v)", id, e, got, ok)
				}
			}
			for i := range upgradeAccounts {
				id := upgradeAccount(i)
				if a, ok := book.LookupAccount(v, id); !ok || a.DebitsPosted != book.U64(debits[id]) || a.CreditsPosted != book.U64(credits[id]) {
					return fmt.Errorf("account %v has %+v, %d and %d were acknowledged", id, a.Balances, debits[id], credits[id])
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("node %d: %v", n.ID(), err)
		}
	}
}

func awaitThat(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute it still does not hold that %s", what)
		}
	}
}

func versionOf(n *rsm.Node) uint64 {
	st, err := n.Shard(shardID).Status()
	if err != nil {
		return 0
	}
	return st.Version
}

// TestRollingUpgrade goes from the old program to the new one under load, one node after the other. References are taken only when the last
// node has the new one; nothing that was acknowledged is lost or doubled; and there is no way back.
func TestRollingUpgrade(t *testing.T) {
	var mu sync.Mutex
	newProgram := map[rsm.NodeID]bool{}
	cluster, err := rsm.StartCluster(rsm.ClusterConfig{
		Name: "upgrade", Dir: t.TempDir(), Shards: []rsm.ShardConfig{{ID: shardID}},
		Configure: func(c *rsm.Config) {
			mu.Lock()
			defer mu.Unlock()
			c.Shards[0].Machine = book.Machine{OldProgram: !newProgram[c.Node]}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	exchange := func(id rsm.NodeID, forNew bool) error {
		cluster.Kill(id)
		mu.Lock()
		newProgram[id] = forNew
		mu.Unlock()
		return cluster.Restart(id)
	}
	var clients []ledger
	for range upgradeClients {
		clients = append(clients, client.Local{To: cluster.Client(shardID)})
	}
	l := startUpgradeLoad(t, clients...)
	l.goesOn("with the old program")
	for id := rsm.NodeID(1); id <= 3; id++ {
		for _, n := range cluster.Nodes() {
			if v := versionOf(n); v != book.VersionFirst {
				t.Errorf("node %d has version %d active before node %d can run it", n.ID(), v, id)
			}
		}
		l.allowed.Store(id == 3)
		if err := exchange(id, true); err != nil {
			t.Fatal(err)
		}
		awaitThat(t, fmt.Sprintf("node %d takes part again", id), func() bool {
			st, err := cluster.Node(id).Shard(shardID).Status()
			return err == nil && st.Leader != 0 && st.Applied > 0
		})
		if id < 3 {
			l.goesOn(fmt.Sprintf("with the new program on %d nodes", id))
		}
	}
	awaitThat(t, "version 2 is active on every node", func() bool {
		for _, n := range cluster.Nodes() {
			if versionOf(n) != book.VersionReferences {
				return false
			}
		}
		return true
	})
	awaitThat(t, "references are taken", func() bool { _, cited, _ := l.counts(); return cited >= 20 || t.Failed() })
	l.end()
	if t.Failed() {
		return
	}
	l.repost(clients[0])
	l.check(cluster.Nodes())

	// Back to the old program: it says why not, and answers nothing.
	const words = "this program knows up to 0: start the newer program"
	err = exchange(2, false)
	if err == nil {
		awaitThat(t, "the old program is refused", func() bool {
			st, err := cluster.Node(2).Shard(shardID).Status()
			return err == nil && st.Err != nil && st.Err.Code == "unsupported"
		})
		_, err = cluster.Node(2).Shard(shardID).Submit(t.Context(), book.Pulse())
		if !errors.Is(err, rsm.ErrBroken) {
			t.Errorf("the old program answers with %v", err)
		}
	}
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("the old program is told %v, want %q in it", err, words)
	}
	if !l.post(clients[1], book.Entry{ID: client.NewID(), Legs: transfer(upgradeAccount(0), upgradeAccount(1), 5), Reference: "INV-by-two"}) {
		return
	}
	if err := exchange(2, true); err != nil {
		t.Fatal(err)
	}
	l.check(cluster.Nodes())
}

// TestServedUpgrade does the same with served nodes that are stopped in order, and clients over gRPC.
func TestServedUpgrade(t *testing.T) {
	c := startTestCluster(t, func(cfg *serveConfig) { cfg.OldProgram = true })
	remote, err := client.Dial(strings.Split(strings.TrimPrefix(c.api(), "-api="), ",")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remote.Close(); err != nil {
			t.Error(err)
		}
	})
	l := startUpgradeLoad(t, remote, remote)
	l.goesOn("with the old program")
	c.config.OldProgram = false
	for id := rsm.NodeID(1); id <= 3; id++ {
		l.allowed.Store(id == 3)
		c.stop(id)
		c.start(id)
		if id < 3 {
			l.goesOn(fmt.Sprintf("with the new program on %d nodes", id))
		}
	}
	awaitThat(t, "references are taken", func() bool { _, cited, _ := l.counts(); return cited >= 20 || t.Failed() })
	l.end()
	if t.Failed() {
		return
	}
	l.repost(remote)
	var nodes []*rsm.Node
	for _, n := range c.nodes {
		nodes = append(nodes, n.node)
		awaitThat(t, "every node shows version 2", func() bool { // one may be behind the others
			st, err := n.front.service.GetStatus(t.Context(), new(ledgerv1.GetStatusRequest))
			return err == nil && st.GetMachineVersion() == book.VersionReferences
		})
	}
	l.check(nodes)
	if code, out, errs := ledgerCommand(t, "", "verify", c.api()); code != 0 {
		t.Errorf("verify: %d %s%s", code, out, errs)
	}
}
