package book

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/decree-raft/decree/rsm"
)

// The limits of everything that a caller chooses.
const (
	MaxBatch     = 4096 // accounts or entries in one command
	MinLegs      = 2
	MaxLegs      = 64
	MaxNameBytes = 256
	MaxMemoBytes = 512
	// MaxReferenceBytes has room for the longest number that an invoice, an order or a bank's statement is likely to have.
	MaxReferenceBytes = 128
	MaxAssetLen       = 32
	// MaxScale leaves 8 digits before the point of a 128-bit amount.
	MaxScale = 30
)

// ID names an account or an entry: 128 bits of the caller's choice, unique among
// accounts or among entries. Zero and all ones are reserved.
//
// A good id begins with a time and ends in random bits: it is chosen once, written down before it is
// sent, and sent again until there is an answer.
type ID [16]byte

// MaxID is the reserved id of all ones.
var MaxID = ID{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}

// IsZero reports whether id is the reserved zero id.
func (id ID) IsZero() bool { return id == ID{} }

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads up to 32 hexadecimal digits, with or without the dashes of a UUID. Empty is the zero id.
func ParseID(s string) (ID, error) {
	var id ID
	digits := s
	if len(s) == 36 {
		digits = strings.ReplaceAll(s, "-", "")
	}
	if len(digits) > 32 {
		return ID{}, fmt.Errorf("id %q is longer than 32 hexadecimal digits", s)
	}
	if len(digits) < 32 {
		digits = strings.Repeat("0", 32-len(digits)) + digits
	}
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil {
		return ID{}, fmt.Errorf("id %q is not hexadecimal", s)
	}
	return id, nil
}

// Side is the side of an account that a leg is booked on.
type Side uint8

// The two sides.
const (
	Debit Side = iota
	Credit
)

func (s Side) String() string {
	if s == Credit {
		return "credit"
	}
	return "debit"
}

// AccountFlags say what an account allows.
type AccountFlags uint8

// The flags of an account. The first two exclude each other.
const (
	// DebitsMustNotExceedCredits: debits posted and pending stay within the credits posted.
	DebitsMustNotExceedCredits AccountFlags = 1 << iota
	// CreditsMustNotExceedDebits: credits posted and pending stay within the debits posted.
	CreditsMustNotExceedDebits
	// Closed: takes no entries; only a void or an expiry may still release what is pending.
	Closed

	accountFlagsKnown = DebitsMustNotExceedCredits | CreditsMustNotExceedDebits | Closed
	// accountLinked is Account.Linked in the encoding.
	accountLinked AccountFlags = 1 << 7
)

// Account is an account as it is opened. All of it is immutable, but that
// the flag Closed can be set and cleared by closing entries.
type Account struct {
	ID       ID
	Name     string // for people, may be empty
	Asset    string // code of what it holds: "EUR"
	Scale    uint8  // decimals of the asset's minor unit, the same for all accounts of the asset
	Flags    AccountFlags
	Code     uint16 // the caller's kind of account, 0 is none
	UserData ID     // the caller's, zero is none
	Linked   bool   // succeeds or fails with the next account of the command
}

// Balances are the four totals of an account, in minor units.
//
// Invariant: posted + pending of one side never overflows 128 bits.
type Balances struct {
	DebitsPending, DebitsPosted, CreditsPending, CreditsPosted Uint128
}

// Net is debits posted minus credits posted.
func (b Balances) Net() Net { return NetOf(b.DebitsPosted, b.CreditsPosted) }

// AccountState is an account as it stands at one position of the log.
type AccountState struct {
	Account // Flags has Closed as it stands now
	Balances
	Rows uint64 // posted legs, the rows of its statement
	Time rsm.Timestamp
}

// EntryFlags say what an entry does.
type EntryFlags uint16

// The flags of an entry. The last three exclude each other.
const (
	// Linked: succeeds or fails with the next entry of the command.
	Linked EntryFlags = 1 << iota
	// Pending reserves the amounts.
	Pending
	// PostPending moves what the pending entry PendingID reserved, in full or in part.
	PostPending
	// VoidPending releases what the pending entry PendingID reserved.
	VoidPending

	entryFlagsKnown = Linked | Pending | PostPending | VoidPending
	entryPhases     = Pending | PostPending | VoidPending
)

// Leg is one line of an entry.
type Leg struct {
	Account ID
	Side    Side
	// Closing closes the account when the pending entry is recorded. Voiding or expiry opens it again.
	Closing bool
	Amount  Uint128
}

// Entry is one accounting entry: legs that balance per asset, recorded all or none.
type Entry struct {
	ID        ID
	Flags     EntryFlags
	Legs      []Leg
	PendingID ID     // the pending entry that is posted or voided
	Timeout   uint32 // of a pending entry, in seconds, 0 is none
	UserData  ID     // the caller's, zero is none
	Code      uint16 // the caller's reason, 0 is none
	Date      Date   // of the business event, zero is none
	Memo      string // for people
	// Reference is the number of the document behind the entry, empty is none. Since version 2 of the machine.
	Reference string
}

// PendingStatus is how far a pending entry has come.
type PendingStatus uint8

// The life of a pending entry: it is resolved at most once.
const (
	NotPending PendingStatus = iota
	StillPending
	Posted
	Voided
	Expired
)

func (s PendingStatus) String() string {
	return [...]string{"", "pending", "posted", "voided", "expired"}[s]
}

// RecordedEntry is an entry as it stands at one position of the log. Only Status and ResolvedBy ever change.
type RecordedEntry struct {
	Entry
	Time       rsm.Timestamp
	Status     PendingStatus
	ResolvedBy ID            // the entry that posted or voided it
	ExpiresAt  rsm.Timestamp // 0 is never
}

// Row is one line of an account's statement.
type Row struct {
	Number        uint64 // from 1, without gaps
	Entry         ID
	Leg           uint8   // number of the entry's leg, from 1
	DebitsPosted  Uint128 // the account's totals after this leg
	CreditsPosted Uint128
	Side          Side
	Amount        Uint128
	Time          rsm.Timestamp
	Date          Date
	Memo          string
	Reference     string
}

// Date is a day of the proleptic Gregorian calendar as the number YYYYMMDD. Zero is no date.
type Date uint32

// ParseDate reads YYYY-MM-DD. Empty is no date.
func ParseDate(s string) (Date, error) {
	if s == "" {
		return 0, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil || t.Year() == 0 {
		return 0, fmt.Errorf("%q is not a date of the form YYYY-MM-DD", s)
	}
	return Date(t.Year()*10000 + int(t.Month())*100 + t.Day()), nil
}

// Valid reports whether d is a day of the calendar, or no date.
func (d Date) Valid() bool {
	if d == 0 {
		return true
	}
	year, month, day := int(d/10000), time.Month(d/100%100), int(d%100)
	if year < 1 || year > 9999 {
		return false
	}
	t := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	return t.Year() == year && t.Month() == month && t.Day() == day
}

// String returns YYYY-MM-DD, or nothing for no date.
func (d Date) String() string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%04d-%02d-%02d", d/10000, d/100%100, d%100)
}
