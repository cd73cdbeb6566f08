package probe

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/tidwall/btree"

	"github.com/decree-raft/decree/internal/core"
)

// A Write is one write of a key.
type Write struct {
	Key, Value []byte
	Delete     bool
}

func (w *Write) String() string {
	if w.Delete {
		return fmt.Sprintf("deletes key %q", w.Key)
	}
	return fmt.Sprintf("sets key %q to %q", w.Key, w.Value)
}

func (w *Write) same(o *Write) bool {
	return w.Delete == o.Delete && bytes.Equal(w.Key, o.Key) && bytes.Equal(w.Value, o.Value)
}

// overlay is a state, and over it what was written meanwhile. The state itself is not touched.
type overlay struct {
	under  core.View
	latest btree.Map[string, *Write]
	writes []Write // in their order
}

var _ core.State = (*overlay)(nil)

func (o *overlay) write(w Write) {
	o.writes = append(o.writes, w)
	o.latest.Set(string(w.Key), &w)
}

func (o *overlay) Set(key, value []byte) {
	o.write(Write{Key: bytes.Clone(key), Value: append([]byte{}, value...)})
}
func (o *overlay) Delete(key []byte) { o.write(Write{Key: bytes.Clone(key), Delete: true}) }

func (o *overlay) Get(key []byte) ([]byte, bool) {
	if w, ok := o.latest.Get(string(key)); ok {
		return w.Value, !w.Delete
	}
	return o.under.Get(key)
}

func (o *overlay) Scan(start, end []byte) iter.Seq2[[]byte, []byte] {
	return o.merge(o.within(start, end, false), o.under.Scan(start, end), 1)
}

func (o *overlay) ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte] {
	return o.merge(o.within(start, end, true), o.under.ScanBackward(start, end), -1)
}

// within returns what was written with start <= key < end, in the order of the scan.
func (o *overlay) within(start, end []byte, backward bool) (list []*Write) {
	o.latest.Ascend(string(start), func(k string, w *Write) bool {
		if end != nil && k >= string(end) {
			return false
		}
		list = append(list, w)
		return true
	})
	if backward {
		for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
			list[i], list[j] = list[j], list[i]
		}
	}
	return list
}

// merge yields both in the order of keys, which direction 1 has ascend. What was written hides what is under it.
func (o *overlay) merge(written []*Write, under iter.Seq2[[]byte, []byte], direction int) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		next := written
		emit := func() bool {
			w := next[0]
			next = next[1:]
			return w.Delete || yield(w.Key, w.Value)
		}
		for k, v := range under {
			hidden := false
			for len(next) > 0 && direction*bytes.Compare(next[0].Key, k) <= 0 {
				hidden = bytes.Equal(next[0].Key, k)
				if !emit() {
					return
				}
			}
			if !hidden && !yield(k, v) {
				return
			}
		}
		for len(next) > 0 {
			if !emit() {
				return
			}
		}
	}
}
