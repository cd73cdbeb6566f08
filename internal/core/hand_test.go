package core

import (
	"log/slog"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/wal"
)

// hand drives one replica, node 2 of three unless there are few, by hand: it is the replica's disk, its clock, and both of its peers.
// What depends on a bad moment can be put there exactly; the simulator finds such moments by the thousand, but not each.
type hand struct {
	t        *testing.T
	fs       *vfs.MemFS
	store    *state.Store
	shard    *state.Shard
	node     NodeID
	limits   Limits
	voters   []NodeID
	w        *Worker
	now      Now
	in       Input
	writes   []*Write
	flushes  []*FlushDone
	sent     []raftpb.Message
	notes    []Note
	noted    []NodeID // to whom
	rests    []Quiesce
	restOf   []NodeID // to whom
	onSync   func()   // before the writes are confirmed
	released Index    // of the log, which is told so
	cuts     []*CutDone
	fetches  []*Fetch
	installs []*InstallDone
	stopped  *Error
	pace     func() int64 // answers Spent; nil: a pass takes no time

	last      map[uint64]uint64 // index up to which each peer has the log
	apps      map[uint64]int    // MsgApp that each peer was sent
	mute      uint64            // the peer that does not answer, 0: none
	deaf      map[uint64]bool   // peers that get no MsgApp, and answer everything else
	hung      bool              // flushes do not end
	handedTo  []NodeID          // who was told to campaign
	away      map[NodeID]bool   // nodes that are not heard of
	awaySince map[NodeID]int64  // nodes that are not heard of any more
	gone      map[uint64]bool   // peers that answer nothing, although their nodes are alive
}

func (h *hand) Send(to NodeID, _ ShardID, m *raftpb.Message) {
	h.sent = append(h.sent, *m)
	if m.Type == raftpb.MsgTimeoutNow {
		h.handedTo = append(h.handedTo, to)
	}
}
func (h *hand) SendQuiesce(to NodeID, q Quiesce) {
	h.rests, h.restOf = append(h.rests, q), append(h.restOf, to)
}
func (h *hand) SendCommit(NodeID, CommitNote) {}
func (h *hand) Write(w *Write)                { h.writes = append(h.writes, w) }
func (h *hand) Query(b *QueryBatch) {
	for b.RunOne() {
	}
}
func (h *hand) Flush(f *FlushDone)         { h.flushes = append(h.flushes, f) }
func (h *hand) Flushed(_ ShardID, i Index) { h.released = i }
func (h *hand) SendNote(to NodeID, n Note) {
	h.notes, h.noted = append(h.notes, n), append(h.noted, to)
}
func (h *hand) Cut(c *CutDone)                 { h.cuts = append(h.cuts, c) }
func (h *hand) Fetch(f *Fetch)                 { h.fetches = append(h.fetches, f) }
func (h *hand) Install(d *InstallDone)         { h.installs = append(h.installs, d) }
func (h *hand) Members(ShardID, Configuration) {}
func (h *hand) Address(NodeID) string          { return "" }
func (h *hand) LastHeard(n NodeID) int64 {
	if h.away[n] {
		return -1 << 60
	}
	if at, ok := h.awaySince[n]; ok {
		return at
	}
	return h.now.Mono
}
func (h *hand) Spent() int64 {
	if h.pace != nil {
		return h.pace()
	}
	return 0
}
func (h *hand) Changed(ShardID, NodeID, Term) {}
func (h *hand) Stopped(_ ShardID, err *Error) { h.stopped = err }

// bulky writes 100 KiB for a command in capitals, sets the key behind a plus to itself, rejects with the value of the one behind a question mark, as does a query for it, deletes the one behind a minus, rejects "no", and panics with as many bytes as stand behind an exclamation mark.
type bulky struct{}

func (bulky) Decide(v View, c Command) ([][]byte, []byte, error) {
	if string(c.Data) == "no" {
		return nil, nil, Reject("no", "no")
	}
	if c.Data[0] == '?' {
		return nil, nil, rejectWith(v, c.Data[1:])
	}
	return [][]byte{c.Data}, nil, nil
}

// rejectWith rejects with what stands in the state.
func rejectWith(v View, key []byte) error {
	value, _ := v.Get(key)
	return &Rejection{Code: "asked", Detail: value}
}

func (bulky) Apply(s State, e Event) {
	switch c := e.Data[0]; {
	case c == '!':
		panic(e.Data[1:])
	case c == '+':
		s.Set(e.Data[1:], e.Data[1:])
	case c == '-':
		s.Delete(e.Data[1:])
	case c >= 'A' && c <= 'Z':
		value := make([]byte, 1024)
		for i := range 100 {
			s.Set([]byte{c, byte(i)}, value)
		}
	}
}

func (bulky) Query(v View, q []byte) ([]byte, error) {
	if len(q) > 0 {
		return nil, rejectWith(v, q)
	}
	return nil, nil
}

func newHand(t *testing.T, limits Limits, voters ...NodeID) *hand {
	if len(voters) == 0 {
		voters = []NodeID{1, 2, 3}
	}
	return newHandOf(t, 2, limits, voters)
}

func newHandOf(t *testing.T, node NodeID, limits Limits, voters []NodeID) *hand {
	h := &hand{t: t, fs: vfs.NewMem(), node: node, limits: limits, voters: voters, last: map[uint64]uint64{}, apps: map[uint64]int{}}
	h.open(wal.ShardLog{})
	t.Cleanup(func() { h.close() })
	return h
}

// open starts the replica on what the file system has, and this log.
func (h *hand) open(log wal.ShardLog) {
	h.t.Helper()
	if err := h.tryOpen(log); err != nil {
		h.t.Fatal(err)
	}
}

// tryOpen is open of what the replica may refuse.
func (h *hand) tryOpen(log wal.ShardLog) error {
	h.t.Helper()
	st, err := state.Open(state.Options{Dir: "state", FS: h.fs, Logger: slog.New(slog.DiscardHandler), OnFatal: func(err error) { h.t.Error(err) }})
	if err != nil {
		h.t.Fatal(err)
	}
	sh, err := st.Shard(1)
	if err != nil {
		h.t.Fatal(err)
	}
	h.store, h.shard = st, sh
	h.w = NewWorker(Config{Node: h.node, Limits: h.limits}.WithDefaults(), h, h.now)
	return h.w.AddShard(1, Deps{Machine: bulky{}, State: sh, Voters: h.voters, Log: log, Rand: rand.New(rand.NewPCG(1, 2)), Logger: slog.New(slog.DiscardHandler)})
}

func (h *hand) close() {
	h.w.Stop(&Error{Kind: ErrUnknown, Code: CodeClosed})
	h.shard.Close()
	if err := h.store.Close(); err != nil {
		h.t.Error(err)
	}
}

func (h *hand) replica() *Replica { return h.w.replicas[1] }

// pass runs one pass, d ms after the last.
func (h *hand) pass(d int64) {
	h.now.Mono += d * 1e6
	h.now.Wall = h.now.Mono
	in := h.in
	h.in = Input{}
	h.w.Pass(h.now, &in)
}

// logTo appends what is being written to a log, which does not end the writes.
func (h *hand) logTo(log *wal.Memory) {
	h.t.Helper()
	for _, w := range h.writes {
		if err := log.Append(w.Records); err != nil {
			h.t.Fatal(err)
		}
	}
}

// sync lets the disk finish, and the flushes.
func (h *hand) sync() {
	if h.onSync != nil {
		h.onSync()
	}
	h.in.Written, h.writes = append(h.in.Written, h.writes...), nil
	h.flush()
}

func (h *hand) flush() {
	if h.hung {
		return
	}
	for _, f := range h.flushes {
		f.Err = f.Job.Run()
	}
	h.in.Flushed, h.flushes = append(h.in.Flushed, h.flushes...), nil
}

func (h *hand) message(m raftpb.Message) {
	m.To = 2
	h.in.Messages = append(h.in.Messages, Message{From: NodeID(m.From), Shard: 1, Raft: m, At: math.MaxInt64}) // as the pass begins
}

// settle runs passes, the first of them with ticks, until nothing is under way. The peers answer as raft's do.
func (h *hand) settle(ticks int) {
	for i := range 300 {
		if i < ticks {
			h.in.Ticks = 1
		}
		h.sync()
		h.pass(50)
		sent := h.sent
		h.sent = nil
		for i := range sent {
			h.answer(&sent[i])
		}
		if i >= ticks && len(h.in.Messages)+len(h.writes) == 0 && (h.hung || len(h.flushes) == 0) {
			return
		}
	}
}

func (h *hand) answer(m *raftpb.Message) {
	if m.To == h.mute || h.gone[m.To] {
		return
	}
	r := raftpb.Message{From: m.To, Term: m.Term, Context: m.Context}
	switch m.Type {
	case raftpb.MsgPreVote:
		r.Type = raftpb.MsgPreVoteResp
	case raftpb.MsgVote:
		r.Type = raftpb.MsgVoteResp
	case raftpb.MsgHeartbeat:
		r.Type = raftpb.MsgHeartbeatResp
	case raftpb.MsgApp:
		if h.apps[m.To]++; h.deaf[m.To] {
			return
		}
		r.Type = raftpb.MsgAppResp
		if m.Index > h.last[m.To] {
			r.Index, r.Reject, r.RejectHint, r.LogTerm = m.Index, true, h.last[m.To], 1
			break
		}
		r.Index = m.Index + uint64(len(m.Entries))
		h.last[m.To] = max(h.last[m.To], r.Index)
	default:
		return
	}
	h.message(r)
}

// lead has the replica elected.
func (h *hand) lead() {
	h.t.Helper()
	h.settle(60)
	if l := h.replica().lead; l == nil || !l.ready {
		h.t.Fatal("not elected")
	}
}

func (h *hand) submit(commands ...string) {
	q := &Request{Kind: KindCommand, Shard: 1, Done: func(*Request) {}}
	for _, c := range commands {
		q.Commands = append(q.Commands, []byte(c))
	}
	h.in.Requests = append(h.in.Requests, q)
	h.settle(2)
}
