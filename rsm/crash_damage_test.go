package rsm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/decree-raft/decree/internal/crash"
	"github.com/decree-raft/decree/internal/testkit"
)

// One bit of a node's files is flipped: the node must refuse, with the file's name, or have everything as if nothing
// had happened, because the bit is of no consequence. It must never open with something else.
func TestFlippedBits(t *testing.T) {
	testkit.SkipUnderRace(t)
	h := record(t)
	at := bestToDamage(t, h)
	d := crash.NewDisk()
	for i := range h.ops[:at] {
		d.Apply(&h.ops[i])
	}
	image := d.Whole()
	flips := 12 // per file
	if testing.Short() {
		flips = 3
	}
	if *crashAll {
		flips = 400
	}
	r := rand.New(rand.NewPCG(*crashSeed, 2))
	kinds := map[string]*[3]int{} // refused, harmless, wrong
	paths, sizes := image.Files()
	dir := testkit.Scratch(t)
	for i, path := range paths {
		kind := fileKind(path)
		if kinds[kind] == nil {
			kinds[kind] = &[3]int{}
		}
		for n := range min(flips, sizes[i]) {
			offset := r.IntN(sizes[i])
			if n%4 == 0 { // where the last thing was written
				end := max(1, image.Written(path))
				offset = max(0, end-1-r.IntN(min(end, 40)))
			}
			damaged, err := image.Flip(path, offset, r.UintN(8))
			if err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(dir, fmt.Sprint(i, "-", n))
			if err := damaged.Put(to); err != nil {
				t.Fatal(err)
			}
			cfg := crashConfig(to)
			cfg.noCompactions = true // one that finds damage is run for ever, and all of these would be
			f := inspect(cfg, h.sessions, false)
			if err := os.RemoveAll(to); err != nil {
				t.Fatal(err)
			}
			switch judged := h.judge(f, at-1, at); {
			case judged == nil:
				kinds[kind][1]++
			case f.err == nil || errors.As(f.err, new(wrongError)):
				kinds[kind][2]++
				t.Errorf("%s, byte %d of %d: opened, with this: %v", path, offset, sizes[i], judged)
			default:
				kinds[kind][0]++
				if !strings.Contains(f.err.Error(), mustName(path)) {
					t.Errorf("%s, byte %d of %d: the message does not name %s: %v", path, offset, sizes[i], mustName(path), f.err)
				}
			}
		}
	}
	for kind, n := range kinds {
		t.Logf("%-10s %4d refused, %4d harmless, %4d wrong", kind, n[0], n[1], n[2])
	}
	if kinds["log"][0] == 0 || kinds["table"][0] == 0 || kinds["identity"][0] == 0 {
		t.Error("some kinds of files were never refused: is anything checked at all?")
	}
}

// bestToDamage returns the last moment at which the end of the log is durable and has no sector of zeros: of one that has, the log cannot
// tell damage from what a crash leaves, as its documentation says.
func bestToDamage(t *testing.T, h *history) int {
	zeros := make([]byte, 512)
	for i := len(h.ops) - 1; i > 0; i-- {
		o, w := &h.ops[i], &h.ops[i-1]
		if o.Kind == crash.Sync && strings.HasSuffix(o.Path, ".wal") && w.Kind == crash.Write && w.File == o.File && !bytes.Contains(w.Data, zeros) {
			return i + 1
		}
	}
	t.Fatal("the log was never synced")
	return 0
}

func fileKind(path string) string {
	base := filepath.Base(path)
	switch {
	case strings.HasSuffix(base, ".wal"):
		return "log"
	case strings.HasSuffix(base, ".sst"):
		return "table"
	case base == "node.json":
		return "identity"
	case strings.HasPrefix(base, "MANIFEST"):
		return "manifest"
	case base == "FORMAT":
		return "format"
	}
	return "other"
}

// mustName is what a message about a damaged file must have in it, so that somebody can act.
func mustName(path string) string {
	switch base := filepath.Base(path); fileKind(path) {
	case "table":
		return strings.TrimSuffix(base, ".sst")
	case "other":
		return "state" // pebble's own small files
	default:
		return base
	}
}
