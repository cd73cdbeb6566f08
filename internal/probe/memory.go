package probe

import (
	"bytes"
	"iter"

	"github.com/tidwall/btree"

	"github.com/decree-raft/decree/internal/core"
)

// Memory is an ordered state in memory. The zero value is empty. One goroutine at a time.
type Memory struct{ m btree.Map[string, []byte] }

var _ core.State = (*Memory)(nil)

// Copy returns a version that later writes to m do not change, nor those to it m. It costs next to nothing.
func (m *Memory) Copy() *Memory { return &Memory{m: *m.m.Copy()} }

// Len returns how many keys there are.
func (m *Memory) Len() int { return m.m.Len() }

// Get is that of core.View.
func (m *Memory) Get(key []byte) ([]byte, bool) { return m.m.Get(string(key)) }

// Set is that of core.State.
func (m *Memory) Set(key, value []byte) { m.m.Set(string(key), bytes.Clone(value)) }

// Delete is that of core.State.
func (m *Memory) Delete(key []byte) { m.m.Delete(string(key)) }

// Write does what an event did.
func (m *Memory) Write(writes []Write) {
	for i := range writes {
		if w := &writes[i]; w.Delete {
			m.Delete(w.Key)
		} else {
			m.Set(w.Key, w.Value)
		}
	}
}

// Scan is that of core.View.
func (m *Memory) Scan(start, end []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		m.m.Ascend(string(start), func(k string, v []byte) bool {
			return (end == nil || k < string(end)) && yield([]byte(k), v)
		})
	}
}

// ScanBackward is that of core.View.
func (m *Memory) ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		each := func(k string, v []byte) bool {
			if end != nil && k >= string(end) {
				return true // end itself
			}
			return k >= string(start) && yield([]byte(k), v)
		}
		if end == nil {
			m.m.Reverse(each)
		} else {
			m.m.Descend(string(end), each)
		}
	}
}

// A Difference is a key that two states do not agree on.
type Difference struct {
	Key            []byte
	One, Other     []byte
	InOne, InOther bool
}

// Compare returns the first key, in ascending order, that is not the same in both, or nil.
func Compare(one, other core.View) *Difference {
	next, stop := iter.Pull2(other.Scan(nil, nil))
	defer stop()
	ok, ov, more := next()
	for k, v := range one.Scan(nil, nil) {
		switch c := bytes.Compare(k, ok); {
		case !more || c < 0:
			return &Difference{Key: bytes.Clone(k), One: bytes.Clone(v), InOne: true}
		case c > 0:
			return &Difference{Key: bytes.Clone(ok), Other: bytes.Clone(ov), InOther: true}
		case !bytes.Equal(v, ov):
			return &Difference{Key: bytes.Clone(k), One: bytes.Clone(v), Other: bytes.Clone(ov), InOne: true, InOther: true}
		}
		ok, ov, more = next()
	}
	if more {
		return &Difference{Key: bytes.Clone(ok), Other: bytes.Clone(ov), InOther: true}
	}
	return nil
}
