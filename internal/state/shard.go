package state

import (
	"errors"
	"iter"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// What a key and a value may have at most. They belong to the format: every replica must take what one
// of them has taken, so nobody configures them.
const (
	MaxKeyBytes   = 64 << 10
	MaxValueBytes = 1 << 30
)

// Shard is the state of one shard as its owner sees it: the head, which on a
// leader is ahead of what is committed.
//
// All methods are for one goroutine, the owner's. Only what they return, a
// Version or a FlushJob, may go elsewhere.
type Shard struct {
	store   *Store
	id      uint64
	closed  bool
	scans   int // that are under way; no writes meanwhile
	scanAge int // of scans: EndScans ends those of an earlier one

	// Reads look into active, frozen, clean, pebble, in this order.
	active *layer // written since the last Freeze
	frozen *layer // being flushed; nil if no flush is under way
	clean  *layer // the last flushed one: the same as in pebble, but cheaper to read, and never written; may be nil at any time

	undo       undoLog
	freezeMark Mark // writes at places before it went to frozen, if there is one
	job        *FlushJob
	install    *InstallJob // Invariant: not both a job and an install

	durable bool // pebble has something of this shard
	meta    meta // of the last durable flush
	base    *base
	keyBuf  []byte // prefix of data keys, then scratch
}

func (h *Shard) load() error {
	key := prefix(nil, h.id, kindMeta)
	v, closer, err := h.store.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	h.meta, err = decodeMeta(h.id, v)
	h.durable = true
	return errors.Join(err, closer.Close())
}

// Close ends the ownership. What was not flushed is dropped, versions stay
// usable. A flush or an install that is running must be waited for first.
func (h *Shard) Close() {
	assert(!h.closed, "shard is closed twice")
	h.closed = true
	if h.install != nil {
		h.endInstall()
	}
	h.store.mu.Lock()
	delete(h.store.shards, h.id)
	h.store.mu.Unlock()
}

// Meta returns the caller's meta of the last durable flush, nil if there was none. It must not be changed.
func (h *Shard) Meta() []byte { return h.meta.opaque }

// FlushedIndex returns the applied index of the last durable flush, 0 if there was none.
func (h *Shard) FlushedIndex() uint64 { return h.meta.index }

// LayerBytes estimates the memory of what was written since the last Freeze.
func (h *Shard) LayerBytes() int64 { return h.active.bytes }

// Get returns the value under key. The value is immutable and may be kept,
// which keeps its memory.
func (h *Shard) Get(key []byte) ([]byte, bool) {
	if len(key) > MaxKeyBytes {
		return nil, false // it cannot exist
	}
	k := lookupKey(key)
	for _, l := range [...]*layer{h.active, h.frozen, h.clean} {
		if l == nil {
			continue
		}
		if e, ok := l.get(k); ok {
			return e.value()
		}
	}
	if !h.durable {
		return nil, false
	}
	h.keyBuf = append(h.keyBuf[:prefixLen], key...)
	return h.getDurable(h.keyBuf)
}

// getDurable reads what is under a whole key.
func getDurable(r pebble.Reader, key []byte) ([]byte, bool) {
	v, closer, err := r.Get(key)
	if err == nil {
		v = append(make([]byte, 0, len(v)), v...)
		err = closer.Close()
		if err == nil {
			return v, true
		}
	}
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false
	}
	panic(&ReadError{Err: err, Key: slices.Clone(key[prefixLen:])})
}

// Scan yields the pairs with start <= key < end in ascending order; a nil end
// is no bound. Nothing may be written during the scan. Pairs are immutable
// and may be kept.
func (h *Shard) Scan(start, end []byte) iter.Seq2[[]byte, []byte] { return h.scan(start, end, false) }

// ScanBackward yields the same pairs in descending order.
func (h *Shard) ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte] {
	return h.scan(start, end, true)
}

func (h *Shard) scan(start, end []byte, backward bool) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		h.scans++
		age := h.scanAge
		defer func() {
			if h.scanAge == age {
				h.scans--
			}
		}()
		s := scan{shard: h.id, start: start, end: end, backward: backward}
		s.layers[0] = h.active.sync()
		if h.frozen != nil {
			s.layers[1] = h.frozen.sync()
		}
		if h.durable {
			s.reader = h.reader()
		}
		s.run(func(k, v []byte) bool { return yield(k, v) && h.scanAge == age })
	}
}

// EndScans ends the scans that were begun and not finished, as iter.Pull allows: they
// yield nothing more. After it the shard can be written to.
func (h *Shard) EndScans() {
	if h.scans > 0 {
		h.scans = 0
		h.scanAge++
	}
}

// Set stores a copy of value under a copy of key. It panics with *LimitError
// if either has more than the format takes.
func (h *Shard) Set(key, value []byte) {
	CheckLimits(key, value, MaxKeyBytes, MaxValueBytes)
	assert(h.scans == 0 && h.install == nil, "write during a scan or an install")
	h.wrote(h.active.set(key, value))
}

// Delete removes key, which need not exist.
func (h *Shard) Delete(key []byte) {
	if len(key) > MaxKeyBytes {
		return // it cannot exist, on any replica
	}
	assert(h.scans == 0 && h.install == nil, "write during a scan or an install")
	h.wrote(h.active.remove(key))
}

func (h *Shard) wrote(key string, prev entry) {
	if h.undo.on {
		h.undo.push(key, prev)
	}
}

// JournalBytes is about what the durable journal takes on disk.
func (h *Shard) JournalBytes() int64 {
	n, err := h.store.db.EstimateDiskUsage(prefix(nil, h.id, kindJournal), prefixEnd(nil, h.id, kindJournal))
	if err != nil {
		return 0 // an estimate that cannot be had
	}
	return int64(n)
}
