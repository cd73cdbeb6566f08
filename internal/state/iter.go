package state

import (
	"bytes"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/tidwall/btree"
)

// scan merges the layers and pebble in one direction. The clean layer takes
// no part: pebble has all of it.
type scan struct {
	shard      uint64
	start, end []byte // nil end: no bound
	backward   bool
	layers     [2]*tree      // newest first, nil if none
	reader     pebble.Reader // nil if nothing is durable

	sources [3]source // newest first
	n       int
	arena   []byte // for copies of what pebble yields
}

// source is a cursor over a layer or over pebble, at a pair while ok.
type source struct {
	mem *btree.MapIter[string, entry] // nil: pebble
	peb *pebble.Iterator

	key string // aliases the iterator's memory
	val entry
	ok  bool
}

// run yields pairs until there are none or yield returns false.
func (s *scan) run(yield func(k, v []byte) bool) {
	if s.end != nil && bytes.Compare(s.start, s.end) >= 0 {
		return
	}
	defer s.close()
	s.open()
	for {
		i := s.next()
		if i < 0 {
			return
		}
		src := &s.sources[i]
		if v, ok := src.val.value(); ok {
			k := keyBytes(src.key)
			if src.mem == nil {
				k, v = s.own(k), s.own(v)
			}
			if !yield(k, v) {
				return
			}
		}
		s.advance(i)
	}
}

func (s *scan) open() {
	for _, t := range s.layers {
		if t == nil || t.Len() == 0 {
			continue
		}
		it := t.Iter()
		s.add(source{mem: &it})
	}
	if s.reader == nil {
		return
	}
	it, err := s.reader.NewIter(s.iterOptions())
	if err != nil {
		s.fail(err)
	}
	s.add(source{peb: it})
}

func (s *scan) add(src source) {
	s.sources[s.n] = src
	s.n++
	s.first(&s.sources[s.n-1])
}

func (s *scan) iterOptions() *pebble.IterOptions {
	o := &pebble.IterOptions{LowerBound: append(prefix(nil, s.shard, kindData), s.start...)}
	if s.end == nil {
		o.UpperBound = prefixEnd(nil, s.shard, kindData)
	} else {
		o.UpperBound = append(prefix(nil, s.shard, kindData), s.end...)
	}
	return o
}

func (s *scan) first(src *source) {
	var ok bool
	switch {
	case src.mem == nil && s.backward:
		ok = src.peb.Last()
	case src.mem == nil:
		ok = src.peb.First()
	case !s.backward:
		ok = src.mem.Seek(lookupKey(s.start))
	case s.end != nil && src.mem.Seek(lookupKey(s.end)):
		ok = src.mem.Prev()
	default: // also if Seek found nothing: Prev would then leave out the last
		ok = src.mem.Last()
	}
	s.load(src, ok)
}

// load takes over the pair at which the iterator stands.
func (s *scan) load(src *source, ok bool) {
	src.ok = ok
	switch {
	case src.mem != nil && ok:
		src.key, src.val = src.mem.Key(), src.mem.Value()
		src.ok = s.inRange(src.key)
	case src.mem != nil:
	case ok:
		v, err := src.peb.ValueAndErr()
		if err != nil {
			s.fail(err)
		}
		src.key = lookupKey(src.peb.Key()[prefixLen:])
		src.val = valueEntry(nonNil(v))
	default:
		if err := src.peb.Error(); err != nil {
			s.fail(err)
		}
	}
}

// nonNil keeps an empty value from looking like a tombstone.
func nonNil(v []byte) []byte {
	if v == nil {
		return []byte{}
	}
	return v
}

// inRange checks the far end of the range; the near end is where the cursor began.
func (s *scan) inRange(key string) bool {
	if s.backward {
		return key >= lookupKey(s.start)
	}
	return s.end == nil || key < lookupKey(s.end)
}

// next returns the source whose pair comes next, the newest of those at the same key, or -1.
func (s *scan) next() int {
	best := -1
	for i := range s.sources[:s.n] {
		src := &s.sources[i]
		if !src.ok {
			continue
		}
		if best < 0 || (s.backward && src.key > s.sources[best].key) || (!s.backward && src.key < s.sources[best].key) {
			best = i
		}
	}
	return best
}

// advance moves every source that stands at the key of source i; i itself
// last, because its key is what the others are compared with.
func (s *scan) advance(i int) {
	key := s.sources[i].key
	for j := range s.sources[:s.n] {
		if src := &s.sources[j]; j != i && src.ok && src.key == key {
			s.step(src)
		}
	}
	s.step(&s.sources[i])
}

func (s *scan) step(src *source) {
	var ok bool
	switch {
	case src.mem != nil && s.backward:
		ok = src.mem.Prev()
	case src.mem != nil:
		ok = src.mem.Next()
	case s.backward:
		ok = src.peb.Prev()
	default:
		ok = src.peb.Next()
	}
	s.load(src, ok)
}

const (
	arenaMin = 512
	arenaMax = 16 << 10
)

// own copies b out of pebble's memory. Pairs must outlive the scan, and one
// allocation for each would cost more than reading them.
func (s *scan) own(b []byte) []byte {
	if cap(s.arena)-len(s.arena) < len(b) {
		if len(b) > arenaMax/4 {
			return append(make([]byte, 0, len(b)), b...)
		}
		s.arena = make([]byte, 0, min(max(arenaMin, 2*cap(s.arena), 2*len(b)), arenaMax))
	}
	n := len(s.arena)
	s.arena = append(s.arena, b...)
	return s.arena[n:len(s.arena):len(s.arena)]
}

func (s *scan) fail(err error) { panic(&ReadError{Err: err, Key: slices.Clone(s.start)}) }

func (s *scan) close() {
	for i := range s.sources[:s.n] {
		if it := s.sources[i].peb; it != nil {
			// Its error has been seen by load, unless the consumer stopped early
			// or another panic is under way; then nothing more was read.
			_ = it.Close()
		}
	}
}
