package rsm

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The tests of this file kill real processes: the test binary starts itself with this variable set.
const childEnv = "DECREE_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		runChild(dir)
		return
	}
	if dir := os.Getenv(crashEnv); dir != "" {
		runCrashLoad(dir)
		return
	}
	if dir := os.Getenv(powerEnv); dir != "" {
		runPowerNode(dir)
		return
	}
	if dir := os.Getenv(historyEnv); dir != "" {
		runHistory(dir)
		return
	}
	os.Exit(m.Run())
}

// runChild runs a cluster and prints what is acknowledged, until it is killed.
func runChild(dir string) {
	c, err := StartCluster(ClusterConfig{
		Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: counters{}}},
		Configure: func(cfg *Config) { quick(cfg); cfg.Limits.FlushBytes = 64 << 10; cfg.DiskWatermark = -1 },
	})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	client := c.Client(1)
	type line struct {
		text    string
		printed chan<- struct{}
	}
	out := make(chan line)
	for i := range 16 {
		go func() {
			key := fmt.Appendf(nil, "caller-%d", i)
			printed := make(chan struct{}, 1)
			for {
				reply, err := client.Submit(context.Background(), key)
				if err != nil {
					out <- line{fmt.Sprintln("error", err), printed}
					return
				}
				// Nothing more of this caller before it is printed: all but the last command is known to whoever kills.
				out <- line{fmt.Sprintln(i, binary.BigEndian.Uint64(reply)), printed}
				<-printed
			}
		}()
	}
	for l := range out {
		_, _ = os.Stdout.WriteString(l.text) // who does not read any more will kill
		l.printed <- struct{}{}
	}
}

// A process with all three nodes is killed with SIGKILL under load, ten times
// over the same data: what it had printed is there, counted without a gap [G8].
func TestKillProcess(t *testing.T) {
	dir := t.TempDir()
	acked := map[int]uint64{}
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		lines := 0
		first := map[int]bool{}
		for s := bufio.NewScanner(out); s.Scan(); {
			f := strings.Fields(s.Text())
			if len(f) != 2 || f[0] == "error" {
				t.Fatalf("round %d: %s", round, s.Text())
			}
			if lines == 0 {
				t.Logf("round %d: first answer after %v", round, time.Since(started).Round(time.Millisecond))
			}
			caller, _ := strconv.Atoi(f[0])
			n, _ := strconv.ParseUint(f[1], 10, 64)
			// One that was committed and not printed before the kill may be missing: then the first of a round is a step of two, but no other.
			if want := acked[caller] + 1; n != want && (first[caller] || n != want+1) {
				t.Fatalf("round %d: caller %d was acknowledged %d after %d", round, caller, n, acked[caller])
			}
			first[caller] = true
			acked[caller] = n
			if lines++; lines == 3000+round*137 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		if lines < 3000 {
			t.Fatalf("round %d: the child ended by itself after %d lines", round, lines)
		}
	}
}
