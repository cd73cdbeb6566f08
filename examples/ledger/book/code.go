package book

import "fmt"

// Code is the outcome of one account or entry of a command. Each has a name
// that is stable for ever; the numbers are stored and only ever added to.
// Names are TigerBeetle's wherever the meaning is the same, with "entry" for "transfer"
// and "leg" for what a transfer has only one of. The README's tables say in
// which order they are checked.
type Code uint8

// The codes, grouped as they are checked. Numbers never change; new codes go to the end.
const (
	Created Code = iota // recorded

	LinkedEventFailed    // another item of the chain failed
	LinkedEventChainOpen // the last item of the command is linked to nothing
	ReservedFlag         // a flag that has no meaning yet is set
	IDMustNotBeZero
	IDMustNotBeIntMax

	ExistsWithDifferentFlags
	ExistsWithDifferentPendingID
	ExistsWithDifferentTimeout
	ExistsWithDifferentLegCount
	ExistsWithDifferentAccountID
	ExistsWithDifferentSide
	ExistsWithDifferentClosing
	ExistsWithDifferentAmount
	ExistsWithDifferentUserData
	ExistsWithDifferentCode
	ExistsWithDifferentDate
	ExistsWithDifferentMemo
	ExistsWithDifferentAsset
	ExistsWithDifferentScale
	ExistsWithDifferentName
	Exists          // the same item is already there: as good as Created
	IDAlreadyFailed // an entry of this id failed for a passing reason: the id stays unusable

	FlagsAreMutuallyExclusive
	PendingIDMustBeZero
	PendingIDMustNotBeZero
	PendingIDMustNotBeIntMax
	PendingIDMustBeDifferent
	TimeoutReservedForPendingEntry
	TooFewLegs
	TooManyLegs
	DebitAccountIDMustNotBeZero
	CreditAccountIDMustNotBeZero
	DebitAccountIDMustNotBeIntMax
	CreditAccountIDMustNotBeIntMax
	ClosingEntryMustBePending
	DateIsInvalid
	MemoTooLong
	MemoMustBeUTF8

	DebitAccountNotFound  // passing
	CreditAccountNotFound // passing
	LegsDoNotBalance      // per asset, debits differ from credits

	PendingEntryNotFound // passing
	PendingEntryNotPending
	PendingEntryHasDifferentLegCount
	PendingEntryHasDifferentAccountID
	PendingEntryHasDifferentSide
	PendingEntryHasDifferentCode
	ExceedsPendingEntryAmount
	PendingEntryHasDifferentAmount
	PendingEntryAlreadyPosted
	PendingEntryAlreadyVoided
	PendingEntryExpired

	DebitAccountAlreadyClosed  // passing
	CreditAccountAlreadyClosed // passing
	OverflowsDebitsPending
	OverflowsCreditsPending
	OverflowsDebitsPosted
	OverflowsCreditsPosted
	OverflowsDebits
	OverflowsCredits
	OverflowsTimeout
	ExceedsCredits // passing: the account's debits must not exceed its credits
	ExceedsDebits  // passing: the account's credits must not exceed its debits

	// For accounts only.
	AssetMustNotBeEmpty
	AssetTooLong
	AssetMustBeUTF8
	ScaleTooLarge
	NameTooLong
	NameMustBeUTF8
	AssetHasDifferentScale // an earlier account of this asset has another scale

	// ExpiriesOutstanding: the entry fails for what is pending, and more of that is due than one command lets expire.
	// It does not burn the id, as nobody can tell yet whether the entry is to fail: send it again.
	ExpiriesOutstanding

	// ReferenceNeedsVersion2: the entry has a reference, and version 2 of the machine is not active yet, as some node still
	// runs the program before. It does not burn the id: nothing was found against the entry. Send it again when all nodes
	// have been started with the new program, or now without its reference.
	ReferenceNeedsVersion2
	ReferenceTooLong
	ReferenceMustBeUTF8
	ExistsWithDifferentReference

	codeCount // not a code
)

var codeNames = [codeCount]string{
	Created:                           "created",
	LinkedEventFailed:                 "linked_event_failed",
	LinkedEventChainOpen:              "linked_event_chain_open",
	ReservedFlag:                      "reserved_flag",
	IDMustNotBeZero:                   "id_must_not_be_zero",
	IDMustNotBeIntMax:                 "id_must_not_be_int_max",
	ExistsWithDifferentFlags:          "exists_with_different_flags",
	ExistsWithDifferentPendingID:      "exists_with_different_pending_id",
	ExistsWithDifferentTimeout:        "exists_with_different_timeout",
	ExistsWithDifferentLegCount:       "exists_with_different_leg_count",
	ExistsWithDifferentAccountID:      "exists_with_different_account_id",
	ExistsWithDifferentSide:           "exists_with_different_side",
	ExistsWithDifferentClosing:        "exists_with_different_closing",
	ExistsWithDifferentAmount:         "exists_with_different_amount",
	ExistsWithDifferentUserData:       "exists_with_different_user_data",
	ExistsWithDifferentCode:           "exists_with_different_code",
	ExistsWithDifferentDate:           "exists_with_different_date",
	ExistsWithDifferentMemo:           "exists_with_different_memo",
	ExistsWithDifferentAsset:          "exists_with_different_asset",
	ExistsWithDifferentScale:          "exists_with_different_scale",
	ExistsWithDifferentName:           "exists_with_different_name",
	Exists:                            "exists",
	IDAlreadyFailed:                   "id_already_failed",
	FlagsAreMutuallyExclusive:         "flags_are_mutually_exclusive",
	PendingIDMustBeZero:               "pending_id_must_be_zero",
	PendingIDMustNotBeZero:            "pending_id_must_not_be_zero",
	PendingIDMustNotBeIntMax:          "pending_id_must_not_be_int_max",
	PendingIDMustBeDifferent:          "pending_id_must_be_different",
	TimeoutReservedForPendingEntry:    "timeout_reserved_for_pending_entry",
	TooFewLegs:                        "too_few_legs",
	TooManyLegs:                       "too_many_legs",
	DebitAccountIDMustNotBeZero:       "debit_account_id_must_not_be_zero",
	CreditAccountIDMustNotBeZero:      "credit_account_id_must_not_be_zero",
	DebitAccountIDMustNotBeIntMax:     "debit_account_id_must_not_be_int_max",
	CreditAccountIDMustNotBeIntMax:    "credit_account_id_must_not_be_int_max",
	ClosingEntryMustBePending:         "closing_entry_must_be_pending",
	DateIsInvalid:                     "date_is_invalid",
	MemoTooLong:                       "memo_too_long",
	MemoMustBeUTF8:                    "memo_must_be_utf8",
	DebitAccountNotFound:              "debit_account_not_found",
	CreditAccountNotFound:             "credit_account_not_found",
	LegsDoNotBalance:                  "legs_do_not_balance",
	PendingEntryNotFound:              "pending_entry_not_found",
	PendingEntryNotPending:            "pending_entry_not_pending",
	PendingEntryHasDifferentLegCount:  "pending_entry_has_different_leg_count",
	PendingEntryHasDifferentAccountID: "pending_entry_has_different_account_id",
	PendingEntryHasDifferentSide:      "pending_entry_has_different_side",
	PendingEntryHasDifferentCode:      "pending_entry_has_different_code",
	ExceedsPendingEntryAmount:         "exceeds_pending_entry_amount",
	PendingEntryHasDifferentAmount:    "pending_entry_has_different_amount",
	PendingEntryAlreadyPosted:         "pending_entry_already_posted",
	PendingEntryAlreadyVoided:         "pending_entry_already_voided",
	PendingEntryExpired:               "pending_entry_expired",
	DebitAccountAlreadyClosed:         "debit_account_already_closed",
	CreditAccountAlreadyClosed:        "credit_account_already_closed",
	OverflowsDebitsPending:            "overflows_debits_pending",
	OverflowsCreditsPending:           "overflows_credits_pending",
	OverflowsDebitsPosted:             "overflows_debits_posted",
	OverflowsCreditsPosted:            "overflows_credits_posted",
	OverflowsDebits:                   "overflows_debits",
	OverflowsCredits:                  "overflows_credits",
	OverflowsTimeout:                  "overflows_timeout",
	ExceedsCredits:                    "exceeds_credits",
	ExceedsDebits:                     "exceeds_debits",
	AssetMustNotBeEmpty:               "asset_must_not_be_empty",
	AssetTooLong:                      "asset_too_long",
	AssetMustBeUTF8:                   "asset_must_be_utf8",
	ScaleTooLarge:                     "scale_too_large",
	NameTooLong:                       "name_too_long",
	NameMustBeUTF8:                    "name_must_be_utf8",
	AssetHasDifferentScale:            "asset_has_different_scale",
	ExpiriesOutstanding:               "expiries_outstanding",
	ReferenceNeedsVersion2:            "reference_needs_version_2",
	ReferenceTooLong:                  "reference_too_long",
	ReferenceMustBeUTF8:               "reference_must_be_utf8",
	ExistsWithDifferentReference:      "exists_with_different_reference",
}

// String returns the code's name.
func (c Code) String() string {
	if c < codeCount {
		return codeNames[c]
	}
	return fmt.Sprintf("code_%d", uint8(c))
}

// OK reports whether the item is in the book, now or from before.
func (c Code) OK() bool { return c == Created || c == Exists }

// Passing reports whether the same entry might have succeeded at another time, for what else was in the book.
// Such a failure burns the id: a retry, which cannot know of the failure, must not
// be booked later than its author gave up on it. ExpiriesOutstanding and ReferenceNeedsVersion2 pass as well, and burn
// nothing: they say that nobody has judged the entry yet.
func (c Code) Passing() bool {
	switch c {
	case DebitAccountNotFound, CreditAccountNotFound, PendingEntryNotFound,
		DebitAccountAlreadyClosed, CreditAccountAlreadyClosed, ExceedsCredits, ExceedsDebits:
		return true
	}
	return false
}

// Outcome is the code of one item of a command, and the leg that it is about.
type Outcome struct {
	Code Code
	// Leg is the number of the leg, counted from 1; 0 is the item as a whole.
	Leg uint8
}
