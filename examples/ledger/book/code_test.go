package book

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/rsm"
)

// standard opens accounts 1 to 4 in EUR, 5 and 6 in USD; 7 (EUR) must keep its debits, 8 (EUR) its credits; 9 is closed.
func standard(t testing.TB) *ledger {
	l := newLedger(t)
	usd := func(n int) Account { return Account{ID: id(n), Asset: "USD", Scale: 2} }
	for _, o := range l.open(eur(1, 0), eur(2, 0), eur(3, 0), eur(4, 0), usd(5), usd(6),
		eur(7, DebitsMustNotExceedCredits), eur(8, CreditsMustNotExceedDebits), eur(9, Closed)) {
		if o.Code != Created {
			t.Fatal(o)
		}
	}
	return l
}

// full is an entry with every optional field.
func full(n int) Entry {
	e := entry(n, debit(1, 100), credit(2, 100))
	e.Flags, e.Timeout = Pending, 60
	e.UserData, e.Code, e.Date, e.Memo, e.Reference = id(777), 7, 20240229, "lunch", "R-2024/17"
	return e
}

func edit(e Entry, f func(e *Entry)) Entry {
	e.Legs = append([]Leg{}, e.Legs...)
	f(&e)
	return e
}

// entryCases produce every code of an entry. The last outcome counts.
var entryCases = []struct {
	want Code
	leg  uint8
	run  func(l *ledger) []Outcome
}{
	{Created, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(2, 5))) }},
	{Created, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 0), credit(2, 0))) }},
	{Created, 0, func(l *ledger) []Outcome { // the same account twice, and two assets
		return l.post(entry(50, debit(1, 5), credit(1, 3), credit(2, 2), credit(5, 9), debit(6, 4), debit(6, 5)))
	}},
	{LinkedEventFailed, 0, func(l *ledger) []Outcome {
		return l.post(entry(49).with(Linked), entry(50, debit(1, 5), credit(2, 5)))
	}},
	{LinkedEventChainOpen, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(2, 5)).with(Linked)) }},
	{ReservedFlag, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(1 << 9)) }},
	{IDMustNotBeZero, 0, func(l *ledger) []Outcome { return l.post(Entry{}) }},
	{IDMustNotBeIntMax, 0, func(l *ledger) []Outcome { return l.post(Entry{ID: MaxID}) }},

	{Exists, 0, again(full(50), func(*Entry) {})},
	{ExistsWithDifferentFlags, 0, again(full(50), func(e *Entry) { e.Flags = 0 })},
	{ExistsWithDifferentPendingID, 0, again(full(50), func(e *Entry) { e.PendingID = id(3) })},
	{ExistsWithDifferentTimeout, 0, again(full(50), func(e *Entry) { e.Timeout = 61 })},
	{ExistsWithDifferentLegCount, 0, again(full(50), func(e *Entry) { e.Legs = append(e.Legs, debit(1, 0)) })},
	{ExistsWithDifferentAccountID, 2, again(full(50), func(e *Entry) { e.Legs[1].Account = id(3) })},
	{ExistsWithDifferentSide, 1, again(full(50), func(e *Entry) { e.Legs[0].Side = Credit })},
	{ExistsWithDifferentClosing, 1, again(full(50), func(e *Entry) { e.Legs[0].Closing = true })},
	{ExistsWithDifferentAmount, 2, again(full(50), func(e *Entry) { e.Legs[1].Amount = U64(7) })},
	{ExistsWithDifferentUserData, 0, again(full(50), func(e *Entry) { e.UserData = ID{} })},
	{ExistsWithDifferentCode, 0, again(full(50), func(e *Entry) { e.Code = 8 })},
	{ExistsWithDifferentDate, 0, again(full(50), func(e *Entry) { e.Date = 20240301 })},
	{ExistsWithDifferentMemo, 0, again(full(50), func(e *Entry) { e.Memo = "dinner" })},
	{ExistsWithDifferentMemo, 0, again(full(50), func(e *Entry) { e.Memo, e.Reference = "dinner", "R-2024/18" })},
	{ExistsWithDifferentReference, 0, again(full(50), func(e *Entry) { e.Reference = "R-2024/18" })},
	{ExistsWithDifferentReference, 0, again(full(50), func(e *Entry) { e.Reference = "" })},
	{IDAlreadyFailed, 0, func(l *ledger) []Outcome {
		l.post(entry(50, debit(1, 5), credit(99, 5)))
		l.open(eur(99, 0)) // it would succeed now
		return l.post(entry(50, debit(1, 5), credit(99, 5)))
	}},

	{FlagsAreMutuallyExclusive, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(Pending | PostPending)) }},
	{FlagsAreMutuallyExclusive, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(Pending | VoidPending)) }},
	{FlagsAreMutuallyExclusive, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(PostPending | VoidPending)) }},
	{FlagsAreMutuallyExclusive, 1, func(l *ledger) []Outcome {
		return l.post(edit(entry(50, debit(1, 5), credit(2, 5)).with(VoidPending), func(e *Entry) { e.Legs[0].Closing = true }))
	}},
	{PendingIDMustBeZero, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(2, 5)).of(3)) }},
	{PendingIDMustNotBeZero, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(PostPending)) }},
	{PendingIDMustNotBeIntMax, 0, func(l *ledger) []Outcome {
		return l.post(Entry{ID: id(50), Flags: VoidPending, PendingID: MaxID})
	}},
	{PendingIDMustBeDifferent, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(PostPending).of(50)) }},
	{TimeoutReservedForPendingEntry, 0, func(l *ledger) []Outcome {
		return l.post(entry(50, debit(1, 5), credit(2, 5)).within(1))
	}},
	{TooFewLegs, 0, func(l *ledger) []Outcome { return l.post(entry(50)) }},
	{TooFewLegs, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 0))) }},
	{TooFewLegs, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 0)).with(PostPending).of(3)) }},
	{TooManyLegs, 0, func(l *ledger) []Outcome { return l.post(entry(50, make([]Leg, MaxLegs+1)...)) }},
	{DebitAccountIDMustNotBeZero, 1, func(l *ledger) []Outcome { return l.post(entry(50, Leg{}, credit(2, 0))) }},
	{CreditAccountIDMustNotBeZero, 2, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 0), Leg{Side: Credit})) }},
	{DebitAccountIDMustNotBeIntMax, 1, func(l *ledger) []Outcome {
		return l.post(entry(50, Leg{Account: MaxID}, credit(2, 0)))
	}},
	{CreditAccountIDMustNotBeIntMax, 2, func(l *ledger) []Outcome {
		return l.post(entry(50, debit(1, 0), Leg{Side: Credit, Account: MaxID}))
	}},
	{ClosingEntryMustBePending, 2, func(l *ledger) []Outcome {
		return l.post(edit(entry(50, debit(1, 5), credit(2, 5)), func(e *Entry) { e.Legs[1].Closing = true }))
	}},
	{DateIsInvalid, 0, func(l *ledger) []Outcome {
		return l.post(edit(entry(50, debit(1, 5), credit(2, 5)), func(e *Entry) { e.Date = 20230229 }))
	}},
	{MemoTooLong, 0, func(l *ledger) []Outcome {
		return l.post(edit(entry(50, debit(1, 5), credit(2, 5)), func(e *Entry) { e.Memo = strings.Repeat("m", MaxMemoBytes+1) }))
	}},
	{MemoMustBeUTF8, 0, func(l *ledger) []Outcome {
		return l.post(edit(entry(50, debit(1, 5), credit(2, 5)), func(e *Entry) { e.Memo = "\xff" }))
	}},
	{ReferenceNeedsVersion2, 0, func(l *ledger) []Outcome {
		l.version = VersionFirst
		return l.post(entry(50, debit(1, 5), credit(2, 5)).citing("R-1"))
	}},
	{ReferenceNeedsVersion2, 0, func(l *ledger) []Outcome { // whatever else is to be said against it
		l.version = 1
		return l.post(entry(50, debit(1, 5), credit(2, 5)).citing(strings.Repeat("\xff", MaxReferenceBytes+1)))
	}},
	{ReferenceTooLong, 0, func(l *ledger) []Outcome {
		return l.post(entry(50, debit(1, 5), credit(2, 5)).citing(strings.Repeat("\xff", MaxReferenceBytes+1)))
	}},
	{ReferenceMustBeUTF8, 0, func(l *ledger) []Outcome {
		return l.post(entry(50, debit(1, 5), credit(2, 5)).citing(strings.Repeat("\xff", MaxReferenceBytes)))
	}},
	{Created, 0, func(l *ledger) []Outcome {
		return l.post(entry(50, debit(1, 5), credit(2, 5)).citing(strings.Repeat("é", MaxReferenceBytes/2)))
	}},

	{DebitAccountNotFound, 1, func(l *ledger) []Outcome { return l.post(entry(50, debit(99, 5), credit(2, 5))) }},
	{CreditAccountNotFound, 3, func(l *ledger) []Outcome {
		return l.post(entry(50, debit(1, 5), credit(2, 5), credit(99, 0)))
	}},
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(2, 4))) }},
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(5, 5))) }}, // EUR for USD
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), debit(2, 5))) }},
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { // balances over all, but in neither asset
		return l.post(entry(50, debit(1, 5), credit(2, 4), debit(5, 4), credit(6, 5)))
	}},
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { // 2^128 - 1 + 2 is 1 modulo 2^128
		return l.post(entry(50, Leg{Account: id(1), Amount: MaxUint128}, debit(2, 2), credit(3, 1)))
	}},
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { // equal in the low 64 bits only
		return l.post(entry(50, Leg{Account: id(1), Amount: Uint128{1, 5}}, credit(2, 5)))
	}},
	{LegsDoNotBalance, 0, func(l *ledger) []Outcome { // part of each leg, but not the same
		l.post(entry(49, debit(1, 5), credit(2, 5)).with(Pending))
		return l.post(entry(50, debit(1, 4), credit(2, 3)).with(PostPending).of(49))
	}},

	{PendingEntryNotFound, 0, func(l *ledger) []Outcome { return l.post(entry(50).with(PostPending).of(3)) }},
	{PendingEntryNotFound, 0, func(l *ledger) []Outcome { // burnt is not found
		l.post(entry(49, debit(99, 5), credit(2, 5)).with(Pending))
		return l.post(entry(50).with(VoidPending).of(49))
	}},
	{PendingEntryNotPending, 0, func(l *ledger) []Outcome {
		l.post(entry(49, debit(1, 5), credit(2, 5)))
		return l.post(entry(50).with(PostPending).of(49))
	}},
	{PendingEntryHasDifferentLegCount, 0, resolving(PostPending, debit(1, 5), credit(2, 5), debit(3, 0))},
	{PendingEntryHasDifferentAccountID, 2, resolving(PostPending, debit(1, 5), credit(3, 5))},
	{PendingEntryHasDifferentSide, 1, resolving(PostPending, credit(1, 5), credit(2, 5))},
	{PendingEntryHasDifferentCode, 0, func(l *ledger) []Outcome {
		l.post(full(49))
		return l.post(edit(entry(50).with(PostPending).of(49), func(e *Entry) { e.Code = 8 }))
	}},
	{ExceedsPendingEntryAmount, 2, resolving(PostPending, debit(1, 5), credit(2, 6))},
	{PendingEntryHasDifferentAmount, 1, resolving(VoidPending, debit(1, 4), credit(2, 4))},
	{Created, 0, resolving(VoidPending, debit(1, 5), credit(2, 5))},
	{PendingEntryAlreadyPosted, 0, func(l *ledger) []Outcome {
		l.post(entry(48, debit(1, 5), credit(2, 5)).with(Pending), entry(49).with(PostPending).of(48))
		return l.post(entry(50).with(VoidPending).of(48))
	}},
	{PendingEntryAlreadyVoided, 0, func(l *ledger) []Outcome {
		l.post(entry(48, debit(1, 5), credit(2, 5)).with(Pending), entry(49).with(VoidPending).of(48))
		return l.post(entry(50).with(PostPending).of(48))
	}},
	{PendingEntryExpired, 0, func(l *ledger) []Outcome { // without a pulse
		l.post(entry(49, debit(1, 5), credit(2, 5)).with(Pending).within(1))
		l.wait(time.Second)
		return l.post(entry(50).with(PostPending).of(49))
	}},
	{PendingEntryExpired, 0, func(l *ledger) []Outcome { // after one
		l.post(entry(49, debit(1, 5), credit(2, 5)).with(Pending).within(1))
		l.wait(time.Second)
		l.pulse()
		return l.post(entry(50).with(VoidPending).of(49))
	}},

	{ExpiriesOutstanding, 1, func(l *ledger) []Outcome {
		l.post(entry(1000, debit(1, 100), credit(7, 100)))
		for i := range MaxExpiries + 1 {
			l.post(entry(100+i, debit(7, 1), credit(2, 1)).with(Pending).within(1))
		}
		l.wait(time.Second)
		return l.post(entry(50, debit(7, 100), credit(2, 100)))
	}},
	{DebitAccountAlreadyClosed, 1, func(l *ledger) []Outcome { return l.post(entry(50, debit(9, 5), credit(2, 5))) }},
	{CreditAccountAlreadyClosed, 2, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(9, 5))) }},
	{OverflowsDebitsPending, 1, overflow(Pending, Debit, Pending)},
	{OverflowsCreditsPending, 1, overflow(Pending, Credit, Pending)},
	{OverflowsDebitsPosted, 1, overflow(0, Debit, 0)},
	{OverflowsCreditsPosted, 1, overflow(0, Credit, 0)},
	{OverflowsDebits, 1, overflow(0, Debit, Pending)},
	{OverflowsCredits, 1, overflow(Pending, Credit, 0)},
	{OverflowsTimeout, 0, func(l *ledger) []Outcome {
		l.now = math.MaxInt64 - rsm.Timestamp(time.Second)
		return l.post(entry(50, debit(1, 5), credit(2, 5)).with(Pending).within(1))
	}},
	{ExceedsCredits, 1, func(l *ledger) []Outcome { return l.post(entry(50, debit(7, 5), credit(2, 5))) }},
	{ExceedsCredits, 2, func(l *ledger) []Outcome { // what is pending in its favour does not count
		l.post(entry(49, debit(1, 5), credit(7, 5)).with(Pending))
		return l.post(entry(50, credit(2, 5), debit(7, 5)))
	}},
	{ExceedsCredits, 1, func(l *ledger) []Outcome { // what is pending against it does
		l.post(entry(48, debit(1, 5), credit(7, 5)), entry(49, debit(7, 3), credit(1, 3)).with(Pending))
		return l.post(entry(50, debit(7, 3), credit(2, 3)))
	}},
	{Created, 0, func(l *ledger) []Outcome { // in one entry, the legs count together
		return l.post(entry(50, debit(7, 5), credit(7, 5)))
	}},
	{ExceedsDebits, 2, func(l *ledger) []Outcome { return l.post(entry(50, debit(1, 5), credit(8, 5))) }},
}

func again(e Entry, change func(e *Entry)) func(l *ledger) []Outcome {
	return func(l *ledger) []Outcome {
		wantCodes(l.t, l.post(e), Created)
		return l.post(edit(e, change))
	}
}

func resolving(f EntryFlags, legs ...Leg) func(l *ledger) []Outcome {
	return func(l *ledger) []Outcome {
		wantCodes(l.t, l.post(entry(49, debit(1, 5), credit(2, 5)).with(Pending)), Created)
		return l.post(entry(50, legs...).with(f).of(49))
	}
}

// overflow books 2^128-1 and then 1 more on the same side of account 1.
func overflow(first EntryFlags, side Side, then EntryFlags) func(l *ledger) []Outcome {
	return func(l *ledger) []Outcome {
		max, one := Leg{Account: id(1), Side: side, Amount: MaxUint128}, Leg{Account: id(1), Side: side, Amount: U64(1)}
		other, otherOne := max, one
		other.Account, other.Side = id(2), Credit-side
		otherOne.Account, otherOne.Side = id(3), Credit-side
		wantCodes(l.t, l.post(entry(49, max, other).with(first)), Created)
		return l.post(entry(50, one, otherOne).with(then))
	}
}

// accountCases produce every code of an account.
var accountCases = []struct {
	want Code
	run  func(l *ledger) []Outcome
}{
	{Created, func(l *ledger) []Outcome { return l.open(eur(50, 0)) }},
	{LinkedEventFailed, func(l *ledger) []Outcome {
		a := eur(49, 1<<5)
		a.Linked = true
		return l.open(a, eur(50, 0))
	}},
	{LinkedEventChainOpen, func(l *ledger) []Outcome {
		a := eur(50, 0)
		a.Linked = true
		return l.open(a)
	}},
	{ReservedFlag, func(l *ledger) []Outcome { return l.open(eur(50, 1<<5)) }},
	{IDMustNotBeZero, func(l *ledger) []Outcome { return l.open(Account{Asset: "EUR"}) }},
	{IDMustNotBeIntMax, func(l *ledger) []Outcome { return l.open(Account{ID: MaxID, Asset: "EUR"}) }},
	{Exists, reopen(func(*Account) {})},
	{ExistsWithDifferentFlags, reopen(func(a *Account) { a.Flags |= Closed })},
	{ExistsWithDifferentUserData, reopen(func(a *Account) { a.UserData = id(2) })},
	{ExistsWithDifferentAsset, reopen(func(a *Account) { a.Asset = "CHF" })},
	{ExistsWithDifferentScale, reopen(func(a *Account) { a.Scale = 3 })},
	{ExistsWithDifferentCode, reopen(func(a *Account) { a.Code = 4 })},
	{ExistsWithDifferentName, reopen(func(a *Account) { a.Name = "Assets:Cash" })},
	{FlagsAreMutuallyExclusive, func(l *ledger) []Outcome {
		return l.open(eur(50, DebitsMustNotExceedCredits|CreditsMustNotExceedDebits))
	}},
	{AssetMustNotBeEmpty, func(l *ledger) []Outcome { return l.open(Account{ID: id(50)}) }},
	{AssetTooLong, func(l *ledger) []Outcome { return l.open(Account{ID: id(50), Asset: strings.Repeat("A", 33)}) }},
	{AssetMustBeUTF8, func(l *ledger) []Outcome { return l.open(Account{ID: id(50), Asset: "\xff"}) }},
	{ScaleTooLarge, func(l *ledger) []Outcome { return l.open(Account{ID: id(50), Asset: "CHF", Scale: 31}) }},
	{NameTooLong, func(l *ledger) []Outcome {
		return l.open(Account{ID: id(50), Asset: "CHF", Name: strings.Repeat("n", 257)})
	}},
	{NameMustBeUTF8, func(l *ledger) []Outcome { return l.open(Account{ID: id(50), Asset: "CHF", Name: "\xff"}) }},
	{AssetHasDifferentScale, func(l *ledger) []Outcome { return l.open(Account{ID: id(50), Asset: "EUR", Scale: 3}) }},
	{AssetHasDifferentScale, func(l *ledger) []Outcome { // also within one command
		return l.open(Account{ID: id(50), Asset: "CHF", Scale: 3}, Account{ID: id(51), Asset: "CHF", Scale: 2})
	}},
}

func reopen(change func(a *Account)) func(l *ledger) []Outcome {
	return func(l *ledger) []Outcome {
		a := Account{ID: id(50), Asset: "EUR", Scale: 2, Name: "Assets:Bank", Code: 3, UserData: id(1)}
		wantCodes(l.t, l.open(a), Created)
		change(&a)
		return l.open(a)
	}
}

func TestEveryCode(t *testing.T) {
	produced := make(map[Code]bool)
	for _, c := range entryCases {
		t.Run("entry/"+c.want.String(), func(t *testing.T) {
			l := standard(t)
			outcomes := c.run(l)
			last := outcomes[len(outcomes)-1]
			if last.Code != c.want || last.Leg != c.leg {
				t.Errorf("got %v of leg %d, want %v of leg %d", last.Code, last.Leg, c.want, c.leg)
			}
			checkBurnt(t, l, last.Code)
			l.audit()
			produced[last.Code] = true
		})
	}
	for _, c := range accountCases {
		t.Run("account/"+c.want.String(), func(t *testing.T) {
			l := standard(t)
			outcomes := c.run(l)
			if last := outcomes[len(outcomes)-1]; last.Code != c.want {
				t.Errorf("got %v, want %v", last.Code, c.want)
			}
			l.audit()
			produced[c.want] = true
		})
	}
	for code := Code(0); code < codeCount; code++ {
		if !produced[code] {
			t.Errorf("no test produces %v", code)
		}
	}
}

// checkBurnt checks that the id of entry 50 is unusable if and only if it failed for a passing reason.
func checkBurnt(t *testing.T, l *ledger, code Code) {
	_, burnt := l.state.Get(new(keys).id(keyEntry, id(50)))
	_, recorded := LookupEntry(&l.state, id(50))
	if want := code.Passing() || code == IDAlreadyFailed; (burnt && !recorded) != want {
		t.Errorf("after %v the id is burnt: %v, want %v", code, burnt && !recorded, want)
	}
}

// Codes and names are stored and sent: this table is written twice on purpose.
func TestCodesNeverChange(t *testing.T) {
	golden := strings.Fields(`created linked_event_failed linked_event_chain_open reserved_flag id_must_not_be_zero
		id_must_not_be_int_max exists_with_different_flags exists_with_different_pending_id exists_with_different_timeout
		exists_with_different_leg_count exists_with_different_account_id exists_with_different_side exists_with_different_closing
		exists_with_different_amount exists_with_different_user_data exists_with_different_code exists_with_different_date
		exists_with_different_memo exists_with_different_asset exists_with_different_scale exists_with_different_name exists
		id_already_failed flags_are_mutually_exclusive pending_id_must_be_zero pending_id_must_not_be_zero
		pending_id_must_not_be_int_max pending_id_must_be_different timeout_reserved_for_pending_entry too_few_legs too_many_legs
		debit_account_id_must_not_be_zero credit_account_id_must_not_be_zero debit_account_id_must_not_be_int_max
		credit_account_id_must_not_be_int_max closing_entry_must_be_pending date_is_invalid memo_too_long memo_must_be_utf8
		debit_account_not_found credit_account_not_found legs_do_not_balance pending_entry_not_found pending_entry_not_pending
		pending_entry_has_different_leg_count pending_entry_has_different_account_id pending_entry_has_different_side
		pending_entry_has_different_code exceeds_pending_entry_amount pending_entry_has_different_amount
		pending_entry_already_posted pending_entry_already_voided pending_entry_expired debit_account_already_closed
		credit_account_already_closed overflows_debits_pending overflows_credits_pending overflows_debits_posted
		overflows_credits_posted overflows_debits overflows_credits overflows_timeout exceeds_credits exceeds_debits
		asset_must_not_be_empty asset_too_long asset_must_be_utf8 scale_too_large name_too_long name_must_be_utf8
		asset_has_different_scale expiries_outstanding
		reference_needs_version_2 reference_too_long reference_must_be_utf8 exists_with_different_reference`)
	if len(golden) != int(codeCount) {
		t.Fatalf("%d codes, the table has %d", codeCount, len(golden))
	}
	for i, name := range golden {
		if c, ok := parseCode(name); !ok || c != Code(i) || c.String() != name {
			t.Errorf("code %d is %v, want %s", i, Code(i), name)
		}
	}
	if got := codeCount.String(); !strings.HasPrefix(got, "code_") {
		t.Errorf("an unknown code is called %q", got)
	}
	if _, ok := parseCode(""); ok {
		t.Error("the empty name is a code")
	}
}
