package proxy_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/decree-raft/decree/proxy"
)

// A client in another language, made of the .proto alone, does what the Go client does.
func TestOtherLanguage(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped with -short: it fetches packages")
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		t.Skip("skipped: there is no npm here; install Node.js to run it")
	}
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "client.js"} {
		b, err := os.ReadFile(filepath.Join("testdata", "node", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	install := exec.CommandContext(within(t), npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("skipped: the packages cannot be fetched: %v: %s", err, out)
	}
	c := startCalm(t)
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	protos, err := filepath.Abs("../api")
	if err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(within(t), "node", "client.js", s.Addr(), protos)
	run.Dir, run.Stderr = dir, os.Stderr
	out, err := run.Output()
	if err != nil {
		t.Fatalf("the client failed: %v", err)
	}
	type described struct {
		Kind         int
		Code, Detail string
	}
	var got struct {
		First, Again, Read, Token int
		Rejected, Refused         described
		Shards                    []int
		Stream                    struct {
			Answers, Last int
			Bad           string
		}
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.First != 1 || got.Again != 1 || got.Read != 1 || got.Token != 1 {
		t.Errorf("a command and its reads: %s", out)
	}
	if (got.Rejected != described{1, "as_told", "detail"}) || (got.Refused != described{2, "bad_request", ""}) {
		t.Errorf("errors: %s", out)
	}
	if len(got.Shards) != 2 || got.Stream.Answers != 101 || got.Stream.Last != 101 || got.Stream.Bad != "bad_request" {
		t.Errorf("topology and stream: %s", out)
	}
}
