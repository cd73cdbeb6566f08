package rsmtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

// recorder is a testing.TB that notes a failure instead of failing.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper()             {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Name() string        { return "TestOfAUser/part" }
func (r *recorder) Fatal(args ...any)   { r.Fatalf("%s", fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, args ...any) {
	r.failed += fmt.Sprintf(format, args...)
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// failure runs f as a test of a user's, and returns how it failed: "" if it did not.
func failure(t *testing.T, f func(testing.TB)) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.failed
}

func TestSoundMachine(t *testing.T) {
	c := tallyConfig(func() rsm.Machine { return tally{} })
	c.Model = tallyModel{}
	c.Invariant = func(v rsm.View) error {
		for k, n := range v.Scan(nil, nil) {
			if bytes.HasPrefix(n, []byte("-")) {
				return fmt.Errorf("%s is %s", k, n)
			}
		}
		return nil
	}
	rsmtest.Run(t, c)
}

// What is broken on purpose, and what the story has to say of it.
type mapOrder struct{ tally }

func (mapOrder) Apply(s rsm.State, e rsm.Event) {
	f := strings.Fields(string(e.Data))
	for k, v := range map[string]string{f[0]: f[1], "last": f[0], "seen/" + f[0]: "yes"} {
		s.Set([]byte(k), []byte(v))
	}
}

type clockInApply struct{ tally }

func (m clockInApply) Apply(s rsm.State, e rsm.Event) {
	m.tally.Apply(s, e)
	s.Set([]byte("when"), []byte(time.Now().Format(time.RFC3339Nano)))
}

// yearInApply differs between two years only.
type yearInApply struct{ tally }

func (m yearInApply) Apply(s rsm.State, e rsm.Event) {
	m.tally.Apply(s, e)
	s.Set([]byte("year"), []byte(time.Now().Format("2006")))
}

// countInApply keeps state outside of the view, which is lost with the process. That it does not count an event twice hides it from a second application.
type countInApply struct {
	tally
	n  int
	at rsm.Position
}

func (m *countInApply) Apply(s rsm.State, e rsm.Event) {
	if e.Position != m.at {
		m.n, m.at = m.n+1, e.Position
	}
	m.tally.Apply(s, e)
	write(s, "count", m.n)
}

var everApplied int

// globalInApply counts in a variable of the process.
type globalInApply struct{ tally }

func (m globalInApply) Apply(s rsm.State, e rsm.Event) {
	everApplied++
	m.tally.Apply(s, e)
	write(s, "applied", everApplied)
}

type counterInDecide struct {
	tally
	decided *int
}

func (m counterInDecide) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	*m.decided++
	if *m.decided%10 == 0 {
		return nil, nil, rsm.Reject("busy", "every tenth is too much")
	}
	return m.tally.Decide(v, c)
}

type clockInDecide struct{ tally }

func (m clockInDecide) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	events, _, err := m.tally.Decide(v, c)
	return events, fmt.Appendf(nil, "at %d", time.Now().UnixNano()), err
}

// scribbler changes a value that the view returned.
type scribbler struct{ tally }

func (m scribbler) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	for _, value := range v.Scan([]byte("b"), nil) {
		value[0] = '7'
		break
	}
	return m.tally.Decide(v, c)
}

// caster makes a state of its view.
type caster struct{ tally }

func (m caster) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if s, ok := v.(rsm.State); ok {
		s.Set([]byte("audit"), c.Data)
	}
	return m.tally.Decide(v, c)
}

type queryWriter struct{ tally }

func (m queryWriter) Query(v rsm.View, q []byte) ([]byte, error) {
	if s, ok := v.(rsm.State); ok {
		s.Delete([]byte("a"))
	}
	return m.tally.Query(v, q)
}

// keeper keeps a value beyond the call.
type keeper struct {
	tally
	kept *[]byte
}

func (m keeper) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if *m.kept == nil {
		*m.kept, _ = v.Get([]byte("a"))
	}
	events, _, err := m.tally.Decide(v, c)
	return events, append([]byte("kept "), *m.kept...), err
}

// loser forgets an update now and then: deterministic, and wrong.
type loser struct{ tally }

func (m loser) Apply(s rsm.State, e rsm.Event) {
	if !bytes.HasSuffix(e.Data, []byte(" 13")) {
		m.tally.Apply(s, e)
	}
}

type panicker struct{ tally }

func (m panicker) Apply(s rsm.State, e rsm.Event) {
	if bytes.HasPrefix(e.Data, []byte("c 1")) {
		panic("c has one")
	}
	m.tally.Apply(s, e)
}

type eventChanger struct{ tally }

func (m eventChanger) Apply(s rsm.State, e rsm.Event) {
	m.tally.Apply(s, e)
	e.Data[0] = 'X'
}

func TestBrokenMachinesAreFound(t *testing.T) {
	if testkit.Race {
		t.Skip("skipped under the race detector: a simulated cluster is one goroutine")
	}
	for name, c := range map[string]struct {
		machine func() rsm.Machine
		change  func(*rsmtest.Config)
		rule    string
		story   []string // regular expressions
	}{
		"map order in Apply": {
			machine: func() rsm.Machine { return mapOrder{} }, rule: "apply-(twice|differs)", // by chance
			story: []string{
				`where:     Apply .*of event "[abc] \d+" at 1/\d+\.\d, which command "[^"]+" was decided into, key "(last|seen/[abc]|[abc])"`,
				`expected:  .*, the event sets key "[a-z/]+" to "\w+" \(write \d\)`,
				`seen:      .*, it sets key "[a-z/]+" to "\w+"`,
			},
		},
		"clock in Apply": {
			machine: func() rsm.Machine { return clockInApply{} }, rule: "apply-twice",
			story: []string{`of event "[abc] \d+" at .*, key "when"`, `expected:  applied once, the event sets key "when" to "20\d\d-`, `seen:      applied a second time .* it sets key "when" to "20\d\d-`},
		},
		"state in Apply": {
			machine: func() rsm.Machine { return &countInApply{} }, rule: "apply-differs",
			story: []string{`of event "[abc] \d+" at 1/\d+\.\d, .*key "count"`, `expected:  .*sets key "count" to "\d+"`, `seen:      .*sets key "count" to "\d+"`},
		},
		"global in Apply": {
			machine: func() rsm.Machine { return globalInApply{} }, rule: "apply-twice",
			story: []string{`key "applied"`, `expected:  applied once, the event sets key "applied" to "\d+"`},
		},
		"counter in Decide": {
			machine: func() rsm.Machine { return counterInDecide{decided: new(int)} }, rule: "hidden-state",
			story: []string{`where:     Decide of command "(swap )?[abc] \S+" in entry \d+`, `seen:      the machine that had been running decided rejected \(busy\): every tenth is too much`},
		},
		"clock in Decide": {
			machine: func() rsm.Machine { return clockInDecide{} }, rule: "decide-twice",
			story: []string{`expected:  one state, one command, one time and one random source give one decision: .*the reply "at \d+"`, `seen:      decided a second time by a machine that was just made: .*"at \d+"`},
		},
		"Decide changes a value": {
			machine: func() rsm.Machine { return scribbler{} }, rule: "view-bytes",
			story: []string{`where:     Decide on node \d, of command "[^"]+", key "[bc]"`, `expected:  the value that the view returned for key "[bc]" stays "\d+"`, `seen:      Decide changed it to "7\d*"`},
		},
		"Decide writes": {
			machine: func() rsm.Machine { return caster{} }, rule: "writes",
			story: []string{`where:     Decide .*of command "([^"]+)", key "audit"`, `seen:      it turned its view into one that writes, and set key "audit" to "[^"]+"`},
		},
		"Query writes": {
			machine: func() rsm.Machine { return queryWriter{} }, rule: "writes",
			story: []string{`where:     Query .*key "a"`, `and deleted key "a"`},
		},
		"Decide keeps a value": {
			machine: func() rsm.Machine { return keeper{kept: new([]byte)} }, rule: "hidden-state",
			story: []string{`reply "kept (\\xdb)+"`},
		},
		"lost update": {
			machine: func() rsm.Machine { return loser{} }, rule: "model",
			change: func(c *rsmtest.Config) { c.Model = tallyModel{} },
			story:  []string{`(command|query) "`, `expected:  the model says "?`, `seen:      the machine (decided|answered)`, `asks node \d( again)?: .*"`},
		},
		"wrong model": {
			machine: func() rsm.Machine { return tally{} }, rule: "model",
			change: func(c *rsmtest.Config) { c.Model = tallyModel{overdraft: 1} },
			story:  []string{`command "[abc] -\d+" in entry \d+`, `expected:  the model says "-1"`, `seen:      the machine decided rejected \(below_zero\): [abc] is \d`},
		},
		"invariant": {
			machine: func() rsm.Machine { return tally{} }, rule: "invariant",
			change: func(c *rsmtest.Config) {
				c.Invariant = func(v rsm.View) error {
					if n := read(v, "b"); n > 11 {
						return fmt.Errorf("b is %d", n)
					}
					return nil
				}
			},
			story: []string{`the state after entry \d+`, `seen:      b is 1[2-9]`},
		},
		"panic in Apply": {
			machine: func() rsm.Machine { return panicker{} }, rule: "panic",
			story: []string{`of event "c 1\d*"`, `seen:      it panicked: c has one`, `rsmtest_test\.panicker\.Apply`},
		},
		"Apply changes its event": {
			machine: func() rsm.Machine { return eventChanger{} }, rule: "input-bytes",
			story: []string{`Apply changed them to "X`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name == "state in Apply" {
				t.Skip("its first run is a long one to shrink")
			}
			config := tallyConfig(c.machine)
			if c.change != nil {
				c.change(&config)
			}
			story := failure(t, func(t testing.TB) { rsmtest.Run(t, config) })
			if testing.Verbose() {
				t.Logf("\n%s", story)
			}
			for _, want := range append(c.story, `^seed \d+ breaks the rule "`+c.rule+`" after`,
				`again:     go test github\.com/decree-raft/decree/rsm/rsmtest -run '\^TestOfAUser\$/\^part\$' -rsmtest\.seed=\d+$`) {
				if !regexp.MustCompile(want).MatchString(story) {
					t.Errorf("the story does not match %q:\n%s", want, story)
				}
			}
			if lines := strings.Count(story, "\n"); lines > 60 {
				t.Errorf("the story has %d lines:\n%s", lines, story)
			}
		})
	}
}

func TestShortestStory(t *testing.T) {
	config := tallyConfig(func() rsm.Machine { return panicker{} })
	story := failure(t, func(t testing.TB) { rsmtest.Run(t, config) })
	if asked := strings.Count(story, "asks node"); asked > 6 {
		t.Errorf("%d requests are left, where one or two do:\n%s", asked, story)
	}
	if strings.Contains(story, "  fault ") {
		t.Errorf("faults are left, where none is needed:\n%s", story)
	}
}

func TestAnotherDate(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a *testing.T that may fail")
	}
	config := tallyConfig(func() rsm.Machine { return yearInApply{} })
	err := rsmtest.AnotherDate(t, config, 1)
	if err == nil || !strings.Contains(err.Error(), `key "year"`) || !strings.Contains(err.Error(), `now, it sets key "year" to "2000"`) {
		t.Errorf("got %v", err)
	}
}

func TestImpureDecide(t *testing.T) {
	config := tallyConfig(func() rsm.Machine { return clockInDecide{} })
	config.ImpureDecide = true
	config.Seeds = seeds(5)
	rsmtest.Run(t, config)
}

func TestNothingTested(t *testing.T) {
	config := tallyConfig(func() rsm.Machine { return tally{} })
	config.Command = func(*rand.Rand) []byte { return []byte("a -1") }
	config.Seeds = 1
	if story := failure(t, func(t testing.TB) { rsmtest.Run(t, config) }); !strings.Contains(story, "no command of") {
		t.Errorf("got %q", story)
	}
}

func TestIncompleteConfig(t *testing.T) {
	shared := new(countInApply)
	for _, c := range []struct {
		config rsmtest.Config
		want   string
	}{
		{rsmtest.Config{}, "New is missing"},
		{rsmtest.Config{New: func() rsm.Machine { return tally{} }}, "Command is missing"},
		{tallyConfig(func() rsm.Machine { return shared }), "returns the same machine twice"},
	} {
		if story := failure(t, func(t testing.TB) { rsmtest.Run(t, c.config) }); !strings.Contains(story, c.want) {
			t.Errorf("got %q, want %q", story, c.want)
		}
	}
}

var errBroken = errors.New("broken")

// A plain error of Decide is a rejection like any other.
type plainError struct{ tally }

func (m plainError) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if c.Rand.IntN(5) == 0 {
		return nil, nil, fmt.Errorf("after a throw of the dice: %w", errBroken)
	}
	return m.tally.Decide(v, c)
}

func TestRandomnessThatIsGivenIsPure(t *testing.T) {
	config := tallyConfig(func() rsm.Machine { return plainError{} })
	config.Seeds = seeds(5)
	rsmtest.Run(t, config)
}

// doubled is tally in a program that can run two more versions: from 2 on, what is added counts double. Bad says what is wrong with it.
type doubled struct {
	tally
	bad string
}

func (doubled) MaxVersion() uint64 { return 2 }

func (m doubled) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if f := strings.Fields(string(c.Data)); c.Version >= 2 && f[0] != "swap" {
		if delta, err := strconv.Atoi(f[1]); err == nil {
			c.Data = fmt.Appendf(nil, "%s %d", f[0], 2*delta)
		}
	}
	return m.tally.Decide(v, c)
}

func (m doubled) Apply(s rsm.State, e rsm.Event) {
	switch {
	case m.bad == "panics" && e.Version == 2:
		panic("an event of version 2")
	case m.bad == "goes back" && e.Version < uint64(read(s, "version")):
		panic("an event of a version before")
	}
	m.tally.Apply(s, e)
	write(s, "version", int(e.Version))
}

// A machine with versions comes to run all of them, and each event is applied under the version that it was decided under.
func TestVersions(t *testing.T) {
	config := func(bad string) rsmtest.Config {
		c := tallyConfig(func() rsm.Machine { return &doubled{bad: bad} })
		c.Seeds = seeds(12)
		return c
	}
	rsmtest.Run(t, config("goes back"))
	if got := failure(t, func(t testing.TB) { rsmtest.Run(t, config("panics")) }); !strings.Contains(got, "an event of version 2") {
		t.Errorf("a machine that cannot apply the second version: %q", got)
	}
}
