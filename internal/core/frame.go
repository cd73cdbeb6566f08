package core

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// A frame carries everything that one node has for another since the last one:
//
//	frame: item...
//	item:  kind (1 byte), then
//	  raft:    shard (varint), length (varint), raftpb.Message
//	  quiesce: shard, term, last index (varints)
//	  beat:    nothing
//	  commit:  shard, term, commit index, index that everybody has, age in ns (varints)
//	  note:    shard (varint), kind (1 byte), a, b, c (varints), data (bytes); see NoteKind
//
// The transport's own header has the version and the checksum.
const (
	itemRaft    = 1
	itemQuiesce = 2
	itemBeat    = 3
	itemCommit  = 4
	itemNote    = 5
)

// AppendMessage appends a raft message to a frame.
func AppendMessage(b []byte, shard ShardID, m *raftpb.Message) []byte {
	n := m.Size()
	b = append(b, itemRaft)
	b = binary.AppendUvarint(b, uint64(shard))
	b = binary.AppendUvarint(b, uint64(n))
	at := len(b)
	if cap(b)-at < n {
		grown := make([]byte, at, 2*cap(b)+n)
		copy(grown, b)
		b = grown
	}
	b = b[:at+n]
	if _, err := m.MarshalTo(b[at:]); err != nil {
		panic(fmt.Sprintf("raft message cannot be encoded: %v", err)) // no type of it has a way to fail
	}
	return b
}

// AppendQuiesce appends the proposal to rest.
func AppendQuiesce(b []byte, q Quiesce) []byte {
	b = append(b, itemQuiesce)
	b = binary.AppendUvarint(b, uint64(q.Shard))
	b = binary.AppendUvarint(b, uint64(q.Term))
	return binary.AppendUvarint(b, uint64(q.Last))
}

// AppendCommit appends a leader's word of what is committed.
func AppendCommit(b []byte, n CommitNote) []byte {
	b = append(b, itemCommit)
	b = binary.AppendUvarint(b, uint64(n.Shard))
	b = binary.AppendUvarint(b, uint64(n.Term))
	b = binary.AppendUvarint(b, uint64(n.Commit))
	b = binary.AppendUvarint(b, uint64(n.Everywhere))
	return binary.AppendUvarint(b, uint64(max(0, n.Age)))
}

// AppendNote appends a note.
func AppendNote(b []byte, n Note) []byte {
	b = append(b, itemNote)
	b = binary.AppendUvarint(b, uint64(n.Shard))
	b = append(b, byte(n.Kind))
	for _, v := range []uint64{n.A, n.B, n.C} {
		b = binary.AppendUvarint(b, v)
	}
	return appendBytes(b, n.Data)
}

// A Receiver gets what a frame carries, item by item.
type Receiver struct {
	Message func(Message)
	Quiesce func(Quiesce)
	Commit  func(CommitNote)
	Note    func(Note)
}

// AppendBeat appends a sign of life.
func AppendBeat(b []byte) []byte { return append(b, itemBeat) }

// ErrFrame is wrapped by every error about a frame's content.
var ErrFrame = errors.New("frame is malformed")

// DecodeFrame takes a frame apart that node from sent to node to. What is
// wrong with it is an error, and then nothing of it may be used.
// Messages share no memory with the frame.
func DecodeFrame(from, to NodeID, frame []byte, got Receiver) error {
	r := reader{b: frame}
	for len(r.b) > 0 {
		switch kind := r.byte("kind"); kind {
		case itemRaft:
			m := Message{From: from, Shard: ShardID(r.uvarint("shard"))}
			data := r.bytes("raft message")
			if r.err != nil {
				break
			}
			if err := m.Raft.Unmarshal(data); err != nil {
				return fmt.Errorf("%w: raft message of shard %d: %v", ErrFrame, m.Shard, err)
			}
			if m.Raft.From != uint64(from) || m.Raft.To != uint64(to) {
				return fmt.Errorf("%w: node %d sent node %d a message that claims to go from %d to %d", ErrFrame, from, to, m.Raft.From, m.Raft.To)
			}
			got.Message(m)
		case itemQuiesce:
			q := Quiesce{From: from, Shard: ShardID(r.uvarint("shard")), Term: Term(r.uvarint("term")), Last: Index(r.uvarint("last"))}
			if r.err == nil {
				got.Quiesce(q)
			}
		case itemCommit:
			n := CommitNote{From: from, Shard: ShardID(r.uvarint("shard")), Term: Term(r.uvarint("term")),
				Commit: Index(r.uvarint("commit")), Everywhere: Index(r.uvarint("everywhere")), Age: time.Duration(r.uvarint("age"))}
			if r.err == nil {
				got.Commit(n)
			}
		case itemNote:
			n := Note{From: from, Shard: ShardID(r.uvarint("shard")), Kind: NoteKind(r.byte("kind")), A: r.uvarint("a"), B: r.uvarint("b"), C: r.uvarint("c")}
			n.Data = bytes.Clone(r.bytes("data"))
			if r.err == nil {
				got.Note(n)
			}
		case itemBeat:
		default:
			return fmt.Errorf("%w: unknown item %d", ErrFrame, kind)
		}
		if r.err != nil {
			return fmt.Errorf("%w: %v", ErrFrame, r.err)
		}
	}
	return nil
}
