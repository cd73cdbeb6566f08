package rsmtest

import (
	"errors"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/sim"
)

// What is left of a run must not depend on how quick a machine is.
func init() { budget.Time = time.Hour }

// AnotherDate runs a seed and applies its log under another date.
func AnotherDate(t *testing.T, c Config, seed uint64) error {
	r := sim.Run(seed, sim.Options{User: c.user()})
	if r.Failure != nil {
		return r.Failure
	}
	if f := replayInTheYear2000(t, r); f != nil {
		return errors.New(f.Message + "\n" + f.Expected + "\n" + f.Seen)
	}
	return nil
}
