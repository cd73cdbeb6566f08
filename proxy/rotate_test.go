package proxy_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// A token that is replaced as docs/security.md says, while a hundred commands are under way: the stream that the old one was shown for ends, the commands go on with the new
// one, and each happens once.
//
// Mutation with which it was seen to fail: the end of a stream that was open counts as a refusal.
func TestTokenIsReplaced(t *testing.T) {
	m := newStuck()
	c, err := rsm.StartCluster(rsm.ClusterConfig{Nodes: 1, Shards: []rsm.ShardConfig{{ID: 1, Machine: m}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	dir := t.TempDir()
	write := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var secrets, lines [2]string
	for i := range secrets {
		if secrets[i], lines[i], err = access.NewToken("w", access.Write, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	tokens, err := access.OpenTokens(write("tokens", lines[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := access.TokenFile(write("token", secrets[0]), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Node: c.Node(1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	s, err := p.Serve(proxy.ServerConfig{Listen: "127.0.0.1:0", Access: access.Port{Policy: &access.Policy{Tokens: tokens}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	var log lockedBuffer
	cl, err := client.Dial([]string{s.Addr()}, client.Options{Credentials: token, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	ctx := within(t)
	var commands []*client.Pending
	for range 100 {
		commands = append(commands, cl.Shard(1).Go(ctx, rsm.Request{Commands: [][]byte{[]byte("k")}}))
	}
	soon(t, "a decision, for which the client has shown its token", func() {
		for m.decided.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
	})
	write("tokens", lines[0], lines[1])
	write("token", secrets[1])
	time.Sleep(2 * time.Second) // both files are looked at once a second
	write("tokens", lines[1])
	for strings.Count(log.String(), "msg=connected") < 2 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	close(m.go_)
	if text := log.String(); !strings.Contains(text, "unauthenticated") {
		t.Errorf("the stream was not ended for its token:\n%s", text)
	}
	seen := map[string]bool{}
	for i, c := range commands {
		replies, err := c.Wait(ctx)
		if err != nil {
			t.Errorf("command %d: %v", i, err)
			continue
		}
		seen[fmt.Sprint(replies[0])] = true
	}
	if len(seen) != len(commands) {
		t.Errorf("%d commands had %d different replies", len(commands), len(seen))
	}
}
