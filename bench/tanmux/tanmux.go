// Package tanmux hands out dragonboat's multiplexed tan log: one log file, and one fsync per pass, for all the shards
// of a step worker, where plugin/tan offers only one log file per shard.
package tanmux

import (
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/internal/tan"
	"github.com/lni/dragonboat/v4/raftio"
)

// Factory creates multiplexed tan logs. Shards share a log by their id modulo 16, so the number of step workers
// (config.EngineConfig.ExecShards) must be a multiple of 16.
type Factory struct{}

var _ config.LogDBFactory = Factory{}

// Name names the log's format, which is the same in both of tan's modes.
func (Factory) Name() string { return tan.Factory.Name() }

// Create opens the log of one NodeHost.
func (Factory) Create(cfg config.NodeHostConfig, busy config.LogDBCallback, dirs, wals []string) (raftio.ILogDB, error) {
	return tan.MultiplexedLogFactory.Create(cfg, busy, dirs, wals)
}
