package probe

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
)

// The rules that a single call can break.
const (
	RulePanic       = "panic"         // a function of the machine panics
	RuleWrites      = "writes"        // Decide or Query writes to the state
	RuleViewBytes   = "view-bytes"    // bytes of the view are changed
	RuleInputBytes  = "input-bytes"   // bytes of the command, event or query are changed
	RuleApplyTwice  = "apply-twice"   // an event applied twice to one state writes something else the second time
	RuleDecideTwice = "decide-twice"  // two fresh machines decide a command differently on one state
	RuleHidden      = "hidden-state"  // a machine that has run decides otherwise than a fresh one
	RuleDiffers     = "apply-differs" // two replicas write something else for one event
)

// Fault is a broken rule.
type Fault struct {
	Rule           string
	Key            []byte // of the state, if there is one to name
	Expected, Seen string // sentences without a full stop
}

func (f *Fault) Error() string {
	return fmt.Sprintf("%s: expected: %s; seen: %s", f.Rule, f.Expected, f.Seen)
}

// Decision is what Decide came to. Its bytes are its own.
type Decision struct {
	Events    [][]byte
	Reply     []byte
	Rejection *core.Rejection // nil: it happens
}

// none stands in for a state that has nothing and takes nothing.
type readOnly struct{ core.View }

func (readOnly) Set([]byte, []byte) {}
func (readOnly) Delete([]byte)      {}

// call runs f, a function of the machine named what, with a guard in front of the view.
func call(what string, g *guard, f func()) (fault *Fault) {
	defer func() {
		if p := recover(); p != nil {
			g.over = true
			if damage, ok := p.(*state.ReadError); ok {
				panic(damage) // the disk's fault, which the core contains
			}
			if fault = g.fault; fault == nil {
				fault = &Fault{Rule: RulePanic, Expected: what + " returns", Seen: fmt.Sprintf("it panicked: %v\n%s", p, machineStack())}
			}
		}
	}()
	f()
	return nil
}

// machineStack is the part of the stack that is the machine's: from the panic to here.
func machineStack() []byte {
	stack := debug.Stack()
	if i := bytes.Index(stack, []byte("panic(")); i >= 0 {
		stack = stack[i:]
		if j := bytes.IndexByte(stack, '\n'); j >= 0 {
			if k := bytes.IndexByte(stack[j+1:], '\n'); k >= 0 {
				stack = stack[j+1+k+1:]
			}
		}
	}
	if i := bytes.Index(stack, []byte("internal/probe.")); i >= 0 {
		stack = stack[:bytes.LastIndexByte(stack[:i], '\n')+1]
	}
	return bytes.TrimSpace(stack)
}

func inputFault(what, input string, was, is []byte) *Fault {
	if bytes.Equal(was, is) {
		return nil
	}
	return &Fault{Rule: RuleInputBytes, Expected: fmt.Sprintf("the bytes of the %s stay %q: they belong to the library", input, was),
		Seen: fmt.Sprintf("%s changed them to %q", what, is)}
}

func first(faults ...*Fault) *Fault {
	for _, f := range faults {
		if f != nil {
			return f
		}
	}
	return nil
}

// Decide has a machine decide a command on a state, which is not changed.
func Decide(m core.Machine, v core.View, c core.Command) (d Decision, fault *Fault) {
	g := &guard{under: readOnly{v}, mayNot: "Decide"}
	was := c.Data
	c.Data = append([]byte{}, was...)
	fault = call("Decide", g, func() {
		events, reply, err := m.Decide(g, c)
		if err != nil {
			d.Rejection = RejectionOf(err)
			return
		}
		for _, e := range events {
			d.Events = append(d.Events, append([]byte{}, e...))
		}
		d.Reply = bytes.Clone(reply)
	})
	return d, first(fault, g.end("Decide"), inputFault("Decide", "command", was, c.Data))
}

// Query has a machine answer a query on a state, which is not changed.
func Query(m core.Machine, v core.View, query []byte) (answer []byte, rejection *core.Rejection, fault *Fault) {
	g := &guard{under: readOnly{v}, mayNot: "Query"}
	mine := bytes.Clone(query)
	fault = call("Query", g, func() {
		a, err := m.Query(g, mine)
		if err != nil {
			rejection = RejectionOf(err)
			return
		}
		answer = bytes.Clone(a)
	})
	return answer, rejection, first(fault, g.end("Query"), inputFault("Query", "query", query, mine))
}

// Apply returns what a machine writes for an event, on a state that it leaves as it is. It has the event
// applied twice: the same has to come of it.
func Apply(m core.Machine, v core.View, e core.Event) (writes []Write, fault *Fault) {
	writes, fault = apply(m, v, e)
	if fault != nil {
		return nil, fault
	}
	again, fault := apply(m, v, e)
	if fault != nil {
		return nil, fault
	}
	if f := CompareWrites(writes, again, "applied once", "applied a second time to the same state by the same machine"); f != nil {
		f.Rule = RuleApplyTwice
		return nil, f
	}
	return writes, nil
}

func apply(m core.Machine, v core.View, e core.Event) ([]Write, *Fault) {
	o := &overlay{under: v}
	g := &guard{under: o}
	was := e.Data
	e.Data = append([]byte{}, was...)
	fault := call("Apply", g, func() { m.Apply(g, e) })
	return o.writes, first(fault, g.end("Apply"), inputFault("Apply", "event", was, e.Data))
}

// CompareWrites names the first write in which two applications of one event differ. The order of writes counts: it is
// part of the hash that replicas compare.
func CompareWrites(one, other []Write, nameOne, nameOther string) *Fault {
	for i := range max(len(one), len(other)) {
		f := &Fault{Rule: RuleDiffers}
		a, b := "writes no more", "writes no more"
		if i < len(one) {
			a, f.Key = one[i].String(), one[i].Key
		}
		if i < len(other) {
			b = other[i].String()
			if f.Key == nil {
				f.Key = other[i].Key
			}
		}
		if i < len(one) && i < len(other) && one[i].same(&other[i]) {
			continue
		}
		f.Expected = fmt.Sprintf("%s, the event %s (write %d)", nameOne, a, i+1)
		f.Seen = fmt.Sprintf("%s, it %s", nameOther, b)
		return f
	}
	return nil
}

// RejectionOf is what the library makes of an error of Decide or Query.
func RejectionOf(err error) *core.Rejection {
	var r *core.Rejection
	if !errors.As(err, &r) {
		return &core.Rejection{Code: core.CodeMachineError, Message: err.Error()}
	}
	switch r.Code {
	case core.CodeSessionExpired, core.CodeSequenceReused, core.CodeSequenceAcked, core.CodeSequenceTooHigh:
		return &core.Rejection{Code: core.CodeMachineError, Message: r.Error(), Detail: r.Detail}
	}
	return &core.Rejection{Code: r.Code, Message: r.Message, Detail: bytes.Clone(r.Detail)}
}
