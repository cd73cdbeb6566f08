package rsmtest_test

import (
	"math/rand/v2"
	"testing"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

// In a test, t is its argument.
func ExampleRun() {
	var t *testing.T
	rsmtest.Run(t, rsmtest.Config{
		New:     func() rsm.Machine { return tally{} },
		Command: func(r *rand.Rand) []byte { return []byte([]string{"a 5", "b 3", "a -2", "swap a b"}[r.IntN(4)]) },
		Query:   func(*rand.Rand) []byte { return []byte("a") },
	})
}

// The files of all versions stay; the name is that of the present one.
func ExampleGolden() {
	var t *testing.T
	rsmtest.Golden(t, "testdata", "v1", rsmtest.Config{
		New:     func() rsm.Machine { return tally{} },
		Command: tallyCommand,
	})
}
