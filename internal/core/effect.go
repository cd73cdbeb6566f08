package core

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/decree-raft/decree/internal/state"
)

// An effect is one write of a key. Two digests of it travel in the entry: sixteen bits per effect, so that a
// replica that differs can name the key, and the running hash of all effects
// since the shard began (the chain), so that no difference goes unseen.
// Neither is meant to withstand an adversary.

const (
	mixA = 0xa0761d6478bd642f
	mixB = 0xe7037ed1a0b428db
	mixC = 0x8ebc6af09c88c6e3
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^mixA, b^mixB)
	return hi ^ lo
}

func setEffect(key, value []byte) uint64 { return mix(xxhash.Sum64(key), xxhash.Sum64(value)^mixC) }
func deleteEffect(key []byte) uint64     { return mix(xxhash.Sum64(key)^mixC, mixB) }

// chainEntry folds an entry's place in the history into the chain, so that
// entries without effects move it too.
func chainEntry(chain, seq uint64, time Timestamp) uint64 { return mix(chain^seq, uint64(time)) }

// readView shows the head state without its writing methods.
type readView struct{ s *state.Shard }

func (v readView) Get(key []byte) ([]byte, bool)              { return v.s.Get(key) }
func (v readView) Scan(a, b []byte) iter.Seq2[[]byte, []byte] { return v.s.Scan(a, b) }
func (v readView) ScanBackward(a, b []byte) iter.Seq2[[]byte, []byte] {
	return v.s.ScanBackward(a, b)
}

// applyState is the State that Apply writes to. It keeps the chain, and either
// collects the effects' digests (on the leader, which writes them into the
// entry) or compares them (on everybody else).
type applyState struct {
	readView
	chain  uint64
	limits *Limits // of the leader that decides; who follows takes what was decided

	digests []byte // collected, two bytes each

	checking bool
	expected []byte // still to be compared
	mismatch *effectMismatch
}

type effectMismatch struct {
	key    []byte // that this replica wrote and the leader did not write so
	delete bool
	extra  bool // the leader wrote nothing more in this event
}

func (m *effectMismatch) String() string {
	verb := "sets"
	if m.delete {
		verb = "deletes"
	}
	if m.extra {
		return fmt.Sprintf("%s key %q, which the leader did not", verb, m.key)
	}
	return fmt.Sprintf("%s key %q otherwise than the leader", verb, m.key)
}

func (s *applyState) Set(key, value []byte) {
	if !s.checking || mutated("limits-of-followers") {
		state.CheckLimits(key, value, s.limits.MaxKeyBytes, s.limits.MaxValueBytes)
	}
	s.s.Set(key, value)
	s.effect(setEffect(key, value), key, false)
}

// Delete also takes keys over the limit: there may be some of a time when it was higher.
func (s *applyState) Delete(key []byte) {
	if len(key) <= s.limits.MaxKeyBytes || !mutated("long-keys-stay") {
		s.s.Delete(key)
	}
	s.effect(deleteEffect(key), key, true)
}

func (s *applyState) effect(e uint64, key []byte, del bool) {
	s.chain = mix(s.chain, e)
	if !s.checking {
		s.digests = binary.LittleEndian.AppendUint16(s.digests, uint16(e))
		return
	}
	if s.mismatch != nil {
		return
	}
	if len(s.expected) < 2 {
		s.mismatch = &effectMismatch{key: append([]byte(nil), key...), delete: del, extra: true}
		return
	}
	if binary.LittleEndian.Uint16(s.expected) != uint16(e) {
		s.mismatch = &effectMismatch{key: append([]byte(nil), key...), delete: del}
	}
	s.expected = s.expected[2:]
}

// collect prepares for an event that this replica decides.
func (s *applyState) collect() {
	s.checking, s.digests = false, s.digests[:0]
}

// check prepares for an event whose digests came with the entry.
func (s *applyState) check(expected []byte) {
	s.checking, s.expected, s.mismatch = true, expected, nil
}
