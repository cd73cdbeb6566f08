package state

import (
	"slices"
	"strings"
	"unsafe"

	"github.com/tidwall/btree"
)

// entry is a value in a layer. A slice would take 24 bytes and a tombstone
// flag 8 more; with the 16 of the key, every insertion into a leaf moves half
// as much memory this way. The bytes are immutable once written, since
// versions and callers alias them.
type entry struct {
	p *byte // nil: no value
	n int   // length of the value; if p is nil: 0 is a tombstone, -1 "not in this layer"
}

func valueEntry(v []byte) entry { return entry{unsafe.SliceData(v), len(v)} }

func tombstone() entry { return entry{} }

func absent() entry { return entry{n: -1} }

func (e entry) isAbsent() bool { return e.n < 0 }

func (e entry) value() ([]byte, bool) {
	if e.p == nil {
		return nil, false
	}
	return unsafe.Slice(e.p, e.n), true
}

// keyString makes a string of bytes that nobody will change.
func keyString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// lookupKey aliases key for a lookup. It must never be stored.
func lookupKey(key []byte) string { return unsafe.String(unsafe.SliceData(key), len(key)) }

// keyBytes aliases a stored key for a reader, which must not write to it.
func keyBytes(key string) []byte { return unsafe.Slice(unsafe.StringData(key), len(key)) }

type tree = btree.Map[string, entry]

// entryOverhead is what a pair costs beside its bytes: its cell, 32 in the tree, slots and
// slack in map and nodes, rounding by the allocator.
const entryOverhead = 128

func entryBytes(key string, e entry) int64 {
	return int64(len(key)) + int64(max(e.n, 0)) + entryOverhead
}

// cell is a key of a layer with its present value.
type cell struct {
	key   string
	e     entry
	fresh bool // Invariant: set if and only if the cell is in the layer's list of fresh ones
}

// layer is one ordered map of what was written since some flush.
//
// Order is needed by scans, versions and flushes; reads and writes of single keys are far more frequent,
// and a tree makes each of them compare a dozen keys that are not in the processor's cache: a third of all time under
// a load of ledger entries. So a hash index has the truth, and the tree is brought up to date when order is asked for.
type layer struct {
	index   map[string]*cell
	fresh   []*cell // whose value the tree does not have yet
	tree    *tree   // complete after sync only
	bytes   int64
	cells   cells
	bytesOf chunk // of keys, and of values that have replaced no other
}

func newLayer() *layer { return &layer{index: map[string]*cell{}, tree: new(tree)} }

func (l *layer) get(key string) (entry, bool) {
	if c := l.index[key]; c != nil {
		return c.e, true
	}
	return entry{}, false
}

// set stores a copy of value under key, which is copied if it is new.
// It returns the layer's own key, and what was there.
func (l *layer) set(key, value []byte) (string, entry) {
	if c := l.index[lookupKey(key)]; c != nil {
		// Alone, and not in a chunk: a value that is replaced a thousand times before the next flush must be garbage at once.
		return l.replace(c, valueEntry(append(make([]byte, 0, len(value)), value...)))
	}
	return l.add(key, valueEntry(l.bytesOf.copy(value)))
}

// remove puts a tombstone under key.
func (l *layer) remove(key []byte) (string, entry) {
	if c := l.index[lookupKey(key)]; c != nil {
		return l.replace(c, tombstone())
	}
	return l.add(key, tombstone())
}

func (l *layer) add(key []byte, e entry) (string, entry) {
	k := keyString(l.bytesOf.copy(key))
	c := l.cells.next()
	*c = cell{key: k, e: e, fresh: true}
	l.index[k] = c
	l.fresh = append(l.fresh, c)
	l.bytes += entryBytes(k, e)
	return k, absent()
}

func (l *layer) replace(c *cell, e entry) (string, entry) {
	prev := c.e
	c.e = e
	l.bytes += entryBytes(c.key, e) - entryBytes(c.key, prev)
	if !c.fresh {
		c.fresh = true
		l.fresh = append(l.fresh, c)
	}
	return c.key, prev
}

// restore puts prev, as set or remove returned it, back under key.
func (l *layer) restore(key string, prev entry) {
	l.sync()
	c := l.index[key]
	assert(c != nil, "undo of a key that is not in its layer")
	if prev.isAbsent() {
		// sorted leaves it out. Its cell and bytes stay where they are until the layer goes, and so they still count: what is
		// only ever rolled back must lead to a flush too.
		c.e = prev
		delete(l.index, key)
		l.tree.Delete(key)
		return
	}
	l.bytes += entryBytes(key, prev) - entryBytes(key, c.e)
	c.e = prev
	l.tree.Set(key, prev)
}

// sync completes the tree and returns it. Insertions in order find their place in the cache.
func (l *layer) sync() *tree {
	if len(l.fresh) > 16 {
		sortCells(l.fresh)
	}
	for i, c := range l.fresh {
		l.tree.Set(c.key, c.e)
		c.fresh = false
		l.fresh[i] = nil
	}
	l.fresh = l.fresh[:0]
	return l.tree
}

// keyed is what a cell holds.
type keyed struct {
	key string
	e   entry
}

// sorted returns all pairs in the order of their keys. It only reads the layer, and so may
// run beside readers once nothing is written to the layer any more.
func (l *layer) sorted() []keyed {
	// By value: sorting pointers to cells would miss the cache twice as often.
	pairs := make([]keyed, 0, len(l.index))
	for _, block := range l.cells.blocks {
		for i := range block {
			if c := &block[i]; !c.e.isAbsent() {
				pairs = append(pairs, keyed{c.key, c.e})
			}
		}
	}
	slices.SortFunc(pairs, func(a, b keyed) int { return strings.Compare(a.key, b.key) })
	return pairs
}

func sortCells(cells []*cell) {
	slices.SortFunc(cells, func(a, b *cell) int { return strings.Compare(a.key, b.key) })
}
