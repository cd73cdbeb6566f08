package session

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

var (
	ordinary = Claim{}
	room     = Claim{MakesRoom: true}
	back     = Claim{Back: true}
)

// opened is a window with a session.
func opened(t *testing.T) *Window {
	t.Helper()
	w := &Window{Open: func(context.Context) (core.SessionID, error) { return 5, nil }}
	n, err := w.Begin(context.Background(), ordinary)
	if err != nil || n != (Number{5, 1, 0}) {
		t.Fatal(n, err)
	}
	w.Finish(n)
	return w
}

// take returns n numbers for a claim, and fails if there are not exactly so many.
func take(t *testing.T, w *Window, n int, c Claim) (all []Number) {
	t.Helper()
	for range n {
		number, ok := w.TryBegin(c)
		if !ok {
			t.Fatalf("%+v: %d numbers, not %d", c, len(all), n)
		}
		all = append(all, number)
	}
	if number, ok := w.TryBegin(c); ok {
		t.Fatalf("%+v: one more, %+v", c, number)
	}
	return all
}

// However many ordinary commands wait, there are numbers for those that make room; and those that were put off keep nobody's outcomes from being acknowledged [G11].
//
// Mutations with which it was seen to fail: none are kept for what makes room; those that were put off have no place; what is put off keeps its number.
func TestPutOff(t *testing.T) {
	w := opened(t)
	numbers := take(t, w, MaxUnacknowledged-forRoom, ordinary)
	making := take(t, w, forRoom, room)
	for _, n := range append(numbers, making...) {
		w.PutOff(n)
	}
	if _, ok := w.TryBegin(room); ok {
		t.Error("those that were put off have no place")
	}
	for range making {
		w.Leave()
	}
	for range 3 * MaxUnacknowledged { // each knows that all before it are over
		n, ok := w.TryBegin(room)
		if !ok || n.Acknowledged != n.Sequence-1 {
			t.Fatalf("a command that makes room: %+v, %v", n, ok)
		}
		w.Finish(n)
	}
	if _, ok := w.TryBegin(ordinary); ok {
		t.Error("an ordinary command has the place of one that was put off")
	}
	for left := MaxUnacknowledged - forRoom; left > 0; {
		var again []Number
		if left > MaxUnacknowledged/2 {
			again = take(t, w, MaxUnacknowledged/2, back)
		} else {
			for range left {
				n, ok := w.TryBegin(back)
				if !ok {
					t.Fatal("who comes back finds no number")
				}
				again = append(again, n)
			}
		}
		if again[0].Sequence <= making[len(making)-1].Sequence {
			t.Errorf("the number %d is given out a second time", again[0].Sequence)
		}
		for _, n := range again {
			w.Finish(n)
		}
		left -= len(again)
	}
	take(t, w, MaxUnacknowledged-forRoom, ordinary)
}

// One that is in doubt keeps its number. Those that are put off, again and again, do not take all numbers after it from what makes room [G11].
//
// Mutations with which it was seen to fail: who makes room waits for the places of those that were put off as well; who comes back has all numbers but the reserve.
func TestPutOffBesideADoubt(t *testing.T) {
	w := opened(t)
	if _, ok := w.TryBegin(ordinary); !ok { // and never ends
		t.Fatal("no number")
	}
	var others []Number
	for range 1500 {
		n, ok := w.TryBegin(ordinary)
		if !ok {
			t.Fatal("no number")
		}
		others = append(others, n)
	}
	for range 10 { // seconds
		var back []Number
		for _, n := range others {
			w.PutOff(n)
		}
		for range others {
			if n, ok := w.TryBegin(Claim{Back: true}); ok {
				back = append(back, n)
			}
		}
		others = back
	}
	for i := range 1500 {
		n, ok := w.TryBegin(room)
		if !ok {
			t.Fatalf("%d commands that make room have found numbers", i)
		}
		w.Finish(n)
	}
}

// waiter is the outcome of an ordinary command, which waits for a number when it returns.
func waiter(t *testing.T, w *Window) <-chan error {
	t.Helper()
	got := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_, err := w.Begin(ctx, ordinary)
		got <- err
	}()
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		if len(got) > 0 {
			t.Fatal("there is room")
		}
		w.mu.Lock()
		waits = w.room != nil
		w.mu.Unlock()
	}
	return got
}

// New ones that stop early for those that come back go on as soon as the last of these is there, and not when some outcome arrives: there may be none for long.
//
// Mutation with which it was seen to fail: the last that comes back wakes nobody.
func TestNewOnesGoOnAfterTheLastIsBack(t *testing.T) {
	w := opened(t)
	var last Number
	for range 1901 {
		n, ok := w.TryBegin(ordinary)
		if !ok {
			t.Fatal("no number")
		}
		last = n
	}
	w.PutOff(last)
	got := waiter(t, w)
	if _, ok := w.TryBegin(back); !ok {
		t.Fatal("who comes back finds no number")
	}
	if err := <-got; err != nil {
		t.Errorf("nobody is put off, and %d are under way: %v", w.last-w.acked, err)
	}
}

// The end of one that was put off is room for another that waits for it; a session that ended meanwhile is none for who comes back.
//
// Mutation with which it was seen to fail: Leave wakes nobody.
func TestLeave(t *testing.T) {
	w := opened(t)
	for _, n := range take(t, w, MaxUnacknowledged-forRoom, ordinary) {
		w.PutOff(n)
	}
	got := waiter(t, w)
	w.Leave()
	if err := <-got; err != nil {
		t.Error(err)
	}
	w.Forget(5)
	w.Open = func(context.Context) (core.SessionID, error) { return 6, nil }
	if _, ok := w.TryBegin(back); ok {
		t.Error("a number without a session")
	}
	if n, err := w.Begin(context.Background(), back); err != nil || n != (Number{6, 1, 0}) {
		t.Error(n, err)
	}
}

// Only what is certain, and may last while others are taken, puts a command off.
func TestPutsOff(t *testing.T) {
	for _, err := range []error{nil, errors.New("other"), &core.Error{Kind: core.ErrUnknown, Code: core.CodeDiskLow}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded},
		&core.Rejection{Code: core.CodeDiskLow}} {
		if PutsOff(err) {
			t.Errorf("%v does", err)
		}
	}
	if !PutsOff(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeDiskLow}) {
		t.Error("want of disk does not")
	}
}

// Those that come back are not overtaken for good by new ones: as long as there are any, these leave them some of the numbers that they may take.
//
// Mutation with which it was seen to fail: new ones stop where they always do.
func TestNewOnesWaitForThosePutOff(t *testing.T) {
	w := opened(t)
	for _, n := range take(t, w, MaxUnacknowledged-forRoom, ordinary)[:1000] {
		w.PutOff(n)
	}
	first := w.acked + 1
	for range 2000 { // outcomes arrive, and new ones take what room there is
		w.Finish(Number{5, first, 0})
		first++
		for {
			if _, ok := w.TryBegin(ordinary); !ok {
				break
			}
		}
	}
	if _, ok := w.TryBegin(back); !ok {
		t.Errorf("%d are under way, and none of those that were put off comes back", w.last-w.acked)
	}
}
