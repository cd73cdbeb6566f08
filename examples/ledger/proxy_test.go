package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/examples/ledger/server"
	proxyclient "github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// dialAPI returns the ledger's own service at an address.
func dialAPI(t *testing.T, address string) ledgerv1.LedgerServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return ledgerv1.NewLedgerServiceClient(conn)
}

func transferProto(from, to string) *ledgerv1.Entry {
	return &ledgerv1.Entry{Id: client.NewID().String(), Legs: []*ledgerv1.Leg{{Account: from, Debit: "1"}, {Account: to, Credit: "1"}}}
}

// postOver posts an entry over HTTP.
func postOver(address string, e *ledgerv1.Entry) (string, error) {
	body := fmt.Sprintf(`{"entries": [{"id": %q, "legs": [{"account": %q, "debit": "1"}, {"account": %q, "credit": "1"}]}]}`, e.Id, e.Legs[0].Account, e.Legs[1].Account)
	r, err := http.Post("http://"+address+"/v1/entries", "application/json", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s, %w", r.Status, data, err)
	}
	var m struct{ Results []struct{ Code string } }
	if err := json.Unmarshal(data, &m); err != nil || len(m.Results) != 1 {
		return "", fmt.Errorf("%s: %w", data, err)
	}
	return m.Results[0].Code, nil
}

// apiLoad posts, with sessions, without them, and over HTTP, and reads, until end. Each must be booked, and be told so as the first time.
type apiLoad struct {
	t      *testing.T
	stop   chan struct{}
	wg     sync.WaitGroup
	booked atomic.Uint64
}

func startAPILoad(t *testing.T, api, http string) *apiLoad {
	t.Helper()
	ctx := t.Context()
	rpc := dialAPI(t, api)
	accounts := &ledgerv1.CreateAccountsRequest{}
	for _, id := range []string{"1", "2"} {
		accounts.Items = append(accounts.Items, &ledgerv1.CreateAccountsRequest_Item{Account: &ledgerv1.Account{Id: id, Asset: "EUR", Name: "Proxied " + id}})
	}
	if _, err := rpc.CreateAccounts(ctx, accounts); err != nil {
		t.Fatal(err)
	}
	l := &apiLoad{t: t, stop: make(chan struct{})}
	work := func(what string, f func(i uint64) (string, error)) {
		l.wg.Go(func() {
			for i := uint64(1); ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				if code, err := f(i); err != nil || code != "created" {
					t.Errorf("%s, entry %d: %q, %v", what, i, code, err)
					return
				}
				l.booked.Add(1)
			}
		})
	}
	post := func(s *ledgerv1.Session) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
		defer cancel()
		r, err := rpc.PostEntries(ctx, &ledgerv1.PostEntriesRequest{Entries: []*ledgerv1.Entry{transferProto("1", "2")}, Session: s})
		if err != nil {
			return "", err
		}
		_, err = rpc.GetAccounts(ctx, &ledgerv1.GetAccountsRequest{Ids: []string{"1"}})
		return r.Results[0].Code, err
	}
	for range 4 {
		s, err := rpc.OpenSession(ctx, new(ledgerv1.OpenSessionRequest))
		if err != nil {
			t.Fatal(err)
		}
		work("in a session", func(i uint64) (string, error) {
			return post(&ledgerv1.Session{Id: s.Id, Sequence: i, Acknowledged: i - 1})
		})
		work("without a session", func(uint64) (string, error) { return post(nil) })
		work("over HTTP", func(uint64) (string, error) { return postOver(http, transferProto("1", "2")) })
	}
	t.Cleanup(l.end)
	return l
}

func (l *apiLoad) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
}

// goesOn waits until some more entries are booked.
func (l *apiLoad) goesOn(what string) {
	l.t.Helper()
	at := l.booked.Load()
	awaitThat(l.t, "entries are booked "+what, func() bool { return l.booked.Load() >= at+50 || l.t.Failed() })
}

// audit ends the load, and compares what was acknowledged with what every node has.
func (l *apiLoad) audit(c *testCluster) {
	l.t.Helper()
	l.end()
	nodes := slices.Collect(maps.Values(c.nodes))
	reports, err := auditTogether(l.t.Context(), len(nodes), func(ctx context.Context, i int) (*ledgerv1.AuditResponse, error) {
		return client.Audit(ctx, nodes[i].front.server.Addr(), proxyclient.Options{})
	})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, r := range reports {
		if r.GetEntries() != l.booked.Load() || r.GetViolationCount() != 0 || r.GetStateHash() != reports[0].GetStateHash() {
			l.t.Errorf("%d entries were acknowledged, and the audit says %v", l.booked.Load(), r)
		}
	}
}

// Whoever asks a follower sees nothing of it when the leader dies but a slow answer.
func TestLeaderDiesBehindAFollower(t *testing.T) {
	c := newTestCluster(t)
	leader := c.leader()
	follower := leader%3 + 1
	l := startAPILoad(t, c.config.API[follower], c.config.HTTP[follower])
	l.goesOn("while the leader lives")
	c.kill(leader)
	l.goesOn("when it is dead")
	c.start(leader)
	l.goesOn("when it is back")
	l.audit(c)
}

// A proxy without a node has the same API, and says of what it has not who has.
func TestProxyCommand(t *testing.T) {
	c := newTestCluster(t)
	leader := c.leader()
	p, err := startProxy(proxyConfig{nodes: []string{c.config.Peers[leader]}, api: "127.0.0.1:0", http: "127.0.0.1:0"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- p.run(ctx) }()
	address, web := p.server.Addr(), p.listener.Addr().String()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	api := "-api=" + address
	if code, out, errs := ledgerCommand(t, "", "import", api, "testdata/sample.csv"); code != 0 {
		t.Errorf("import: %d %s%s", code, out, errs)
	}
	if code, out, errs := ledgerCommand(t, "", "balances", api, "-O", "csv"); code != 0 || out != string(sampleBalances) {
		t.Errorf("balances: %d %s%s", code, out, errs)
	}
	rpc := dialAPI(t, address)
	_, err = rpc.GetStatus(t.Context(), new(ledgerv1.GetStatusRequest))
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "ask a node") {
		t.Errorf("status: %v", err)
	}
	if code, _, errs := ledgerCommand(t, "", "verify", api); code != 1 || !strings.Contains(errs, "ask a node") {
		t.Errorf("verify: %d %s", code, errs)
	}
	// A request that is too large is refused before it is taken apart, in the words of the ledger.
	_, err = rpc.GetAccounts(t.Context(), &ledgerv1.GetAccountsRequest{Ids: []string{strings.Repeat("0", server.MaxBodyBytes)}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "command_too_large") {
		t.Errorf("a large request: %v", err)
	}
	for path, want := range map[string]string{"/readyz": "", "/metrics": "decree_proxy_", "/v1/accounts?prefix=Assets": `"accounts":[`} {
		awaitThat(t, path+" is answered", func() bool {
			r, err := http.Get("http://" + web + path)
			if err != nil {
				return false
			}
			defer r.Body.Close()
			data, err := io.ReadAll(r.Body)
			return err == nil && r.StatusCode == http.StatusOK && strings.Contains(string(data), want)
		})
	}
	other, err := startProxy(proxyConfig{nodes: []string{"127.0.0.1:1"}, api: address, http: "127.0.0.1:0"}, slog.New(slog.DiscardHandler))
	if err == nil {
		other.stop()
		t.Error("a port was taken twice")
	}
}

// runTestProxy runs a proxy on ports of its own until the test ends.
func runTestProxy(t *testing.T, cfg proxyConfig) *servedProxy {
	t.Helper()
	cfg.api, cfg.http = "127.0.0.1:0", "127.0.0.1:0"
	p, err := startProxy(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- p.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	return p
}

// The death of the leader is nothing to clients of a proxy either.
func TestLeaderDiesBehindAProxy(t *testing.T) {
	c := newTestCluster(t)
	leader := c.leader()
	var nodes []string
	for _, id := range []rsm.NodeID{1, 2, 3} {
		nodes = append(nodes, c.config.Peers[id])
	}
	p := runTestProxy(t, proxyConfig{nodes: nodes})
	l := startAPILoad(t, p.server.Addr(), p.listener.Addr().String())
	l.goesOn("while the leader lives")
	c.kill(leader)
	l.goesOn("when it is dead")
	c.start(leader)
	l.audit(c)
}

// The port for HTTP bounds the connections of one host, and those that are there go on.
//
// Mutation with which it was seen to fail: the listener has no guard.
func TestHTTPConnectionsAreBounded(t *testing.T) {
	was := maxConnections
	maxConnections = 8
	defer func() { maxConnections = was }()
	p := runTestProxy(t, proxyConfig{nodes: []string{"127.0.0.1:1"}})
	ask := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: ledger\r\n\r\n"); err != nil {
			return err
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	var taken []net.Conn
	refused := 0
	for range 12 {
		c, err := net.Dial("tcp", p.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if ask(c) != nil {
			refused++
		} else {
			taken = append(taken, c)
		}
	}
	if len(taken) != 6 || refused != 6 {
		t.Fatalf("%d connections are taken, and %d refused", len(taken), refused)
	}
	for _, c := range taken {
		if err := ask(c); err != nil {
			t.Errorf("a connection that was there: %v", err)
		}
	}
}

// A request that came while the server was starting does not wait for ever where it does not come up: the server waits for its calls as it ends.
//
// Mutation with which it was seen to fail: only what it waits for ends the wait.
func TestStartThatFails(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	done := make(chan error, 1)
	go func() {
		_, err := (&once{known: make(chan struct{})}).Do(ctx, rsm.Request{})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, rsm.ErrNotProposed) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits")
	}
}

// The port for gRPC drains while requests over HTTP are under way, and not when they have used up the time for both.
//
// Mutation with which it was seen to fail: one after the other.
func TestBothPortsDrain(t *testing.T) {
	p, err := startProxy(proxyConfig{nodes: []string{"127.0.0.1:1"}, api: "127.0.0.1:0", http: "127.0.0.1:0"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.serve() }()
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "POST /v1/entries HTTP/1.1\r\nHost: ledger\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "100") { // it is at work, and waits for its body
		t.Fatal(line, err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- p.stop() }()
	for until := time.Now().Add(20 * time.Second); !slices.ContainsFunc(p.server.Ready(), func(s string) bool { return strings.Contains(s, "drains") }); {
		if time.Sleep(time.Millisecond); time.Now().After(until) {
			t.Fatal("it does not drain")
		}
	}
	_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the request over HTTP has ended before: %v", err)
	}
	c.Close()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
