package rsmtest_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/decree-raft/decree/internal/testkit"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

// tally is a sound machine: "a 5" adds five to tally a, which never goes below zero; "swap a b" swaps two. The query is the name of a tally.
type tally struct{}

func read(v rsm.View, key string) int {
	data, _ := v.Get([]byte(key))
	n, _ := strconv.Atoi(string(data))
	return n
}

func write(s rsm.State, key string, n int) { s.Set([]byte(key), []byte(strconv.Itoa(n))) }

func (tally) Decide(v rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	f := strings.Fields(string(c.Data))
	if f[0] == "swap" {
		return [][]byte{fmt.Appendf(nil, "%s %d", f[1], read(v, f[2])), fmt.Appendf(nil, "%s %d", f[2], read(v, f[1]))}, nil, nil
	}
	delta, err := strconv.Atoi(f[1])
	if err != nil {
		return nil, nil, err
	}
	sum := read(v, f[0]) + delta
	if sum < 0 {
		return nil, nil, rsm.Reject("below_zero", "%s is %d", f[0], read(v, f[0]))
	}
	if delta == 0 {
		return nil, []byte("nothing to do"), nil
	}
	return [][]byte{fmt.Appendf(nil, "%s %d", f[0], sum)}, []byte(strconv.Itoa(sum)), nil
}

func (tally) Apply(s rsm.State, e rsm.Event) {
	f := strings.Fields(string(e.Data))
	if f[1] == "0" {
		s.Delete([]byte(f[0]))
		return
	}
	s.Set([]byte(f[0]), []byte(f[1]))
}

func (tally) Query(v rsm.View, q []byte) ([]byte, error) {
	if len(q) == 0 {
		return nil, rsm.Reject("which", "name a tally")
	}
	return []byte(strconv.Itoa(read(v, string(q)))), nil
}

var names = []string{"a", "b", "c"}

func tallyCommand(r *rand.Rand) []byte {
	if r.IntN(10) == 0 {
		p := r.Perm(len(names))
		return fmt.Appendf(nil, "swap %s %s", names[p[0]], names[p[1]])
	}
	return fmt.Appendf(nil, "%s %d", names[r.IntN(len(names))], r.IntN(20)-8)
}

func tallyQuery(r *rand.Rand) []byte {
	if r.IntN(20) == 0 {
		return nil
	}
	return []byte(names[r.IntN(len(names))])
}

// seeds is how many clusters a test simulates. Each is one goroutine: the race detector takes its time, and sees no more in many.
func seeds(n int) int {
	if testkit.Race {
		return min(n, 4)
	}
	return n
}

// tallyConfig tests a machine that embeds tally and breaks something.
func tallyConfig(newMachine func() rsm.Machine) rsmtest.Config {
	return rsmtest.Config{New: newMachine, Command: tallyCommand, Query: tallyQuery, Seeds: seeds(20)}
}

// tallyModel is the machine once more. Its values are never changed: each step makes a copy.
type tallyModel struct {
	n map[string]int
	// overdraft is how far below zero this model lets a tally go: a wrong model.
	overdraft int
}

func (m tallyModel) Step(c rsm.Command) (rsmtest.Model, rsmtest.Outcome) {
	next := tallyModel{n: map[string]int{}, overdraft: m.overdraft}
	for k, v := range m.n {
		next.n[k] = v
	}
	words := bytes.Fields(c.Data)
	if string(words[0]) == "swap" {
		a, b := string(words[1]), string(words[2])
		next.n[a], next.n[b] = m.n[b], m.n[a]
		return next, rsmtest.Outcome{}
	}
	name := string(words[0])
	delta, _ := strconv.Atoi(string(words[1]))
	if next.n[name] += delta; next.n[name] < -m.overdraft {
		return m, rsmtest.Outcome{Code: "below_zero"}
	}
	if delta == 0 {
		return next, rsmtest.Outcome{Reply: []byte("nothing to do")}
	}
	return next, rsmtest.Outcome{Reply: []byte(strconv.Itoa(next.n[name]))}
}

func (m tallyModel) Query(q []byte) rsmtest.Outcome {
	if len(q) == 0 {
		return rsmtest.Outcome{Code: "which"}
	}
	return rsmtest.Outcome{Reply: []byte(strconv.Itoa(m.n[string(q)]))}
}
