package sim

import (
	"math/rand/v2"
	"time"
)

// Clusters made for what few seeds bring about: each changes what the seed has drawn.
var tunes = map[string]func(*swarm){
	"restless": restless, "hanging": hanging, "crowded": crowded, "behind": behind, "arriving": arriving, "slowCuts": slowCuts, "changing": changing, "unlike": unlike, "proxied": proxied,
	"upgrading": upgrading, "joining": joining, "rotten": rotten, "mending": mending, "ruined": ruined, "told": toldOfDamage, "restored": restoringTune, "lookups": lookups, "slowly": slowly, "restoredAfterChanges": restoredAfterChanges,
}

// proxied has clients that ask through proxies only, over streams that break, with sessions that are few.
func proxied(s *swarm) {
	s.proxies, s.proxied, s.silence = 2, 1, 200*millisecond
	s.every[faultProxy], s.every[faultStream] = 400*millisecond, 50*millisecond
	s.core.Sessions.Max, s.sessions, s.clients, s.clientLoss = 3, 0.7, 6, 0.05
}

// direct has none, and no node is unlike the others: what needs many seeds is looked for in the clusters in which it was first found.
func direct(s *swarm) {
	s.proxies, s.every[faultProxy], s.every[faultStream], s.narrow, s.pace = 0, 0, 0, 0, 0
	asUsual(s)
}

// slowly has passes that take time, and much to decide.
func slowly(s *swarm) {
	direct(s)
	s.pace, s.think, s.clients, s.width = pick(rand.New(rand.NewPCG(uint64(s.clients), uint64(s.width))), 200*microsecond, 2*millisecond), millisecond/4, 8, 5
}

// unlike has nodes with limits of their own.
func unlike(s *swarm) { s.nodes, s.narrow = 3, 2 }

// asUsual has as many commands as most clusters have.
func asUsual(s *swarm) { s.reads, s.linear, s.lateTicks = usualReads, false, false }

// lookups has leaders of the past that are asked for reads, with hardly a command beside them, which would be in doubt and hold them up.
func lookups(s *swarm) {
	direct(s)
	membersStay(s)
	s.nodes, s.reads, s.linear, s.lateTicks = max(s.nodes, 3), 97, true, true
	s.every[faultSleepyLeader], s.every[faultIsolate], s.every[faultOneWay] = 150*millisecond, 300*millisecond, 300*millisecond
	s.last = 50 * millisecond
	s.clientLoss, s.sessions, s.patience = 0, 0, max(s.patience, 200*millisecond)
}

// restless makes for entries in flight on leaders that are none any more.
func restless(s *swarm) {
	direct(s)
	s.nodes = max(s.nodes, 3)
	s.every[faultSleepyLeader], s.every[faultIsolate], s.every[faultTransfer] = 200*millisecond, 300*millisecond, 150*millisecond
	s.core.Limits.PipelineDepth, s.core.Limits.BatchBytes = 16, 1
	s.fsync, s.net = latency{mean: 2 * millisecond}, latency{mean: 300 * microsecond}
	s.think, s.loss = millisecond/2, 0
}

// hanging has disks that hang while much is being applied and flushed.
func hanging(s *swarm) {
	direct(s)
	s.nodes = 3
	s.every[faultSlowDisk], s.every[faultTransfer], s.every[faultCrash] = 100*millisecond, 0, 300*millisecond
	s.core.Limits.FlushBytes, s.core.Limits.LogCacheBytes, s.core.KeepJournal = 64<<10, 1, false
	s.core.Limits.PipelineDepth, s.core.Limits.BatchBytes = 16, 500
	s.padChance, s.pad = 1, 2000
	s.think, s.loss = millisecond/4, 0
}

// crowded makes for more sessions than there may be, whose time is over all at once.
func crowded(s *swarm) {
	direct(s)
	s.every[faultClock] = 30 * millisecond
	s.core.Sessions.Max, s.core.Limits.PipelineDepth, s.core.Limits.BatchBytes = 3, 16, 1
	s.sessions, s.clients, s.think = 1, 8, millisecond/2
}

// behind makes for followers that need snapshots: journals without room, much that is flushed, nodes that are away.
func behind(s *swarm) {
	direct(s)
	s.nodes, s.spares, s.core.KeepJournal, s.core.JournalMaxBytes = 3, 0, false, 1
	s.core.Limits.FlushBytes, s.core.Limits.LogCacheBytes = 64<<10, 1
	s.every[faultCut], s.every[faultCrash], s.every[faultIsolate], s.every[faultSleepyLeader] = 40*millisecond, 200*millisecond, 300*millisecond, 500*millisecond
	s.every[faultRot], s.every[faultUnreachable] = 0, 0
	s.pad, s.padChance, s.loss = 2000, 0.3, 0
	s.last = 200 * millisecond
}

// arriving makes for snapshots that arrive while the disk hangs and leaders change.
func arriving(s *swarm) {
	behind(s)
	s.every[faultSlowDisk], s.every[faultTransfer], s.every[faultSleepyLeader] = 100*millisecond, 100*millisecond, 200*millisecond
	s.chunk, s.chunks = 100*microsecond, 64
}

// slowCuts makes for nodes that are restarted while a leader waits for their cut.
func slowCuts(s *swarm) {
	changing(s)
	s.nodes = 3
	s.flush, s.tick, s.core.Tick = 100*millisecond, 20*time.Millisecond, 20*time.Millisecond
	s.core.ElectionTicks = 16
	s.every[faultRemove], s.every[faultReplace], s.every[faultStop], s.every[faultCrash] = 0, 0, 100*millisecond, 150*millisecond
}

// changing has many changes of members, and nodes that fail meanwhile.
func changing(s *swarm) {
	direct(s)
	s.nodes, s.spares = pick(rand.New(rand.NewPCG(uint64(s.chaos), 1)), 1, 2, 3), 3
	s.every[faultRot], s.every[faultCut] = 0, 200*millisecond
	s.every[faultAddLearner], s.every[faultPromote], s.every[faultRemove], s.every[faultReplace] = 150*millisecond, 100*millisecond, 300*millisecond, 150*millisecond
	s.every[faultCrash], s.every[faultIsolate], s.every[faultPause] = 300*millisecond, 300*millisecond, 200*millisecond
}

// upgrading has nodes with other programs all the time.
func upgrading(s *swarm) {
	s.nodes, s.programs = 3, 2
	s.every[faultRot], s.every[faultUpgrade], s.every[faultDowngrade] = 0, 150*millisecond, 300*millisecond
}

// joining has nodes with older programs added meanwhile.
func joining(s *swarm) {
	changing(s)
	s.programs = 2
	s.every[faultUpgrade] = 300 * millisecond
}
