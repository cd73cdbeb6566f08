package rsmtest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/probe"
	"github.com/decree-raft/decree/rsm"
)

const (
	// goldenHeader begins the file of a machine without versions, goldenVersions that of one with them: its events have one more number.
	goldenHeader   = "rsmtest golden events, format 1"
	goldenVersions = "rsmtest golden events, format 2"
	goldenSuffix   = ".golden"
	goldenCommands = 100 // for each version
	// goldenEras is for how many versions at most, the newest, commands are drawn.
	goldenEras = 8
)

// Golden checks that the events of every version of the machine still apply, and still write what they wrote. Events live for ever, in logs and journals;
// and a replica whose version writes something else for an old event than the others stops, because the hashes differ.
//
// Each file dir/*.golden holds the events that one program decided for commands drawn by Config.Command, with what each wrote. For an rsm.Versioned machine, commands
// are drawn under one version after the other, as each becomes active in a cluster: from 0 on, and under no more than the eight newest. With the flag
// -rsmtest.update the file dir/name.golden of the present version is added. An existing file is never overwritten: if this version
// decides something else than is in it, the test fails and asks for another name.
func Golden(t testing.TB, dir, name string, c Config) {
	t.Helper()
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	if *updateFlag {
		if err := c.addGolden(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"+goldenSuffix))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("rsmtest: no %s files in %s: run the test with -rsmtest.update to write the first, and commit it", goldenSuffix, dir)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.checkGolden(string(data)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// addGolden writes the file of this version, unless it is there.
func (c *Config) addGolden(dir, name string) error {
	data, err := c.golden()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, name+goldenSuffix)
	was, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case bytes.Equal(was, data):
		return nil
	default:
		return fmt.Errorf("rsmtest: %s is there already, and this version decides other events or writes something else: give it a name of its own; if the one that "+
			"is there was never released, remove it by hand", file)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// golden decides commands one after the other, and returns the file of what came of it.
func (c *Config) golden() ([]byte, error) {
	var b bytes.Buffer
	var state probe.Memory
	m, r := c.New(), rand.New(rand.NewPCG(1, 1))
	first, last := uint64(0), uint64(0)
	versioned, ok := m.(rsm.Versioned)
	if ok {
		last = versioned.MaxVersion()
		first = last - min(last, goldenEras-1)
		fmt.Fprintln(&b, goldenVersions)
	} else {
		fmt.Fprintln(&b, goldenHeader)
	}
	for i := 1; i <= goldenCommands*int(last-first+1); i++ {
		version := first + uint64(i-1)/goldenCommands
		now := rsm.Timestamp(1_700_000_000+i) * rsm.Timestamp(time.Second)
		data := c.Command(r)
		d, f := probe.Decide(m, &state, rsm.Command{Data: data, Time: now, Version: version, Rand: rand.New(rand.NewPCG(2, uint64(i)))})
		if f != nil {
			return nil, fmt.Errorf("decide command %s: %w", c.showCommand(data), f)
		}
		for k, data := range d.Events {
			e := rsm.Event{Data: data, Time: now, Version: version, Position: rsm.Position{Shard: 1, Index: rsm.Index(i), Ordinal: uint32(k)}}
			writes, f := probe.Apply(m, &state, e)
			if f != nil {
				return nil, fmt.Errorf("apply event %s: %w", c.showEvent(data), f)
			}
			state.Write(writes)
			fmt.Fprintf(&b, "event %d %d %d ", i, k, now)
			if ok {
				fmt.Fprintf(&b, "%d ", version)
			}
			fmt.Fprintf(&b, "%q\n", data)
			for _, w := range writes {
				if w.Delete {
					fmt.Fprintf(&b, "\tdelete %q\n", w.Key)
				} else {
					fmt.Fprintf(&b, "\tset %q %q\n", w.Key, w.Value)
				}
			}
		}
	}
	if state.Len() == 0 {
		return nil, fmt.Errorf("rsmtest: %d commands wrote nothing: let Config.Command draw some that Decide does not reject", goldenCommands*int(last-first+1))
	}
	return b.Bytes(), nil
}

func (c *Config) showCommand(b []byte) string { return showWith(c.ShowCommand, b) }
func (c *Config) showEvent(b []byte) string   { return showWith(c.ShowEvent, b) }

func showWith(f func([]byte) string, b []byte) string {
	if f == nil {
		return fmt.Sprintf("%q", b)
	}
	return f(b)
}

// goldenEvent is an event of a file, and what it wrote.
type goldenEvent struct {
	line   int
	event  rsm.Event
	writes []probe.Write
}

// checkGolden applies the events of a file.
func (c *Config) checkGolden(file string) error {
	events, err := parseGolden(file)
	if err != nil {
		return err
	}
	var state probe.Memory
	m := c.New()
	for i := range events {
		g := &events[i]
		writes, f := probe.Apply(m, &state, g.event)
		if f == nil {
			f = probe.CompareWrites(g.writes, writes, "when the file was made", "now")
		}
		if f != nil {
			key := ""
			if f.Key != nil {
				key = fmt.Sprintf(", key %q", f.Key)
			}
			return fmt.Errorf("line %d: event %s%s\nexpected:  %s\nseen:      %s", g.line, c.showEvent(g.event.Data), key, f.Expected, f.Seen)
		}
		state.Write(writes)
	}
	return nil
}

func parseGolden(file string) (events []goldenEvent, err error) {
	n, versions := 0, false
	for line := range strings.Lines(file) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if n == 1 {
			if versions = line == goldenVersions; !versions && line != goldenHeader {
				return nil, fmt.Errorf("line 1 is %q, want %q or %q", line, goldenHeader, goldenVersions)
			}
			continue
		}
		word, rest, _ := strings.Cut(strings.TrimPrefix(line, "\t"), " ")
		l := goldenLine{rest: rest}
		switch {
		case word == "event":
			g := goldenEvent{line: n, event: rsm.Event{Position: rsm.Position{Shard: 1, Index: rsm.Index(l.number()), Ordinal: uint32(l.number())}, Time: rsm.Timestamp(l.number())}}
			if versions {
				g.event.Version = l.number()
			}
			g.event.Data = l.bytes()
			events = append(events, g)
		case (word == "set" || word == "delete") && len(events) > 0:
			w := probe.Write{Key: l.bytes(), Delete: word == "delete"}
			if !w.Delete {
				w.Value = l.bytes()
			}
			g := &events[len(events)-1]
			g.writes = append(g.writes, w)
		default:
			return nil, fmt.Errorf("line %d begins with %q", n, word)
		}
		if l.err != nil || l.rest != "" {
			return nil, fmt.Errorf("line %d does not parse: %q", n, line)
		}
	}
	if len(events) == 0 {
		return nil, errors.New("it has no event")
	}
	return events, nil
}

// goldenLine takes a line apart. The first failure sticks.
type goldenLine struct {
	rest string
	err  error
}

func (l *goldenLine) number() uint64 {
	word, rest, _ := strings.Cut(l.rest, " ")
	v, err := strconv.ParseUint(word, 10, 64)
	l.rest, l.err = rest, errors.Join(l.err, err)
	return v
}

func (l *goldenLine) bytes() []byte {
	quoted, err := strconv.QuotedPrefix(l.rest)
	if err != nil {
		l.err = errors.Join(l.err, err)
		return nil
	}
	l.rest = strings.TrimPrefix(l.rest[len(quoted):], " ")
	s, err := strconv.Unquote(quoted)
	l.err = errors.Join(l.err, err)
	return []byte(s)
}
