package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/proxy/flags"
	"github.com/decree-raft/decree/rsm"
)

// asProgram of the environment makes the tests' binary the program itself.
const asProgram = "DECREE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program is a run of decree in a process of its own.
type program struct {
	*exec.Cmd
	t    *testing.T
	log  *synced
	said chan string
}

func runProgram(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(os.Args[0], args...), t: t, log: &synced{}, said: make(chan string, 1000)}
	p.Env = append(os.Environ(), asProgram+"=1")
	errs, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill() })
	go func() {
		defer close(p.said)
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			fmt.Fprintln(p.log, lines.Text())
			select {
			case p.said <- lines.Text():
			default:
			}
		}
	}()
	return p
}

// says waits for a line that matches, and returns what its first group matched.
func (p *program) says(pattern string) string {
	p.t.Helper()
	expr := regexp.MustCompile(pattern)
	for ctx := within(p.t); ; {
		select {
		case line, more := <-p.said:
			if m := expr.FindStringSubmatch(line); m != nil {
				return m[len(m)-1]
			}
			if !more {
				p.t.Fatalf("the program ended and never said %q: %s", pattern, p.log)
			}
		case <-ctx.Done():
			p.t.Fatalf("the program never says %q: %s", pattern, p.log)
		}
	}
}

// ends returns the exit code.
func (p *program) ends() int {
	p.t.Helper()
	for range p.said { // to the end of its output
	}
	_ = p.Wait() // a code that is not 0 is an error
	return p.ProcessState.ExitCode()
}

func (p *program) signal(s os.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func dial(t *testing.T, addresses ...string) *client.Client {
	t.Helper()
	c, err := client.Dial(addresses, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// The proxy is a process of its own: it finds the leader and its successor, and clients go on when it is killed and started again.
func TestProxy(t *testing.T) {
	c := startQuick(t, t.TempDir(), 1)
	run := func(listen string) (*program, string) {
		p := runProgram(t, "proxy", "-listen", listen, "-nodes", c.Node(1).Addr())
		return p, p.says(`msg="proxy started".* listen=(\S+)`)
	}
	p, address := run("127.0.0.1:0")
	sh := dial(t, address).Shard(1)
	submit := func(what string) {
		t.Helper()
		if reply, err := sh.Submit(within(t), []byte(what)); err != nil || len(reply) > 0 {
			t.Fatalf("%s: %s, %v: %s", what, reply, err, p.log)
		}
		if got, err := sh.Read(within(t), rsm.Linearizable, nil); err != nil || string(got) != what {
			t.Fatalf("%s: read %s, %v: %s", what, got, err, p.log)
		}
	}
	submit("a")
	first := c.leader(1)
	c.kill(first)
	submit("after an election")
	if err := c.Restart(first); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGKILL)
	p.ends()
	if p, _ = run(address); p == nil {
		t.Fatal("not again")
	}
	submit("after the proxy was killed")
	p.signal(syscall.SIGTERM)
	if code := p.ends(); code != exitOK || !strings.Contains(p.log.String(), "proxy ended") {
		t.Errorf("exit code %d: %s", code, p.log)
	}
}

// withoutQuorum is a cluster of which one node is left, and a call that waits, at a proxy, for a leader.
func withoutQuorum(t *testing.T, flags ...string) (c *testCluster, killed []rsm.NodeID, p *program, pending *client.Pending) {
	t.Helper()
	c = startQuick(t, t.TempDir(), 1)
	p = runProgram(t, append([]string{"proxy", "-listen", "127.0.0.1:0", "-http", "127.0.0.1:0", "-nodes", c.Node(1).Addr() + "," + c.Node(2).Addr() + "," + c.Node(3).Addr()}, flags...)...)
	address, side, _ := strings.Cut(p.says(`msg="proxy started".* listen=(\S+ http=\S+)`), " http=")
	sh := dial(t, address).Shard(1)
	if _, err := sh.Submit(within(t), []byte("a")); err != nil { // there is a session
		t.Fatal(err)
	}
	for id := rsm.NodeID(1); id <= 2; id++ {
		c.kill(id)
		killed = append(killed, id)
	}
	pending = sh.Go(within(t), rsm.Request{Commands: [][]byte{[]byte("b")}})
	for ctx := within(t); ; {
		r, err := http.Get("http://" + side + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		metrics, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err == nil && strings.Contains(string(metrics), "decree_proxy_calls_in_progress{shard=\"1\"} 1\n") {
			return c, killed, p, pending
		}
		if !wait(ctx, 5*time.Millisecond) {
			t.Fatalf("the call does not come to the proxy: %s, %v", metrics, err)
		}
	}
}

// Told to end, a proxy answers what is under way first.
func TestProxyDrains(t *testing.T) {
	c, killed, p, pending := withoutQuorum(t, "-drain", "40s")
	select {
	case <-pending.Done():
		t.Fatal("answered without a quorum")
	case <-time.After(300 * time.Millisecond):
	}
	p.signal(syscall.SIGTERM)
	p.says(`msg="(draining)`)
	for _, id := range killed {
		if err := c.Restart(id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pending.Wait(within(t)); err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if code := p.ends(); code != exitOK {
		t.Errorf("exit code %d: %s", code, p.log)
	}
}

// Told twice, or when its patience ends, a proxy ends, and says that it has cut calls.
func TestProxyEndsAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		drain string
		twice bool
	}{"second signal": {"10m", true}, "no patience": {"100ms", false}} {
		t.Run(name, func(t *testing.T) {
			_, _, p, pending := withoutQuorum(t, "-drain", c.drain)
			select {
			case <-pending.Done():
				t.Fatal("answered without a quorum")
			case <-time.After(300 * time.Millisecond):
			}
			p.signal(syscall.SIGTERM)
			p.says(`msg="(draining)`)
			if c.twice {
				p.signal(os.Interrupt)
			}
			if code := p.ends(); code != exitNo || !strings.Contains(p.log.String(), "calls under way were ended") {
				t.Errorf("exit code %d: %s", code, p.log)
			}
		})
	}
}

// A proxy on which nothing is under way ends soon and with code 0, with a client that looks at its services, and without any patience.
//
// Mutations with which it was seen to fail: reflection's streams are not ended; something counts as cut whenever -drain is over.
func TestProxyEndsWithNothingUnderWay(t *testing.T) {
	for name, drain := range map[string]string{"reflection": "10s", "no patience": "0s"} {
		t.Run(name, func(t *testing.T) {
			p := runProgram(t, "proxy", "-listen", "127.0.0.1:0", "-nodes", "127.0.0.1:1", "-drain", drain)
			conn, err := grpc.NewClient(p.says(`msg="proxy started".* listen=(\S+)`), access.DialOptions(nil, nil)...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			st, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(within(t))
			if err == nil {
				err = st.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
			}
			if err == nil {
				_, err = st.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			p.signal(syscall.SIGTERM)
			if code, took := p.ends(), time.Since(began); code != exitOK || took > 5*time.Second {
				t.Errorf("exit code %d after %v: %s", code, took, p.log)
			}
		})
	}
}

// What is asked for is checked before a port is taken, in words that say what to set.
//
// Mutation with which it was seen to fail: -silence is not passed on.
func TestProxyUsage(t *testing.T) {
	t.Setenv(nodesVariable, "")
	cert, key := selfSigned(t, "ours")
	config := func(text string) string {
		file := filepath.Join(t.TempDir(), "proxy.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "-config=" + file
	}
	nodes := "-nodes=127.0.0.1:1"
	for _, c := range []struct {
		text string
		args []string
	}{
		{"give -nodes", nil},
		{"-insecure", []string{nodes, "-listen=0.0.0.0:0"}},
		{"-tls-cert and -tls-key", []string{nodes, "-listen=:0"}},
		{"reached from other machines", []string{nodes, "-listen=192.0.2.1:7400"}},
		{"reached from other machines", []string{config(`{"nodes": ["127.0.0.1:1"], "listen": ":0"}`)}},
		{"host:port is needed", []string{nodes, "-listen=7400"}},
		{"go together", []string{nodes, "-tls-cert", cert}},
		{"go together", []string{nodes, "-node-cert", cert, "-node-key", key}},
		{"-client-ca means nothing", []string{nodes, "-client-ca", cert}},
		{"no-such-file", []string{nodes, "-tls-cert=no-such-file", "-tls-key=no-such-file", "-client-ca=no-such-file"}},
		{"-drain is -1s", []string{nodes, "-drain=-1s"}},
		{`-log is "xml"`, []string{nodes, "-log=xml"}},
		{`-log-level is "loud"`, []string{nodes, "-log-level=loud"}},
		{"Refresh is 1ms", []string{nodes, "-refresh=1ms"}},
		{"Silence is 1s", []string{nodes, "-silence=1s"}},
		{"takes no arguments", []string{nodes, "x"}},
		{"not defined: -o", []string{nodes, "-o=json"}},
		{`there is no setting "node"`, []string{config(`{"node": "x:1"}`)}},
		{"neither a text", []string{config(`{"nodes": {}}`)}},
		{`"drain" is soon`, []string{config(`{"drain": "soon"}`)}},
		{"behind the JSON", []string{config(`{} {}`)}},
		{"no such file", []string{"-config=no-such-file"}},
	} {
		want(t, exitUsage, []string{c.text}, append([]string{"proxy"}, c.args...)...)
	}
	// The port is taken.
	c := start(t, t.TempDir(), 1, nil)
	want(t, exitNo, []string{"in use"}, "proxy", nodes, "-listen", c.Node(1).Addr())
	want(t, exitNo, []string{"MaxConnections is -1"}, "proxy", nodes, "-listen=127.0.0.1:0", "-max-connections=-1")
	// Flags win over the file, and the environment names the nodes if neither does.
	out, stop := follow(t, "proxy", config(`{"listen": ":0", "nodes": ["127.0.0.1:1", "127.0.0.1:2"], "stream-bytes": 20000000}`), "-listen=127.0.0.1:0")
	eventually(t, out, "nodes=127.0.0.1:1,127.0.0.1:2")
	if code := stop(); code != exitOK {
		t.Errorf("exit code %d: %s", code, out)
	}
	t.Setenv(nodesVariable, c.Node(1).Addr())
	out, stop = follow(t, "proxy", "-listen=127.0.0.1:0")
	eventually(t, out, "reached a node")
	if code := stop(); code != exitOK {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// The name of a cluster keeps nodes of another one out, and without it the first node says which it is.
//
// Mutation with which it was seen to fail: the name is not passed on.
func TestProxyOfACluster(t *testing.T) {
	c := start(t, t.TempDir(), 1, nil)
	out, stop := follow(t, "proxy", "-nodes", c.Node(1).Addr(), "-listen=127.0.0.1:0", "-cluster=another")
	eventually(t, out, "is of another cluster")
	if code := stop(); code != exitOK || strings.Contains(out.String(), "reached a node") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// Of as many connections as there may be one host has three quarters. Those beyond are closed, those that are there go on, and one that goes makes room.
//
// Mutation with which it was seen to fail: -max-connections is not passed on.
func TestProxyConnections(t *testing.T) {
	c := start(t, t.TempDir(), 1, nil)
	p := runProgram(t, "proxy", "-nodes", c.Node(1).Addr(), "-listen=127.0.0.1:0", "-max-connections=8")
	address := p.says(`msg="proxy started".* listen=(\S+)`)
	sh := dial(t, address).Shard(1)
	if _, err := sh.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	answers := func(conn net.Conn) bool { // to a ping
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		f := http2.NewFramer(conn, conn)
		if f.WritePing(false, [8]byte{}) != nil {
			return false
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return false
			}
			if ping, is := frame.(*http2.PingFrame); is && ping.IsAck() {
				return true
			}
		}
	}
	opens := func() (net.Conn, bool) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_, _ = io.WriteString(conn, http2.ClientPreface)
		_ = http2.NewFramer(conn, conn).WriteSettings() // who is closed does not answer
		return conn, answers(conn)
	}
	var taken []net.Conn
	refused := 0
	for range 10 {
		if conn, ok := opens(); ok {
			taken = append(taken, conn)
		} else {
			refused++
		}
	}
	if len(taken) != 5 || refused != 5 {
		t.Fatalf("beside a client %d connections are taken, and %d refused: %s", len(taken), refused, p.log)
	}
	for _, conn := range taken {
		if !answers(conn) {
			t.Error("a connection that was there is closed")
		}
	}
	if _, err := sh.Submit(within(t), []byte("b")); err != nil {
		t.Errorf("the client that was there: %v", err)
	}
	taken[0].Close()
	for ctx := within(t); ; {
		if _, ok := opens(); ok {
			break
		}
		if !wait(ctx, 5*time.Millisecond) {
			t.Fatal("a connection that goes makes no room")
		}
	}
	if text := p.log.String(); !strings.Contains(text, "too many from this host") {
		t.Errorf("nothing says so: %s", text)
	}
}

// Over TLS, a client without a certificate of the authority gets in only if none is asked for.
func TestProxyTLS(t *testing.T) {
	c := start(t, t.TempDir(), 1, nil)
	cert, key := selfSigned(t, "ours")
	strange, strangeKey := selfSigned(t, "theirs")
	for _, mutual := range []bool{false, true} {
		o := &proxyOptions{listen: "127.0.0.1:0", nodes: addressList{c.Node(1).Addr()}, port: flags.Port{Cert: cert, Key: key}, refresh: time.Second, drain: time.Second}
		if mutual {
			o.port.ClientCA = cert
		}
		r, err := startProxy(o, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		try := func(cert, key string) error {
			creds, err := access.ClientTLS(o.port.Cert, cert, key, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			cl, err := client.Dial([]string{r.server.Addr()}, client.Options{TLS: creds})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			if mutual && cert != o.port.Cert {
				ctx, cancel = context.WithTimeout(context.Background(), time.Second)
			}
			defer cancel()
			_, err = cl.Shard(1).Submit(ctx, []byte("a"))
			return err
		}
		if err := try(cert, key); err != nil {
			t.Errorf("mutual %v: %v", mutual, err)
		}
		if err := try(strange, strangeKey); mutual && !errors.Is(err, rsm.ErrNotProposed) || !mutual && err != nil {
			t.Errorf("mutual %v, a strange certificate: %v", mutual, err)
		}
		r.close()
	}
}
