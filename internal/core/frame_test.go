package core

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// app makes a message with entries of these sizes.
func app(r *rand.Rand, sizes ...int) raftpb.Message {
	m := raftpb.Message{Type: raftpb.MsgApp, From: 1, To: 2, Term: r.Uint64(), LogTerm: 3, Index: 1 << 40, Commit: 7, Context: []byte("context")}
	for i, size := range sizes {
		data := make([]byte, size)
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		m.Entries = append(m.Entries, raftpb.Entry{Index: m.Index + uint64(i), Term: r.Uint64(), Type: raftpb.EntryType(i % 3), Data: data})
	}
	return m
}

func framed(shard ShardID, messages ...raftpb.Message) (b []byte) {
	for i := range messages {
		b = AppendMessage(b, shard, &messages[i])
	}
	return b
}

// within reports whether the memory of part lies in that of whole.
func within(whole, part []byte) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(whole)))
	p := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	return p >= start && p < start+uintptr(len(whole))
}

// An entry shares memory with its frame if it is most of what the frame would be kept for, and is a copy if not.
func TestFrameSharing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, sizes := range [][]int{{}, {0}, {5}, {1 << 20}, {1000, 1 << 18, 10, 1 << 18}, {100, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100}} {
		m := app(r, sizes...)
		b := framed(9, m, raftpb.Message{Type: raftpb.MsgHeartbeat, From: 1, To: 2, Term: 4})
		var got []Message
		if err := DecodeFrame(1, 2, b, Receiver{Message: func(m Message) { got = append(got, m) }}); err != nil {
			t.Fatal(err)
		}
		if len(got) != 2 || got[0].Shard != 9 || !reflect.DeepEqual(got[0].Raft, m) || got[1].Raft.Type != raftpb.MsgHeartbeat {
			t.Fatalf("sizes %v: decoded %v", sizes, got)
		}
		for i := range got[0].Raft.Entries {
			data := got[0].Raft.Entries[i].Data
			if len(data) > 0 && within(b, data) != (len(data) >= len(b)/shareOf) {
				t.Errorf("sizes %v: entry of %d bytes in a frame of %d shares memory: %v", sizes, len(data), len(b), within(b, data))
			}
			if cap(data) > len(data) && within(b, data) {
				t.Errorf("sizes %v: appending to an entry would write into the frame", sizes)
			}
		}
	}
}

// Whatever is wrong with a frame is an error.
func TestFrameRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	good := framed(9, app(r, 100, 1000))
	none := func(Message) {}
	for n := 1; n < len(good); n++ {
		if err := DecodeFrame(1, 2, good[:n], Receiver{Message: none}); !errors.Is(err, ErrFrame) {
			t.Fatalf("cut off at %d of %d: %v", n, len(good), err)
		}
	}
	for what, b := range map[string][]byte{
		"unknown item": {77},
		"other sender": framed(9, raftpb.Message{From: 3, To: 2}),
		"other target": framed(9, raftpb.Message{From: 1, To: 3}),
	} {
		if err := DecodeFrame(1, 2, b, Receiver{Message: none}); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// FuzzDecodeMessage: what raft's own decoder says of some bytes is what ours says, but for the wire types that raft does not use.
func FuzzDecodeMessage(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, m := range []raftpb.Message{app(r), app(r, 0), app(r, 3, 300), {Type: raftpb.MsgVote, From: 1, To: 2, Reject: true, RejectHint: 9}} {
		b, err := m.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var want, got raftpb.Message
		before := bytes.Clone(b)
		if err := decodeMessage(&got, b, 0); err != nil {
			return
		}
		if err := want.Unmarshal(b); err != nil {
			t.Fatalf("raft refuses what was decoded to %v: %v", got, err)
		}
		if want.String() != got.String() {
			t.Fatalf("decoded %v, want %v", got, want)
		}
		if !bytes.Equal(b, before) {
			t.Fatal("decoding has changed the bytes")
		}
	})
}
