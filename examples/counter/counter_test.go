package main

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

func Example() {
	main()
	// Output:
	// 5 -> 5 <nil>
	// -2 -> 3 <nil>
	// -4 ->  rejected (below_zero): the counter is 3, it cannot change by -4
	// value 3 <nil>
}

// The README shows this very program.
func TestReadmeQuotesThis(t *testing.T) {
	code, err := os.ReadFile("counter.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "<!-- counter:begin -->\n```go\n" + string(code) + "```\n<!-- counter:end -->"; !strings.Contains(string(readme), want) {
		t.Error("README.md quotes another counter.go: copy the file between the counter markers")
	}
}

// The README and docs/testing.md show the test below.
func TestDocsQuoteTheTest(t *testing.T) {
	code, err := os.ReadFile("counter_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, test, _ := strings.Cut(string(code), "\nfunc TestMachine(")
	test, _, _ = strings.Cut(test, "\n}\n")
	for _, file := range []string{"../../README.md", "../../docs/testing.md"} {
		page, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "```go\nfunc TestMachine("+test+"\n}\n```") {
			t.Errorf("%s quotes another TestMachine: copy it from counter_test.go", file)
		}
	}
}

// All that it takes to test a machine in simulated clusters: how one is made, and what it is asked.
func TestMachine(t *testing.T) {
	rsmtest.Run(t, rsmtest.Config{
		New:     func() rsm.Machine { return counter{} },
		Command: func(r *rand.Rand) []byte { return []byte(strconv.Itoa(r.IntN(20) - 8)) },
		Query:   func(*rand.Rand) []byte { return nil },
	})
}

// model is the counter once more.
type model int

func (m model) Step(c rsm.Command) (rsmtest.Model, rsmtest.Outcome) {
	delta, err := strconv.Atoi(string(c.Data))
	if err != nil {
		return m, rsmtest.Outcome{Code: "not_a_number"}
	}
	if int(m)+delta < 0 {
		return m, rsmtest.Outcome{Code: "below_zero"}
	}
	next := m + model(delta)
	return next, rsmtest.Outcome{Reply: []byte(strconv.Itoa(int(next)))}
}

func (m model) Query([]byte) rsmtest.Outcome {
	return rsmtest.Outcome{Reply: []byte(strconv.Itoa(int(m)))}
}

// With a model, every reply and answer is checked too; and events of this version will still be understood by the next one.
func TestMachineAgainstModel(t *testing.T) {
	c := rsmtest.Config{
		New: func() rsm.Machine { return counter{} },
		Command: func(r *rand.Rand) []byte {
			if r.IntN(20) == 0 {
				return []byte("ten")
			}
			return []byte(strconv.Itoa(r.IntN(20) - 8))
		},
		Query: func(*rand.Rand) []byte { return nil },
		Model: model(0),
		Seeds: 20,
	}
	rsmtest.Run(t, c)
	rsmtest.Golden(t, "testdata", "v1", c)
}
