package book

import (
	"bytes"
	"math"
	"time"
	"unicode/utf8"

	"github.com/decree-raft/decree/rsm"
)

// postEntry decides one entry of a command; event is its encoding. The checks
// stand in the order of their precedence, which is TigerBeetle's.
func (d *draft) postEntry(e *Entry, event []byte) Outcome {
	if out := checkNamed(e); out.Code != Created {
		return out
	}
	if record, ok := d.record(e.ID); ok {
		return d.compareEntry(e, record)
	}
	if out := checkEntry(e, d.version); out.Code != Created {
		return out
	}
	for {
		start := d.mark()
		var out Outcome
		if e.Flags&(PostPending|VoidPending) != 0 {
			out = d.resolve(e)
		} else {
			out = d.book(e, event)
		}
		if out.Code == Created {
			return out
		}
		d.rollback(start)
		// A reservation whose time is over must not stand in anybody's way,
		// even if no pulse has released it yet. The scan for due ones
		// is not free, so it is made only for an entry that would fail without it.
		if !d.mayBeBlocked(e, out) {
			return out
		}
		switch n, more := d.expireDue(); {
		case n == 0 && more:
			return Outcome{ExpiriesOutstanding, out.Leg}
		case n == 0:
			return out
		}
	}
}

// checkNamed is what an entry must satisfy before it is looked for.
func checkNamed(e *Entry) Outcome {
	switch {
	case e.Flags&^entryFlagsKnown != 0:
		return Outcome{Code: ReservedFlag}
	case e.ID.IsZero():
		return Outcome{Code: IDMustNotBeZero}
	case e.ID == MaxID:
		return Outcome{Code: IDMustNotBeIntMax}
	}
	return Outcome{}
}

// checkEntry is what an entry must satisfy by itself, under a version.
func checkEntry(e *Entry, version uint64) Outcome {
	resolves := e.Flags&(PostPending|VoidPending) != 0
	phases := e.Flags & entryPhases
	if phases&(phases-1) != 0 {
		return Outcome{Code: FlagsAreMutuallyExclusive}
	}
	if resolves {
		for i := range e.Legs {
			if e.Legs[i].Closing {
				return Outcome{FlagsAreMutuallyExclusive, legNumber(i)}
			}
		}
		switch e.PendingID {
		case ID{}:
			return Outcome{Code: PendingIDMustNotBeZero}
		case MaxID:
			return Outcome{Code: PendingIDMustNotBeIntMax}
		case e.ID:
			return Outcome{Code: PendingIDMustBeDifferent}
		}
	}
	if out := checkLegs(e.Legs, resolves && len(e.Legs) == 0); out.Code != Created {
		return out
	}
	switch {
	case !resolves && !e.PendingID.IsZero():
		return Outcome{Code: PendingIDMustBeZero}
	case e.Timeout != 0 && e.Flags&Pending == 0:
		return Outcome{Code: TimeoutReservedForPendingEntry}
	}
	if e.Flags&Pending == 0 {
		for i := range e.Legs {
			if e.Legs[i].Closing {
				return Outcome{ClosingEntryMustBePending, legNumber(i)}
			}
		}
	}
	switch {
	case !e.Date.Valid():
		return Outcome{Code: DateIsInvalid}
	case len(e.Memo) > MaxMemoBytes:
		return Outcome{Code: MemoTooLong}
	case !utf8.ValidString(e.Memo):
		return Outcome{Code: MemoMustBeUTF8}
	case e.Reference != "" && version < VersionReferences:
		return Outcome{Code: ReferenceNeedsVersion2}
	case len(e.Reference) > MaxReferenceBytes:
		return Outcome{Code: ReferenceTooLong}
	case !utf8.ValidString(e.Reference):
		return Outcome{Code: ReferenceMustBeUTF8}
	}
	return Outcome{}
}

func checkLegs(legs []Leg, mayBeNone bool) Outcome {
	switch {
	case len(legs) < MinLegs && !mayBeNone:
		return Outcome{Code: TooFewLegs}
	case len(legs) > MaxLegs:
		return Outcome{Code: TooManyLegs}
	}
	for i := range legs {
		switch l := &legs[i]; l.Account {
		case ID{}:
			return sided(l.Side, i, DebitAccountIDMustNotBeZero, CreditAccountIDMustNotBeZero)
		case MaxID:
			return sided(l.Side, i, DebitAccountIDMustNotBeIntMax, CreditAccountIDMustNotBeIntMax)
		}
	}
	return Outcome{}
}

// book decides a single-phase or pending entry that is sound by itself.
func (d *draft) book(e *Entry, event []byte) Outcome {
	for i := range e.Legs {
		l := &e.Legs[i]
		d.indexes[i] = d.accountAt(l.Account)
		if !d.accounts[d.indexes[i]].found {
			return sided(l.Side, i, DebitAccountNotFound, CreditAccountNotFound)
		}
	}
	if !d.balanced(e.Legs) {
		return Outcome{Code: LegsDoNotBalance}
	}
	if out := d.checkOpen(e.Legs); out.Code != Created {
		return out
	}
	for i := range e.Legs {
		if out := d.moveLeg(i, &e.Legs[i], e.Flags&Pending != 0); out.Code != Created {
			return out
		}
	}
	expires, out := expiryOf(e, d.now)
	if out.Code != Created {
		return out
	}
	if out := d.checkLimits(e.Legs); out.Code != Created {
		return out
	}
	if e.Flags&Pending != 0 && !d.last {
		d.setPending(e.ID, pendingState{status: StillPending, expiresAt: expires})
	}
	d.setRecord(e.ID, event)
	return Outcome{}
}

func (d *draft) checkOpen(legs []Leg) Outcome {
	for i := range legs {
		if d.accounts[d.indexes[i]].flags&Closed != 0 {
			return sided(legs[i].Side, i, DebitAccountAlreadyClosed, CreditAccountAlreadyClosed)
		}
	}
	return Outcome{}
}

// moveLeg books one leg in the draft, if it overflows nothing.
func (d *draft) moveLeg(i int, l *Leg, pending bool) Outcome {
	a := &d.accounts[d.indexes[i]].account
	total, code := a.posted(l.Side), sided(l.Side, i, OverflowsDebitsPosted, OverflowsCreditsPosted)
	if pending {
		total, code = a.pending(l.Side), sided(l.Side, i, OverflowsDebitsPending, OverflowsCreditsPending)
	}
	if _, overflow := total.Add(l.Amount); overflow {
		return code
	}
	both, _ := a.pending(l.Side).Add(*a.posted(l.Side))
	if _, overflow := both.Add(l.Amount); overflow {
		return sided(l.Side, i, OverflowsDebits, OverflowsCredits)
	}
	a = d.change(d.indexes[i])
	a.book(l, pending)
	return Outcome{}
}

// checkLimits looks at the accounts after all legs: an entry is one fact, there is no state between its
// legs. What is pending counts against the side that it would be posted to, and never in favour of the other.
func (d *draft) checkLimits(legs []Leg) Outcome {
	for i := range legs {
		a := &d.accounts[d.indexes[i]].account
		if legs[i].Side == Debit && a.flags&DebitsMustNotExceedCredits != 0 && a.exceeds(Debit) {
			return Outcome{ExceedsCredits, legNumber(i)}
		}
	}
	for i := range legs {
		a := &d.accounts[d.indexes[i]].account
		if legs[i].Side == Credit && a.flags&CreditsMustNotExceedDebits != 0 && a.exceeds(Credit) {
			return Outcome{ExceedsDebits, legNumber(i)}
		}
	}
	return Outcome{}
}

// assetSum adds up the legs of one asset.
type assetSum struct {
	asset           []byte
	debits, credits sum192
}

// balanced reports whether debits equal credits in every asset.
func (d *draft) balanced(legs []Leg) bool {
	if len(legs) == 2 && legs[0].Side != legs[1].Side { // the common entry, without the sums
		return legs[0].Amount == legs[1].Amount &&
			bytes.Equal(d.accounts[d.indexes[0]].asset, d.accounts[d.indexes[1]].asset) ||
			legs[0].Amount.IsZero() && legs[1].Amount.IsZero()
	}
	d.balances = d.balances[:0]
	for i := range legs {
		sum := d.sumOf(d.accounts[d.indexes[i]].asset)
		if legs[i].Side == Debit {
			sum.debits.add(legs[i].Amount)
		} else {
			sum.credits.add(legs[i].Amount)
		}
	}
	for i := range d.balances {
		if d.balances[i].debits != d.balances[i].credits {
			return false
		}
	}
	return true
}

func (d *draft) sumOf(asset []byte) *assetSum {
	for i := range d.balances {
		if bytes.Equal(d.balances[i].asset, asset) {
			return &d.balances[i]
		}
	}
	d.balances = append(d.balances, assetSum{asset: asset})
	return &d.balances[len(d.balances)-1]
}

func expiryOf(e *Entry, now rsm.Timestamp) (rsm.Timestamp, Outcome) {
	if e.Timeout == 0 {
		return 0, Outcome{}
	}
	timeout := rsm.Timestamp(e.Timeout) * rsm.Timestamp(time.Second)
	if now > math.MaxInt64-timeout {
		return 0, Outcome{Code: OverflowsTimeout}
	}
	return now + timeout, Outcome{}
}

// legNumber counts from 1, as people and outcomes do.
func legNumber(i int) uint8 { return uint8(i + 1) }

func sided(side Side, leg int, debit, credit Code) Outcome {
	if side == Credit {
		return Outcome{credit, legNumber(leg)}
	}
	return Outcome{debit, legNumber(leg)}
}
