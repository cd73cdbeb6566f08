package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm/admin"
)

// statusReport is what `status -o json` writes. Names are only ever added.
type statusReport struct {
	Cluster  string          `json:"cluster"`
	Nodes    []nodeReport    `json:"nodes"`
	Replicas []replicaReport `json:"replicas"`
	// Problems are sentences; none: all is well.
	Problems []string `json:"problems"`
}

type nodeReport struct {
	Node      uint64 `json:"node"`
	Address   string `json:"address"`
	Reachable bool   `json:"reachable"`
	// Error says why a node was not reached. The rest is known of nodes that were.
	Error       string       `json:"error"`
	Leads       int          `json:"leads"`
	Replicas    int          `json:"replicas"`
	LogSegments uint64       `json:"log_segments"`
	LogBytes    int64        `json:"log_bytes"`
	Fsyncs      uint64       `json:"fsyncs"`
	FsyncTimeMS float64      `json:"fsync_time_ms"` // in all
	StateBytes  uint64       `json:"state_bytes"`
	FreeBytes   uint64       `json:"free_bytes"`
	DiskLow     bool         `json:"disk_low"`
	Peers       []peerReport `json:"peers"`
}

type peerReport struct {
	Node        uint64  `json:"node"`
	Connected   bool    `json:"connected"`
	LastHeardMS float64 `json:"last_heard_ms"`
	QueuedBytes int64   `json:"queued_bytes"`
	LastError   string  `json:"last_error"`
	Silent      bool    `json:"silent"` // it was not heard for three election timeouts
}

type replicaReport struct {
	Shard       uint64   `json:"shard"`
	Node        uint64   `json:"node"`
	Role        string   `json:"role"`
	Term        uint64   `json:"term"`
	Leader      uint64   `json:"leader"`
	Voters      []uint64 `json:"voters"`
	Applied     uint64   `json:"applied"`
	Commit      uint64   `json:"commit"`
	Last        uint64   `json:"last"`
	Flushed     uint64   `json:"flushed"`
	Sequence    uint64   `json:"sequence"`
	Time        string   `json:"time"`
	Hash        string   `json:"hash"`
	Sessions    uint64   `json:"sessions"`
	InFlight    uint64   `json:"in_flight"`
	Queued      uint64   `json:"queued"`
	MemoryBytes int64    `json:"memory_bytes"`
	// What the journal takes on disk, and whether it has lost, for want of room, what a member lacks.
	JournalBytes      int64             `json:"journal_bytes"`
	JournalShort      bool              `json:"journal_short"`
	MachineVersion    uint64            `json:"machine_version"`     // that is active
	MaxMachineVersion uint64            `json:"max_machine_version"` // that this node's program can run
	Quiet             bool              `json:"quiet"`
	Error             string            `json:"error"`
	Damage            string            `json:"damage"` // that nobody has read
	Counters          map[string]uint64 `json:"counters"`
}

func statusCommand() *command {
	return &command{
		name: "status", limit: true, shard: "only this `shard`",
		summary: "show how nodes and shards stand, and what needs attention",
		help: `Asks every node for its state: disk, log, connections, and its replica of each shard. Nodes that are not named are found
through those that are. At the end it says what needs attention, and then exits with 1: a node without an answer, a low
disk, two nodes of which one does not hear the other, a replica that has stopped, a shard that nobody leads. If two nodes seem
not to hear each other, it asks all again, up to three times within 6 s: one that has just started is not heard at once.

Use it first, whatever the question is; and in monitoring, for its exit code.

Examples:
  decree status -node 10.0.0.1:7000
  decree status -o json | jq '.problems[]'
`,
		bind: func(*flag.FlagSet) action { return showStatus },
	}
}

func showStatus(ctx context.Context, s *session, _ []string) error {
	if _, err := s.cluster.shards(s.opts.shard); err != nil {
		return err
	}
	s.cluster.discover(ctx)
	links := s.cluster.brokenLinks(ctx)
	r := report(s.cluster, s.opts.shard, links)
	err := s.print(r, func(w *tabwriter.Writer) { r.table(w) })
	if err == nil && len(r.Problems) > 0 {
		return errNo
	}
	return err
}

// clockSkew is how far a shard's time may be ahead of a node's clock before it is a problem.
const clockSkew = 10 * time.Second

// report describes what was found. Of links those are told that it is given.
func report(c *cluster, shard uint64, links map[link]bool) *statusReport {
	r := &statusReport{Cluster: c.name, Nodes: []nodeReport{}, Replicas: []replicaReport{}, Problems: []string{}}
	leaders := map[uint64]bool{}
	for _, n := range c.sorted() {
		nr := nodeReportOf(n)
		ahead := time.Duration(0)
		for _, s := range n.status.GetShards() {
			if leads := s.GetRole() == "leader"; leads {
				nr.Leads++
				leaders[s.GetShard()] = true
			} else {
				leaders[s.GetShard()] = leaders[s.GetShard()]
			}
			if shard == 0 || s.GetShard() == shard {
				r.Replicas = append(r.Replicas, replicaReportOf(n.id, s))
				ahead = max(ahead, time.Duration(s.GetTimeAhead()))
			}
		}
		r.Nodes = append(r.Nodes, nr)
		if nr.DiskLow {
			r.problem("node %d refuses commands: its disk has %s left", n.id, size(nr.FreeBytes))
		}
		for _, p := range n.status.GetPeers() {
			if other := c.nodes[p.GetNode()]; other != nil && links[link{n.id, other.id}] {
				r.problem("%s", broken(n, other, p))
			}
		}
		if ahead > clockSkew {
			r.problem("the clock of node %d is %v behind the time of a shard that it has, which never goes back: it is wrong, or a leader's was ahead; until it has come up to it, timeouts do not pass. Set the clocks right", n.id, ahead.Round(time.Second))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.away)) {
		a := c.away[id]
		r.Nodes = append(r.Nodes, nodeReport{Node: id, Address: a.address, Error: a.reason.Error(), Peers: []peerReport{}})
		r.problem("node %d gives no answer: %v", id, a.reason)
	}
	slices.SortFunc(r.Nodes, func(a, b nodeReport) int { return int(a.Node) - int(b.Node) })
	slices.SortStableFunc(r.Replicas, func(a, b replicaReport) int { return int(a.Shard) - int(b.Shard) })
	for _, p := range r.Replicas {
		if p.Error != "" {
			r.problem("the replica of shard %d on node %d has stopped: %s", p.Shard, p.Node, p.Error)
		}
		if p.Damage != "" {
			r.problem("the state of shard %d on node %d is damaged, where nobody has read yet; it goes on, since too few of the other voters answer: bring them back, or replace them, and it is repaired. %s", p.Shard, p.Node, p.Damage)
		}
		if p.JournalShort && p.Role == "leader" {
			r.problem("%s", journalShort(p))
		}
		for _, v := range p.Voters {
			if n := c.nodes[v]; n != nil && n.shard(p.Shard) == nil && p.Role == "leader" {
				r.problem("node %d is a voter of shard %d, and has no replica of it: start it with the shard, or replace it", v, p.Shard)
			}
		}
		if n := p.Counters["stranded"]; n > 0 {
			r.problem("node %d leads shard %d, and a voter asked it %d times for entries that every voter had had: that voter has lost part of its log; replace it", p.Node, p.Shard, n)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(leaders)) {
		if (shard == 0 || id == shard) && !leaders[id] {
			r.problem("no node that answers leads shard %d", id)
		}
	}
	return r
}

const (
	// linkLooks is how often the nodes are asked again if one seems not to hear another. They are not asked at one instant, so that one of them may have started
	// in between; and who was away is dialled again within a second, or five where a dial hangs.
	linkLooks = 3
	// linkPause is waited before each.
	linkPause = 2 * time.Second
)

// link is the way from one node to another.
type link struct{ to, from uint64 }

// brokenLinks returns the links on which nothing came at every look; the first has been.
func (c *cluster) brokenLinks(ctx context.Context) map[link]bool {
	links := c.silentLinks()
	if len(links) > 0 {
		c.say("nodes that answer do not hear each other, which may pass if one has just started: asking again, for %v at most", linkLooks*linkPause)
	}
	for look := 0; look < linkLooks && len(links) > 0 && wait(ctx, linkPause); look++ {
		c.refreshAll(ctx)
		now := c.silentLinks()
		maps.DeleteFunc(links, func(l link, _ bool) bool { return !now[l] })
	}
	return links
}

// silentLinks returns the links between nodes that answer on which nothing came, as they last said.
func (c *cluster) silentLinks() map[link]bool {
	links := map[link]bool{}
	for _, n := range c.nodes {
		for _, p := range n.status.GetPeers() {
			if other := c.nodes[p.GetNode()]; p.GetSilent() && other != nil && share(n, other) {
				links[link{n.id, other.id}] = true
			}
		}
	}
	return links
}

// share reports whether two nodes are members of the same shard, as both of them know. One that is new there and knows no members yet learns of them only
// if it is heard, so that the other's word counts.
func share(a, b *node) bool {
	return slices.ContainsFunc(a.status.GetShards(), func(s *adminv1.ShardStatus) bool {
		t := b.shard(s.GetShard())
		return t != nil && (member(s, b.id) || len(s.GetVoters()) == 0) && (member(t, a.id) || len(t.GetVoters()) == 0) &&
			(member(s, a.id) && member(s, b.id) || member(t, a.id) && member(t, b.id))
	})
}

func member(s *adminv1.ShardStatus, id uint64) bool {
	return slices.Contains(s.GetVoters(), id) || slices.Contains(s.GetLearners(), id)
}

// broken says that a node does not hear another, though both answer here, and what that one has found.
func broken(n, other *node, p *adminv1.PeerStatus) string {
	s := fmt.Sprintf("node %d has heard nothing of node %d for %v, though both answer here: the way from node %d to the peer port of node %d is broken",
		n.id, other.id, time.Duration(p.GetLastHeard()).Round(100*time.Millisecond), other.id, n.id)
	for _, p := range other.status.GetPeers() {
		if p.GetNode() == n.id && p.GetLastError() != "" {
			s += fmt.Sprintf("; node %d says: %s", other.id, p.GetLastError())
		}
	}
	return s
}

// journalShort says what a leader's journal has lost, and what to do if that is not mended by itself.
func journalShort(p replicaReport) string {
	s := fmt.Sprintf("the journal of shard %d was cut short: a member is behind by more than JournalMaxBytes and needs a snapshot, which it gets when it is there; decree members -shard %d shows which", p.Shard, p.Shard)
	if n := p.Counters["overtaken"]; n > 0 {
		s += fmt.Sprintf("; %s a snapshot was of no use any more when it had arrived: raise JournalMaxBytes or SnapshotBytesPerSecond, or see that less is decided for a while", plural(int(n), "time"))
	}
	return s
}

func (r *statusReport) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func nodeReportOf(n *node) nodeReport {
	st := n.status
	r := nodeReport{
		Node: n.id, Address: n.address, Reachable: true, Replicas: len(st.GetShards()),
		LogSegments: st.GetLog().GetSegments(), LogBytes: st.GetLog().GetBytes(),
		Fsyncs: st.GetLog().GetFsyncs(), FsyncTimeMS: milliseconds(st.GetLog().GetSyncTime()),
		StateBytes: st.GetDisk().GetStateBytes(), FreeBytes: st.GetDisk().GetFreeBytes(), DiskLow: st.GetDisk().GetLow(),
		Peers: []peerReport{},
	}
	for _, p := range st.GetPeers() {
		r.Peers = append(r.Peers, peerReport{p.GetNode(), p.GetConnected(), milliseconds(p.GetLastHeard()), p.GetQueuedBytes(), p.GetLastError(), p.GetSilent()})
	}
	return r
}

func milliseconds(nanos int64) float64 { return float64(nanos/1000) / 1000 }

func replicaReportOf(node uint64, s *adminv1.ShardStatus) replicaReport {
	k := s.GetCounters()
	r := replicaReport{
		Shard: s.GetShard(), Node: node, Role: s.GetRole(), Term: s.GetTerm(), Leader: s.GetLeader(), Voters: append([]uint64{}, s.GetVoters()...),
		Applied: s.GetApplied(), Commit: s.GetCommit(), Last: s.GetLast(), Flushed: s.GetFlushed(), Sequence: s.GetSequence(),
		Time: instant(s.GetTime()), Hash: hash(s.GetHash()), Sessions: s.GetSessions(), InFlight: s.GetInFlight(), Queued: s.GetQueued(),
		MemoryBytes: s.GetMemoryBytes(), Quiet: s.GetQuiet(),
		MachineVersion: s.GetMachineVersion(), MaxMachineVersion: s.GetMaxMachineVersion(),
		Counters: map[string]uint64{
			"entries": k.GetEntries(), "commands": k.GetCommands(), "rejections": k.GetRejections(), "log_reads": k.GetLogReads(),
			"other_reads": k.GetOtherReads(), "duplicates": k.GetDuplicates(), "voids": k.GetVoids(), "rollbacks": k.GetRollbacks(),
			"machine_panics": k.GetMachinePanics(), "refused": k.GetRefused(), "flushes": k.GetFlushes(), "strange": k.GetStrange(), "stranded": k.GetStranded(),
			"journal_short": k.GetJournalShort(), "overtaken": k.GetOvertaken(),
		},
		JournalBytes: s.GetJournalBytes(), JournalShort: s.GetJournalShort(), Damage: s.GetDamage(),
	}
	if s.GetError() != nil {
		r.Error = admin.FromDetail(s.GetError()).Error()
	}
	return r
}

func (r *statusReport) table(w *tabwriter.Writer) {
	fmt.Fprintf(w, "cluster %q\n\n", r.Cluster)
	row(w, "NODE", "ADDRESS", "LEADS", "REPLICAS", "LOG", "STATE", "FREE", "PEERS")
	for _, n := range r.Nodes {
		if !n.Reachable {
			row(w, n.Node, dash(n.Address), "no answer")
			continue
		}
		connected := 0
		for _, p := range n.Peers {
			if p.Connected && !p.Silent {
				connected++
			}
		}
		free := dash("")
		if n.FreeBytes > 0 {
			free = size(n.FreeBytes)
		}
		row(w, n.Node, n.Address, n.Leads, n.Replicas, size(n.LogBytes), size(n.StateBytes), free, fmt.Sprintf("%d of %d", connected, len(n.Peers)))
	}
	fmt.Fprintln(w)
	row(w, "SHARD", "NODE", "ROLE", "TERM", "APPLIED", "COMMIT", "FLUSHED", "JOURNAL", "VERSION", "HASH", "TIME", "QUEUED")
	for _, p := range r.Replicas {
		role := p.Role
		if p.Quiet {
			role += ", resting"
		}
		row(w, p.Shard, p.Node, role, p.Term, p.Applied, p.Commit, p.Flushed, size(p.JournalBytes), versions(p.MachineVersion, p.MaxMachineVersion), p.Hash, dash(p.Time), p.Queued)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(w)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "attention: %s\n", p)
	}
}

// versions is the version of the machine that is active, and, if it is another one, the highest that the replica's program can run.
func versions(active, highest uint64) string {
	if highest == active {
		return fmt.Sprint(active)
	}
	return fmt.Sprintf("%d, can run %d", active, highest)
}

// membersReport is what `members -o json` writes, one for each shard.
type membersReport struct {
	Shard   uint64         `json:"shard"`
	Index   uint64         `json:"index"`
	Leader  uint64         `json:"leader"`
	Applied uint64         `json:"applied"`
	Asked   uint64         `json:"asked"` // the node whose view this is
	Members []memberReport `json:"members"`
	Removed []uint64       `json:"removed"`
}

type memberReport struct {
	Node    uint64  `json:"node"`
	Role    string  `json:"role"`
	Address string  `json:"address"`
	SeenMS  float64 `json:"seen_ms"` // ago; -1: it is the node that was asked
	// The rest is known if the leader was asked.
	Match         uint64 `json:"match"`
	Progress      string `json:"progress"`
	SnapshotBytes int64  `json:"snapshot_bytes"`
	SnapshotTotal int64  `json:"snapshot_total"`
}

func membersCommand() *command {
	return &command{
		name: "members", limit: true, shard: "only this `shard`",
		summary: "show who takes part in each shard, and how far each has come",
		help: `Shows the members of each shard: voters, learners, and, while a replacement is under way, who is on the way in or out. It
asks the leader, who alone knows how far the others have come; if it is not reached, any other replica. Ids of removed members
are listed: they are never used again.

Use it before and after every change of members, and to watch a new node catch up.

Example:
  decree members -shard 1
`,
		bind: func(*flag.FlagSet) action { return showMembers },
	}
}

func showMembers(ctx context.Context, s *session, _ []string) error {
	shards, err := s.cluster.shards(s.opts.shard)
	if err != nil {
		return err
	}
	all := []membersReport{}
	for _, shard := range shards {
		m, err := s.cluster.members(ctx, shard)
		if err != nil {
			return err
		}
		r := membersReport{Shard: m.GetShard(), Index: m.GetIndex(), Leader: m.GetLeader(), Applied: m.GetApplied(), Asked: m.GetAsked(),
			Members: []memberReport{}, Removed: append([]uint64{}, m.GetRemoved()...)}
		for _, m := range m.GetMembers() {
			r.Members = append(r.Members, memberReport{m.GetNode(), m.GetRole(), m.GetAddress(), seenMS(m),
				m.GetMatch(), m.GetProgress(), m.GetSnapshotBytes(), m.GetSnapshotTotal()})
		}
		all = append(all, r)
	}
	return s.print(all, func(w *tabwriter.Writer) { membersTable(w, all) })
}

func seenMS(m *adminv1.Member) float64 {
	if m.GetSeen() < 0 {
		return -1
	}
	return milliseconds(m.GetSeen())
}

func membersTable(w *tabwriter.Writer, all []membersReport) {
	row(w, "SHARD", "NODE", "ROLE", "ADDRESS", "SEEN", "MATCH", "BEHIND", "PROGRESS")
	for _, r := range all {
		for _, m := range r.Members {
			role, seen, behind, progress := m.Role, "here", dash(""), dash(m.Progress)
			if m.Node == r.Leader {
				role += ", leads"
			}
			if m.SeenMS >= 0 {
				seen = ago(time.Duration(m.SeenMS * float64(time.Millisecond)))
			}
			if m.Match > 0 {
				behind = fmt.Sprint(r.Applied - min(r.Applied, m.Match))
			}
			if m.SnapshotTotal > 0 {
				progress = fmt.Sprintf("%s %s of %s", progress, size(m.SnapshotBytes), size(m.SnapshotTotal))
			}
			row(w, r.Shard, m.Node, role, dash(m.Address), seen, number(m.Match), behind, progress)
		}
	}
	for _, r := range all {
		if len(r.Removed) > 0 {
			fmt.Fprintf(w, "shard %d: removed for ever: nodes %v\n", r.Shard, r.Removed)
		}
		if r.Asked != r.Leader {
			fmt.Fprintf(w, "shard %d: as node %d knows it; the leader was not asked\n", r.Shard, r.Asked)
		}
	}
}
