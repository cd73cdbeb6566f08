package client_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
)

// When the disks are low nothing new is booked, and what is reserved is posted, voided and expires all the same.
func TestLowDisk(t *testing.T) {
	var low atomic.Bool
	cluster := startCluster(t, func(c *rsm.Config) {
		c.Services = proxy.Register
		if low.Load() {
			c.DiskWatermark = 1 << 60 // no disk has as much
		}
	})
	var nodes []string
	for _, n := range cluster.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	remote := dial(t, nodes...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a, b := book.ID{15: 1}, book.ID{15: 2}
	legs := []book.Leg{{Account: a, Side: book.Debit, Amount: book.U64(1)}, {Account: b, Side: book.Credit, Amount: book.U64(1)}}
	var pending []book.Entry
	for i := range byte(5) {
		pending = append(pending, book.Entry{ID: book.ID{0: 1, 15: i}, Flags: book.Pending, Legs: legs})
	}
	pending[4].Timeout = 1 // the others are posted and voided
	if _, err := remote.CreateAccounts(ctx, book.Account{ID: a, Name: "A", Asset: "EUR"}, book.Account{ID: b, Name: "B", Asset: "EUR"}); err != nil {
		t.Fatal(err)
	}
	if outcomes, err := remote.PostEntries(ctx, pending...); err != nil || outcomes[4].Code != book.Created {
		t.Fatal(outcomes, err)
	}

	low.Store(true)
	for id := rsm.NodeID(1); id <= 3; id++ {
		cluster.Kill(id)
	}
	for id := rsm.NodeID(1); id <= 3; id++ {
		if err := cluster.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range cluster.Nodes() {
		for st, err := n.Status(); err != nil || !st.DiskLow; st, err = n.Status() {
			if ctx.Err() != nil {
				t.Fatal("a node does not know that its disk is low")
			}
			time.Sleep(5 * time.Millisecond)
		}
		s := server.New(server.Config{Node: n.ID(), Replica: n.Shard(client.ShardID)})
		go s.RunPulse(ctx, 50*time.Millisecond)
	}
	for i, l := range []interface {
		PostEntries(context.Context, ...book.Entry) ([]book.Outcome, error)
		CreateAccounts(context.Context, ...book.Account) ([]book.Outcome, error)
	}{remote, client.Local{To: cluster.Client(client.ShardID)}} {
		post := book.Entry{ID: client.NewID(), Flags: book.PostPending, PendingID: pending[2*i].ID}
		void := book.Entry{ID: client.NewID(), Flags: book.VoidPending, PendingID: pending[2*i+1].ID}
		if outcomes, err := l.PostEntries(ctx, post, void); err != nil || outcomes[0].Code != book.Created || outcomes[1].Code != book.Created {
			t.Errorf("a post and a void: %v, %v", outcomes, err)
		}
		again := book.Entry{ID: client.NewID(), Legs: legs}
		var short context.Context
		for patience := 300 * time.Millisecond; ; patience *= 2 { // nothing may have come back by then
			var cancel context.CancelFunc
			short, cancel = context.WithTimeout(ctx, patience)
			defer cancel()
			_, err := l.PostEntries(short, post, again)
			if errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: "disk_low"}) {
				break
			}
			if err == nil || patience > 10*time.Second {
				t.Fatalf("with an entry of its own: %v", err)
			}
		}
		if _, err := l.CreateAccounts(short, book.Account{ID: book.ID{15: 3}, Name: "C", Asset: "EUR"}); !errors.Is(err, rsm.ErrNotProposed) {
			t.Errorf("another account: %v", err)
		}
	}
	for {
		accounts, err := remote.Accounts(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		if accounts[0].DebitsPending == book.U64(0) && accounts[0].DebitsPosted == book.U64(2) && len(accounts) == 2 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
