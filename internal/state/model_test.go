package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// model is a shard and what it must look like.
type model struct {
	t *testing.T
	r *rand.Rand
	h *Shard

	head map[string]string
	base Mark                // of hist[0]
	hist []map[string]string // the head at each mark from base on; the last is the present one

	frozen      bool
	frozenMark  Mark
	frozenState map[string]string
	job         *FlushJob
	next        durable // after job
	truncate    uint64  // by job
	durable     durable
	ran         bool

	cuts    int
	cut     []string // tables, nil if there are none yet
	cutOf   durable
	install *InstallJob // by the tables of cut
	put     bool        // install has run

	versions []openVersion
}

type openVersion struct {
	v    *Version
	want map[string]string
}

func (m *model) end() Mark { return m.base + Mark(len(m.hist)-1) }

func (m *model) resetUndo() { m.hist = []map[string]string{maps.Clone(m.head)} }

func (m *model) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("shard %d: %v", m.h.id, err)
	}
}

func (m *model) key() []byte {
	const alphabet = "\x00ab\xff"
	k := make([]byte, m.r.IntN(4))
	for i := range k {
		k[i] = alphabet[m.r.IntN(len(alphabet))]
	}
	return k
}

func (m *model) write() {
	key := m.key()
	if m.r.IntN(3) == 0 {
		m.h.Delete(key)
		delete(m.head, string(key))
	} else {
		value := bytes.Repeat([]byte{byte(m.r.Uint32())}, m.r.IntN(20))
		m.h.Set(key, value)
		m.head[string(key)] = string(value)
		clear(value) // Set has copied it
	}
	clear(key)
	if m.h.undo.on {
		m.hist = append(m.hist, maps.Clone(m.head))
	} else {
		m.resetUndo()
	}
}

func (m *model) mark() Mark { return m.base + Mark(m.r.IntN(len(m.hist))) }

func (m *model) rollback() {
	to := m.mark()
	if m.job != nil {
		to = max(to, m.frozenMark)
	}
	m.h.Rollback(to)
	m.hist = m.hist[:to-m.base+1]
	m.head = maps.Clone(m.hist[to-m.base])
	if m.frozen && to < m.frozenMark {
		m.frozenMark, m.frozenState = to, maps.Clone(m.head)
	}
	if m.frozen && m.job == nil && len(m.h.active.index) == 0 && m.r.IntN(2) == 0 {
		m.h.Unfreeze()
		m.frozen = false
	}
}

func (m *model) release() {
	upTo := m.mark()
	m.h.Release(upTo)
	m.hist = m.hist[upTo-m.base:]
	m.base = upTo
}

func (m *model) toggleUndo() {
	if m.h.undo.on {
		m.h.Release(m.end())
		m.base = m.end()
		m.resetUndo()
	}
	m.h.SetUndo(!m.h.undo.on)
}

func (m *model) version() {
	v, want := m.h.Version(), m.head
	if m.r.IntN(2) == 0 {
		v.Close()
		at := m.mark()
		v, want = m.h.CommittedVersion(at), m.hist[at-m.base]
	}
	m.versions = append(m.versions, openVersion{v, maps.Clone(want)})
	if len(m.versions) > 6 {
		m.closeVersion(m.r.IntN(len(m.versions)))
	}
}

func (m *model) closeVersion(i int) {
	o := m.versions[i]
	m.check(sameView(o.v, o.want))
	o.v.Close()
	m.versions = slices.Delete(m.versions, i, i+1)
}

// flushStep does the next step of a flush, if it is allowed.
func (m *model) flushStep() {
	switch {
	case !m.frozen:
		if !m.h.Freeze() {
			m.t.Fatal("freeze refused")
		}
		m.frozen, m.frozenMark, m.frozenState = true, m.end(), maps.Clone(m.head)
	case m.job == nil:
		if m.h.Freeze() {
			m.t.Fatal("second freeze")
		}
		if m.base < m.frozenMark && len(m.hist) > 1 {
			if r := caught(func() { m.h.Flush(Flush{Index: 1 << 60}) }); r == nil {
				m.t.Fatal("flush of speculative writes")
			}
			return
		}
		var f Flush
		f, m.next = randomFlush(m.r, m.durable, m.frozenState)
		m.job, m.truncate = m.h.Flush(f), f.TruncateJournalBelow
	case !m.ran:
		m.check(m.job.Run())
		m.ran = true
	default:
		m.h.Flushed(m.job)
		m.durable, m.job, m.ran, m.frozen = m.next, nil, false, false
	}
}

// cutStep cuts what is durable now. A flush that has run is, though nobody has said Flushed.
func (m *model) cutStep() {
	at := m.durable
	if m.ran {
		at = m.next
	}
	if at.meta == "" {
		if _, err := m.h.store.Cut(m.h.id); !errors.Is(err, ErrNotFlushed) {
			m.t.Fatalf("cut of nothing: %v", err)
		}
		return
	}
	m.cuts++
	fs := m.h.store.opts.FS
	paths, out := cutTo(m.t, m.h.store, fs, m.h.id, fmt.Sprintf("/cuts/%d-%d", m.h.id, m.cuts), 1<<10)
	if out.Index != at.index || string(out.Meta) != at.meta {
		m.t.Fatalf("cut at %d, %q, want %d, %q", out.Index, out.Meta, at.index, at.meta)
	}
	m.cut, m.cutOf = paths, installed(at)
}

// receiveStep makes up tables of another replica, that is ahead for the most part and has other keys.
func (m *model) receiveStep() {
	fs := m.h.store.opts.FS
	m.cuts++
	dir := fmt.Sprintf("/peers/%d-%d", m.h.id, m.cuts)
	s := mustOpenAt(m.t, fs, dir)
	peer := &model{t: m.t, r: m.r, h: openShard(m.t, s, m.h.id), head: map[string]string{}}
	for range m.r.IntN(100) {
		peer.write()
	}
	d := newDurable()
	if d.index = m.durable.index; d.index > 10 {
		d.index += m.r.Uint64N(40) - 10
	}
	f, d := randomFlush(m.r, d, peer.head)
	flush(m.t, peer.h, f)
	m.cut, _ = cutTo(m.t, s, fs, m.h.id, dir+"/cut", 1<<10)
	m.cutOf = installed(d)
	peer.h.Close()
	m.check(s.Close())
}

// installStep does the next step of an install, if it is allowed.
func (m *model) installStep() {
	switch {
	case m.install == nil:
		switch m.r.IntN(3) {
		case 0:
			m.cutStep()
		case 1:
			m.receiveStep()
		}
		if m.cut == nil {
			return
		}
		var err error
		m.install, err = m.h.Install(Install{Index: m.cutOf.index, Tables: m.cut})
		switch {
		case m.job != nil && errors.Is(err, ErrBusy):
		case m.job == nil && m.cutOf.index < m.durable.index && errors.Is(err, ErrStale):
		case m.job != nil || m.cutOf.index < m.durable.index || err != nil:
			m.t.Fatalf("install: %v", err)
		}
	case !m.put && m.r.IntN(8) == 0:
		m.h.AbandonInstall(m.install)
		m.install = nil
	case !m.put:
		m.check(m.install.Run(m.t.Context()))
		m.put = true
	default:
		m.h.Installed(m.install)
		m.install, m.put, m.frozen = nil, false, false
		m.durable, m.head = m.cutOf, maps.Clone(m.cutOf.state)
		m.base = m.h.Mark()
		m.resetUndo()
		m.check(sameDurable(m.h, m.durable))
	}
}

func (m *model) scan() {
	start, end := m.key(), m.key()
	if m.r.IntN(3) == 0 {
		end = nil
	}
	limit := m.r.IntN(30)
	up := want(m.head, start, end)
	got := collect(m.h.Scan(start, end), limit)
	if !slices.Equal(got, up[:min(limit, len(up))]) {
		m.t.Fatalf("scan %q %q: got %v, want %v", start, end, got, up)
	}
	slices.Reverse(up)
	got = collect(m.h.ScanBackward(start, end), limit)
	if !slices.Equal(got, up[:min(limit, len(up))]) {
		m.t.Fatalf("scan backward %q %q: got %v, want %v", start, end, got, up)
	}
	key := m.key()
	v, ok := m.h.Get(key)
	if w, wok := m.head[string(key)]; ok != wok || string(v) != w {
		m.t.Fatalf("get %q: got %q, %v, want %q, %v", key, v, ok, w, wok)
	}
}

func (m *model) journal() {
	j := m.durable.journal
	for m.job != nil && len(j) > 0 && j[0].Index < m.truncate {
		j = j[1:]
	}
	if len(j) == 0 {
		if first, last := m.h.JournalBounds(); first != 0 || last != 0 {
			m.t.Fatalf("journal [%d, %d], want none", first, last)
		}
		return
	}
	first, last := j[0].Index, j[len(j)-1].Index
	lo := first + m.r.Uint64N(uint64(len(j)))
	hi := lo + m.r.Uint64N(10)
	limit := m.r.Uint64N(200)
	got, err := m.h.Journal(lo, hi, limit)
	m.check(err)
	var w []JournalEntry
	for size := uint64(0); lo < hi && lo <= last; lo++ {
		e := j[lo-first]
		if size += uint64(len(e.Data)); size > limit && len(w) > 0 {
			break
		}
		w = append(w, e)
	}
	if !slices.EqualFunc(got, w, sameEntry) {
		m.t.Fatalf("journal: got %v, want %v", got, w)
	}
}

func (m *model) step() {
	n := m.r.IntN(100)
	if m.install != nil { // the shard can be read, and no more
		switch {
		case n < 40:
			m.installStep()
		case n < 70:
			m.scan()
		case n < 80:
			m.version()
		default:
			m.journal()
		}
		return
	}
	switch m.r.IntN(200) {
	case 0:
		m.installStep()
	case 1:
		m.cutStep()
	}
	if m.install != nil {
		return
	}
	switch {
	case n < 50:
		m.write()
	case n < 65:
		m.scan()
	case n < 72:
		m.version()
	case n < 76:
		m.rollback()
	case n < 82:
		m.release()
	case n < 83:
		m.toggleUndo()
	case n < 97:
		m.flushStep()
	case n < 98:
		m.h.clean = nil
	case n < 99:
		m.journal()
	default:
		m.check(sameView(m.h, m.head))
		if held := m.h.LayerBytes(); held < int64(len(m.h.active.index))*entryOverhead { // and what was rolled back
			m.t.Fatalf("layer of %d keys and %d bytes", len(m.h.active.index), m.h.LayerBytes())
		}
	}
}

// attach begins with what is durable.
func (m *model) attach(s *Store, id uint64) {
	m.h = openShard(m.t, s, id)
	m.check(sameDurable(m.h, m.durable))
	m.head, m.base = maps.Clone(m.durable.state), 0
	m.resetUndo()
	m.h.SetUndo(m.r.IntN(4) > 0)
	m.frozen, m.job, m.ran = false, nil, false
	m.install, m.put = nil, false
}

func (m *model) detach() {
	for len(m.versions) > 0 {
		m.closeVersion(0)
	}
	if m.ran { // durable, though nobody has said Flushed
		m.durable = m.next
	}
	if m.put {
		m.durable = m.cutOf
	}
	m.h.Close()
}

func TestModel(t *testing.T) {
	rounds, steps := 10, 4000
	if testing.Short() {
		rounds, steps = 3, 2000
	}
	r, fs := testkit.Random(t), vfs.NewMem()
	var models []*model
	for range 5 {
		models = append(models, &model{t: t, r: r, durable: newDurable()})
	}
	for range rounds {
		s := open(t, fs)
		var known []uint64
		for i, m := range models {
			m.attach(s, uint64(i*i+1))
			if m.durable.meta != "" {
				known = append(known, m.h.id)
			}
		}
		if ids, err := s.ShardIDs(); err != nil || !slices.Equal(ids, known) {
			t.Fatalf("shards %v, %v, want %v", ids, err, known)
		}
		for range steps {
			models[r.IntN(len(models))].step()
		}
		for _, m := range models {
			m.detach()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUndoLogReusesMemory(t *testing.T) {
	h := openShard(t, open(t, vfs.NewMem()), 1)
	h.SetUndo(true)
	key := []byte("key")
	for range 10000 {
		for range 10 {
			h.Set(key, key)
		}
		h.Release(h.Mark() - 5)
	}
	if c := cap(h.undo.recs); c > 100 {
		t.Errorf("undo log of 15 records at most has grown to %d", c)
	}
	if h.LayerBytes() != int64(2*len(key)+entryOverhead) {
		t.Errorf("one key takes %d bytes", h.LayerBytes())
	}
}

func TestLimits(t *testing.T) {
	s := open(t, vfs.NewMem())
	h, err := s.Shard(1)
	if err != nil {
		t.Fatal(err)
	}
	longest, value := make([]byte, MaxKeyBytes), []byte("v")
	h.Set(longest, value)
	tooLong := append(longest, 0)
	for _, set := range []func(){
		func() { h.Set(tooLong, nil) },
		func() { CheckLimits([]byte("k"), make([]byte, 6), 1, 5) },
	} {
		err, ok := caught(set).(*LimitError)
		if !ok || err.Size != err.Limit+1 {
			t.Errorf("got %v", err)
		}
	}
	v := h.Version()
	defer v.Close()
	for name, get := range map[string]func([]byte) ([]byte, bool){"head": h.Get, "version": v.Get} {
		if got, ok := get(longest); !ok || string(got) != "v" {
			t.Errorf("%s: the longest key has %q", name, got)
		}
		if _, ok := get(tooLong); ok {
			t.Errorf("%s: a key that cannot be is there", name)
		}
	}
	h.Delete(tooLong)
	h.Delete(longest)
	if n := len(collect(h.Scan(nil, nil), -1)); n != 0 {
		t.Errorf("%d keys", n)
	}
	if _, err := s.Shard(1); !errors.Is(err, ErrShardOpen) {
		t.Errorf("second owner: %v", err)
	}
}

func TestAssertions(t *testing.T) {
	h := openShard(t, open(t, vfs.NewMem()), 1)
	h.SetUndo(true)
	h.Set([]byte("a"), nil)
	v := h.Version()
	v.Close()
	for name, f := range map[string]func(){
		"undo off with records":   func() { h.SetUndo(false) },
		"mark of the future":      func() { h.Rollback(2) },
		"version closed twice":    v.Close,
		"closed version read":     func() { v.Get(nil) },
		"flush without freeze":    func() { h.Flush(Flush{Index: 1}) },
		"unfreeze without freeze": h.Unfreeze,
		"write during a scan": func() {
			for range h.Scan(nil, nil) {
				h.Set([]byte("b"), nil)
			}
		},
	} {
		if caught(f) == nil {
			t.Errorf("%s: no panic", name)
		}
	}
	h.Set([]byte("b"), nil) // the scan that panicked is over
}

// Tables split, and journal tables of their own, are ingested as one.
func TestLargeFlush(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 160 MB")
	}
	fs := vfs.NewMem()
	s := open(t, fs)
	h := openShard(t, s, 7)
	value := make([]byte, 64<<10)
	r := testkit.Random(t)
	for i := range value {
		value[i] = byte(r.Uint32()) // does not compress
	}
	const keys = 2500 // three tables
	for i := range keys {
		h.Set(fmt.Appendf(nil, "%06d", i), value)
	}
	var journal []JournalEntry
	for i := range 40 {
		journal = append(journal, JournalEntry{Index: uint64(i + 1), Term: 1, Data: value})
	}
	flush(t, h, Flush{Index: 40, Meta: []byte("m"), Journal: journal, Sessions: []KV{{[]byte("s"), []byte("v")}}})
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if names, err := fs.List("/data/state/ingest"); err != nil || len(names) != 0 {
		t.Errorf("left in ingest: %v, %v", names, err)
	}
	s = open(t, fs)
	h = openShard(t, s, 7)
	if m := s.Metrics(); m.DiskBytes < keys*uint64(len(value)) {
		t.Errorf("%+v", m)
	}
	n := 0
	for k, v := range h.Scan(nil, nil) {
		if string(k) != fmt.Sprintf("%06d", n) || !bytes.Equal(v, value) {
			t.Fatalf("key %q at %d", k, n)
		}
		n++
	}
	if n != keys {
		t.Errorf("%d keys", n)
	}
	if err := sameJournal(h, journal); err != nil {
		t.Error(err)
	}
}
