package rsmtest_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

// update runs f with the flag -rsmtest.update set.
func update(t *testing.T, f func()) {
	t.Helper()
	set := func(v string) {
		if err := flag.Set("rsmtest.update", v); err != nil {
			t.Fatal(err)
		}
	}
	set("true")
	defer set("false")
	f()
}

// upper is a later version of tally: it applies tally's events, and writes another format for its own.
type upper struct {
	tally
	forgets bool // the events of the former version
}

func (m upper) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	events, reply, err := m.tally.Decide(v, c)
	for i := range events {
		events[i] = append([]byte("2:"), events[i]...)
	}
	return events, reply, err
}

func (m upper) Apply(s rsm.State, e rsm.Event) {
	data, second := bytes.CutPrefix(e.Data, []byte("2:"))
	if !second && m.forgets && bytes.HasPrefix(data, []byte("b ")) {
		s.Set([]byte("b"), []byte("?"))
		return
	}
	e.Data = data
	m.tally.Apply(s, e)
}

func TestGolden(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "golden")
	one := tallyConfig(func() rsm.Machine { return tally{} })
	two := tallyConfig(func() rsm.Machine { return upper{} })
	golden := func(name string, c rsmtest.Config) string {
		return failure(t, func(t testing.TB) { rsmtest.Golden(t, dir, name, c) })
	}
	want := func(got, pattern string) {
		t.Helper()
		if pattern == "" && got != "" || !regexp.MustCompile(pattern).MatchString(got) {
			t.Errorf("got %q, want a match of %q", got, pattern)
		}
	}
	want(golden("v1", one), `no \.golden files in .*run the test with -rsmtest\.update`)
	update(t, func() { want(golden("v1", one), "") })
	first, err := os.ReadFile(filepath.Join(dir, "v1.golden"))
	if err != nil {
		t.Fatal(err)
	}
	want(golden("v1", one), "")
	update(t, func() { want(golden("v1", one), "") }) // nothing new
	want(golden("v2", two), "")                       // it applies the events of the first

	// Another version under the same name: refused, and nothing is overwritten.
	update(t, func() { want(golden("v1", two), "v1.golden is there already, and this version decides other events") })
	if now, _ := os.ReadFile(filepath.Join(dir, "v1.golden")); !bytes.Equal(now, first) {
		t.Error("v1.golden was overwritten")
	}
	update(t, func() { want(golden("v2", two), "") })
	want(golden("v2", two), "")

	two.New = func() rsm.Machine { return upper{forgets: true} }
	want(golden("v2", two), `v1\.golden: line \d+: event "b \d+", key "b"\nexpected:  when the file was made, the event sets key "b" to "\d+" \(write 1\)\nseen:      now, it sets key "b" to "\?"`)
	one.New = func() rsm.Machine { return panicker{} }
	want(golden("v1", one), `event "c 1\d*"\nexpected:  Apply returns\nseen:      it panicked: c has one`)
	// A file of a later version than this one: its events are not what this machine knows.
	one.New = func() rsm.Machine { return tally{} }
	want(golden("v1", one), `v2\.golden: line 2: event "2:`)
}

// eras is tally with versions: each writes down under which one it has written.
type eras struct {
	tally
	max    uint64
	panics bool // at the events of its newest version
}

func (m eras) MaxVersion() uint64 { return m.max }

func (m eras) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	events, reply, err := m.tally.Decide(v, c)
	for i := range events {
		events[i] = fmt.Appendf(events[i], " %d", c.Version)
	}
	return events, reply, err
}

func (m eras) Apply(s rsm.State, e rsm.Event) {
	if !bytes.HasSuffix(e.Data, fmt.Appendf(nil, " %d", e.Version)) {
		panic("it was decided under another version")
	}
	if m.panics && e.Version == m.max {
		panic("what is that?")
	}
	m.tally.Apply(s, e)
	write(s, "version", int(e.Version))
}

// The events of every version apply, and not those of the first alone. Mutations with which it was seen to fail: golden that leaves out the version of
// the command and the event; parseGolden that does not keep it.
func TestGoldenVersions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "golden")
	golden := func(name string, m rsm.Machine) string {
		return failure(t, func(t testing.TB) { rsmtest.Golden(t, dir, name, tallyConfig(func() rsm.Machine { return m })) })
	}
	// The program before versions wrote a file of format 1, which holds for what came after.
	update(t, func() {
		if got := golden("v1", tally{}); got != "" {
			t.Error(got)
		}
	})
	first, err := os.ReadFile(filepath.Join(dir, "v1.golden"))
	if err != nil || !bytes.HasPrefix(first, []byte("rsmtest golden events, format 1\nevent 1 0 1700000001000000000 \"")) {
		t.Errorf("%.100s, %v", first, err)
	}
	if err := os.Remove(filepath.Join(dir, "v1.golden")); err != nil {
		t.Fatal(err)
	}
	const panicked = "expected:  Apply returns\nseen:      it panicked: what is that?"
	update(t, func() {
		if got := golden("v2", eras{max: 2, panics: true}); !strings.Contains(got, "what is that?") {
			t.Errorf("while the file is made: %q", got)
		}
		if got := golden("v2", eras{max: 2}); got != "" {
			t.Error(got)
		}
	})
	if got := golden("v2", eras{max: 2, panics: true}); !strings.Contains(got, panicked) {
		t.Errorf("got %q", got)
	}
	for _, later := range []eras{{max: 2}, {max: 3}, {max: 3, panics: true}} { // no event of version 3 is in the file
		if got := golden("v2", later); got != "" {
			t.Errorf("max %d: %q", later.max, got)
		}
	}
	file, err := os.ReadFile(filepath.Join(dir, "v2.golden"))
	if err != nil || !bytes.HasPrefix(file, []byte("rsmtest golden events, format 2\nevent 1 0 1700000001000000000 0 \"")) {
		t.Errorf("%.100s, %v", file, err)
	}
	for _, version := range []string{"0", "1", "2"} {
		if !bytes.Contains(file, []byte("\n\tset \"version\" \""+version+"\"\n")) {
			t.Errorf("no event of version %s", version)
		}
	}
	// The versions of others are dates.
	update(t, func() {
		if got := golden("v3", eras{max: 20260101}); got != "" {
			t.Error(got)
		}
	})
}

func TestDamagedGoldenFiles(t *testing.T) {
	dir := t.TempDir()
	config := tallyConfig(func() rsm.Machine { return tally{} })
	const header = "rsmtest golden events, format 1\n"
	for content, want := range map[string]string{
		"":                             "it has no event",
		header:                         "it has no event",
		"something else\n":             `line 1 is "something else"`,
		header + "set \"a\" \"b\"\n":   `line 2 begins with "set"`,
		header + "event 1 0 x \"a\"\n": "line 2 does not parse",
		header + "event 1 0 5 \"a\n":   "line 2 does not parse",
		header + "event 1 0 5 \"a 5\"\n\tset \"a\"\n":             "line 3 does not parse",
		header + "event 1 0 5 \"a 5\"\n\tset \"a\" \"5\" \"6\"\n": "line 3 does not parse",
		header + "event 1 0 5 \"a 5\"\n":                          "the event writes no more",
		"rsmtest golden events, format 2\nevent 1 0 5 \"a 5\"\n":  "line 2 does not parse",
	} {
		if err := os.WriteFile(filepath.Join(dir, "x.golden"), []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
		if got := failure(t, func(t testing.TB) { rsmtest.Golden(t, dir, "y", config) }); !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", content, got, want)
		}
	}
}
