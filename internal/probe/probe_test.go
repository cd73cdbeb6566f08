package probe

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/decree-raft/decree/internal/core"
)

// TestStates compares Memory, its copies, and what an overlay shows, with plain maps.
func TestStates(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	key := func() []byte { return []byte{byte('a' + r.IntN(6)), byte('a' + r.IntN(3))}[:1+r.IntN(2)] }
	var m Memory
	model := map[string]string{}
	for step := range 2000 {
		before, was := m.Copy(), maps.Clone(model)
		o := &overlay{under: before}
		over := maps.Clone(model)
		for range r.IntN(4) {
			k, v := key(), fmt.Appendf(nil, "%d", step)
			if r.IntN(3) == 0 {
				o.Delete(k)
				delete(over, string(k))
			} else {
				o.Set(k, v)
				over[string(k)] = string(v)
			}
		}
		start, end := key(), key()
		if r.IntN(4) == 0 {
			start, end = nil, nil
		}
		compareView(t, o, over, start, end)
		m.Write(o.writes)
		model = over
		compareView(t, &m, model, start, end)
		compareView(t, before, was, start, end)
		if d := Compare(&m, before); (d == nil) != maps.Equal(model, was) {
			t.Fatalf("step %d: %v and %v: %+v", step, model, was, d)
		} else if d != nil && d.InOne == d.InOther && model[string(d.Key)] == was[string(d.Key)] {
			t.Fatalf("step %d: key %q is said to differ", step, d.Key)
		}
	}
}

func compareView(t *testing.T, v core.View, want map[string]string, start, end []byte) {
	t.Helper()
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if k >= string(start) && (end == nil || k < string(end)) {
			keys = append(keys, k+"="+want[k])
		}
	}
	list := func(of iter.Seq2[[]byte, []byte]) (all []string) {
		for k, v := range of {
			all = append(all, string(k)+"="+string(v))
		}
		return all
	}
	if got := list(v.Scan(start, end)); !slices.Equal(got, keys) {
		t.Fatalf("scan from %q to %q: %v, want %v", start, end, got, keys)
	}
	slices.Reverse(keys)
	if got := list(v.ScanBackward(start, end)); !slices.Equal(got, keys) {
		t.Fatalf("scan backward from %q to %q: %v, want %v", start, end, got, keys)
	}
	for k := byte('a'); k < 'h'; k++ {
		got, ok := v.Get([]byte{k})
		if w, there := want[string(k)]; ok != there || string(got) != w {
			t.Fatalf("key %c: %q %v, want %q %v", k, got, ok, w, there)
		}
	}
}

// machine is made of functions; those that are nil do nothing.
type machine struct {
	decide func(v core.View, c core.Command) ([][]byte, []byte, error)
	apply  func(s core.State, e core.Event)
	query  func(v core.View, q []byte) ([]byte, error)
}

func (m machine) Decide(v core.View, c core.Command) ([][]byte, []byte, error) {
	return m.decide(v, c)
}
func (m machine) Apply(s core.State, e core.Event)            { m.apply(s, e) }
func (m machine) Query(v core.View, q []byte) ([]byte, error) { return m.query(v, q) }

func TestDecideReturnsCopies(t *testing.T) {
	var m Memory
	m.Set([]byte("a"), []byte("one"))
	d, f := Decide(machine{decide: func(v core.View, c core.Command) ([][]byte, []byte, error) {
		one, _ := v.Get([]byte("a"))
		return [][]byte{one, c.Data}, one[:2], nil
	}}, &m, core.Command{Data: []byte("two")})
	if f != nil || string(d.Reply) != "on" || !bytes.Equal(bytes.Join(d.Events, []byte(" ")), []byte("one two")) {
		t.Errorf("%v, %q, %q", f, d.Events, d.Reply)
	}
}

func TestFaults(t *testing.T) {
	var m Memory
	m.Set([]byte("a"), []byte("one"))
	var kept core.View
	apply := func(f func(s core.State, e core.Event)) func() *Fault {
		return func() *Fault {
			_, fault := Apply(machine{apply: f}, &m, core.Event{Data: []byte("event")})
			return fault
		}
	}
	for name, c := range map[string]struct {
		run              func() *Fault
		rule, key, wants string
	}{
		"write in a scan": {apply(func(s core.State, e core.Event) {
			for k := range s.Scan(nil, nil) {
				s.Delete(k)
			}
		}), RulePanic, "", `key "a" is written during a scan`},
		"key of a scan": {apply(func(s core.State, e core.Event) {
			for k := range s.ScanBackward(nil, nil) {
				k[0] = 'z'
			}
		}), RuleViewBytes, "a", `changed it to "z"`},
		"view used later": {func() *Fault {
			keep := machine{query: func(v core.View, _ []byte) ([]byte, error) { kept = v; return nil, nil }}
			if _, _, f := Query(keep, &m, nil); f != nil {
				return f
			}
			return apply(func(core.State, core.Event) { kept.Get([]byte("a")) })()
		}, RulePanic, "", "the view was used after the call"},
		"query changed": {func() *Fault {
			_, _, f := Query(machine{query: func(_ core.View, q []byte) ([]byte, error) { q[0] = 'x'; return nil, nil }}, &m, []byte("query"))
			return f
		}, RuleInputBytes, "", `"xuery"`},
		"one write more": {func() *Fault {
			n := 0
			return apply(func(s core.State, _ core.Event) {
				if n++; n == 2 {
					s.Delete([]byte("b"))
				}
			})()
		}, RuleApplyTwice, "b", `it deletes key "b"`},
		"nothing": {apply(func(s core.State, _ core.Event) { s.Set([]byte("c"), nil) }), "", "", ""},
	} {
		f := c.run()
		if (f == nil) != (c.rule == "") {
			t.Errorf("%s: %v", name, f)
		} else if f != nil && (f.Rule != c.rule || string(f.Key) != c.key || !strings.Contains(f.Seen, c.wants)) {
			t.Errorf("%s: %v, key %q", name, f, f.Key)
		}
	}
	if v, _ := m.Get([]byte("a")); string(v) != "one" || m.Len() != 1 {
		t.Errorf("the state itself was changed: %q, %d keys", v, m.Len())
	}
}
