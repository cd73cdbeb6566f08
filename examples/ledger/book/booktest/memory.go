// Package booktest holds the ledger's state in memory, for tests.
package booktest

import (
	"bytes"
	"iter"

	"github.com/tidwall/btree"

	"github.com/decree-raft/decree/rsm"
)

// Memory is an rsm.State over a plain ordered map. It hands out its own
// memory, and scribbles over it when the value is replaced: code that keeps what it must not keep gets caught.
type Memory struct{ m btree.Map[string, []byte] }

var _ rsm.State = (*Memory)(nil)

// Get is rsm.View.Get.
func (s *Memory) Get(key []byte) ([]byte, bool) { return s.m.Get(string(key)) }

// Set is rsm.State.Set.
func (s *Memory) Set(key, value []byte) {
	if old, ok := s.m.Set(string(key), append([]byte{}, value...)); ok {
		for i := range old {
			old[i] = 0xDB
		}
	}
}

// Delete is rsm.State.Delete.
func (s *Memory) Delete(key []byte) { s.m.Delete(string(key)) }

// Scan is rsm.View.Scan.
func (s *Memory) Scan(start, end []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		s.m.Ascend(string(start), func(k string, v []byte) bool {
			return (end == nil || k < string(end)) && yield([]byte(k), v)
		})
	}
}

// ScanBackward is rsm.View.ScanBackward.
func (s *Memory) ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		step := func(k string, v []byte) bool {
			if end != nil && k >= string(end) {
				return true
			}
			return k >= string(start) && yield([]byte(k), v)
		}
		if end == nil {
			s.m.Reverse(step)
		} else {
			s.m.Descend(string(end), step)
		}
	}
}

// Dump returns the whole state as one text, to compare.
func (s *Memory) Dump() string {
	var b bytes.Buffer
	s.m.Scan(func(k string, v []byte) bool {
		b.WriteString(k)
		b.WriteByte('=')
		b.Write(v)
		b.WriteByte('\n')
		return true
	})
	return b.String()
}

// Values returns all values, in the order of their keys.
func (s *Memory) Values() [][]byte { return s.m.Values() }
