package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/examples/ledger/hledger"
	"github.com/decree-raft/decree/examples/ledger/server"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
)

// The sample book, and its balances as a plain sum gives them.
var (
	//go:embed testdata/sample.csv
	sampleBook []byte
	//go:embed testdata/sample-balances.csv
	sampleBalances []byte
)

// demoSettings is what the flags of a demo say.
type demoSettings struct {
	duration          time.Duration // of the transfers
	clients, accounts int
	json              bool
	dir               string // "" is a temporary one, removed at the end
}

func runDemo(ctx context.Context, c console, args []string) error {
	f := newFlags(c, "demo", "\n\nStarts three nodes in this process, each with its own directory and port, and two proxies, to which clients connect. Then it\n"+
		"imports a book, runs transfers, kills the leader without warning, closes a proxy, starts the node again, and audits every replica.\n"+
		"Exits with 0 only if everything holds.")
	var s demoSettings
	f.DurationVar(&s.duration, "duration", 15*time.Second, "of the transfers; the leader dies after a third, a proxy after half")
	f.IntVar(&s.clients, "clients", 64, "how many post at the same time")
	f.IntVar(&s.accounts, "accounts", 1000, "how many accounts the transfers go between")
	f.BoolVar(&s.json, "json", false, "print the summary as one line of JSON, and nothing else, on standard output")
	f.StringVar(&s.dir, "dir", "", "empty `directory` for the data, which is then kept (default: a temporary one)")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if s.duration < 3*time.Second || s.clients < 1 || s.clients > 4096 || s.accounts < 2 || s.accounts > 100_000 {
		fmt.Fprintln(c.err, "-duration, -clients or -accounts is out of range")
		return errUsage
	}
	summary, err := demonstrate(ctx, c, s)
	if err != nil {
		return err
	}
	if s.json {
		err = summary.writeJSON(c.out)
	} else {
		err = summary.write(c)
	}
	if err == nil && !summary.OK {
		err = errNotAll
	}
	return err
}

// demonstration is a demo under way.
type demonstration struct {
	demoSettings
	*progress
	cluster *rsm.Cluster
	proxies []*demoProxy
	summary summary
}

// demonstrate runs the script. Its error is that the demo could not be
// run to its end; what did not hold stands in the summary.
func demonstrate(ctx context.Context, c console, s demoSettings) (_ *summary, err error) {
	began := time.Now()
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "ledger-demo-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	}
	d := &demonstration{demoSettings: s, progress: newProgress(c.err)}
	d.say("three nodes in %s, and %d proxies", s.dir, demoProxies)
	d.cluster, err = rsm.StartCluster(rsm.ClusterConfig{
		Name: "ledger-demo", Nodes: 3, Dir: s.dir,
		Shards:    []rsm.ShardConfig{{ID: shardID, Machine: book.Machine{}}},
		Configure: func(c *rsm.Config) { c.Services = proxy.Register },
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.cluster.Close()) }()
	defer d.closeProxies()
	if err := d.startProxies(); err != nil {
		return nil, err
	}

	if err := d.importSample(ctx); err != nil {
		return nil, fmt.Errorf("importing the sample book: %w", err)
	}
	l := newLoad(s.accounts, 1)
	if err := d.transfers(ctx, l); err != nil {
		return nil, err
	}
	if err := d.verify(ctx, l); err != nil {
		return nil, fmt.Errorf("verifying: %w", err)
	}
	d.summary.Seconds = time.Since(began).Seconds()
	d.summary.OK = len(d.summary.Failures) == 0
	return &d.summary, nil
}

// demoProxies is how many there are. All clients know all.
const demoProxies = 2

// demoProxy is a proxy with the port that it serves.
type demoProxy struct {
	proxy  *proxy.Proxy
	server *proxy.Server
}

func (d *demonstration) startProxies() error {
	var nodes []string
	for _, n := range d.cluster.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	for range demoProxies {
		p, err := proxy.New(proxy.Config{Nodes: nodes})
		if err != nil {
			return err
		}
		s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0"})
		if err != nil {
			p.Close()
			return err
		}
		d.proxies = append(d.proxies, &demoProxy{proxy: p, server: s})
	}
	return nil
}

// close ends a proxy as if its process did: nobody is told before.
func (p *demoProxy) close() {
	p.server.Close()
	p.proxy.Close()
}

func (d *demonstration) closeProxies() {
	for _, p := range d.proxies {
		p.close()
	}
}

// dial returns a client that knows all proxies, in any order.
func (d *demonstration) dial() (*client.Remote, error) {
	var addresses []string
	for _, p := range d.proxies {
		addresses = append(addresses, p.server.Addr())
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	return client.Dial(addresses...)
}

// hold notes a failure unless ok.
func (d *demonstration) hold(ok bool, format string, args ...any) {
	if !ok {
		d.summary.Failures = append(d.summary.Failures, fmt.Sprintf(format, args...))
	}
}

// importSample imports the sample book twice: the second time changes nothing.
func (d *demonstration) importSample(ctx context.Context) error {
	to, err := d.dial()
	if err != nil {
		return err
	}
	defer to.Close()
	first, err := importBook(ctx, to, bytes.NewReader(sampleBook), hledger.Options{}, nil)
	if err != nil {
		return err
	}
	second, err := importBook(ctx, to, bytes.NewReader(sampleBook), hledger.Options{}, nil)
	if err != nil {
		return err
	}
	d.say("sample book: %v", first)
	d.say("once more:   %v", second)
	d.summary.Import, d.summary.ImportAgain = *first, *second
	d.summary.Commands += uint64(first.Commands + second.Commands)
	d.hold(first.Refused == 0 && first.Entries > 0, "the sample book was not booked whole: %v", first)
	d.hold(second.Entries == 0 && second.Accounts == 0 && second.EntriesExisted == first.Entries, "a second import changed something: %v", second)
	return d.checkSample(ctx)
}

// checkSample compares the sample's balances with what they must be.
func (d *demonstration) checkSample(ctx context.Context) error {
	from, err := d.dial()
	if err != nil {
		return err
	}
	defer from.Close()
	accounts, err := from.Accounts(ctx, "")
	if err != nil {
		return err
	}
	accounts = slices.DeleteFunc(accounts, func(a book.AccountState) bool { return a.Asset == loadAsset })
	var csv bytes.Buffer
	if err := hledger.WriteBalances(&csv, balancesOf(accounts)); err != nil {
		return err
	}
	d.summary.SampleBalances = bytes.Count(sampleBalances, []byte("\n")) - 1
	d.hold(bytes.Equal(csv.Bytes(), sampleBalances), "the balances of the sample book are not what they must be:\n%s", csv.Bytes())
	return nil
}

// transfers runs the load, and in the middle of it kills the leader and closes a proxy.
func (d *demonstration) transfers(ctx context.Context, l *load) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	clients := make([]*client.Remote, d.clients)
	for n := range clients {
		c, err := d.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		clients[n] = c
	}
	if err := l.prepare(ctx, clients[0]); err != nil {
		return fmt.Errorf("preparing the transfers: %w", err)
	}
	d.say("%d clients, each with a connection of its own to one of the proxies, %d accounts, %v", d.clients, d.accounts, d.duration)
	broken := make(chan error, 1)
	go func() { broken <- d.breakThings(ctx) }()
	l.showWhile(d.progress, "  ", func() {
		l.run(ctx, d.duration, d.clients, func(n int) ledger { return clients[n] })
	})
	if err := <-broken; err != nil {
		return err
	}
	r := l.result()
	d.hold(r.err == nil, "a transfer failed: %v", r.err)
	d.summary.Commands += uint64(l.prepared.Commands) + r.Commands
	d.summary.Booked = uint64(d.summary.Import.Entries+l.prepared.Entries) + r.Booked
	d.summary.Refused, d.summary.Rate, d.summary.latency = r.Refused, r.Rate, r.latency
	d.summary.Failover.Silence = r.Silence
	return ctx.Err()
}

// breakThings kills the leader after a third of the time, closes a proxy after half, and starts the node again after two thirds.
func (d *demonstration) breakThings(ctx context.Context) error {
	if err := sleep(ctx, d.duration/3); err != nil {
		return err
	}
	leader, err := d.cluster.Leader(ctx, shardID)
	if err != nil {
		return err
	}
	d.summary.Failover.Killed = uint64(leader.ID())
	d.say("node %d leads, and is killed", leader.ID())
	d.cluster.Kill(leader.ID())
	if err := sleep(ctx, d.duration/6); err != nil {
		return err
	}
	p := d.proxies[0]
	d.summary.Failover.Proxy = p.server.Addr()
	d.say("the proxy at %s is closed without warning; its clients go on with the other", p.server.Addr())
	p.close()
	if err := sleep(ctx, d.duration/6); err != nil {
		return err
	}
	next, err := d.cluster.Leader(ctx, shardID)
	if err != nil {
		return err
	}
	d.summary.Failover.Leader = uint64(next.ID())
	d.say("node %d leads; node %d is started again", next.ID(), leader.ID())
	return d.cluster.Restart(leader.ID())
}

func sleep(ctx context.Context, t time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t):
		return nil
	}
}

// verify audits every replica, at the same position of the log.
func (d *demonstration) verify(ctx context.Context, l *load) error {
	d.say("auditing every replica")
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := d.settle(ctx); err != nil {
		return err
	}
	reports, err := auditTogether(ctx, 3, func(ctx context.Context, i int) (*ledgerv1.AuditResponse, error) {
		n := d.cluster.Node(rsm.NodeID(i + 1))
		if n == nil {
			return nil, fmt.Errorf("node %d does not run", i+1)
		}
		return server.New(server.Config{Node: n.ID(), Replica: n.Shard(shardID)}).Audit(ctx, new(ledgerv1.AuditRequest))
	})
	if err != nil {
		return err
	}
	for _, r := range reports {
		d.summary.Replicas = append(d.summary.Replicas, replicaOf(r))
		d.hold(r.GetViolationCount() == 0, "node %d: %d violations: %q", r.GetNode(), r.GetViolationCount(), r.GetViolations())
		d.hold(r.GetStateHash() == reports[0].GetStateHash(), "nodes %d and %d have different states", reports[0].GetNode(), r.GetNode())
		d.hold(r.GetContentHash() == reports[0].GetContentHash(), "nodes %d and %d hold different bytes", reports[0].GetNode(), r.GetNode())
		d.hold(r.GetEntries() == d.summary.Booked, "node %d has %d entries, %d were acknowledged", r.GetNode(), r.GetEntries(), d.summary.Booked)
		d.hold(r.GetBurnt() <= d.summary.Refused, "node %d has %d burnt ids, %d entries were refused", r.GetNode(), r.GetBurnt(), d.summary.Refused)
	}
	d.summary.assets = reports[0].GetAssets()
	return d.checkSample(ctx)
}

// settle waits until all replicas have applied the same, so that the audits need not be repeated.
func (d *demonstration) settle(ctx context.Context) error {
	for {
		var low, high rsm.Index
		for i, n := range d.cluster.Nodes() {
			st, err := n.Shard(shardID).Status()
			if err != nil {
				return err
			}
			if i == 0 || st.Applied < low {
				low = st.Applied
			}
			high = max(high, st.Applied)
		}
		if low == high {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("a replica does not catch up: it is at %d, another at %d", low, high)
		}
	}
}
