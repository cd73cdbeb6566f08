package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/rsm"
)

// noter keeps what it is told under a key.
type noter struct{}

func (noter) Decide(_ rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	return [][]byte{c.Data}, c.Data, nil
}
func (noter) Apply(s rsm.State, e rsm.Event) { s.Set([]byte("last"), e.Data) }
func (noter) Query(v rsm.View, _ []byte) (answer []byte, _ error) {
	answer, _ = v.Get([]byte("last"))
	return answer, nil
}

func quick(cfg *rsm.Config) {
	cfg.HeartbeatInterval, cfg.ElectionTimeout, cfg.DiskWatermark = 20*time.Millisecond, 200*time.Millisecond, -1
}

func start(t *testing.T, name, dir string, nodes int) *rsm.Cluster {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{Name: name, Nodes: nodes, Dir: dir, Shards: []rsm.ShardConfig{{ID: 1, Machine: noter{}}}, Configure: quick})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return c
}

// call runs a command line and wants an exit code, and words.
func call(t *testing.T, code int, words string, args ...string) (stdout string) {
	t.Helper()
	var out, errs bytes.Buffer
	run := map[string]func(args []string, stdout, stderr io.Writer) int{
		"verify": runVerify, "pack": runPack, "unpack": runUnpack, "restore": runRestore, "recover": runRecover,
	}[args[0]]
	got := run(args[1:], &out, &errs)
	if got != code || !strings.Contains(out.String()+errs.String(), words) {
		t.Fatalf("decree %v: code %d, want %d and %q in it\n%s%s", args, got, code, words, out.String(), errs.String())
	}
	return out.String()
}

// The path of an operator: a backup is verified, packed, unpacked and restored, damage is found, and a quorum that is lost is replaced in two steps.
func TestOperator(t *testing.T) {
	dir := t.TempDir()
	c := start(t, "bank", filepath.Join(dir, "old"), 3)
	client := c.Client(1)
	for i := range 5 {
		if _, err := client.Submit(ctx(t), fmt.Append(nil, "note ", i)); err != nil {
			t.Fatal(err)
		}
	}
	leader, err := c.Leader(ctx(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(dir, "backup")
	if _, err := leader.BackupTo(ctx(t), backup, rsm.BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	call(t, exitOK, "whole", "verify", backup)
	stream := call(t, exitOK, "", "pack", "-quiet", backup)
	copied := filepath.Join(dir, "copied")
	stdin = strings.NewReader(stream)
	call(t, exitOK, "bank", "unpack", copied)
	call(t, exitOK, "whole", "verify", copied)
	stdin = strings.NewReader(stream)
	call(t, exitRefused, "not empty", "unpack", copied)
	stdin = strings.NewReader(stream[:len(stream)-1])
	call(t, exitNo, "ends before its end", "unpack", filepath.Join(dir, "short"))

	target := filepath.Join(dir, "new")
	node := func(id int) string { return fmt.Sprintf("%d=%s", id, filepath.Join(target, fmt.Sprint("node", id))) }
	call(t, exitUsage, "required", "restore", copied)
	call(t, exitUsage, "an id from 1 on", "restore", "-node", "0=x", copied)
	call(t, exitUsage, "twice", "restore", "-node", "1=x", "-node", "1=y", copied)
	call(t, exitUsage, "list of node ids", "restore", "-members", "1,x", copied)
	call(t, exitRefused, "same name", "restore", "-cluster", "bank", "-node", node(1), copied)
	call(t, exitNo, "does not exist", "restore", "-cluster", "bank2", "-node", node(1), dir)
	call(t, exitRefused, "the backup has 1 to", "restore", "-cluster", "bank2", "-node", node(1), "-at", "1=999999", copied)
	call(t, exitOK, "POSITION", "restore", "-cluster", "bank2", "-node", node(1), "-node", node(2), copied)
	call(t, exitRefused, "is in use", "restore", "-cluster", "bank2", "-node", node(1), "-node", node(2), copied)
	again := start(t, "bank2", target, 2)
	if answer, err := again.Client(1).Read(ctx(t), rsm.Linearizable, nil); string(answer) != "note 4" || err != nil {
		t.Errorf("restored: got %q, %v", answer, err)
	}

	for id := rsm.NodeID(1); id <= 3; id++ {
		c.Kill(id)
	}
	survivor := filepath.Join(dir, "old", fmt.Sprint("node", leader.ID()))
	args := []string{"-cluster", "bank3", "-backup", filepath.Join(dir, "found"), "-node", "1=" + filepath.Join(dir, "last", "node1"), survivor}
	call(t, exitUsage, "required", "recover", survivor)
	words := call(t, exitRefused, "nothing was done", append([]string{"recover"}, args...)...)
	token := regexp.MustCompile(`[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}`).FindString(words)
	if !strings.Contains(words, "MAY BE LOST") || token == "" {
		t.Fatalf("the plan is\n%s", words)
	}
	call(t, exitRefused, "inspect again", append([]string{"recover", "-confirm", "0000-0000-0000"}, args...)...)
	call(t, exitOK, "POSITION", append([]string{"recover", "-confirm", token}, args...)...)
	last := start(t, "bank3", filepath.Join(dir, "last"), 1)
	if answer, err := last.Client(1).Read(ctx(t), rsm.Linearizable, nil); string(answer) != "note 4" || err != nil {
		t.Errorf("recovered: got %q, %v", answer, err)
	}

	files, err := filepath.Glob(filepath.Join(backup, "*", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	call(t, exitNo, files[0], "verify", backup)
	call(t, exitNo, files[0], "restore", "-cluster", "bank4", "-node", "1="+filepath.Join(dir, "four"), backup)
}

// Every command teaches: what it does, when, an example, its exit codes; on standard output if asked for.
func TestHelp(t *testing.T) {
	for _, c := range fileCommands() {
		words := call(t, exitOK, "Usage: decree "+c.name, c.name, "-help")
		for _, want := range []string{"  decree ", "Exit codes:", "Flags:"} {
			if !strings.Contains(words, want) && !(c.name == "unpack" && want == "  decree ") {
				t.Errorf("the help of %s has no %q", c.name, want)
			}
		}
		call(t, exitUsage, "expected is", c.name)
	}
}
