package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy"
	proxyclient "github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

func startCluster(t *testing.T, configure func(*rsm.Config)) *rsm.Cluster {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{Dir: t.TempDir(), Shards: []rsm.ShardConfig{{ID: client.ShardID, Machine: book.Machine{}}},
		Configure: configure})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func dial(t *testing.T, addresses ...string) *client.Remote {
	t.Helper()
	c, err := client.Dial(addresses...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Each entry is booked once, and its author is told so as the first time, while the leader dies and a proxy does.
func TestFailOver(t *testing.T) {
	cluster := startCluster(t, func(c *rsm.Config) { c.Services = proxy.Register })
	var nodes, proxies []string
	for _, n := range cluster.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	var ends []func()
	for range 2 {
		p, err := proxy.New(proxy.Config{Nodes: nodes})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		proxies, ends = append(proxies, s.Addr()), append(ends, s.Close)
	}
	remote := dial(t, proxies...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a, b := book.ID{15: 1}, book.ID{15: 2}
	opened, err := remote.CreateAccounts(ctx, book.Account{ID: a, Name: "A", Asset: "EUR"}, book.Account{ID: b, Name: "B", Asset: "EUR"})
	if err != nil || len(opened) != 2 || opened[1].Code != book.Created {
		t.Fatalf("%v, %v", opened, err)
	}
	var wg sync.WaitGroup
	const posters, each = 20, 50
	half := make(chan struct{}, posters)
	for range posters {
		wg.Go(func() {
			for i := range each {
				if i == each/2 {
					half <- struct{}{}
				}
				got, err := remote.PostEntries(ctx, book.Entry{ID: client.NewID(), Legs: []book.Leg{
					{Account: a, Side: book.Debit, Amount: book.U64(1)}, {Account: b, Side: book.Credit, Amount: book.U64(1)}}})
				if err != nil || got[0].Code != book.Created {
					t.Errorf("%v, %v", got, err)
				}
			}
		})
	}
	<-half
	leader, err := cluster.Leader(ctx, client.ShardID)
	if err != nil {
		t.Fatal(err)
	}
	cluster.Kill(leader.ID())
	ends[0]()
	wg.Wait()
	accounts, err := remote.Accounts(ctx, "")
	if err != nil || len(accounts) != 2 || accounts[0].DebitsPosted != book.U64(posters*each) {
		t.Errorf("%v, %v", accounts, err)
	}
	// What the machine does not take is refused, once and for all.
	got, err := remote.PostEntries(ctx, book.Entry{ID: client.NewID()})
	if err != nil || got[0].Code.OK() {
		t.Errorf("an entry without legs: %v, %v", got, err)
	}
	if _, err := remote.PostEntries(ctx); err == nil || errors.Is(err, rsm.ErrUnknown) {
		t.Errorf("no entries: %v", err)
	}
}

// Who finds nobody knows that nothing was booked.
func TestNobodyIsThere(t *testing.T) {
	address := testkit.FreePort(t)
	remote := dial(t, address)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := remote.PostEntries(ctx, book.Entry{ID: client.NewID()}); !errors.Is(err, rsm.ErrNotProposed) {
		t.Errorf("got %v", err)
	}
	if _, err := remote.Accounts(ctx, ""); !errors.Is(err, rsm.ErrNotProposed) {
		t.Errorf("got %v", err)
	}
	if _, err := client.Audit(t.Context(), address, proxyclient.Options{}); err == nil {
		t.Error("an audit of nobody")
	}
}

func TestDial(t *testing.T) {
	if _, err := client.Dial(); err == nil {
		t.Error("no addresses")
	}
	if _, err := client.Dial("%"); err == nil {
		t.Error("a bad address")
	}
	a, b := client.NewID(), client.NewID()
	if a == b || a.IsZero() || a.String()[:8] != b.String()[:8] {
		t.Errorf("ids %v and %v", a, b)
	}
}
