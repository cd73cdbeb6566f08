package core

import (
	"reflect"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/decree-raft/decree/wal"
)

// A record of a flush gets other members, and keeps all else.
func TestRewriteMeta(t *testing.T) {
	m := meta{applied: 300, term: 2, seq: 40, time: 1 << 50, chain: 1 << 63, machine: 3, conf: Configuration{
		Index: 200, Voters: []NodeID{1, 2, 3}, Outgoing: []NodeID{1, 2, 4}, Learners: []NodeID{5}, Addresses: map[NodeID]string{5: "e:1"}, Removed: []NodeID{9}}}
	old := m.encode()
	b, err := RewriteMeta(old, Configuration{Voters: []NodeID{7, 8}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMeta(b)
	m.restored, m.conf = true, Configuration{Voters: []NodeID{7, 8}, Addresses: map[NodeID]string{}}
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, %v, want %+v", got, err, m)
	}
	s, err := DecodeStored(b)
	if want := (Stored{Applied: 300, Term: 2, Time: 1 << 50, Hash: 1 << 63, MachineVersion: 3, Members: m.conf}); err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, %v, want %+v", s, err, want)
	}
	if old[0] != 2 || b[0] != 3 {
		t.Errorf("records of versions %d and %d, want 2, which older programs read, and 3 after a restore", old[0], b[0])
	}
	for _, c := range []Configuration{{}, {Voters: []NodeID{1}, Learners: []NodeID{2}}} {
		if _, err := RewriteMeta(b, c); err == nil {
			t.Errorf("%+v is written", c)
		}
	}
	if _, err := RewriteMeta([]byte{99}, Configuration{Voters: []NodeID{1}}); err == nil {
		t.Error("a record of another version is read")
	}
}

func TestNeutralEntry(t *testing.T) {
	for _, kind := range []raftpb.EntryType{raftpb.EntryConfChange, raftpb.EntryConfChangeV2} {
		e, was := NeutralEntry(wal.Entry{Index: 3, Term: 2, Type: uint8(kind), Data: []byte("x")})
		if !was || !reflect.DeepEqual(e, wal.Entry{Index: 3, Term: 2}) {
			t.Errorf("%v became %+v", kind, e)
		}
	}
	in := wal.Entry{Index: 3, Term: 2, Data: []byte("x")}
	if e, was := NeutralEntry(in); was || !reflect.DeepEqual(e, in) {
		t.Errorf("a decision became %+v", e)
	}
}

func TestEntryTime(t *testing.T) {
	b := sealEntry(make([]byte, entryHeaderMax), entryHeader{term: 1, seq: 2, time: 12345})
	if at, ok := EntryTime(uint8(raftpb.EntryNormal), b); !ok || at != 12345 {
		t.Errorf("got %d, %v", at, ok)
	}
	for _, b := range [][]byte{nil, {99}, b[:3]} {
		if _, ok := EntryTime(uint8(raftpb.EntryNormal), b); ok {
			t.Errorf("%x has a time", b)
		}
	}
	if _, ok := EntryTime(uint8(raftpb.EntryConfChange), b); ok {
		t.Error("a change of members has a time")
	}
}

// What the entries of a log make of the members is what raft made of them.
func TestMemberChanges(t *testing.T) {
	var index uint64
	entry := func(kind ChangeKind, transition raftpb.ConfChangeTransition, changes ...raftpb.ConfChangeSingle) wal.Entry {
		note := changeNote{kind: kind, addresses: map[NodeID]string{4: "d:1"}}
		cc := raftpb.ConfChangeV2{Context: note.encode(), Transition: transition, Changes: changes}
		data, err := cc.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		index++
		return wal.Entry{Index: index, Term: 1, Type: uint8(raftpb.EntryConfChangeV2), Data: data}
	}
	one := func(t raftpb.ConfChangeType, id uint64) raftpb.ConfChangeSingle {
		return raftpb.ConfChangeSingle{Type: t, NodeID: id}
	}
	entries := []wal.Entry{
		entry(ChangeAddLearner, 0, one(raftpb.ConfChangeAddLearnerNode, 4)),
		{Index: 9, Term: 1, Data: []byte("a decision")},
		entry(ChangeReplace, raftpb.ConfChangeTransitionJointExplicit, one(raftpb.ConfChangeAddNode, 4), one(raftpb.ConfChangeRemoveNode, 3)),
		entry(changeLeaveJoint, 0),
		entry(ChangeAddress, 0, one(raftpb.ConfChangeUpdateNode, 4)),
		entry(ChangeRemove, 0, one(raftpb.ConfChangeRemoveNode, 2)),
	}
	changes, err := MemberChanges(Configuration{Voters: []NodeID{1, 2, 3}}, entries)
	if err != nil {
		t.Fatal(err)
	}
	want := []Configuration{
		{Index: 1, Voters: []NodeID{1, 2, 3}, Learners: []NodeID{4}},
		{Index: 2, Voters: []NodeID{1, 2, 4}, Outgoing: []NodeID{1, 2, 3}},
		{Index: 3, Voters: []NodeID{1, 2, 4}, Removed: []NodeID{3}},
		{Index: 4, Voters: []NodeID{1, 2, 4}, Removed: []NodeID{3}},
		{Index: 5, Voters: []NodeID{1, 4}, Removed: []NodeID{2, 3}},
	}
	if len(changes) != len(want) {
		t.Fatalf("%d changes, want %d", len(changes), len(want))
	}
	for i, w := range want {
		w.Addresses = map[NodeID]string{4: "d:1"}
		if got := changes[i]; !reflect.DeepEqual(got.Members, w) || got.Index != w.Index || got.Change == "" {
			t.Errorf("change %d (%s): got %+v, want %+v", i, got.Change, got.Members, w)
		}
	}
	for name, bad := range map[string]wal.Entry{
		"no change":     {Index: 1, Term: 1, Type: uint8(raftpb.EntryConfChangeV2), Data: []byte{0xff}},
		"an old kind":   {Index: 1, Term: 1, Type: uint8(raftpb.EntryConfChange)},
		"the last goes": entry(ChangeRemove, 0, one(raftpb.ConfChangeRemoveNode, 1)),
	} {
		if _, err := MemberChanges(Configuration{Voters: []NodeID{1}}, []wal.Entry{bad}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
