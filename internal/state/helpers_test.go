package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open(Options{Dir: "/data/state", FS: fs, CacheBytes: 1 << 20, Logger: quiet(),
		OnFatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openShard(t testing.TB, s *Store, id uint64) *Shard {
	t.Helper()
	h, err := s.Shard(id)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// flush does all steps of a flush of what is not recorded for undo.
func flush(t testing.TB, h *Shard, f Flush) {
	t.Helper()
	if !h.Freeze() {
		t.Fatal("a flush is under way")
	}
	j := h.Flush(f)
	if err := j.Run(); err != nil {
		t.Fatal(err)
	}
	h.Flushed(j)
}

type view interface {
	Get(key []byte) ([]byte, bool)
	Scan(start, end []byte) iter.Seq2[[]byte, []byte]
	ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte]
}

type pair struct{ k, v string }

// want returns the pairs of m in [start, end), ascending.
func want(m map[string]string, start, end []byte) (pairs []pair) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k >= string(start) && (end == nil || k < string(end)) {
			pairs = append(pairs, pair{k, m[k]})
		}
	}
	return pairs
}

func collect(seq iter.Seq2[[]byte, []byte], limit int) (pairs []pair) {
	type raw struct{ k, v []byte }
	var all []raw
	for k, v := range seq {
		if len(all) == limit {
			break
		}
		all = append(all, raw{k, v})
	}
	for _, p := range all { // only now: pairs must stay as they are after the scan
		pairs = append(pairs, pair{string(p.k), string(p.v)})
	}
	return pairs
}

// sameView compares everything that can be seen of v with m.
func sameView(v view, m map[string]string) error {
	up := want(m, nil, nil)
	if got := collect(v.Scan(nil, nil), -1); !slices.Equal(got, up) {
		return fmt.Errorf("scan: got %v, want %v", got, up)
	}
	slices.Reverse(up)
	if got := collect(v.ScanBackward(nil, nil), -1); !slices.Equal(got, up) {
		return fmt.Errorf("scan backward: got %v, want %v", got, up)
	}
	for k, w := range m {
		if got, ok := v.Get([]byte(k)); !ok || string(got) != w {
			return fmt.Errorf("get %q: got %q, %v, want %q", k, got, ok, w)
		}
	}
	return nil
}

// durable is what a reopened shard must show.
type durable struct {
	index    uint64
	meta     string
	state    map[string]string
	sessions map[string]string
	journal  []JournalEntry
}

func (d durable) clone() durable {
	d.state, d.sessions, d.journal = maps.Clone(d.state), maps.Clone(d.sessions), slices.Clone(d.journal)
	return d
}

func newDurable() durable { return durable{state: map[string]string{}, sessions: map[string]string{}} }

// sameDurable compares a shard without unflushed writes with d.
func sameDurable(h *Shard, d durable) error {
	if h.FlushedIndex() != d.index || string(h.Meta()) != d.meta {
		return fmt.Errorf("index %d, meta %q, want %d, %q", h.FlushedIndex(), h.Meta(), d.index, d.meta)
	}
	if err := sameView(h, d.state); err != nil {
		return err
	}
	sessions := map[string]string{}
	if err := h.LoadSessions(func(k, v []byte) error { sessions[string(k)] = string(v); return nil }); err != nil {
		return err
	}
	if !maps.Equal(sessions, d.sessions) {
		return fmt.Errorf("sessions %v, want %v", sessions, d.sessions)
	}
	return sameJournal(h, d.journal)
}

func sameJournal(h *Shard, want []JournalEntry) error {
	first, last := h.JournalBounds()
	if len(want) == 0 {
		if first != 0 || last != 0 {
			return fmt.Errorf("journal [%d, %d], want none", first, last)
		}
		return nil
	}
	if first != want[0].Index || last != want[len(want)-1].Index {
		return fmt.Errorf("journal [%d, %d], want [%d, %d]", first, last, want[0].Index, want[len(want)-1].Index)
	}
	got, err := h.Journal(first, last+1, 1<<30)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(got, want, sameEntry) {
		return fmt.Errorf("journal %v, want %v", got, want)
	}
	var whole []JournalEntry
	if err := h.WholeJournal(func(e JournalEntry) error { whole = append(whole, e.clone()); return nil }); err != nil || !slices.EqualFunc(whole, want, sameEntry) {
		return fmt.Errorf("the whole journal is %v (%v), want %v", whole, err, want)
	}
	if _, err := h.Journal(first-1, last+1, 1<<30); !errors.Is(err, ErrCompacted) {
		return fmt.Errorf("journal below the first: %v", err)
	}
	return nil
}

func sameEntry(a, b JournalEntry) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data)
}

// randomFlush makes up a flush after d and returns what is durable after it,
// with the given state.
func randomFlush(r *rand.Rand, d durable, state map[string]string) (Flush, durable) {
	d = d.clone()
	f := Flush{Index: d.index}
	for range r.IntN(20) {
		f.Index++
		e := JournalEntry{Index: f.Index, Term: r.Uint64N(1 << 40), Type: uint8(r.IntN(4)), Data: make([]byte, r.IntN(30))}
		f.Journal = append(f.Journal, e)
	}
	d.journal = append(d.journal, f.Journal...)
	if r.IntN(3) == 0 {
		f.TruncateJournalBelow = 1 + r.Uint64N(f.Index+3)
		d.journal = slices.DeleteFunc(d.journal, func(e JournalEntry) bool { return e.Index < f.TruncateJournalBelow })
	}
	for i := range r.IntN(5) {
		key := fmt.Sprint(i, "-", r.IntN(4))
		if r.IntN(3) == 0 {
			f.Sessions = append(f.Sessions, KV{Key: []byte(key)})
			delete(d.sessions, key)
		} else {
			value := fmt.Sprint(r.Uint32())
			f.Sessions = append(f.Sessions, KV{[]byte(key), []byte(value)})
			d.sessions[key] = value
		}
	}
	r.Shuffle(len(f.Sessions), func(i, j int) { f.Sessions[i], f.Sessions[j] = f.Sessions[j], f.Sessions[i] })
	f.Meta = fmt.Appendf(nil, "meta %d", r.Uint32())
	d.index, d.meta, d.state = f.Index, string(f.Meta), maps.Clone(state)
	return f, d
}

// caught runs f and returns what it panicked with.
func caught(f func()) (r any) {
	defer func() { r = recover() }()
	f()
	return nil
}
