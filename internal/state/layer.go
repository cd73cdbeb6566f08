package state

import (
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

// lookupKey aliases key for a lookup. It must never be stored.
func lookupKey(key []byte) string { return unsafe.String(unsafe.SliceData(key), len(key)) }

// keyBytes aliases a stored key for a reader, which must not write to it.
func keyBytes(key string) []byte { return unsafe.Slice(unsafe.StringData(key), len(key)) }

// ownedPair copies key and value into one allocation. Overwriting a key then
// costs one allocation too: the new key replaces the old one in the tree, so
// that the old pair can go.
func ownedPair(key, value []byte) (string, entry) {
	buf := make([]byte, len(key)+len(value))
	copy(buf, key)
	copy(buf[len(key):], value)
	return lookupKey(buf[:len(key)]), valueEntry(buf[len(key):])
}

type tree = btree.Map[string, entry]

// entryOverhead is what a pair costs beside its bytes: 32 in the tree, slack
// in its nodes, rounding by the allocator.
const entryOverhead = 64

func entryBytes(key string, e entry) int64 {
	return int64(len(key)) + int64(max(e.n, 0)) + entryOverhead
}

// layer is one ordered map of what was written since some flush.
type layer struct {
	tree  *tree
	bytes int64
}

func newLayer() *layer { return &layer{tree: new(tree)} }

// put stores e under key, which must be owned, and returns what was there.
func (l *layer) put(key string, e entry) entry {
	l.bytes += entryBytes(key, e)
	prev, had := l.tree.Set(key, e)
	if !had {
		return absent()
	}
	l.bytes -= entryBytes(key, prev)
	return prev
}

// restore puts prev, as put returned it, back under key.
func (l *layer) restore(key string, prev entry) {
	if !prev.isAbsent() {
		l.put(key, prev)
		return
	}
	e, had := l.tree.Delete(key)
	assert(had, "undo of a key that is not in its layer")
	l.bytes -= entryBytes(key, e)
}
