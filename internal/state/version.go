package state

import (
	"bytes"
	"errors"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// base is pebble as of some flush of a shard. Versions of the same flush
// share one, and it ends with the last of them: one that the shard
// itself held would keep every table of every shard that compactions have replaced.
//
// It is a snapshot that is "eventually file-only", which here means at once, since nothing is ever in
// the memtable: it pins the tables. A plain snapshot sees through an excise: after an Install,
// all keys of the shard would be absent from it.
type base struct {
	store *Store
	snap  *pebble.EventuallyFileOnlySnapshot
	refs  atomic.Int64
}

// newBase pins pebble as it is now, for the keys of one shard.
func (s *Store) newBase(shard uint64) *base {
	b := &base{store: s, snap: s.db.NewEventuallyFileOnlySnapshot([]pebble.KeyRange{shardSpan(shard)})}
	b.refs.Store(1)
	s.pins.add(b)
	return b
}

// get is getDurable on what is pinned. The snapshot's own Get would hide an error of the value.
func (b *base) get(key []byte) ([]byte, bool) {
	it, err := b.snap.NewIter(nil)
	if err != nil {
		panic(&ReadError{Err: err, Key: slices.Clone(key[prefixLen:])})
	}
	var v []byte
	found := it.SeekPrefixGE(key) && bytes.Equal(it.Key(), key)
	if found {
		if v, err = it.ValueAndErr(); err == nil {
			v = append(make([]byte, 0, len(v)), v...)
		}
	}
	if err = errors.Join(err, it.Error(), it.Close()); err != nil {
		panic(&ReadError{Err: err, Key: slices.Clone(key[prefixLen:])})
	}
	return v, found
}

// acquire takes a reference unless the last one has been dropped already.
func (b *base) acquire() bool {
	for n := b.refs.Load(); n > 0; n = b.refs.Load() {
		if b.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

func (b *base) release() error {
	if b.refs.Add(-1) > 0 {
		return nil
	}
	b.store.pins.remove(b)
	return b.snap.Close()
}

// Version is the state of a shard at one moment. It never changes. It may be
// used on any goroutine, by several at once, and must be closed exactly once
// after all use. A version that stays open for long keeps old values on disk.
type Version struct {
	store  *Store
	shard  uint64
	layers [2]*tree // newest first, nil if none
	clean  *layer
	base   *base // nil if nothing was durable
	closed atomic.Bool
}

// Version returns the head as it is now. The cost does not depend on its size.
func (h *Shard) Version() *Version {
	v := &Version{store: h.store, shard: h.id, clean: h.clean}
	v.layers[0] = h.active.sync().Copy()
	if h.frozen != nil {
		v.layers[1] = h.frozen.sync().Copy()
	}
	if h.durable {
		v.base = h.acquireBase()
	}
	h.store.versions.Add(1)
	return v
}

// acquireBase returns pebble as of the last flush. That of a flush that has
// run but is not yet Flushed may be in it or not: the frozen layer lies above
// it and says the same.
func (h *Shard) acquireBase() *base {
	if h.base == nil || !h.base.acquire() {
		h.base = h.store.newBase(h.id)
	}
	return h.base
}

// CommittedVersion is like Version, without the writes recorded after the mark.
func (h *Shard) CommittedVersion(m Mark) *Version {
	v := h.Version()
	h.undo.undo(m, func(at Mark, r *undoRec) {
		t := v.layers[0]
		if h.layerAt(at) == h.frozen {
			t = v.layers[1]
		}
		if r.prev.isAbsent() {
			t.Delete(r.key)
		} else {
			t.Set(r.key, r.prev)
		}
	})
	return v
}

// Close gives back what the version holds. A second call panics.
func (v *Version) Close() {
	assert(v.closed.CompareAndSwap(false, true), "version is closed twice")
	v.layers, v.clean = [2]*tree{}, nil
	if v.base != nil {
		// A snapshot's Close only unlinks it; its error is always nil.
		err := v.base.release()
		assert(err == nil, "snapshot does not close")
	}
	v.store.versions.Add(-1)
}

// Get is as Shard.Get.
func (v *Version) Get(key []byte) ([]byte, bool) {
	assert(!v.closed.Load(), "read of a closed version")
	if len(key) > MaxKeyBytes {
		return nil, false // it cannot exist
	}
	k := lookupKey(key)
	for _, t := range v.layers {
		if t == nil {
			continue
		}
		if e, ok := t.Get(k); ok {
			return e.value()
		}
	}
	if v.clean != nil {
		if e, ok := v.clean.get(k); ok {
			return e.value()
		}
	}
	if v.base == nil {
		return nil, false
	}
	return v.base.get(append(prefix(make([]byte, 0, prefixLen+len(key)), v.shard, kindData), key...))
}

// Scan is as Shard.Scan.
func (v *Version) Scan(start, end []byte) iter.Seq2[[]byte, []byte] { return v.scan(start, end, false) }

// ScanBackward is as Shard.ScanBackward.
func (v *Version) ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte] {
	return v.scan(start, end, true)
}

func (v *Version) scan(start, end []byte, backward bool) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		assert(!v.closed.Load(), "read of a closed version")
		s := scan{shard: v.shard, start: start, end: end, backward: backward, layers: v.layers}
		if v.base != nil {
			s.reader = v.base.snap
		}
		s.run(yield)
	}
}
