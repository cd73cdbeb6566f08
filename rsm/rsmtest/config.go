package rsmtest

import (
	"errors"
	"math/rand/v2"
	"reflect"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/sim"
	"github.com/decree-raft/decree/rsm"
)

// Config says what is tested. New and Command are required. For a machine over protobuf messages, Typed makes one.
//
// All functions are called on one goroutine at a time.
type Config struct {
	// New returns a machine in the state in which a program that has just started has it. It is called often: for each replica, for each
	// restart of one, and whenever a decision is compared with that of a new machine.
	New func() rsm.Machine
	// Command draws what a client asks for next. It may use r and nothing else, or a seed would not be a run. Draw from few keys, so that
	// commands meet; some that are rejected are welcome.
	Command func(r *rand.Rand) []byte
	// Query draws a query in the same way. Nil: nothing is read.
	Query func(r *rand.Rand) []byte

	// Invariant, if set, returns an error if something is wrong with a state. It is called with the state after committed entries: each of
	// the first 64, then every sixteenth, and the last.
	Invariant func(v rsm.View) error
	// Model, if set, is the machine once more, as it is when nothing has happened yet.
	Model Model
	// ImpureDecide allows Decide to look at more than its view and its command: its own clock, prices, a random source. Then decisions
	// are not compared with those of a new machine, and neither kept state nor map order is found in Decide.
	ImpureDecide bool

	// Seeds is how many clusters are simulated. Default 50, under -short 10. A run takes about 10 to 100 ms.
	Seeds int

	// ShowCommand and the others make what they are given readable, for stories. Default: a quoted string.
	ShowCommand, ShowEvent, ShowReply, ShowQuery, ShowAnswer func([]byte) string

	// same compares encodings of which one meaning has several, by part.
	same func(part sim.Part, a, b []byte) bool
}

// Model is a sequential machine, written for nothing but to be obvious. It shares no code with the machine that it judges. A small value (an int, a
// struct, a map that is copied before it is changed) is best.
type Model interface {
	// Step returns the outcome that the command must have, and the model after it. It must leave its receiver
	// as it was: a request of several commands of which one is rejected changes nothing at all, and earlier states are asked again.
	// A rejected command changes nothing, whatever next is.
	Step(c rsm.Command) (next Model, want Outcome)
	// Query returns what the query must be answered.
	Query(query []byte) Outcome
}

// Outcome is what a Model expects.
type Outcome struct {
	// Reply to a command, or answer to a query, if it is not rejected.
	Reply []byte
	// Code of the rejection; empty if there must be none.
	Code rsm.Code
	// Any: the model does not say.
	Any bool
}

func (c *Config) check() error {
	switch {
	case c.New == nil:
		return errors.New("rsmtest: Config.New is missing: a function that returns a machine")
	case c.Command == nil:
		return errors.New("rsmtest: Config.Command is missing: a function that draws a command")
	case c.Seeds < 0:
		return errors.New("rsmtest: Config.Seeds is negative")
	}
	if one, other := reflect.ValueOf(c.New()), reflect.ValueOf(c.New()); one.Kind() == reflect.Pointer && one.Type().Elem().Size() > 0 && one.Pointer() == other.Pointer() {
		return errors.New("rsmtest: Config.New returns the same machine twice: it must make one each time, or what a machine keeps to itself cannot be found")
	}
	return nil
}

func (c *Config) user() *sim.User {
	u := &sim.User{
		New: c.New, Command: c.Command, Query: c.Query, Invariant: c.Invariant, ImpureDecide: c.ImpureDecide,
		Show: map[sim.Part]func([]byte) string{
			sim.PartCommand: c.ShowCommand, sim.PartEvent: c.ShowEvent, sim.PartReply: c.ShowReply, sim.PartQuery: c.ShowQuery, sim.PartAnswer: c.ShowAnswer,
		},
		Same: map[sim.Part]func(a, b []byte) bool{},
	}
	if c.same != nil {
		for _, p := range []sim.Part{sim.PartEvent, sim.PartReply, sim.PartAnswer} {
			u.Same[p] = func(a, b []byte) bool { return c.same(p, a, b) }
		}
	}
	if c.Model != nil {
		u.Model = c.Model
		u.Step = func(state any, cmd core.Command) (any, sim.Outcome) {
			next, want := state.(Model).Step(cmd)
			return next, sim.Outcome(want)
		}
		u.Answer = func(state any, query []byte) sim.Outcome { return sim.Outcome(state.(Model).Query(query)) }
	}
	return u
}
