package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// content is what a file has in an image; "-" if it is not there.
func content(m *Image, path string) string {
	for _, f := range m.files {
		if f.path == path {
			return string(f.data)
		}
	}
	return "-"
}

// outcomes returns every content that a file may have after a crash at the end of ops.
func outcomes(ops []Op, path string) map[string]bool {
	d := NewDisk()
	for i := range ops {
		d.Apply(&ops[i])
	}
	got := map[string]bool{}
	d.states(rand.New(rand.NewPCG(1, 1)), 50, false, func(_ func() string, keep []part) {
		got[content(d.image(keep), path)] = true
	})
	return got
}

func TestModel(t *testing.T) {
	long := strings.Repeat("x", 1200)
	create := Op{Kind: Create, File: 2, Dir: Root, Name: "f"}
	write := func(off int64, s string) Op { return Op{Kind: Write, File: 2, Offset: off, Data: []byte(s)} }
	syncFile, syncRoot := Op{Kind: Sync, File: 2}, Op{Kind: Sync, File: Root}
	for name, tc := range map[string]struct {
		ops      []Op
		may, not []string
	}{
		"the fsync of a file does not make its name durable": {
			ops: []Op{create, write(0, "ab"), syncFile}, may: []string{"-", "ab"}, not: []string{"", "a"}},
		"nor that of a directory what its files hold": {
			ops: []Op{create, write(0, "ab"), syncRoot}, may: []string{"", "a", "ab"}, not: []string{"-"}},
		"both make both": {
			ops: []Op{create, write(0, "ab"), syncFile, syncRoot}, may: []string{"ab"}, not: []string{"-", "", "a"}},
		"a later write may be kept without an earlier one": {
			ops: []Op{create, syncRoot, write(0, "ab"), write(2, "cd")}, may: []string{"\x00\x00cd", "ab", "abcd", "abc", ""}},
		"a write over what was durable leaves one or the other": {
			ops: []Op{create, syncRoot, write(0, "abcd"), syncFile, write(1, "XY")},
			may: []string{"abcd", "aXcd", "aXYd"}, not: []string{"", "-", "a\x00\x00d"}},
		"sectors of a write are lost one by one": {
			ops: []Op{create, syncRoot, write(0, long)},
			may: []string{long[:512], long[:1], strings.Repeat("\x00", 512) + long[512:], long[:1199]}},
		"a rename may be lost or kept, never half": {
			ops: []Op{create, syncRoot, write(0, "ab"), syncFile, {Kind: Rename, File: 2, OldDir: Root, OldName: "f", Dir: Root, Name: "g"}},
			may: []string{"-", "ab"}, not: []string{""}},
		"a name that is kept leads to its file": {
			ops: []Op{create, write(0, "ab"), syncFile, {Kind: Rename, File: 2, OldDir: Root, OldName: "f", Dir: Root, Name: "g"}},
			may: []string{"-", "ab"}},
		"a removal may be lost": {
			ops: []Op{create, syncRoot, {Kind: Unlink, File: 2, Dir: Root, Name: "f"}}, may: []string{"-", ""}},
		"zeros that were preallocated are zeros": {
			ops: []Op{create, syncRoot, {Kind: Extend, File: 2, Offset: 4}, syncFile, write(0, "ab")},
			may: []string{"\x00\x00\x00\x00", "a\x00\x00\x00", "ab\x00\x00"}, not: []string{"", "ab"}},
		"a truncation may come without the write before it": {
			ops: []Op{create, syncRoot, write(0, "abcd"), {Kind: Truncate, File: 2, Offset: 2}}, may: []string{"", "abcd", "ab", "\x00\x00"}},
	} {
		got := outcomes(tc.ops, "f")
		for _, want := range tc.may {
			if !got[want] {
				t.Errorf("%s: %.20q cannot be, %d others can", name, want, len(got))
			}
		}
		for _, no := range tc.not {
			if got[no] {
				t.Errorf("%s: %.20q can be", name, no)
			}
		}
	}
}

func TestFlip(t *testing.T) {
	d := NewDisk()
	for _, o := range []Op{{Kind: Create, File: 2, Dir: Root, Name: "f"}, {Kind: Write, File: 2, Data: []byte("abc")}} {
		d.Apply(&o)
	}
	m, err := d.Whole().Flip("f", 1, 0)
	if err != nil || content(m, "f") != "acc" || content(d.Whole(), "f") != "abc" {
		t.Errorf("%q, %v", content(m, "f"), err)
	}
	if _, err := m.Flip("f", 3, 0); err == nil {
		t.Error("flipped a byte that is not there")
	}
}

// What a program leaves at its end is looked at, though there is no time for anything else.
//
// Mutation with which it was seen to fail: those states are skipped as others are.
func TestLimit(t *testing.T) {
	e := Explorer{
		Ops: []Op{
			{Kind: Create, File: 2, Dir: Root, Name: "f"}, {Kind: Write, File: 2, Data: []byte("ab")}, {Kind: Sync, File: 2}, {Kind: Sync, File: Root},
		},
		Limit: 1, Scratch: t.TempDir(),
		Open: func(dir string, _ uint64) any {
			data, err := os.ReadFile(filepath.Join(dir, "f"))
			return fmt.Sprint(string(data), err)
		},
		Judge: func(outcome any, first, _ int) error {
			if outcome != "ab<nil>" || first != 3 {
				return fmt.Errorf("after operation %d there is %v", first, outcome)
			}
			return nil
		},
	}
	r, err := e.Run()
	if err != nil || r.Opened != 1 || r.Made+r.Skipped != r.States || len(r.Failures) > 0 {
		t.Errorf("%v, %v: %v", r, err, r.Failures)
	}
}
