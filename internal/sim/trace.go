package sim

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/wal"
)

// A what is a kind of event in the trace.
type what uint8

const (
	evStart what = iota
	evCrash
	evStop
	evPass
	evFrameSent
	evFrameLost
	evFrameGot
	evSync
	evSynced
	evSyncLost
	evFlush
	evFlushed
	evFlushLost
	evApplied
	evLeader
	evSubmit
	evAnswer
	evGiveUp
	evFault
	evHeal
	evPhase
	evStopped
	evBroken
	evTorn
	evRot
	evRefused
	evCut
	evCutDone
	evFetch
	evChunks
	evChunkFlip
	evFetched
	evInstall
	evInstalled
	evMembers
	evChange
	evChangeAnswer
	evProgram
	evProxyStart
	evProxyCrash
	evStreamBroken
	evAsk
	evTold
	evRepaired
	evBackup
)

// formats of an event's node (1) and four numbers (2 to 5), for people. Faults have names instead.
var formats = [...]string{
	evStart:     "n%[1]d STARTS, incarnation %[2]d",
	evCrash:     "n%[1]d CRASHES, incarnation %[2]d",
	evStop:      "n%[1]d stops, incarnation %[2]d",
	evPass:      "n%[1]d worker %[2]d passes: %[3]d messages, %[4]d requests, %[5]d writes done",
	evFrameSent: "n%[1]d -> n%[2]d sends %[4]d bytes, to arrive after %[5]d us",
	evFrameLost: "n%[1]d -> n%[2]d LOST %[4]d bytes on the way",
	evFrameGot:  "n%[1]d <- n%[2]d receives %[4]d bytes",
	evSync:      "n%[1]d log: sync of %[2]d writes begins, takes %[3]d us",
	evSynced:    "n%[1]d log: %[2]d records synced",
	evSyncLost:  "n%[1]d log: %[2]d writes LOST, %[3]d synced that nobody was told of",
	evFlush:     "n%[1]d shard %[2]d: flush begins, takes %[3]d us",
	evFlushed:   "n%[1]d shard %[2]d: flushed to %[3]d",
	evFlushLost: "n%[1]d %[2]d flushes LOST, %[3]d durable that nobody was told of",
	evApplied:   "n%[1]d shard %[2]d: applied up to %[3]d, hash %016[4]x, term %[5]d",
	evLeader:    "n%[1]d shard %[2]d: sees n%[3]d lead in term %[4]d",
	evSubmit:    "n%[1]d shard %[2]d <- asked for op %[3]d, attempt %[4]d",
	evAnswer:    "n%[1]d shard %[2]d -> answers op %[3]d, attempt %[4]d",
	evGiveUp:    "n%[1]d shard %[2]d: nobody waits for op %[3]d, attempt %[4]d any more",
	evPhase:     "PHASE %[2]d: faults have ended; 1: what is pending ends, 2: new calls succeed, 3: the replicas agree",
	evStopped:   "n%[1]d shard %[2]d: replica STOPPED",
	evBroken:    "n%[1]d disk FAILED, incarnation %[2]d ends",
	evTorn:      "n%[1]d log: write TORN at byte %[2]d: of %[3]d bytes %[4]d are lost",
	evRot:       "n%[1]d disk ROTS: byte %[3]d of %[4]d is changed by %02[2]x",
	evRefused:   "n%[1]d REFUSES to start, incarnation %[2]d",

	evCut:          "n%[1]d shard %[2]d: cut begins, takes %[3]d us",
	evCutDone:      "n%[1]d shard %[2]d: cut ends, 1 if well: %[3]d, manifest of %[4]d bytes",
	evFetch:        "n%[1]d shard %[2]d: fetches a snapshot, manifest of %[3]d bytes, from %[4]d sources",
	evChunks:       "n%[1]d shard %[2]d: %[4]d chunks from n%[3]d, 1 if that was all: %[5]d",
	evChunkFlip:    "n%[1]d chunk %[3]d of file %[2]d is DAMAGED on its way at byte %[4]d, by %02[5]x",
	evFetched:      "n%[1]d shard %[2]d: fetch ends, 1 if well: %[3]d",
	evInstall:      "n%[1]d shard %[2]d: installation of the snapshot at %[3]d begins, takes %[4]d us",
	evInstalled:    "n%[1]d shard %[2]d: snapshot at %[3]d installed, 1 if well: %[4]d",
	evMembers:      "n%[1]d shard %[2]d: members as of %[3]d: %[4]d voters",
	evChange:       "n%[1]d shard %[2]d <- asked for change %[3]d of the members, attempt %[4]d",
	evChangeAnswer: "n%[1]d shard %[2]d -> answers change %[3]d of the members, attempt %[4]d",
	evProgram:      "n%[1]d will run version %[2]d of the program, after %[3]d",

	evProxyStart:   "proxy %[2]d STARTS, incarnation %[3]d",
	evProxyCrash:   "proxy %[2]d CRASHES, incarnation %[3]d, with %[4]d calls",
	evStreamBroken: "stream to n%[1]d (0: to a proxy) BREAKS, with %[2]d calls",
	evAsk:          "shard %[2]d <- proxy %[4]d is asked for op %[3]d",
	evBackup:       "n%[1]d has made a BACKUP of the first shard up to %[2]d, of the last up to %[3]d",
	evRepaired:     "n%[1]d shard %[2]d: replica REPAIRED",
	evTold:         "shard %[2]d -> a proxy's client is told of op %[3]d: %[4]d (0 happened, 1 rejected, 2 refused, 3 not proposed, 4 unknown)",
}

// trace is the run as a sequence of numbers: hashed always, written out for people if asked to.
type trace struct {
	now    *int64
	hash   *xxhash.Digest
	events uint64
	buf    []byte    // events that are still to be hashed
	out    io.Writer // or nil
	header int64     // the virtual ms whose header was written last
}

// eventBytes is an event in the hash; eventsAtOnce are hashed together.
const eventBytes, eventsAtOnce = 42, 128

func newTrace(now *int64, out io.Writer) *trace {
	return &trace{now: now, hash: xxhash.New(), buf: make([]byte, 0, eventBytes*eventsAtOnce), out: out, header: -1}
}

// sum returns the hash of all events so far.
func (t *trace) sum() uint64 {
	_, _ = t.hash.Write(t.buf) // never fails
	t.buf = t.buf[:0]
	return t.hash.Sum64()
}

func (t *trace) event(kind what, node core.NodeID, a, b, c, d uint64) {
	t.events++
	if len(t.buf) == cap(t.buf) {
		t.sum()
	}
	n := len(t.buf)
	t.buf = t.buf[:n+eventBytes]
	buf := t.buf[n:]
	buf[0], buf[1] = byte(kind), byte(node)
	binary.LittleEndian.PutUint64(buf[2:], uint64(*t.now))
	binary.LittleEndian.PutUint64(buf[10:], a)
	binary.LittleEndian.PutUint64(buf[18:], b)
	binary.LittleEndian.PutUint64(buf[26:], c)
	binary.LittleEndian.PutUint64(buf[34:], d)
	switch {
	case t.out == nil:
	case kind == evFault:
		t.printf("n%d FAULT %s", node, faultNames[a])
	case kind == evHeal:
		t.printf("n%d HEALED %s", node, faultNames[a])
	default:
		t.printf(formats[kind], node, a, b, c, d)
	}
}

// note explains the event before it; it is not part of the hash.
func (t *trace) note(format string, args ...any) {
	if t.out != nil {
		t.printf("      "+format, args...)
	}
}

// printf writes a line under the header of its virtual millisecond.
func (t *trace) printf(format string, args ...any) {
	if ms := *t.now / millisecond; ms != t.header {
		t.header = ms
		fmt.Fprintf(t.out, "---- %d ms\n", ms)
	}
	fmt.Fprintf(t.out, "%4d  %s\n", *t.now%millisecond/microsecond, fmt.Sprintf(format, args...))
}

// frame tells what is in a frame.
func (t *trace) frame(f *frame) {
	if t.out == nil {
		return
	}
	beats := true
	said := func(format string, args ...any) {
		t.note(format, args...)
		beats = false
	}
	// Who receives it checks it.
	_ = core.DecodeFrame(f.from, f.to, f.bytes, core.Receiver{
		Message: func(m core.Message) { said("shard %d: %s", m.Shard, messageWords(&m.Raft)) },
		Quiesce: func(q core.Quiesce) { said("shard %d: proposes to rest at %d, term %d", q.Shard, q.Last, q.Term) },
		Commit: func(c core.CommitNote) {
			said("shard %d: %d is committed, term %d, as of %v ago, and everybody has %d", c.Shard, c.Commit, c.Term, c.Age, c.Everywhere)
		},
		Note: func(n core.Note) {
			said("shard %d: note: %v %d %d %d, %d bytes", n.Shard, n.Kind, n.A, n.B, n.C, len(n.Data))
		},
	})
	if beats {
		t.note("alive")
	}
}

// messageWords says what a raft message says.
func messageWords(m *raftpb.Message) string {
	what := ""
	switch m.Type {
	case raftpb.MsgApp:
		what = fmt.Sprintf("append %s after %d of term %d, committed %d", rangeWords(m.Entries), m.Index, m.LogTerm, m.Commit)
	case raftpb.MsgAppResp:
		what = fmt.Sprintf("has everything up to %d", m.Index)
		if m.Reject {
			what = fmt.Sprintf("rejects what comes after %d, try %d of term %d", m.Index, m.RejectHint, m.LogTerm)
		}
	case raftpb.MsgSnap:
		m := &m.Snapshot.Metadata
		what = fmt.Sprintf("a snapshot at %d of term %d, voters %v, outgoing %v, learners %v", m.Index, m.Term, m.ConfState.Voters, m.ConfState.VotersOutgoing, m.ConfState.Learners)
	case raftpb.MsgVote, raftpb.MsgPreVote:
		what = fmt.Sprintf("asks for the vote, its log ends at %d of term %d", m.Index, m.LogTerm)
	case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		what = "gives its vote"
		if m.Reject {
			what = "refuses its vote"
		}
	case raftpb.MsgHeartbeat:
		what = fmt.Sprintf("leads, committed %d", m.Commit)
	case raftpb.MsgHeartbeatResp:
		what = "follows"
	case raftpb.MsgReadIndex:
		what = "asks what is committed"
	case raftpb.MsgReadIndexResp:
		what = fmt.Sprintf("committed is %d", m.Index)
	case raftpb.MsgTimeoutNow:
		what = "campaign now"
	}
	if len(m.Context) > 0 {
		what += fmt.Sprintf(", context %x", m.Context)
	}
	return fmt.Sprintf("%v term %d: %s", m.Type, m.Term, what)
}

func rangeWords(entries []raftpb.Entry) string {
	if len(entries) == 0 {
		return "nothing"
	}
	first, last := entries[0], entries[len(entries)-1]
	return fmt.Sprintf("%d..%d (terms %d..%d)", first.Index, last.Index, first.Term, last.Term)
}

// records tells what is being written to a log, has been, or is lost.
func (t *trace) records(what string, records []wal.Record) {
	if t.out == nil {
		return
	}
	for i := range records {
		r := &records[i]
		entries := "no entries"
		if n := len(r.Entries); n > 0 {
			entries = fmt.Sprintf("entries %d..%d (terms %d..%d)", r.Entries[0].Index, r.Entries[n-1].Index, r.Entries[0].Term, r.Entries[n-1].Term)
		}
		if r.RestartAfter != 0 {
			entries += fmt.Sprintf(", anew after %d", r.RestartAfter)
		}
		t.note("%s shard %d: %s, term %d, vote for n%d, committed %d", what, r.Shard, entries, r.HardState.Term, r.HardState.Vote, r.HardState.Commit)
	}
}
