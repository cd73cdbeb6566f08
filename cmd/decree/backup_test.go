package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
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

func startNoters(t *testing.T, name, dir string, nodes int) *rsm.Cluster {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{Name: name, Nodes: nodes, Dir: dir, Shards: []rsm.ShardConfig{{ID: 1, Machine: noter{}}}, Configure: quick})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// call runs a command line and wants an exit code, and words.
func call(t *testing.T, code int, words string, args ...string) (stdout string) {
	t.Helper()
	r := decree(within(t), args...)
	if r.code != code || !strings.Contains(r.out+r.err, words) {
		t.Fatalf("decree %v: %v, want %d and %q in it", args, r, code, words)
	}
	return r.out
}

// The path of an operator: a backup is verified, packed, unpacked and restored, damage is found, and a quorum that is lost is replaced in two steps.
func TestOperator(t *testing.T) {
	dir := t.TempDir()
	c := startNoters(t, "bank", filepath.Join(dir, "old"), 3)
	client := c.Client(1)
	for i := range 5 {
		if _, err := client.Submit(within(t), fmt.Append(nil, "note ", i)); err != nil {
			t.Fatal(err)
		}
	}
	leader, err := c.Leader(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(dir, "backup")
	if _, err := leader.BackupTo(within(t), backup, rsm.BackupOptions{}); err != nil {
		t.Fatal(err)
	}
	call(t, exitOK, "whole", "verify", backup)
	stream := decree(within(t), "pack", "-quiet", backup).out
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
	again := startNoters(t, "bank2", target, 2)
	if answer, err := again.Client(1).Read(within(t), rsm.Linearizable, nil); string(answer) != "note 4" || err != nil {
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
	last := startNoters(t, "bank3", filepath.Join(dir, "last"), 1)
	if answer, err := last.Client(1).Read(within(t), rsm.Linearizable, nil); string(answer) != "note 4" || err != nil {
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

// A running cluster is backed up, to a directory and as a stream, and everything that was acknowledged before is in it.
func TestBackup(t *testing.T) {
	c := start(t, t.TempDir(), 2, nil)
	for i := range 50 {
		c.submit(1, fmt.Sprint("one ", i))
		c.submit(2, fmt.Sprint("two ", i))
	}
	dir := t.TempDir()
	to := filepath.Join(dir, "backup")
	want(t, exitOK, []string{"orders"}, "backup", c.node(), to)
	call(t, exitOK, "whole", "verify", to)
	want(t, exitRefused, []string{"not empty"}, "backup", c.node(), to)
	stream := want(t, exitOK, nil, "backup", c.node(), "-shard", "2", "-rate", "100", "-")
	stdin = strings.NewReader(stream.out)
	t.Cleanup(func() { stdin = os.Stdin })
	call(t, exitOK, "orders", "unpack", filepath.Join(dir, "copy"))
	call(t, exitOK, "whole", "verify", filepath.Join(dir, "copy"))
	call(t, exitOK, "POSITION", "restore", "-cluster", "orders2", "-node", "1="+filepath.Join(dir, "new"), to)
	n, err := rsm.Start(rsm.Config{Cluster: "orders2", Node: 1, Dir: filepath.Join(dir, "new"), Peers: map[rsm.NodeID]string{1: "127.0.0.1:0"}, DiskWatermark: -1,
		Shards: []rsm.ShardConfig{{ID: 1, Machine: register{}}, {ID: 2, Machine: register{}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Kill)
	for id, last := range map[rsm.ShardID]string{1: "one 49", 2: "two 49"} {
		if err := n.Shard(id).WaitReady(within(t)); err != nil {
			t.Fatal(err)
		}
		if got, err := n.Shard(id).Read(within(t), rsm.Linearizable, []byte("value")); err != nil || string(got) != last {
			t.Errorf("shard %d: %q, %v", id, got, err)
		}
	}
	var said bytes.Buffer
	if code := run(within(t), console{fullDisk{}, &said}, []string{"backup", c.node(), "-"}); code != exitRefused || strings.Contains(said.String(), "no answer") || !strings.Contains(said.String(), "standard output") {
		t.Errorf("to a full disk: code %d, %s", code, said.String())
	}
	want(t, exitRefused, []string{"hosts shard 9"}, "backup", c.node(), "-shard", "9", filepath.Join(dir, "none"))
	want(t, exitUsage, nil, "backup", c.node(), "-rate", "-1", filepath.Join(dir, "none"))
}

// fullDisk is where nothing can be written to.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestRepair(t *testing.T) {
	c := start(t, "", 1, forgetful{})
	c.spare(1, 3)
	c.submit(1, "x")
	for ctx := within(t); !strings.Contains(decree(ctx, "status", c.node()).out, "stopped"); {
		if !wait(ctx, 10*time.Millisecond) {
			t.Fatal("node 3 does not diverge")
		}
	}
	want(t, exitUsage, []string{"-shard"}, "repair", c.node(), "3")
	want(t, exitRefused, []string{"nothing to repair"}, "repair", c.node(), "-shard", "1", "1")
	want(t, exitOK, []string{"in service again"}, "repair", c.node(), "-shard", "1", "3")
}
