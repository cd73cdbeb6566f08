package rsm

import (
	"context"
	"encoding/binary"
	goflag "flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

var powerCycles = goflag.Int("powercut.cycles", 5, "how often the power is cut")

// These variables make the test binary the node whose power is cut, and, with the second, one that does not sync.
const (
	powerEnv  = "DECREE_TEST_POWER_DIR"
	noSyncEnv = "DECREE_TEST_POWER_NO_SYNC"
)

const (
	powerShards  = 2
	powerCallers = 8 // per shard
)

// runPowerNode runs a node of its own in dir. It says what every caller's counter is, and then what each
// is told, until its end.
func runPowerNode(dir string) {
	fail := func(err error) {
		fmt.Printf("error %q\n", err.Error())
		os.Exit(1)
	}
	if os.Getenv(noSyncEnv) != "" {
		if err := pretendToSync(); err != nil {
			fail(err)
		}
	}
	cfg := Config{
		Cluster: "power", Node: 1, Dir: filepath.Join(dir, "node"), Peers: map[NodeID]string{1: "127.0.0.1:0"},
		HeartbeatInterval: 5 * time.Millisecond, ElectionTimeout: 25 * time.Millisecond, DiskWatermark: -1, LogSegments: 2, segmentBytes: 256 << 10,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	cfg.Limits.FlushBytes = 64 << 10
	for id := range ShardID(powerShards) {
		cfg.Shards = append(cfg.Shards, ShardConfig{ID: id + 1, Machine: counters{}})
	}
	n, err := Start(cfg)
	if err != nil {
		fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for id := range ShardID(powerShards) {
		s := n.Shard(id + 1)
		if err := s.WaitReady(ctx); err != nil {
			fail(err)
		}
		for i := range powerCallers {
			answer, err := s.Read(ctx, Linearizable, fmt.Appendf(nil, "caller-%d", i))
			if err != nil {
				fail(err)
			}
			say("have", s, i, answer)
		}
	}
	clock := n.newClock()
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			clock.release()
		}
	}()
	fmt.Println("ready")
	go func() {
		<-n.Done()
		fmt.Printf("stopped %q\n", fmt.Sprint(n.Err()))
	}()
	time.AfterFunc(3*time.Minute, func() { fail(fmt.Errorf("nobody has cut the power for three minutes")) })
	for i := range powerShards * powerCallers {
		go powerCaller(n.Shard(ShardID(i/powerCallers+1)), i%powerCallers)
	}
	select {}
}

// say tells in one write what a caller was told, when that was, and how many writes the log had called durable.
func say(what string, s *Shard, caller int, n []byte) {
	at, appends := monotonic(), s.node.engine.log.Stats().Appends
	fmt.Println(what, s.ID(), caller, binary.BigEndian.Uint64(n), int64(at), appends)
}

// powerCaller counts up its counter, one command at a time. What it was told it says before it does anything else.
func powerCaller(s *Shard, i int) {
	key := fmt.Appendf(nil, "caller-%d", i)
	for {
		reply, err := s.Submit(context.Background(), key)
		if err != nil {
			return
		}
		say("ack", s, i, reply)
	}
}
