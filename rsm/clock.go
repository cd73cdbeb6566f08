package rsm

import (
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// clock runs what happens by time alone: ticks and beats, the watchdog of the
// log, and the release of WAL segments.
type clock struct {
	e            *engine
	cfg          *Config
	beatTicks    int
	stallSince   int64 // the write to the log that is being watched
	stallTicks   int
	ticksPerLook int // at the log's size, and at flushes
	flushStalls  bool
}

// maxTicks that one pass may take in. A process that stood still must not
// believe that all that time passed without a word from the leader.
const maxTicks = 2

func (c *clock) run() {
	defer c.e.bg.done()
	t := time.NewTicker(c.e.tick)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-c.e.quit:
			return
		case <-t.C:
		}
		for _, w := range c.e.workers {
			w.post(func(in *core.Input) { in.Ticks = min(in.Ticks+1, maxTicks) })
		}
		if n%c.beatTicks == 0 {
			c.beat()
		}
		c.watchLog()
		if n%c.ticksPerLook == 0 {
			c.release()
			c.watchFlushes()
		}
	}
}

func (c *clock) beat() {
	for _, id := range c.e.peers.ids() {
		c.e.transport.Append(uint64(id), 1, core.AppendBeat)
	}
	c.e.transport.Flush()
}

// watchLog stops the node when a write to the log hangs: a leader whose disk
// does not answer must not keep the others waiting (hashicorp/raft#503, etcd#13527). Time is counted
// in ticks: a process that was paused has not watched, and so has not seen anything hang.
func (c *clock) watchLog() {
	since := c.e.writing.Load()
	if since == 0 || since != c.stallSince {
		c.stallSince, c.stallTicks = since, 0
		return
	}
	c.stallTicks++
	switch stalled := time.Duration(c.stallTicks) * c.e.tick; {
	case stalled > c.cfg.FsyncStall:
		c.e.fail(core.CodeStorage, nil, "a write to the log has not ended for %v (FsyncStall)", stalled)
	case c.stallTicks == int(c.cfg.ElectionTimeout/c.e.tick):
		c.e.logger.Warn("the log's disk is slow: a write takes longer than the election timeout", "so_far", stalled)
	}
}

// watchFlushes speaks up when a flush does not end. The node goes on: what its shards need of the disk of the state can be had from others, and leaders
// that cannot decide any more hand over (core's watchFlush).
func (c *clock) watchFlushes() {
	age, shard := c.e.due.oldest(c.e.mono())
	if stalls := age > c.cfg.FsyncStall; stalls != c.flushStalls {
		c.flushStalls = stalls
		if stalls {
			c.e.logger.Warn("a flush of the state does not end (FsyncStall): its disk hangs, or is far too slow", "shard", uint64(shard), "so_far", age)
		} else {
			c.e.logger.Info("the flush of the state has ended")
		}
	}
}

// watchDisk compares free space with the watermark every second. It has a goroutine of its own, which nobody waits for: asking a
// disk that does not answer must not hold up the watchdog.
func (n *Node) watchDisk() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		if low, changed := n.disk.look(); changed {
			n.diskChanged(low)
		}
		select {
		case <-n.engine.quit:
			return
		case <-t.C:
		}
	}
}

func (n *Node) diskChanged(low bool) {
	if low {
		n.cfg.Logger.Error("free disk space is below the watermark: commands are refused", "free_bytes", n.disk.free.Load(), "watermark_bytes", n.cfg.DiskWatermark)
	} else {
		n.cfg.Logger.Info("free disk space is above the watermark again", "free_bytes", n.disk.free.Load())
	}
	for _, w := range n.engine.workers {
		w.post(func(in *core.Input) { in.Calls = append(in.Calls, func(c *core.Worker) { c.SetDiskLow(low) }) })
	}
}

// release asks the shards that hold the oldest WAL segment to let go, when there are more than need be.
func (c *clock) release() {
	if segments, _ := c.e.log.Size(); segments <= c.cfg.LogSegments {
		return
	}
	for _, pin := range c.e.log.Pinned() {
		c.e.workerOf(ShardID(pin.Shard)).post(func(in *core.Input) { in.Pinned = append(in.Pinned, ShardID(pin.Shard)) })
	}
}
