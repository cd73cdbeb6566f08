package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/plugin/tan"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/statemachine"
	"github.com/lni/dragonboat/v4/tanmux"
)

const (
	replicas = 3
	// An election timeout of one second, as for every system here.
	dragonboatTick          = 100 // ms
	dragonboatElectionTicks = 10
	// A full proposal queue is answered with ErrSystemBusy, and the caller is to come again.
	dragonboatBusyPause = 50 * time.Microsecond
)

// dragonboatLog is one configuration of dragonboat: how its NodeHosts store their logs.
type dragonboatLog struct {
	factory config.LogDBFactory // nil: pebble
	pebbles uint64              // pebble only: the number of its databases; 0: its default of 16
	workers uint64              // step workers; 0: its default of 16. tan's multiplexed log needs a multiple of 16
	// countable: the file system below can be wrapped to count the fsyncs without changing anything else.
	countable bool
}

var (
	tanLog    = dragonboatLog{factory: tan.Factory, countable: true}      // a log per shard
	tanMuxLog = dragonboatLog{factory: tanmux.Factory{}, countable: true} // a log per step worker
	pebbleLog = dragonboatLog{}                                           // a log per step worker; what it does if told nothing
	onePebble = dragonboatLog{pebbles: 1, workers: 1}                     // one log for everything: good where cores are few
)

// dragonboatMachines: it could run a ledger, but the target for Decree's is a share of its no-op rate.
var dragonboatMachines = []machine{noop, kv}

// dragonboatCluster is three NodeHosts.
type dragonboatCluster struct {
	hosts    [replicas]*dragonboat.NodeHost
	sessions []*client.Session // by shard; the no-op session is without state and may be shared
	leaders  []atomic.Uint64   // by shard: term<<8 | replica ID of the latest known leader
	fs       *countingFS       // nil: fsyncs are not counted
}

// startDragonboat returns the start function of one configuration.
func startDragonboat(log dragonboatLog) func(context.Context, options) (System, error) {
	return func(ctx context.Context, o options) (System, error) {
		quietDragonboat()
		c := &dragonboatCluster{
			sessions: make([]*client.Session, o.Shards),
			leaders:  make([]atomic.Uint64, o.Shards),
		}
		if log.countable {
			c.fs = newCountingFS()
		}
		if err := c.start(ctx, log, o); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
}

func (c *dragonboatCluster) start(ctx context.Context, log dragonboatLog, o options) error {
	members := make(map[uint64]dragonboat.Target, replicas)
	addresses, err := freeAddresses(replicas)
	if err != nil {
		return err
	}
	for i, address := range addresses {
		members[uint64(i+1)] = address
	}
	for i, address := range addresses {
		dir := filepath.Join(o.Dir, fmt.Sprintf("host%d", i+1))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if c.hosts[i], err = dragonboat.NewNodeHost(c.hostConfig(log, dir, address)); err != nil {
			return fmt.Errorf("start host %d: %w", i+1, err)
		}
	}
	newMachine := newDragonboatNoop
	if o.Machine == kv {
		newMachine = newDragonboatKV
	}
	for shard := range o.Shards {
		for i, host := range c.hosts {
			err := host.StartReplica(members, false, newMachine, config.Config{
				ReplicaID:    uint64(i + 1),
				ShardID:      shardID(shard),
				ElectionRTT:  dragonboatElectionTicks,
				HeartbeatRTT: 1,
				// SnapshotEntries 0: no snapshots, and so no compaction either, during a measurement.
			})
			if err != nil {
				return fmt.Errorf("start replica %d of shard %d: %w", i+1, shard, err)
			}
		}
		c.sessions[shard] = c.hosts[0].GetNoOPSession(shardID(shard))
	}
	return c.placeLeaders(ctx)
}

func (c *dragonboatCluster) hostConfig(log dragonboatLog, dir, address string) config.NodeHostConfig {
	nh := config.NodeHostConfig{
		NodeHostDir:    dir,
		RaftAddress:    address,
		RTTMillisecond: dragonboatTick,
		// A follower would forward the requests, and be slow rather than wrong: always know the leader.
		RaftEventListener: c,
		Expert:            config.GetDefaultExpertConfig(), // 16 step workers
	}
	nh.Expert.LogDBFactory = log.factory
	if log.pebbles > 0 {
		nh.Expert.LogDB.Shards = log.pebbles
	}
	if log.workers > 0 {
		nh.Expert.Engine.ExecShards = log.workers
	}
	if c.fs != nil {
		nh.Expert.FS = c.fs
	}
	return nh
}

// placeLeaders moves the leader of each shard to the host whose turn it is, and waits until it leads there.
func (c *dragonboatCluster) placeLeaders(ctx context.Context) error {
	for shard := range c.leaders {
		want := uint64(shard%replicas + 1)
		for asked := (time.Time{}); ; {
			leader := c.leaders[shard].Load() & 0xff
			if leader == want {
				break
			}
			if leader != 0 && time.Since(asked) > time.Second {
				asked = time.Now()
				if err := c.leader(shard).RequestLeaderTransfer(shardID(shard), want); err != nil {
					return fmt.Errorf("move the leader of shard %d: %w", shard, err)
				}
			}
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return fmt.Errorf("shard %d has no leader at host %d: %w", shard, want, err)
			}
		}
	}
	return nil
}

// LeaderUpdated implements raftio.IRaftEventListener. Hosts report in any order: the latest term counts.
func (c *dragonboatCluster) LeaderUpdated(info raftio.LeaderInfo) {
	if info.LeaderID == 0 {
		return
	}
	known, now := &c.leaders[info.ShardID-1], info.Term<<8|info.LeaderID
	for {
		before := known.Load()
		if before >= now || known.CompareAndSwap(before, now) {
			return
		}
	}
}

// leader is the host that leads the shard, as far as is known.
func (c *dragonboatCluster) leader(shard int) *dragonboat.NodeHost {
	return c.hosts[max(1, c.leaders[shard].Load()&0xff)-1]
}

// Write implements System.
func (c *dragonboatCluster) Write(ctx context.Context, shard int, command []byte) error {
	for {
		_, err := c.leader(shard).SyncPropose(ctx, c.sessions[shard], command)
		if err == nil {
			return nil
		}
		if err := c.retry(ctx, err); err != nil {
			return err
		}
	}
}

// StartWrite implements System.
func (c *dragonboatCluster) StartWrite(ctx context.Context, shard int, command []byte) (func(context.Context) error, error) {
	for {
		request, err := c.leader(shard).Propose(c.sessions[shard], command, opTimeout)
		if err == nil {
			return func(ctx context.Context) error { return await(ctx, request) }, nil
		}
		if err := c.retry(ctx, err); err != nil {
			return nil, err
		}
	}
}

// await is what SyncPropose does with a request.
func await(ctx context.Context, request *dragonboat.RequestState) error {
	select {
	case r := <-request.AppliedC():
		defer request.Release()
		switch {
		case r.Completed():
			return nil
		case r.Timeout():
			return dragonboat.ErrTimeout
		case r.Dropped():
			return dragonboat.ErrShardNotReady
		}
		return errors.New("dragonboat rejected, aborted or terminated the request")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Read implements System. The machines answer from memory at once.
func (c *dragonboatCluster) Read(ctx context.Context, shard int, key []byte) error {
	for {
		_, err := c.leader(shard).SyncRead(ctx, shardID(shard), key)
		if err == nil {
			return nil
		}
		if err := c.retry(ctx, err); err != nil {
			return err
		}
	}
}

// StartRead implements System: the two halves of SyncRead.
func (c *dragonboatCluster) StartRead(ctx context.Context, shard int, key []byte) (func(context.Context) error, error) {
	for {
		host := c.leader(shard)
		request, err := host.ReadIndex(shardID(shard), opTimeout)
		if err == nil {
			return func(ctx context.Context) error {
				select {
				case r := <-request.ResultC():
					defer request.Release()
					switch {
					case r.Completed():
						_, err := host.ReadLocalNode(request, key)
						return err
					case r.Timeout():
						return dragonboat.ErrTimeout
					case r.Dropped():
						return dragonboat.ErrShardNotReady
					}
					return errors.New("dragonboat rejected, aborted or terminated the read")
				case <-ctx.Done():
					return ctx.Err()
				}
			}, nil
		}
		if err := c.retry(ctx, err); err != nil {
			return nil, err
		}
	}
}

// retry waits before a request that found a full queue is sent again. Any other error it returns.
func (c *dragonboatCluster) retry(ctx context.Context, err error) error {
	if errors.Is(err, dragonboat.ErrSystemBusy) {
		return pause(ctx, dragonboatBusyPause)
	}
	return err
}

// Fsyncs implements System.
func (c *dragonboatCluster) Fsyncs() int64 {
	if c.fs == nil {
		return -1
	}
	return c.fs.syncs.Load()
}

// Close implements System.
func (c *dragonboatCluster) Close() error {
	for _, host := range c.hosts {
		if host != nil {
			host.Close()
		}
	}
	return nil
}

// shardID: dragonboat counts shards from 1.
func shardID(shard int) uint64 { return uint64(shard + 1) }

// quietDragonboat silences its loggers, which have no common level. What goes wrong shows in the requests; closing
// logs an error for each connection.
func quietDragonboat() {
	for _, name := range []string{
		"config", "dragonboat", "logdb", "pebblekv", "raft", "raftpb", "registry", "rsm", "server", "settings", "tan", "transport",
	} {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
}

// freeAddresses are loopback addresses that nobody listened on a moment ago.
func freeAddresses(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dragonboatNoop is a machine without state, in memory: the cheapest that dragonboat can run.
type dragonboatNoop struct{}

func newDragonboatNoop(uint64, uint64) statemachine.IStateMachine { return dragonboatNoop{} }

func (dragonboatNoop) Update(statemachine.Entry) (statemachine.Result, error) {
	return statemachine.Result{}, nil
}
func (dragonboatNoop) Lookup(any) (any, error) { return nil, nil }
func (dragonboatNoop) SaveSnapshot(io.Writer, statemachine.ISnapshotFileCollection, <-chan struct{}) error {
	return nil
}
func (dragonboatNoop) RecoverFromSnapshot(io.Reader, []statemachine.SnapshotFile, <-chan struct{}) error {
	return nil
}
func (dragonboatNoop) Close() error { return nil }

// dragonboatKV is a map in memory.
type dragonboatKV struct {
	dragonboatNoop // no snapshots are taken
	mu             sync.RWMutex
	values         map[uint64][]byte
}

func newDragonboatKV(uint64, uint64) statemachine.IStateMachine {
	return &dragonboatKV{values: make(map[uint64][]byte)}
}

func (m *dragonboatKV) Update(e statemachine.Entry) (statemachine.Result, error) {
	key, value := binary.BigEndian.Uint64(e.Cmd), append([]byte(nil), e.Cmd[keySize:]...)
	m.mu.Lock()
	m.values[key] = value
	m.mu.Unlock()
	return statemachine.Result{}, nil
}

func (m *dragonboatKV) Lookup(key any) (any, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.values[binary.BigEndian.Uint64(key.([]byte))], nil
}
