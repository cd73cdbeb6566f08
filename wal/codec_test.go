package wal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// sample uses every part of the format.
func sample() []Record {
	return []Record{
		{Shard: 1, HardState: HardState{Term: 3, Vote: 2, Commit: 300}},
		{Shard: 2, Forget: true},
		{Shard: 300, Forget: true, RestartAfter: 1 << 40, HardState: HardState{Term: 1},
			Entries: []Entry{{Index: 1<<40 + 1, Term: 3, Type: 2, Data: []byte("abc")}, {Index: 1<<40 + 2, Term: 300}}},
		{Shard: 1<<64 - 1, Entries: []Entry{{Index: 7, Term: 1, Data: make([]byte, 200)}}},
	}
}

func TestCodecRoundTrip(t *testing.T) {
	b := encodePayload(nil, 9, 5, sample())
	p, err := decodePayload(9, b)
	if err != nil {
		t.Fatal(err)
	}
	if p.base != 5 || !reflect.DeepEqual(p.records, sample()) {
		t.Fatalf("got %+v", p)
	}
	size := 0
	for _, r := range sample() {
		size += recordBytes(&r)
	}
	if len(b) > payloadHeader+recordOverhead+size {
		t.Fatalf("%d bytes, more than the bound of %d", len(b), size)
	}
}

// The checksum covers every byte, and the place: a payload is good under its own index only.
func TestCodecRefuses(t *testing.T) {
	b := encodePayload(nil, 9, 5, sample())
	if _, err := decodePayload(8, b); !errors.Is(err, ErrMalformed) {
		t.Fatalf("under another index: %v", err)
	}
	for n := range b {
		if _, err := decodePayload(9, b[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		c := bytes.Clone(b)
		c[n] ^= 1 << (n % 8)
		if _, err := decodePayload(9, c); !errors.Is(err, ErrMalformed) {
			t.Fatalf("flipped at %d: %v", n, err)
		}
	}
	// Behind a right checksum, every count and length is still checked.
	uv := binary.AppendUvarint
	for name, body := range map[string][]byte{
		"empty":             {},
		"many records":      uv([]byte{0}, 1<<60),
		"unknown flag":      {0, 1, 1, 8, 0},
		"restart after 0":   {0, 1, 1, flagRestart, 0, 0},
		"empty hard state":  {0, 1, 1, flagHardState, 0, 0, 0, 0},
		"many entries":      uv([]byte{0, 1, 1, 0}, 1<<60),
		"index 0":           {0, 1, 1, 0, 1, 0, 1, 0, 0},
		"index overflow":    append(uv([]byte{0, 1, 1, 0, 1}, 1<<64-1), 1, 0, 0),
		"long data":         append(uv([]byte{0, 1, 1, 0, 1, 1, 1, 0}, 1<<50), 'x'),
		"overlong varint":   bytes.Repeat([]byte{0xff}, 11),
		"more behind":       {0, 0, 0},
		"record is missing": {0, 2, 1, 0, 0, 1},
	} {
		if p, err := decodeBody(body); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %+v", name, err, p)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b := encodePayload(nil, 1, 5, sample())
	f.Add(b[payloadHeader : len(b)-1])
	f.Add([]byte{})
	f.Add([]byte{0, 1, 1, 1, 2, 3, 4, 1, 9, 2, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := decodeBody(body)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		again, err := decodePayload(1, encodePayload(nil, 1, p.base, p.records))
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%v: %+v became %+v", err, p, again)
		}
	})
}

// Judging any bytes ends, in range and without a panic.
func FuzzJudge(f *testing.F) {
	b := lastRecord(f, []byte("some data"))
	f.Add(b.whole[b.start:b.end], int64(0))
	f.Add(b.whole[:b.end], b.start)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0x87, 9}, int64(8))
	f.Fuzz(func(t *testing.T, rest []byte, at int64) {
		if at < 0 || at > 1<<40 || len(bytes.TrimRight(rest, "\x00")) == 0 {
			return
		}
		if v := judgeTail(rest, at/8*8, 0); v.offset < 0 || v.offset > int64(len(rest)) || v.reason == "" {
			t.Fatalf("%+v", v)
		}
	})
}

var update = flag.Bool("wal.update", false, "write testdata anew; only ever for a new version")

// What version 1 wrote opens for ever, and is still what is written.
func TestGolden(t *testing.T) {
	const file = "testdata/v1.hex"
	w, _ := openT(t, t.TempDir())
	appendT(t, w, sample()...)
	appendT(t, w, Record{Shard: 300, Entries: entriesOf(301, 1<<40+2, 1<<40+3, 4)})
	closeT(t, w)
	path := filepath.Join(w.opts.Dir, segmentDir, segmentName(0, 0))
	ends := frameEnds(t, path)
	now := readT(t, path)[:ends[len(ends)-1]]
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		writeT(t, file, []byte(hex.Dump(now)))
	}
	if want := string(readT(t, file)); hex.Dump(now) != want {
		t.Fatalf("writes\n%swant\n%s", hex.Dump(now), want)
	}
	_, rec := openT(t, w.opts.Dir)
	if len(rec.Shards) != 3 {
		t.Fatalf("%d shards", len(rec.Shards))
	}
	l := rec.Shards[300]
	if l.RestartAfter != 1<<40 || l.HardState != (HardState{Term: 1}) || len(l.Entries) != 3 {
		t.Fatalf("got %+v", l)
	}
	wantEntries(t, rec, 1<<64-1, sample()[3].Entries)
}
