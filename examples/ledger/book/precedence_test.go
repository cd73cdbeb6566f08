package book

import (
	"strings"
	"testing"
	"time"
)

// fix is a fault of an entry, and what repairs it.
type fix struct {
	fault  Code
	repair func(e *Entry) // nil: version 2 becomes active
}

// TestPrecedence sends an entry with every fault at once, repairs the one that
// is named, and so on: the faults must be named in the order of the README's table.
func TestPrecedence(t *testing.T) {
	reserved := func(e *Entry) { e.Flags &^= 1 << 9 }
	newID := func(e *Entry) { e.ID = id(60) }
	date := func(e *Entry) { e.Date = 20240131 }
	memo := func(e *Entry) { e.Memo = "\xff" }
	utf8 := func(e *Entry) { e.Memo = "" }
	leg := func(i int, l Leg) func(e *Entry) { return func(e *Entry) { e.Legs[i] = l } }

	t.Run("pending", func(t *testing.T) {
		e := Entry{Flags: 1<<9 | Pending | VoidPending | PostPending, PendingID: id(1), Timeout: 5, Date: 1, Memo: strings.Repeat("m", 600), Reference: strings.Repeat("\xff", 200), Legs: []Leg{{}}}
		repairAll(t, e, []fix{
			{ReservedFlag, reserved},
			{IDMustNotBeZero, func(e *Entry) { e.ID = MaxID }},
			{IDMustNotBeIntMax, newID},
			{FlagsAreMutuallyExclusive, func(e *Entry) { e.Flags = 0 }},
			{TooFewLegs, func(e *Entry) { e.Legs = make([]Leg, MaxLegs+1) }},
			{TooManyLegs, func(e *Entry) { e.Legs = []Leg{{}, {Side: Credit, Account: MaxID}} }},
			{DebitAccountIDMustNotBeZero, func(e *Entry) { e.Legs[0] = Leg{Account: id(98), Amount: MaxUint128, Closing: true} }},
			{CreditAccountIDMustNotBeIntMax, leg(1, credit(99, 5))},
			{PendingIDMustBeZero, func(e *Entry) { e.PendingID = ID{} }},
			{TimeoutReservedForPendingEntry, func(e *Entry) { e.Timeout = 0 }},
			{ClosingEntryMustBePending, func(e *Entry) { e.Legs[0].Closing = false }},
			{DateIsInvalid, date},
			{MemoTooLong, memo},
			{MemoMustBeUTF8, utf8},
			{ReferenceNeedsVersion2, nil},
			{ReferenceTooLong, func(e *Entry) { e.Reference = "\xff" }},
			{ReferenceMustBeUTF8, func(e *Entry) { e.Reference = "R-1" }},
			{DebitAccountNotFound, func(e *Entry) { e.ID, e.Legs[0].Account = id(61), id(9) }}, // the id is burnt
			{CreditAccountNotFound, func(e *Entry) { e.ID, e.Legs[1].Account = id(62), id(8) }},
			{LegsDoNotBalance, leg(1, Leg{Account: id(8), Side: Credit, Amount: MaxUint128})},
			{DebitAccountAlreadyClosed, func(e *Entry) { e.ID, e.Legs[0].Account = id(63), id(7) }},
			{OverflowsCreditsPosted, func(e *Entry) { e.Legs[0].Amount, e.Legs[1].Amount = U64(5), U64(5) }},
			{ExceedsCredits, func(e *Entry) { e.ID, e.Legs[0].Account = id(64), id(1) }},
			{ExceedsDebits, func(e *Entry) { e.ID, e.Legs[1].Account = id(65), id(2) }},
		})
	})

	t.Run("post", func(t *testing.T) {
		e := Entry{ID: id(60), Flags: PostPending, PendingID: ID{}, Timeout: 5, Date: 1, Code: 9,
			Legs: []Leg{{Closing: true}, credit(2, 100), debit(3, 0)}}
		repairAll(t, e, []fix{
			{FlagsAreMutuallyExclusive, func(e *Entry) { e.Legs[0].Closing = false }},
			{PendingIDMustNotBeZero, func(e *Entry) { e.PendingID = MaxID }},
			{PendingIDMustNotBeIntMax, func(e *Entry) { e.PendingID = e.ID }},
			{PendingIDMustBeDifferent, func(e *Entry) { e.PendingID = id(59) }},
			{DebitAccountIDMustNotBeZero, leg(0, credit(2, 101))},
			{TimeoutReservedForPendingEntry, func(e *Entry) { e.Timeout = 0 }},
			{DateIsInvalid, date},
			{PendingEntryNotFound, func(e *Entry) { e.ID, e.PendingID = id(61), id(51) }},
			{PendingEntryNotPending, func(e *Entry) { e.PendingID = id(52) }},
			{PendingEntryHasDifferentLegCount, func(e *Entry) { e.Legs = e.Legs[:2] }},
			{PendingEntryHasDifferentAccountID, func(e *Entry) { e.Legs[0].Account = id(1) }},
			{PendingEntryHasDifferentSide, func(e *Entry) { e.Legs[0].Side = Debit }},
			{PendingEntryHasDifferentCode, func(e *Entry) { e.Code = 7 }},
			{ExceedsPendingEntryAmount, func(e *Entry) { e.Legs[0].Amount = U64(99) }},
			{LegsDoNotBalance, func(e *Entry) { e.Legs[1].Amount = U64(99) }},
			{PendingEntryExpired, func(e *Entry) { e.PendingID = id(53) }},
			{PendingEntryAlreadyPosted, func(e *Entry) { e.PendingID = id(54) }},
			{DebitAccountAlreadyClosed, func(e *Entry) { e.ID, e.Flags, e.Legs, e.Code = id(62), VoidPending, nil, 0 }},
		})
	})
}

// repairAll works on a ledger where 52 is a pending entry that has expired, 53
// one that was posted, and 54 one that is pending still.
func repairAll(t *testing.T, e Entry, fixes []fix) {
	t.Helper()
	l := standard(t)
	like := func(n int) Entry { f := full(n); f.Timeout = 0; return f }
	wantCodes(t, l.post(
		entry(51, debit(3, 1), credit(4, 1)), // not pending
		like(52).within(5), like(53), like(54), entry(55).with(PostPending).of(53),
		entry(56, debit(8, 1), credit(8, 1))), // a credit that MaxUint128 overflows
		make([]Code, 6)...)
	l.wait(5 * time.Second)
	if e.Flags&PostPending != 0 && e.Flags&Pending == 0 { // the second table needs an account of 54 closed
		closing := entry(57, debit(1, 0), credit(3, 0)).with(Pending)
		closing.Legs[0].Closing = true
		wantCodes(t, l.post(closing), Created)
	}
	if e.Reference != "" {
		l.version = VersionFirst
	}
	for _, f := range fixes {
		e.Legs = append([]Leg{}, e.Legs...)
		got := l.post(e)[0].Code
		if got != f.fault {
			t.Fatalf("got %v, want %v, of %+v", got, f.fault, e)
		}
		if f.repair == nil {
			l.version = VersionReferences
		} else {
			f.repair(&e)
		}
	}
	wantCodes(t, l.post(e), Created)
	l.audit()
}
