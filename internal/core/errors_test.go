package core

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
)

var fourKinds = []error{ErrRejected, ErrNotProposed, ErrUnknown, ErrBroken}

func kindsOf(err error) (of []error) {
	for _, k := range fourKinds {
		if errors.Is(err, k) {
			of = append(of, k)
		}
	}
	return of
}

// Whatever an error of the library is made of, it answers once whether it happened: the outermost does, and what stands below is there for its words, and for
// what is not the library's.
//
// Mutations with which it was seen to fail: Unwrap returns the cause; below looks at its cause for the kinds; As does not look for a *Rejection, Is for an *Error.
func TestOneKind(t *testing.T) {
	path := &fs.PathError{Op: "open", Path: "x", Err: context.Canceled}
	causes := []error{nil, path, Reject("no", "no"), fmt.Errorf("wrapped: %w", Reject("no", "no")), errors.Join(path, unknown(CodeClosed, "joined"))}
	for _, k := range fourKinds {
		causes = append(causes, k, fmt.Errorf("wrapped: %w and %w", path, k))
		if k != ErrRejected {
			inner := &Error{Kind: k, Code: CodeNoLeader, Message: "below", Cause: path}
			causes = append(causes, inner, fmt.Errorf("wrapped: %w", inner), &Error{Kind: k, Code: CodeNoLeader, Cause: inner})
		}
	}
	for _, kind := range fourKinds[1:] {
		for _, cause := range causes {
			e := &Error{Kind: kind, Code: CodeRepair, Message: "m", Cause: cause}
			for _, err := range []error{e, fmt.Errorf("outside: %w", e)} {
				if got := kindsOf(err); len(got) != 1 || got[0] != kind {
					t.Errorf("%v matches %v", err, got)
				}
				var found *Error
				var no *Rejection
				if !errors.As(err, &found) || found != e || errors.As(err, &no) {
					t.Errorf("in %v there are found %v and %v", err, found, no)
				}
				if errors.Is(err, &Error{Code: CodeNoLeader}) || errors.Is(err, &Rejection{Code: "no"}) || !errors.Is(err, &Error{Code: CodeRepair}) {
					t.Errorf("%v matches another's code, or not its own", err)
				}
				// Both find what is not the library's, below its own errors too.
				var p *fs.PathError
				if want := errors.Is(cause, context.Canceled); errors.Is(err, context.Canceled) != want || errors.As(err, &p) != want {
					t.Errorf("of the cause %v %v finds %v", cause, err, p)
				}
			}
		}
	}
	if got := kindsOf(Reject("no", "no")); len(got) != 1 || got[0] != ErrRejected {
		t.Errorf("a rejection matches %v", got)
	}
	if err := notProposed(CodeClosed, "m"); errors.Unwrap(err) != nil {
		t.Errorf("without a cause, %v is below", errors.Unwrap(err))
	}
}

// The constructors.
func TestConstructors(t *testing.T) {
	below := notProposed(CodeClosed, "below")
	for want, err := range map[error]error{ErrNotProposed: notProposed(CodeClosed, "m"), ErrUnknown: unknown(CodeClosed, "m"), ErrBroken: broken(CodeStorage, below, "m"),
		ErrRejected: Reject("no", "m")} {
		if got := kindsOf(err); len(got) != 1 || got[0] != want {
			t.Errorf("%v matches %v, want %v", err, got, want)
		}
		if got := kindsOf(rejectionOf(err)); len(got) != 1 || got[0] != ErrRejected {
			t.Errorf("what a machine returned, %v, is %v", err, got)
		}
	}
}

// Who answers that a call had no answer in time does not close because somebody behind it did.
//
// Mutation with which it was seen to fail: the code of whoever closes is passed on.
func TestLateDoesNotClose(t *testing.T) {
	for _, inDoubt := range []bool{false, true} {
		if e := Late(inDoubt, notProposed(CodeClosed, "the node closes"), nil); e.Code != CodeCancelled {
			t.Errorf("in doubt: %v: %v", inDoubt, e)
		}
	}
}

// What a machine rejects with may be memory of the state, or its own: whoever gets it may write to it.
//
// Mutation with which it was seen to fail: the machine's own rejection is handed out.
func TestRejectionsAreCopies(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.submit("+key")
	for name, q := range map[string]*Request{
		"a command": {Kind: KindCommand, Commands: [][]byte{[]byte("?key")}},
		"a query":   {Kind: KindRead, Level: Stale, Query: []byte("key")},
	} {
		done := false
		q.Shard, q.Done = 1, func(q *Request) {
			done = true
			_, r := Verdict(q.Err)
			if r == nil || string(r.Detail) != "key" {
				t.Errorf("%s ends with %v", name, q.Err)
				return
			}
			clear(r.Detail)
		}
		h.in.Requests = append(h.in.Requests, q)
		h.settle(2)
		if got, _ := h.shard.Get([]byte("key")); !done || string(got) != "key" {
			t.Errorf("after %s (%v) the state has %q", name, done, got)
		}
	}
	mine := &Rejection{Code: "mine", Detail: []byte("detail")}
	if r := rejectionOf(fmt.Errorf("wrapped: %w", mine)); r == mine || &r.Detail[0] == &mine.Detail[0] {
		t.Error("the machine's own is handed out")
	}
}

// echo is bulky with a reply to each command, which is the command.
type echo struct{ bulky }

func (m echo) Decide(v View, c Command) ([][]byte, []byte, error) {
	events, _, err := m.bulky.Decide(v, c)
	return events, c.Data, err
}

// Two who ask for one number at the same time have one outcome, and no memory in common: what one of them writes, the other does not read.
//
// Mutations with which it was seen to fail, one by one: the replies are shared; the rejection is.
func TestOutcomesOfTwoAskers(t *testing.T) {
	h := newHand(t, Limits{})
	h.lead()
	h.replica().machine = echo{}
	session := h.opens()
	for seq, command := range []string{"+key", "?key"} {
		var told []string
		for range 3 {
			h.in.Requests = append(h.in.Requests, &Request{Kind: KindCommand, Shard: 1, Session: session, Sequence: uint64(seq) + 1, Commands: [][]byte{[]byte(command)}, Done: func(q *Request) {
				var b []byte
				if _, no := Verdict(q.Err); no != nil {
					b = no.Detail
				} else if q.Err == nil {
					b = q.Result.Replies[0]
				}
				told = append(told, string(b))
				clear(b)
			}})
		}
		h.settle(2)
		if want := []string{"+key", "key"}[seq]; !slices.Equal(told, []string{want, want, want}) {
			t.Errorf("%s: %q", command, told)
		}
	}
}
