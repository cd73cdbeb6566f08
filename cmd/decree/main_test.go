package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
)

var update = flag.Bool("update", false, "write the golden files anew")

// register keeps what it was last told.
type register struct{}

func (register) Decide(_ rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	return [][]byte{c.Data}, nil, nil
}
func (register) Apply(s rsm.State, e rsm.Event) { s.Set([]byte("value"), e.Data) }
func (register) Query(v rsm.View, _ []byte) ([]byte, error) {
	b, _ := v.Get([]byte("value"))
	return b, nil
}

// forgetful applies something else than it is told.
type forgetful struct{ register }

func (forgetful) Apply(s rsm.State, e rsm.Event) {
	s.Set([]byte("value"), append([]byte("not "), e.Data...))
}

// testCluster is three nodes with the admin service of each on a port of its own.
type testCluster struct {
	*rsm.Cluster
	t       *testing.T
	servers map[rsm.NodeID]*admin.Server
	clients map[rsm.ShardID]*rsm.Client
	timing  func(*rsm.Config)
}

func quick(cfg *rsm.Config) {
	cfg.HeartbeatInterval, cfg.ElectionTimeout, cfg.DiskWatermark = 100*time.Millisecond, time.Second, -1
}

// calm keeps leaders in office on a busy machine, unless they hand over.
func calm(cfg *rsm.Config) {
	quick(cfg)
	cfg.ElectionTimeout = 10 * time.Second
}

// start starts a cluster, in memory if dir is empty; otherwise the admin service is also on the nodes' own ports. Node 3 runs odd, if it is given. Where a leader goes, startQuick is meant.
func start(t *testing.T, dir string, shards int, odd rsm.Machine) *testCluster {
	t.Helper()
	return startTimed(t, calm, dir, shards, odd)
}

// startQuick is start, of a cluster that has another leader soon.
func startQuick(t *testing.T, dir string, shards int) *testCluster {
	t.Helper()
	return startTimed(t, quick, dir, shards, nil)
}

func startTimed(t *testing.T, timing func(*rsm.Config), dir string, shards int, odd rsm.Machine) *testCluster {
	t.Helper()
	cfg := rsm.ClusterConfig{Name: "orders", Dir: dir, Configure: func(cfg *rsm.Config) {
		timing(cfg)
		cfg.Services = func(n *rsm.Node, r grpc.ServiceRegistrar) {
			admin.Register(n, r)
			proxy.Register(n, r)
		}
		if odd != nil && cfg.Node == 3 {
			cfg.Shards = []rsm.ShardConfig{{ID: 1, Machine: odd}}
		}
	}}
	for i := range shards {
		cfg.Shards = append(cfg.Shards, rsm.ShardConfig{ID: rsm.ShardID(i + 1), Machine: register{}})
	}
	cluster, err := rsm.StartCluster(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{Cluster: cluster, t: t, servers: map[rsm.NodeID]*admin.Server{}, clients: map[rsm.ShardID]*rsm.Client{}, timing: timing}
	t.Cleanup(func() {
		for _, s := range c.servers {
			s.Close()
		}
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	for _, n := range c.Nodes() {
		c.serve(n)
	}
	for shard := range shards {
		c.leader(rsm.ShardID(shard + 1))
	}
	return c
}

func (c *testCluster) serve(n *rsm.Node) {
	c.t.Helper()
	s, err := admin.Listen(n, "127.0.0.1:0", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	c.servers[n.ID()] = s
}

// kill stops a node and its admin service.
func (c *testCluster) kill(id rsm.NodeID) {
	c.servers[id].Close()
	c.Kill(id)
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// spare has another node lead a shard.
func (c *testCluster) spare(shard rsm.ShardID, id rsm.NodeID) {
	c.t.Helper()
	for ctx := within(c.t); c.leader(shard) == id; {
		_ = c.Node(id).Shard(shard).TransferLeadership(ctx, id%3+1) // leadership may have gone meanwhile
	}
}

// leader returns who leads a shard, once every replica knows.
func (c *testCluster) leader(shard rsm.ShardID) rsm.NodeID {
	c.t.Helper()
	for ctx := within(c.t); ; {
		n, err := c.Leader(ctx, shard)
		if err != nil {
			c.t.Fatal(err)
		}
		agreed := true
		for _, other := range c.Nodes() {
			if err := other.Shard(shard).WaitReady(ctx); err != nil {
				c.t.Fatal(err)
			}
			agreed = agreed && (other.Shard(shard).Leader() == n.ID())
		}
		if agreed {
			return n.ID()
		}
	}
}

func (c *testCluster) submit(shard rsm.ShardID, commands ...string) {
	c.t.Helper()
	if c.clients[shard] == nil {
		c.clients[shard] = c.Client(shard)
	}
	for _, cmd := range commands {
		if _, err := c.clients[shard].Submit(within(c.t), []byte(cmd)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// node is the flag that names these nodes; all of them if none is given.
func (c *testCluster) node(ids ...rsm.NodeID) string {
	if len(ids) == 0 {
		ids = slices.Sorted(maps.Keys(c.servers))
	}
	var all []string
	for _, id := range ids {
		all = append(all, c.servers[id].Addr())
	}
	return "-node=" + strings.Join(all, ",")
}

// result is what a run of the program gave.
type result struct {
	code     int
	out, err string
}

func (r result) String() string { return fmt.Sprintf("exit code %d\n%s%s", r.code, r.out, r.err) }

// synced is a buffer that is read while it is written to.
type synced struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *synced) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *synced) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// follow runs a command that goes on until stop, which returns its exit code. Both outputs go to out.
func follow(t *testing.T, args ...string) (out *synced, stop func() int) {
	out = &synced{}
	ctx, cancel := context.WithCancel(within(t))
	done := make(chan int, 1)
	go func() { done <- run(ctx, console{out, out}, args) }()
	return out, func() int {
		cancel()
		return <-done
	}
}

// eventually waits until text is written.
func eventually(t *testing.T, out *synced, text string) {
	t.Helper()
	for ctx := within(t); !strings.Contains(out.String(), text); {
		if !wait(ctx, 5*time.Millisecond) {
			t.Fatalf("%q is never written: %s", text, out.String())
		}
	}
}

func decree(ctx context.Context, args ...string) result {
	var out, errs bytes.Buffer
	code := run(ctx, console{&out, &errs}, args)
	return result{code, out.String(), errs.String()}
}

// want runs the program, and fails unless it ends with code and writes all of these.
func want(t *testing.T, code int, texts []string, args ...string) result {
	t.Helper()
	r := decree(within(t), args...)
	if r.code != code {
		t.Fatalf("decree %s: %v\nwant exit code %d", strings.Join(args, " "), r, code)
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("decree %s: %v\nwant %q", strings.Join(args, " "), r, text)
		}
	}
	return r
}

func decode[T any](t *testing.T, r result) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(r.out))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	return v
}

// shape writes the names and kinds of a JSON value, which scripts rely on, without what differs from run to run.
func shape(b *strings.Builder, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			shape(b, path+"."+k, v[k])
		}
	case []any:
		if len(v) == 0 {
			fmt.Fprintf(b, "%s[]\n", path)
			return
		}
		shape(b, path+"[]", v[0])
	default:
		fmt.Fprintf(b, "%s %T\n", path, v)
	}
}

// golden compares the shape of a run's JSON with what is kept.
func golden(t *testing.T, name string, r result) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(r.out), &v); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	var b strings.Builder
	shape(&b, "", v)
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(file)
	if err != nil || string(kept) != b.String() {
		t.Errorf("the JSON of %s is\n%s\nand was (%v; -update writes it)\n%s", name, b.String(), err, kept)
	}
}

func TestStatus(t *testing.T) {
	c := startQuick(t, "", 2)
	c.submit(1, "a", "b")
	leader := c.leader(1)
	r := want(t, exitOK, []string{`cluster "orders"`, "NODE", "SHARD", "leader", "follower", "2 of 2"}, "status", c.node())
	if n := strings.Count(r.out, "\n"); n != 2+1+3+1+1+6 || strings.Contains(r.out, "attention") {
		t.Errorf("%d lines: %v", n, r)
	}
	r = want(t, exitOK, nil, "status", "-o", "json", c.node())
	golden(t, "status", r)
	s := decode[statusReport](t, r)
	if len(s.Nodes) != 3 || len(s.Replicas) != 6 || len(s.Problems) != 0 || !s.Nodes[0].Reachable || s.Nodes[1].Node != 2 {
		t.Errorf("%+v", s)
	}
	for _, p := range s.Replicas {
		if p.Shard == 1 && (p.Leader != uint64(leader) || (p.Role == "leader") != (p.Node == uint64(leader))) {
			t.Errorf("%+v", p)
		}
	}
	// One shard only.
	if s := decode[statusReport](t, want(t, exitOK, nil, "status", "-shard=2", "-o=json", c.node())); len(s.Replicas) != 3 || s.Replicas[0].Shard != 2 {
		t.Errorf("%+v", s)
	}
	want(t, exitRefused, []string{"hosts shard 9", "[1 2]"}, "status", "-shard", "9", c.node())
	// The environment names the nodes, if -node does not.
	t.Setenv(nodesVariable, strings.TrimPrefix(c.node(), "-node="))
	want(t, exitOK, []string{"follower"}, "status")
	// A node that does not answer is a problem, and none at all another one.
	dead := leader%3 + 1
	c.kill(dead)
	want(t, exitNo, []string{"gives no answer", fmt.Sprintf("attention: node %d", dead)}, "status")
	r = want(t, exitNo, nil, "status", "-o=json")
	if s := decode[statusReport](t, r); len(s.Problems) == 0 || s.Nodes[dead-1].Reachable || s.Nodes[dead-1].Error == "" {
		t.Errorf("%+v", s)
	}
	want(t, exitUnreachable, []string{"no node could be reached", c.servers[dead].Addr(), "refused"}, "status", c.node(dead))
	c.kill(leader)
	for ctx := within(t); ctx.Err() == nil; { // the last one gives up
		if r = decree(ctx, "status"); strings.Contains(r.out, "leads shard 1") {
			break
		}
	}
	if r.code != exitNo || !strings.Contains(r.out, "attention: no node that answers leads shard 1") {
		t.Error(r)
	}
}

// versioned is register in a program of some version.
type versioned struct {
	register
	limit uint64
}

func (m versioned) MaxVersion() uint64 { return m.limit }

// Two nodes that do not hear each other are a problem, though both answer the operator; also if only one does not hear the other. It is none if they do when they are asked again.
//
// Mutations with which it was seen to fail: nodes call nobody silent; the admin service does not say so; status does not look; it does not look again.
func TestStatusOfABrokenLink(t *testing.T) {
	c := startTimed(t, func(cfg *rsm.Config) {
		quick(cfg)
		cfg.ElectionTimeout = 3 * time.Second
	}, "", 1, nil)
	leader := uint64(c.leader(1))
	a, b := leader%3+1, (leader+1)%3+1
	c.Cut(rsm.NodeID(a), rsm.NodeID(b))
	silent := func(n, other uint64) bool {
		s, err := c.Node(rsm.NodeID(n)).Status()
		if err != nil {
			t.Fatal(err)
		}
		return s.Peers[rsm.NodeID(other)].Silent
	}
	for ctx := within(t); !silent(a, b) || !silent(b, a); {
		if !wait(ctx, 10*time.Millisecond) {
			t.Fatal("they hear each other")
		}
	}
	says := func(n, other uint64) string {
		return fmt.Sprintf("attention: node %d has heard nothing of node %d for ", n, other)
	}
	r := want(t, exitNo, []string{says(a, b), says(b, a), "1 of 2"}, "status", c.node())
	if strings.Contains(r.out, says(leader, a)) || strings.Contains(r.out, says(a, leader)) {
		t.Error(r)
	}
	s := decode[statusReport](t, want(t, exitNo, nil, "status", "-o=json", c.node()))
	for _, n := range s.Nodes {
		for _, p := range n.Peers {
			if between := n.Node != leader && p.Node != leader; p.Silent != between {
				t.Errorf("node %d of node %d: %+v", n.Node, p.Node, p)
			}
		}
	}
	var out, errs synced
	code := make(chan int, 1)
	go func() { code <- run(within(t), console{&out, &errs}, []string{"status", c.node()}) }()
	eventually(t, &errs, "asking again")
	c.Heal()
	if code := <-code; code != exitOK || strings.Contains(out.String(), "attention") || strings.Count(out.String(), "2 of 2") != 3 {
		t.Errorf("exit code %d: %s", code, out.String())
	}
}

// scripted is a node that gives one answer after the other, and the last one again. At nil it hangs.
type scripted struct {
	adminv1.AdminServiceClient
	answers []*adminv1.StatusResponse
	asked   int
}

func (s *scripted) Status(ctx context.Context, _ *adminv1.StatusRequest, _ ...grpc.CallOption) (*adminv1.StatusResponse, error) {
	s.asked++
	if a := s.answers[min(s.asked, len(s.answers)-1)]; a != nil {
		return a, nil
	}
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

// One that has just started, or was away, is not heard at once. So the nodes are asked again, some times, and what their answers do not say every time is no problem.
//
// Mutations with which it was seen to fail: they are not asked again; once only; as often if nothing is left; the last answers alone count; the first alone count;
// who gives no answer any more is kept; or is forgotten also if the time was over.
func TestBrokenLinksAreLookedAtAgain(t *testing.T) {
	const silent, hangs = 's', 'h'
	for _, c := range []struct {
		one, two string // of each other, at every look: s: it is silent; w: all is well; h: the node hangs
		patience time.Duration
		links    map[link]bool
		looks    int
		took     time.Duration
		problems string
	}{
		{"w", "w", time.Hour, nil, 0, 0, ""},
		{"s", "w", time.Hour, map[link]bool{{1, 2}: true}, 3, 6 * time.Second, "node 1 has heard nothing of node 2"},
		{"s", "s", time.Hour, map[link]bool{{1, 2}: true, {2, 1}: true}, 3, 6 * time.Second, "node 1 has heard nothing of node 2"},
		{"sw", "w", time.Hour, nil, 1, 2 * time.Second, ""},
		{"sssw", "w", time.Hour, nil, 3, 6 * time.Second, ""},
		{"ssw", "s", time.Hour, map[link]bool{{2, 1}: true}, 3, 6 * time.Second, "node 2 has heard nothing of node 1"},
		{"sw", "ws", time.Hour, nil, 1, 2 * time.Second, ""},
		{"s", "wh", time.Hour, nil, 1, 2*time.Second + dialPatience, "node 2 gives no answer: no answer in time"},
		{"s", "wh", 3 * time.Second, map[link]bool{{1, 2}: true}, 1, 3 * time.Second, "node 1 has heard nothing of node 2"},
		{"sw", "w", time.Second, map[link]bool{{1, 2}: true}, 0, time.Second, "node 1 has heard nothing of node 2"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var errs strings.Builder
			cl := newCluster(nil, nil, newProgress(&errs).say)
			defer cl.close()
			nodes := map[uint64]*scripted{}
			for id, script := range map[uint64]string{1: c.one, 2: c.two} {
				nodes[id] = &scripted{}
				for _, what := range script {
					answer := &adminv1.StatusResponse{Node: id, Shards: []*adminv1.ShardStatus{{Shard: 1, Role: "leader", Voters: []uint64{1, 2}}},
						Peers: []*adminv1.PeerStatus{{Node: 3 - id, Silent: what == silent}}}
					if what == hangs {
						answer = nil
					}
					nodes[id].answers = append(nodes[id].answers, answer)
				}
				conn, err := grpc.NewClient("passthrough:///nobody", grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					t.Fatal(err)
				}
				cl.nodes[id] = &node{id: id, conn: conn, admin: nodes[id], status: nodes[id].answers[0]}
			}
			ctx, cancel := context.WithTimeout(t.Context(), c.patience)
			defer cancel()
			began := time.Now()
			links := cl.brokenLinks(ctx)
			if !maps.Equal(links, c.links) {
				t.Errorf("%q and %q: %v", c.one, c.two, links)
			}
			if nodes[1].asked != c.looks || nodes[2].asked != c.looks {
				t.Errorf("%q and %q: asked %d and %d times", c.one, c.two, nodes[1].asked, nodes[2].asked)
			}
			if took := time.Since(began); took != c.took {
				t.Errorf("%q and %q: %v", c.one, c.two, took)
			}
			if told := strings.Contains(errs.String(), "asking again, for 6s"); told != (c.one[0] == silent || c.two[0] == silent) {
				t.Errorf("%q and %q: %q", c.one, c.two, errs.String())
			}
			problems := report(cl, 0, links).Problems
			if c.problems == "" && len(problems) > 0 || c.problems != "" && (len(problems) == 0 || !strings.HasPrefix(problems[0], c.problems)) {
				t.Errorf("%q and %q: %q", c.one, c.two, problems)
			}
		})
	}
}

// What a node says of its connection to one that does not hear it is told, too.
func TestBroken(t *testing.T) {
	a, b := &node{id: 1}, &node{id: 2, status: &adminv1.StatusResponse{Peers: []*adminv1.PeerStatus{{Node: 3, LastError: "late"}, {Node: 1, LastError: "refused"}}}}
	s := broken(a, b, &adminv1.PeerStatus{Node: 2, LastHeard: 3e9})
	if want := "node 1 has heard nothing of node 2 for 3s, though both answer here: the way from node 2 to the peer port of node 1 is broken; node 2 says: refused"; s != want {
		t.Errorf("%q", s)
	}
}

// Of those who were a node's peers, as one that was removed, nothing is expected. Of learners there is, also of one that knows nothing yet.
//
// Mutations with which it was seen to fail: each of the two is not asked; learners do not count; one that knows nothing counts as removed; two count that both know nothing, or not the other.
func TestShare(t *testing.T) {
	learns := func(id uint64, learners []uint64, voters ...uint64) *node {
		return &node{id: id, status: &adminv1.StatusResponse{Shards: []*adminv1.ShardStatus{{Shard: 1, Voters: voters, Learners: learners}}}}
	}
	of := func(id uint64, voters ...uint64) *node { return learns(id, nil, voters...) }
	other := of(2, 1, 2)
	other.status.Shards[0].Shard = 2
	two := []uint64{2}
	for i, c := range []struct {
		a, b *node
		want bool
	}{
		{of(1, 1, 2), of(2, 1, 2), true}, {of(1, 1, 3), of(2, 1, 2), false}, {of(2, 1, 2), of(1, 1, 3), false}, {of(1, 1, 2), other, false},
		{learns(1, two, 1, 3), learns(2, two, 1, 3), true}, {learns(1, two, 1, 3), of(2, 1, 3), true}, {of(1, 1, 3), learns(2, two, 1, 3), false}, {learns(1, two, 1, 3), of(2), true},
		{of(1), of(2), false}, {of(1, 1, 3), of(2), false}, {of(1, 2, 3), of(2), false},
	} {
		if got := share(c.a, c.b); got != c.want {
			t.Errorf("%d: nodes %d and %d: %v", i, c.a.id, c.b.id, got)
		}
		if got := share(c.b, c.a); got != c.want {
			t.Errorf("%d: nodes %d and %d: %v", i, c.b.id, c.a.id, got)
		}
	}
}

// While a cluster goes from one version of its machine to the next, it shows which is active and which nodes have the new program.
func TestStatusOfVersions(t *testing.T) {
	c := start(t, "", 1, versioned{limit: 2})
	r := want(t, exitOK, []string{"VERSION", "0, can run 2"}, "status", c.node())
	if strings.Count(r.out, "can run") != 1 {
		t.Errorf("only node 3 has a newer program: %v", r)
	}
	for _, p := range decode[statusReport](t, want(t, exitOK, nil, "status", "-o=json", c.node())).Replicas {
		highest := uint64(0)
		if p.Node == 3 {
			highest = 2
		}
		if p.MachineVersion != 0 || p.MaxMachineVersion != highest {
			t.Errorf("%+v", p)
		}
	}
	if got := versions(2, 2); got != "2" {
		t.Errorf("version 2 that is the newest is shown as %q", got)
	}
}

// Nodes of two clusters are not mixed up, and two addresses of one node are one node.
func TestClustersAreToldApart(t *testing.T) {
	c := start(t, "", 1, nil)
	other, err := rsm.StartCluster(rsm.ClusterConfig{Name: "others", Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: register{}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s, err := admin.Listen(other.Node(1), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want(t, exitUsage, []string{`"others"`, `"orders"`}, "status", c.node(1), "-node", s.Addr())
	first := c.servers[1]
	c.serve(c.Node(1))
	defer first.Close()
	if s := decode[statusReport](t, want(t, exitOK, nil, "status", "-o=json", c.node(), "-node", first.Addr())); len(s.Nodes) != 3 {
		t.Errorf("%+v", s)
	}
}

func TestUsage(t *testing.T) {
	dead := "-node=" + testkit.FreePort(t)
	t.Setenv(nodesVariable, "")
	for _, c := range []struct {
		code int
		text string
		args []string
	}{
		{exitUsage, "usage: decree COMMAND", nil},
		{exitOK, "usage: decree COMMAND", []string{"help"}},
		{exitOK, "usage: decree COMMAND", []string{"--help"}},
		{exitOK, "usage: decree COMMAND", []string{"-h"}},
		{exitOK, "usage: decree replace [flags] OLD NEW ADDRESS", []string{"help", "replace"}},
		{exitUsage, `no command "nonsense"`, []string{"help", "nonsense"}},
		{exitUsage, `no command "nonsense"`, []string{"nonsense"}},
		{exitUsage, "-nonsense", []string{"status", "-nonsense"}},
		{exitUsage, "no node is named", []string{"status"}},
		{exitUsage, `-o is "xml"`, []string{"status", "-o", "xml", dead}},
		{exitUsage, "no arguments, and 1", []string{"status", "x", dead}},
		{exitUsage, "-timeout is -1s", []string{"status", "-timeout=-1s", dead}},
		{exitUsage, "OLD NEW ADDRESS", []string{"replace", "1", "2", dead}},
		{exitUsage, "go together", []string{"status", "-cert", "x", dead}},
		{exitUsage, "no-such-file", []string{"status", "-cert=no-such-file", "-key=no-such-file", "-ca=no-such-file", dead}},
		{exitUsage, "bash, zsh or fish", []string{"completion", "csh"}},
		{exitUsage, "no write-ahead log", []string{"wal", t.TempDir()}},
		{exitUsage, "-shard", []string{"wal", "-shard=x", "."}},
		{exitUnreachable, "refused", []string{"status", dead}},
		{exitUnreachable, "refused", []string{"add", "4", "h:1", dead}},
		{exitOK, "go1", []string{"version"}},
		{exitOK, `"go": "go1`, []string{"version", "-o=json"}},
	} {
		want(t, c.code, []string{c.text}, c.args...)
	}
	c := start(t, "", 2, nil)
	for _, u := range []struct {
		text string
		args []string
	}{
		{`"x" is no node's id`, []string{"add", "x", "h:1"}},
		{`"0" is no node's id`, []string{"promote", "0"}},
		{"host:port", []string{"add", "4", "h"}},
		{"host:port", []string{"set-address", "1", ":1"}},
		{"host:port", []string{"replace", "1", "4", "h"}},
		{"are both 1", []string{"replace", "1", "1", "h:1"}},
		{"say which with -shard", []string{"transfer", "1"}},
		{"say which with -shard", []string{"events"}},
		{"-from is -2", []string{"events", "-from=-2"}},
		{"-rate is 17592186044416", []string{"backup", "-rate=17592186044416", t.TempDir()}}, // 2^64 bytes: as a number of 64 bits, 0
		{"-fresh means nothing", []string{"snapshot", "-list", "-fresh"}},
	} {
		want(t, exitUsage, []string{u.text}, append(u.args, c.node())...)
	}
	// Every command that speaks to nodes refuses a shard that there is not.
	for _, args := range [][]string{{"status"}, {"members"}, {"add", "4", "h:1"}, {"promote", "3"}, {"remove", "3"}, {"replace", "3", "4", "h:1"},
		{"set-address", "3", "h:1"}, {"transfer", "3"}, {"snapshot"}, {"snapshot", "-list"}, {"events"}, {"hash"}} {
		want(t, exitRefused, []string{"hosts shard 9"}, append(args, "-shard=9", c.node())...)
	}
}

// Each command's help says what it is for, shows an example that it takes, and the exit codes.
func TestHelp(t *testing.T) {
	for _, cmd := range commands() {
		r := want(t, exitOK, []string{"usage: decree " + cmd.name, "Example", "Exit codes:", "  decree " + cmd.name}, cmd.name, "-help")
		if r.out != "" {
			t.Errorf("%s: help that was not asked for by name is no answer: %s", cmd.name, r.out)
		}
		if r := want(t, exitOK, nil, "help", cmd.name); r.err != "" || !strings.Contains(r.out, cmd.help) {
			t.Error(r)
		}
		for _, line := range strings.Split(cmd.help, "\n") {
			if len(line) > 130 {
				t.Errorf("%s: a line of %d characters: %s", cmd.name, len(line), line)
			}
			args, is := strings.CutPrefix(line, "  decree ")
			if !is {
				continue
			}
			args, _, _ = strings.Cut(args, " | ")
			args, _, _ = strings.Cut(args, " && ")
			args, _, _ = strings.Cut(args, " > ")
			args, _, _ = strings.Cut(args, " # ")
			s := &session{console: console{&bytes.Buffer{}, &bytes.Buffer{}}, cmd: cmd}
			f, _ := s.flags()
			if _, err := s.parse(f, append(strings.Fields(args)[1:], "-node=x:1")); err != nil && !cmd.offline {
				t.Errorf("%s: the example %q: %v", cmd.name, line, err)
			}
		}
	}
}

func TestExitCodes(t *testing.T) {
	node := func(err error) error { return fmt.Errorf("shard 1: %w", &refusal{node: 1, err: err}) }
	for err, code := range map[error]int{
		nil: exitOK, flag.ErrHelp: exitOK, errNo: exitNo, errors.New("damaged"): exitNo,
		badUsage("x"): exitUsage, unreachable("x"): exitUnreachable,
		node(&rsm.Error{Kind: rsm.ErrNotProposed}): exitRefused, node(&rsm.Rejection{}): exitNo,
		node(&rsm.Error{Kind: rsm.ErrUnknown}): exitUnknown, node(&rsm.Error{Kind: rsm.ErrBroken}): exitUnknown,
		fmt.Errorf("x: %w", context.DeadlineExceeded):            exitUnknown,
		partly(true, node(&rsm.Error{Kind: rsm.ErrNotProposed})): exitUnknown, partly(true, unreachable("x")): exitUnknown, partly(false, unreachable("x")): exitUnreachable,
	} {
		if got := exitCode(err); got != code {
			t.Errorf("%v: %d, want %d", err, got, code)
		}
	}
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	now := time.Now()
	p := newProgress(&b)
	p.now = func() time.Time { return now }
	p.show("a 0") // what is done at once needs no progress
	now = now.Add(2 * plainEvery)
	p.show("a %d", 1)
	p.show("a 2") // too soon
	now = now.Add(plainEvery)
	p.show("a 2")
	now = now.Add(plainEvery)
	p.show("a 2") // nothing new
	p.say("done")
	if b.String() != "a 1\na 2\ndone\n" {
		t.Errorf("%q", b.String())
	}
	b.Reset()
	p.terminal = true
	p.show("a long line")
	p.show("short")
	p.say("done")
	if b.String() != "\ra long line\rshort      \r     \rdone\n" {
		t.Errorf("%q", b.String())
	}
}

func TestFormat(t *testing.T) {
	for n, text := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 29: "1.5 GiB", 5 << 50: "5120.0 TiB"} {
		if got := size(n); got != text {
			t.Errorf("%d is %s, want %s", n, got, text)
		}
	}
	for d, text := range map[time.Duration]string{1500 * time.Microsecond: "1 ms ago", 1500 * time.Millisecond: "1.5 s ago", 90*time.Second + 1: "1m30s ago"} {
		if got := ago(d); got != text {
			t.Errorf("%v is %s, want %s", d, got, text)
		}
	}
	if instant(0) != "" || instant(1e18+5e6) != "2001-09-09T01:46:40.005Z" {
		t.Errorf("%s", instant(1e18+5e6))
	}
}

// A shard's time that is ahead of a node's clock is said of that node, once. Mutation with which it was seen to fail: report without the look at it.
func TestStatusOfClocks(t *testing.T) {
	ahead := func(seconds int64) *adminv1.ShardStatus {
		return &adminv1.ShardStatus{Shard: uint64(1 + seconds), Role: "follower", TimeAhead: seconds * 1e9}
	}
	c := &cluster{nodes: map[uint64]*node{
		1: {id: 1, status: &adminv1.StatusResponse{Shards: []*adminv1.ShardStatus{{Shard: 1, Role: "leader"}, {Shard: 3601, Role: "leader"}, {Shard: 61, Role: "leader"}, {Shard: 3, Role: "leader"}}}},
		2: {id: 2, status: &adminv1.StatusResponse{Shards: []*adminv1.ShardStatus{ahead(60), ahead(3600)}}},
		3: {id: 3, status: &adminv1.StatusResponse{Shards: []*adminv1.ShardStatus{ahead(2)}}},
	}}
	if got := report(c, 0, nil).Problems; len(got) != 1 || !strings.HasPrefix(got[0], "the clock of node 2 is 1h0m0s behind") {
		t.Errorf("got %q", got)
	}
}

// A voter whose node answers, and has no replica, votes nowhere. Mutation with which it was seen to fail: report without the look at it.
func TestStatusOfAVoterWithoutAReplica(t *testing.T) {
	replica := func(role string) *adminv1.StatusResponse {
		return &adminv1.StatusResponse{Shards: []*adminv1.ShardStatus{{Shard: 7, Role: role, Voters: []uint64{1, 2, 3}}}}
	}
	c := &cluster{nodes: map[uint64]*node{1: {id: 1, status: replica("leader")}, 2: {id: 2, status: replica("follower")}, 3: {id: 3, status: new(adminv1.StatusResponse)}}}
	if got := report(c, 0, nil).Problems; len(got) != 1 || !strings.HasPrefix(got[0], "node 3 is a voter of shard 7, and has no replica of it") {
		t.Errorf("got %q", got)
	}
}

// A journal that is cut short is said once, by the leader, with what to do if snapshots come too late.
func TestStatusOfAShortJournal(t *testing.T) {
	replica := func(role string, short bool, overtaken uint64) *adminv1.StatusResponse {
		return &adminv1.StatusResponse{Shards: []*adminv1.ShardStatus{{Shard: 1, Role: role, JournalShort: short, JournalBytes: 5 << 20, Counters: &adminv1.Counters{Overtaken: overtaken}}}}
	}
	c := &cluster{nodes: map[uint64]*node{}}
	problems := func(short bool, overtaken uint64) string {
		c.nodes[1] = &node{id: 1, status: replica("leader", short, overtaken)}
		c.nodes[2] = &node{id: 2, status: replica("follower", short, 0)}
		return strings.Join(report(c, 0, nil).Problems, "\n")
	}
	if got := problems(false, 2); got != "" { // it has caught up since
		t.Errorf("got %q", got)
	}
	got := problems(true, 0)
	if strings.Count(got, "was cut short") != 1 || strings.Contains(got, "raise") {
		t.Errorf("got %q", got)
	}
	if got = problems(true, 2); !strings.Contains(got, "2 times") || !strings.Contains(got, "raise JournalMaxBytes or SnapshotBytesPerSecond") {
		t.Errorf("got %q", got)
	}
}
