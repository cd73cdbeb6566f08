package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// someManifest returns a store of a few flushes, and the name and contents of its manifest.
func someManifest(t *testing.T, flushes int) (fs *vfs.MemFS, name string, b []byte) {
	t.Helper()
	fs = vfs.NewMem()
	s := open(t, fs)
	h := openShard(t, s, 1)
	for i := range flushes {
		h.Set([]byte("k"), fmt.Append(nil, i))
		flush(t, h, Flush{Index: uint64(i + 1), Meta: []byte("m"), Journal: []JournalEntry{{Index: uint64(i + 1), Term: 1}}})
	}
	h.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name, err := atomicfs.ReadMarker(fs, "/data/state/pebble", "manifest")
	if err != nil {
		t.Fatal(err)
	}
	name = "/data/state/pebble/" + name
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err = io.ReadAll(f); err != nil {
		t.Fatal(err)
	}
	return fs, name, b
}

// chunksOf returns where the chunks of a manifest begin, and its end.
func chunksOf(t *testing.T, b []byte) (starts []int) {
	t.Helper()
	at := 0
	for at = skipPadding(b, at); at < len(b); at = skipPadding(b, at) {
		size, _, ok := chunkAt(b, at)
		if !ok {
			t.Fatalf("no chunk at byte %d of %d", at, len(b))
		}
		starts = append(starts, at)
		at += size
	}
	return append(starts, at)
}

// A bit that is flipped anywhere in a manifest is found, at the record that it is in.
func TestManifestFlips(t *testing.T) {
	for _, flushes := range []int{3, 600} { // the second has more than a block
		_, _, b := someManifest(t, flushes)
		if at, why := judgeManifest(b); why != "" {
			t.Fatalf("a good manifest is damaged at byte %d: %s", at, why)
		}
		starts := chunksOf(t, b)
		if flushes > 100 && len(b) < manifestBlock {
			t.Fatalf("only %d bytes", len(b))
		}
		step := max(1, len(b)/4000)
		record := 0
		for i := 0; i < len(b); i += step {
			for record+1 < len(starts) && starts[record+1] <= i {
				record++
			}
			bad := bytes.Clone(b)
			bad[i] ^= 1 << (i % 8)
			if at, why := judgeManifest(bad); why == "" || at != starts[record] {
				t.Fatalf("byte %d of %d: damaged at %d, not %d: %q", i, len(b), at, starts[record], why)
			}
		}
	}
}

// What a crash can leave of the last record is no damage: its first bytes, or all but a sector.
func TestManifestTorn(t *testing.T) {
	_, _, b := someManifest(t, 5)
	starts := chunksOf(t, b)
	last := starts[len(starts)-2]
	for n := last; n <= len(b); n++ {
		if at, why := judgeManifest(b[:n]); why != "" {
			t.Errorf("cut at byte %d of %d: damaged at %d: %s", n, len(b), at, why)
		}
	}
	// A record of several sectors.
	data := bytes.Repeat([]byte("decree "), 300)
	long := append(b[:len(b):len(b)], 0, 0, 0, 0, byte(len(data)), byte(len(data)>>8), chunkWhole)
	long = append(long, data...)
	h := long[len(b):]
	c := sum(h[6:])
	h[0], h[1], h[2], h[3] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
	if at, why := judgeManifest(long); why != "" || len(chunksOf(t, long)) != len(starts)+1 {
		t.Fatalf("the longer manifest is damaged at %d: %s", at, why)
	}
	for from := len(b); from < len(long); {
		to := min(from+manifestSector-from%manifestSector, len(long))
		torn := bytes.Clone(long)
		clear(torn[from:to])
		if at, why := judgeManifest(torn); why != "" {
			t.Errorf("bytes %d to %d are lost: damaged at %d: %s", from, to, at, why)
		}
		from = to
	}
}

// Open refuses a damaged manifest by name and place, and before it has changed anything. Pebble itself would open some of these as
// the store was earlier.
func TestDamagedManifestIsRefused(t *testing.T) {
	fs, name, b := someManifest(t, 4)
	starts := chunksOf(t, b)
	for _, start := range starts[:len(starts)-1] {
		bad := bytes.Clone(b)
		bad[start+chunkHeader] ^= 1
		if err := writeFile(fs, name, bad); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Options{Dir: "/data/state", FS: fs, Logger: quiet()})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), fmt.Sprintf("byte %d:", start)) {
			t.Errorf("record at byte %d: %v", start, err)
		}
	}
	if err := writeFile(fs, name, b); err != nil {
		t.Fatal(err)
	}
	h := openShard(t, open(t, fs), 1)
	if h.FlushedIndex() != 4 {
		t.Errorf("flushed up to %d", h.FlushedIndex())
	}
}
