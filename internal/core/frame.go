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
//	  note:    shard (varint), kind (1 byte), a, b, c (varints), data (bytes); see NoteKind. One of a kind that is not known is ignored
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
	if _, err := m.MarshalToSizedBuffer(b[at:]); err != nil {
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
// Messages may share memory with the frame, which must not be changed any more: the data of large entries do.
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
			if err := decodeMessage(&m.Raft, data, len(frame)/shareOf); err != nil {
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

// shareOf bounds what an entry that outlives the others of its frame keeps of them in memory: one whose data are less than this
// part of the frame is copied.
const shareOf = 8

// decodeMessage decodes a message, of which entries with at least share bytes of data share memory with b.
func decodeMessage(m *raftpb.Message, b []byte, share int) error {
	if len(b) < share || len(b) > 1 && b[0] == tagType && b[1] != byte(raftpb.MsgApp) {
		return m.Unmarshal(b) // nothing else has large entries, and most messages are something else
	}
	var small [256]byte
	rest := small[:0] // everything but the entries
	var entries []raftpb.Entry
	r := reader{b: b}
	for len(r.b) > 0 {
		field := r.b
		switch tag := r.uvarint("tag"); tag {
		case tagEntries:
			var e raftpb.Entry
			if err := decodeEntry(&e, r.bytes("entry"), share); err != nil {
				return err
			}
			entries = append(entries, e)
			continue
		default:
			r.skip(tag)
		}
		rest = append(rest, field[:len(field)-len(r.b)]...)
	}
	if r.err != nil {
		return r.err
	}
	if err := m.Unmarshal(rest); err != nil {
		return err
	}
	m.Entries = entries
	return nil
}

// decodeEntry decodes an entry that shares memory with b if it has at least share bytes of data.
func decodeEntry(e *raftpb.Entry, b []byte, share int) error {
	r := reader{b: b}
	for len(r.b) > 0 {
		switch tag := r.uvarint("tag"); tag {
		case tagEntryType:
			e.Type = raftpb.EntryType(r.uvarint("type"))
		case tagEntryTerm:
			e.Term = r.uvarint("term")
		case tagEntryIndex:
			e.Index = r.uvarint("index")
		case tagEntryData:
			if e.Data = r.bytes("data"); len(e.Data) < share {
				e.Data = bytes.Clone(e.Data)
			}
		default:
			*e = raftpb.Entry{}
			return e.Unmarshal(b) // what is new there, raft's decoder may know
		}
	}
	return r.err
}

// Protobuf tags of raftpb: field number and wire type.
const (
	tagType       = 1<<3 | wireVarint // comes first
	tagEntries    = 7<<3 | wireBytes
	tagEntryType  = 1<<3 | wireVarint
	tagEntryTerm  = 2<<3 | wireVarint
	tagEntryIndex = 3<<3 | wireVarint
	tagEntryData  = 4<<3 | wireBytes

	wireVarint = 0
	wireBytes  = 2
)

// skip reads over a protobuf field, the tag of which has been read.
func (r *reader) skip(tag uint64) {
	switch tag & 7 {
	case wireVarint:
		r.uvarint("field")
	case wireBytes:
		r.bytes("field")
	default:
		r.fail("field of a wire type that raft does not use")
	}
}
