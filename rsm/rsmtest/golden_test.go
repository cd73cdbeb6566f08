package rsmtest_test

import (
	"bytes"
	"flag"
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
	} {
		if err := os.WriteFile(filepath.Join(dir, "x.golden"), []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
		if got := failure(t, func(t testing.TB) { rsmtest.Golden(t, dir, "y", config) }); !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", content, got, want)
		}
	}
}
