package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/book/booktest"
	"github.com/decree-raft/decree/examples/ledger/hledger"
	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/rsm"
)

// ledgerCommand runs the binary's main function, and returns what it wrote.
func ledgerCommand(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), console{strings.NewReader(stdin), &out, &errs}, args)
	return code, out.String(), errs.String()
}

// testCluster is three served nodes on ports of their own.
type testCluster struct {
	t       *testing.T
	config  serveConfig
	dir     string
	nodes   map[rsm.NodeID]*servedNode
	stopped map[rsm.NodeID]chan error
	cancel  map[rsm.NodeID]context.CancelFunc
}

func newTestCluster(t *testing.T) *testCluster {
	t.Helper()
	return startTestCluster(t, func(*serveConfig) {})
}

func startTestCluster(t *testing.T, configure func(*serveConfig)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), config: defaultServeConfig(),
		nodes: map[rsm.NodeID]*servedNode{}, stopped: map[rsm.NodeID]chan error{}, cancel: map[rsm.NodeID]context.CancelFunc{}}
	c.config.Peers, c.config.API, c.config.HTTP = freePorts(t), freePorts(t), freePorts(t)
	configure(&c.config)
	for id := range c.config.Peers {
		c.start(id)
	}
	t.Cleanup(func() {
		for id := range c.nodes {
			c.stop(id)
		}
	})
	return c
}

// freePorts returns addresses for the first three nodes.
func freePorts(t *testing.T) addresses {
	t.Helper()
	return addresses{1: testkit.FreePort(t), 2: testkit.FreePort(t), 3: testkit.FreePort(t)}
}

// configOf is what a node is started with. Those that come after the first three join.
func (c *testCluster) configOf(id rsm.NodeID) serveConfig {
	cfg := c.config
	cfg.Node, cfg.Dir, cfg.Join = id, filepath.Join(c.dir, fmt.Sprint(id)), id > 3
	return cfg
}

func (c *testCluster) start(id rsm.NodeID) {
	c.t.Helper()
	n, err := startNode(c.configOf(id), slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- n.run(ctx) }()
	c.nodes[id], c.stopped[id], c.cancel[id] = n, stopped, cancel
}

// stop stops a node in order, as a signal does.
func (c *testCluster) stop(id rsm.NodeID) {
	c.t.Helper()
	c.cancel[id]()
	if err := <-c.stopped[id]; err != nil {
		c.t.Errorf("node %d: %v", id, err)
	}
	delete(c.nodes, id)
}

// kill stops a node as kill -9 does, as far as the other nodes can tell.
func (c *testCluster) kill(id rsm.NodeID) {
	c.t.Helper()
	n := c.nodes[id]
	n.node.Kill()
	n.front.server.Close()
	if err := <-c.stopped[id]; err == nil {
		c.t.Errorf("node %d was killed, and ended well", id)
	}
	delete(c.nodes, id)
}

func (c *testCluster) leader() rsm.NodeID {
	c.t.Helper()
	for _, n := range c.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := n.node.Shard(shardID).WaitReady(ctx); err != nil {
			c.t.Fatal(err)
		}
		return n.node.Shard(shardID).Leader()
	}
	c.t.Fatal("no node runs")
	return 0
}

func (c *testCluster) api() string {
	var all []string
	for id := rsm.NodeID(1); id <= 3; id++ {
		all = append(all, c.config.API[id])
	}
	return "-api=" + strings.Join(all, ",")
}

// TestServedCluster runs what the README shows: import, balances, load, a leader that dies, verify.
func TestServedCluster(t *testing.T) {
	c := newTestCluster(t)
	for _, want := range []string{"36 accounts opened, 0 were there; 137 entries booked, 0 were there", "0 accounts opened, 36 were there; 0 entries booked, 137 were there"} {
		if code, out, errs := ledgerCommand(t, "", "import", c.api(), "testdata/sample.csv"); code != 0 || !strings.HasPrefix(out, want) {
			t.Fatalf("import: %d %s%s", code, out, errs)
		}
	}
	if code, out, errs := ledgerCommand(t, "", "balances", c.api(), "-O", "csv"); code != 0 || out != string(sampleBalances) {
		t.Errorf("balances: %d %s%s", code, out, errs)
	}
	if code, out, errs := ledgerCommand(t, "", "balances", c.api(), "-prefix", "Assets:W", "-all"); code != 0 || strings.Count(out, "\n") != 2 || !strings.Contains(out, "0.000000000000000000") {
		t.Errorf("balances: %d %s%s", code, out, errs)
	}

	loaded := make(chan string, 1)
	go func() {
		code, out, errs := ledgerCommand(t, "", "load", c.api(), "-duration", "2s", "-clients", "16", "-accounts", "50", "-batch", "3")
		loaded <- fmt.Sprint(code, "\n", out, errs)
	}()
	leader := c.leader()
	c.kill(leader)
	if out := <-loaded; !strings.HasPrefix(out, "0\n") || !strings.Contains(out, "p99.9") {
		t.Errorf("load: %s", out)
	}
	if code, out, _ := ledgerCommand(t, "", "verify", c.api(), "-timeout", "1s"); code != 1 {
		t.Errorf("verify with a node down: %d %s", code, out)
	}
	c.start(leader)
	if code, out, errs := ledgerCommand(t, "", "verify", c.api()); code != 0 || !strings.Contains(out, "Every invariant holds") {
		t.Errorf("verify: %d %s%s", code, out, errs)
	}
}

func TestImportNamesWhatIsWrong(t *testing.T) {
	c := newTestCluster(t)
	text := "txnidx,date,description,account,amount,commodity\n" +
		"1,2025-01-31,sound,Assets:A,5.00,EUR\n1,2025-01-31,sound,Assets:B,-5.00,EUR\n" +
		"2,2025-01-31,wrong,Assets:A,5.0o,EUR\n2,2025-01-31,wrong,Assets:B,-5.00,EUR\n" +
		"3,2025-01-31,sound,Assets:A,1.00,EUR\n3,2025-01-31,sound,Assets:B,-1.00,EUR\n"
	code, out, errs := ledgerCommand(t, text, "import", c.api(), "-")
	if code != 1 || !strings.Contains(out, "2 entries booked, 0 were there; 1 transactions refused") || !strings.Contains(errs, `-: line 4: the amount is in "o", the commodity is "EUR"`) {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if code, out, _ := ledgerCommand(t, "", "balances", c.api(), "-O=csv"); code != 0 || out != "\"account\",\"commodity\",\"balance\"\n\"Assets:A\",\"EUR\",\"6.00\"\n\"Assets:B\",\"EUR\",\"-6.00\"\n" {
		t.Errorf("%d %s", code, out)
	}
	// Decimals that are to be had from the first file on.
	text = "txnidx,date,description,account,amount,commodity\n1,2025-01-31,d,Assets:A,5,GBP\n1,2025-01-31,d,Assets:B,-5,GBP\n"
	if code, out, errs := ledgerCommand(t, text, "import", c.api(), "-scale", "GBP=4", "-"); code != 0 {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if code, out, _ := ledgerCommand(t, "", "balances", c.api(), "-O=csv"); code != 0 || !strings.Contains(out, `"Assets:A","GBP","5.0000"`) {
		t.Errorf("%d %s", code, out)
	}
	if code, _, errs := ledgerCommand(t, text, "import", c.api(), "-scale", "GBP=2", "-"); code != 1 || !strings.Contains(errs, "GBP has 4 decimals in the ledger") {
		t.Errorf("%d %s", code, errs)
	}
	// More decimals than the ledger has by now.
	text = "txnidx,date,description,account,amount,commodity\n1,2025-01-31,finer,Assets:A,0.001,EUR\n1,2025-01-31,finer,Assets:B,-0.001,EUR\n"
	if code, _, errs := ledgerCommand(t, text, "import", c.api(), "-"); code != 1 || !strings.Contains(errs, "line 2: EUR has 2 decimals in the ledger") {
		t.Errorf("%d %s", code, errs)
	}
	if code, _, errs := ledgerCommand(t, "no header", "import", c.api(), "-"); code != 1 || !strings.Contains(errs, "line 1 has no column") {
		t.Errorf("%d %s", code, errs)
	}
}

// The command decree finds every node at the port of any.
func TestAdminService(t *testing.T) {
	c := newTestCluster(t)
	c.leader()
	for id, address := range c.config.Peers {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		st, err := adminv1.NewAdminServiceClient(conn).Status(t.Context(), &adminv1.StatusRequest{})
		if err != nil || st.GetNode() != uint64(id) || st.GetCluster() != "ledger" || len(st.GetShards()) != 1 {
			t.Errorf("node %d: %v, %v", id, st, err)
		}
	}
}

func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	code, out, errs := ledgerCommand(t, "", "demo", "-json", "-duration", "3s", "-clients", "8", "-accounts", "20")
	var got struct {
		OK       bool
		Failover struct {
			Killed      uint64
			NoAnswersMS float64 `json:"no_answers_ms"`
			ProxyClosed string  `json:"proxy_closed"`
		}
		Replicas []replica
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	if code != 0 || !got.OK || len(got.Replicas) != 3 || got.Failover.Killed == 0 || got.Failover.NoAnswersMS <= 0 || got.Failover.ProxyClosed == "" || strings.Count(out, "\n") != 1 {
		t.Errorf("%d %s%s", code, out, errs)
	}
}

// What does not hold must show: a summary with a failure ends with 1.
func TestJudge(t *testing.T) {
	good := func(node uint64) *ledgerv1.AuditResponse {
		return &ledgerv1.AuditResponse{Node: node, Applied: 7, StateHash: "abc", Assets: []*ledgerv1.AssetTotal{{Asset: "EUR", Scale: 2, DebitsPosted: "1050", DebitsPending: "0"}}}
	}
	other := good(2)
	other.StateHash = "abd"
	bad := good(2)
	bad.Violations, bad.ViolationCount = []string{"x"}, 1
	bytes2 := good(2)
	bytes2.ContentHash = "01"
	for i, c := range []struct {
		reports []*ledgerv1.AuditResponse
		want    error
	}{{[]*ledgerv1.AuditResponse{good(1), bytes2}, errNotAll}, {[]*ledgerv1.AuditResponse{good(1), good(1)}, errNotAll},
		{[]*ledgerv1.AuditResponse{good(1), good(2)}, nil}, {[]*ledgerv1.AuditResponse{good(1), other}, errNotAll}, {[]*ledgerv1.AuditResponse{good(1), bad}, errNotAll}} {
		var out bytes.Buffer
		if err := judge(console{out: &out, err: &out}, c.reports); !errors.Is(err, c.want) {
			t.Errorf("%d: %v, want %v: %s", i, err, c.want, out.String())
		}
		if !strings.Contains(out.String(), "10.50") {
			t.Errorf("%d: %s", i, out.String())
		}
	}
}

func TestAuditTogether(t *testing.T) {
	// The second replica is behind at first, and then the first one has moved on.
	positions := [][]uint64{{5, 6, 7}, {4, 6, 7}}
	asked := make([]int, 2)
	reports, err := auditTogether(t.Context(), 2, func(_ context.Context, i int) (*ledgerv1.AuditResponse, error) {
		at := positions[i][min(asked[i], 2)]
		asked[i]++
		return &ledgerv1.AuditResponse{Applied: at}, nil
	})
	if err != nil || reports[0].Applied != reports[1].Applied {
		t.Errorf("%v, %v", reports, err)
	}
	if _, err := auditTogether(t.Context(), 2, func(_ context.Context, i int) (*ledgerv1.AuditResponse, error) {
		return nil, fmt.Errorf("node %d", i)
	}); err == nil {
		t.Error("an error was lost")
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		text string // in either output
	}{
		{nil, 2, "ledger demo"},
		{[]string{"help"}, 0, "ledger demo"},
		{[]string{"-h"}, 0, "ledger demo"},
		{[]string{"nonsense"}, 2, `no command "nonsense"`},
		{[]string{"demo", "-help"}, 0, "-duration"},
		{[]string{"demo", "-duration", "1s"}, 2, "out of range"},
		{[]string{"demo", "x"}, 2, "takes 0 arguments"},
		{[]string{"load", "-clients", "0"}, 2, "out of range"},
		{[]string{"load", "-nonsense"}, 2, "-nonsense"},
		{[]string{"import"}, 2, "takes 1 arguments"},
		{[]string{"import", "-decimal-mark", "x", "-"}, 2, "-decimal-mark"},
		{[]string{"import", "no-such-file"}, 1, "no-such-file"},
		{[]string{"balances", "-O", "xml"}, 2, "-O is"},
		{[]string{"balances", "-api", ""}, 2, "no addresses"},
		{[]string{"verify", "-api", "a:1,b:1,a:1"}, 2, "-api names a:1 twice"},
		{[]string{"import", "-scale", "EUR", "-"}, 2, "-scale"},
		{[]string{"import", "-scale", "EUR=31", "-"}, 2, "-scale"},
		{[]string{"verify", "-api", ""}, 2, "no addresses"},
		{[]string{"load", "-api", ""}, 2, "no addresses"},
		{[]string{"proxy", "-help"}, 0, "whoever leads"},
		{[]string{"proxy", "-nodes", ""}, 1, "at least one node"},
		{[]string{"serve"}, 2, "-node is missing"},
		{[]string{"serve", "-node", "4"}, 2, "has no address for node 4"},
		{[]string{"serve", "-node", "100", "-join"}, 2, "has no address for node 100"},
		{[]string{"serve", "-node", "1", "-voters", "1,x"}, 2, `"x" is no id`},
		{[]string{"serve", "-node", "3", "-voters", "1,2"}, 2, "do not name node 3"},
		{[]string{"serve", "-node", "3", "-voters", "3,4"}, 2, "no address for node 4, which -voters names"},
		{[]string{"serve", "-help"}, 0, "ledger serve -node 4 -join"},
		{[]string{"serve", "-node", "1", "-peers", "1"}, 2, "id=host:port"},
		{[]string{"serve", "-node", "1", "-peers", "1=a:1,1=b:1"}, 2, "twice"},
		{[]string{"serve", "-node", "1", "-api", "1=nowhere"}, 2, "-api: address of node 1"},
		{[]string{"serve", "-config", "no-such-file"}, 1, "no-such-file"},
	} {
		code, out, errs := ledgerCommand(t, "", c.args...)
		if code != c.code || !strings.Contains(out+errs, c.text) {
			t.Errorf("ledger %v: %d %s%s, want %d and %q", c.args, code, out, errs, c.code, c.text)
		}
	}
}

func TestServeConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	quiet := console{err: io.Discard}
	write(`{"cluster": "mine", "node": 2, "peers": {"2": "h:1"}, "api": {"2": "h:2"}, "election_timeout": "2s", "old_program": true}`)
	cfg, err := parseServe(quiet, []string{"-config", file, "-cluster", "other", "-http", "2=h:3"})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(cfg); got != "{other 2 ledger-data/2 2=h:1 2=h:2 2=h:3 false  2000000000 false true {     false} {   }}" {
		t.Errorf("got %s", got)
	}
	for _, text := range []string{"{", `{"nodes": 3}`, `{"node": 1, "election_timeout": "soon"}`} {
		write(text)
		if _, err := parseServe(quiet, []string{"-config", file}); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
	cfg, err = parseServe(quiet, []string{"-node", "3"})
	if err != nil || cfg.OldProgram || cfg.API[3] != "127.0.0.1:7203" || len(cfg.Peers) != 3 || cfg.API.String() != "1=127.0.0.1:7201,2=127.0.0.1:7202,3=127.0.0.1:7203" {
		t.Errorf("defaults: %v, %v", cfg, err)
	}
	// One that joins needs no more to be a further node on this machine; and the others may be told of it.
	joins, err := parseServe(quiet, []string{"-node", "4", "-join"})
	if err != nil || !joins.Join || joins.Peers.String() != cfg.Peers.String()+",4=127.0.0.1:7104" || joins.API[4] != "127.0.0.1:7204" || joins.HTTP[4] != "127.0.0.1:7304" {
		t.Errorf("one that joins: %v, %v", joins, err)
	}
	write(`{"node": 1, "peers": {"1": "h:1", "2": "h:2", "3": "h:3", "4": "h:4"}, "voters": [1, 2, 3]}`)
	for _, args := range [][]string{{"-config", file}, {"-config", file, "-node", "4", "-join", "-api", "4=h:5", "-http", "4=h:6"}, {"-peers", joins.Peers.String(), "-voters", "1, 2,3", "-node", "2"}} {
		if cfg, err := parseServe(quiet, args); err != nil || cfg.Voters.String() != "1,2,3" || len(cfg.Peers) != 4 || cfg.Join != (cfg.Node == 4) {
			t.Errorf("%v: %v, %v", args, cfg, err)
		}
	}
	if defaultAPI != strings.Join([]string{cfg.API[1], cfg.API[2], cfg.API[3]}, ",") {
		t.Error("clients look elsewhere than where nodes serve by default")
	}
}

func TestStartNodeLeavesNothingBehind(t *testing.T) {
	cfg := defaultServeConfig()
	cfg.Peers, cfg.API, cfg.HTTP = freePorts(t), freePorts(t), freePorts(t)
	cfg.Node, cfg.Dir = 1, filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(cfg.Dir, nil, 0o600); err != nil { // a file where the directory would be
		t.Fatal(err)
	}
	for range 2 { // the second time, the ports are free again
		_, err := startNode(cfg, slog.New(slog.DiscardHandler))
		if err == nil || strings.Contains(err.Error(), "in use") {
			t.Fatalf("startNode: %v", err)
		}
	}
}

// halfLedger opens accounts and books nothing.
type halfLedger struct{}

func (halfLedger) Accounts(context.Context, string) ([]book.AccountState, error) { return nil, nil }

func (halfLedger) CreateAccounts(_ context.Context, accounts ...book.Account) ([]book.Outcome, error) {
	return make([]book.Outcome, len(accounts)), nil
}

func (halfLedger) PostEntries(context.Context, ...book.Entry) ([]book.Outcome, error) {
	return nil, errors.New("broken off")
}

// An import that breaks off still tells what it found and how far it came.
func TestImportThatBreaksOff(t *testing.T) {
	text := "txnidx,date,description,account,amount,commodity\n" +
		"1,2025-01-31,d,A,5,EUR\n1,2025-01-31,d,B,-5,EUR\n2,2025-01-31,d,A,x,EUR\n"
	result, err := importBook(t.Context(), halfLedger{}, strings.NewReader(text), hledger.Options{}, map[string]uint8{"EUR": 2})
	if err == nil || result == nil || result.Accounts != 2 || result.Refused != 1 || len(result.problems) != 1 {
		t.Errorf("%+v, %v", result, err)
	}
}

// memoryLedger is a ledger in memory, alone.
type memoryLedger struct {
	halfLedger
	state booktest.Memory
	now   rsm.Timestamp
}

func (m *memoryLedger) decide(command []byte, err error) ([]book.Outcome, error) {
	if err != nil {
		return nil, err
	}
	m.now++
	events, reply, err := book.Machine{}.Decide(&m.state, rsm.Command{Data: command, Time: m.now, Version: book.VersionReferences})
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		book.Machine{}.Apply(&m.state, rsm.Event{Data: e, Time: m.now, Version: book.VersionReferences})
	}
	r, err := book.ParseReply(reply)
	return r.Outcomes, err
}

func (m *memoryLedger) CreateAccounts(_ context.Context, accounts ...book.Account) ([]book.Outcome, error) {
	return m.decide(book.AppendCreateAccounts(nil, accounts...))
}

func (m *memoryLedger) PostEntries(_ context.Context, entries ...book.Entry) ([]book.Outcome, error) {
	return m.decide(book.AppendPostEntries(nil, entries...))
}

// What an import could not book, as an account was closed, the next one books, each once, also those that say the same.
// Mutation with which it was seen to fail: post takes IDAlreadyFailed like any other refusal.
func TestImportAgain(t *testing.T) {
	text := "txnidx,date,description,account,amount,commodity\n" +
		"1,2025-01-31,d,A,5,EUR\n1,2025-01-31,d,B,-5,EUR\n2,2025-01-31,d,A,5,EUR\n2,2025-01-31,d,B,-5,EUR\n"
	m := new(memoryLedger)
	run := func(booked, existed, refused int) {
		t.Helper()
		result, err := importBook(t.Context(), m, strings.NewReader(text), hledger.Options{}, nil)
		if err != nil || result.Entries != booked || result.EntriesExisted != existed || result.Refused != refused {
			t.Errorf("%+v, %v; want %d booked, %d there, %d refused", result, err, booked, existed, refused)
		} else if refused > 0 && !strings.Contains(result.problems[0], "account_already_closed") {
			t.Errorf("problems %q", result.problems)
		}
	}
	a, b := hledger.AccountID("A", "EUR"), hledger.AccountID("B", "EUR")
	if _, err := m.CreateAccounts(t.Context(), book.Account{ID: a, Name: "A", Asset: "EUR"}, book.Account{ID: b, Name: "B", Asset: "EUR"}); err != nil {
		t.Fatal(err)
	}
	closing := book.Entry{ID: book.ID{1}, Flags: book.Pending, Legs: []book.Leg{{Account: a, Side: book.Debit, Closing: true}, {Account: b, Side: book.Credit}}}
	reopening := book.Entry{ID: book.ID{2}, Flags: book.VoidPending, PendingID: closing.ID}
	if o, err := m.PostEntries(t.Context(), closing); err != nil || o[0].Code != book.Created {
		t.Fatal(o, err)
	}
	run(0, 0, 2)
	run(0, 0, 2) // and says why, once more
	if o, err := m.PostEntries(t.Context(), reopening); err != nil || o[0].Code != book.Created {
		t.Fatal(o, err)
	}
	run(2, 0, 0)
	run(0, 2, 0)
}

// Two accounts of one name have each their own pending amounts.
func TestTableOfSameNames(t *testing.T) {
	var out bytes.Buffer
	accounts := make([]book.AccountState, 2)
	for i := range accounts {
		accounts[i].ID, accounts[i].Name, accounts[i].Asset = book.ID{byte(i + 1)}, "A", "EUR"
		accounts[i].DebitsPending = book.U64(uint64(11 * (i + 1)))
	}
	if err := writeTable(console{out: &out}, accounts, false); err != nil || !strings.Contains(out.String(), "11") || !strings.Contains(out.String(), "22") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
