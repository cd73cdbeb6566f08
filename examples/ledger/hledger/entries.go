package hledger

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/decree-raft/decree/examples/ledger/book"
)

// ConversionAccount takes what a transaction leaves unbalanced in a commodity:
// ten shares against 5,000 USD are two movements, each against this account. So does the other side of an
// unbalanced virtual posting, which has none.
const ConversionAccount = "Equity:Conversion"

// Booking is a journal as the ledger takes it.
type Booking struct {
	Accounts []book.Account // in the order of their first use
	Entries  []book.Entry
	Scales   map[string]uint8 // of every commodity that has an amount of sense
	Problems []Problem        // of transactions that are sound but cannot be booked; their entries are left out
	Refused  int              // transactions with such a problem
}

// AccountID derives the id of a named account: the first 128 bits of SHA-256 of the name, a zero byte and
// the commodity. In the ledger an account has one asset, so a journal's account is one account for each commodity.
func AccountID(name, commodity string) book.ID {
	sum := sha256.Sum256([]byte(name + "\x00" + commodity))
	return book.ID(sum[:16])
}

// Book turns a journal into accounts and entries. Existing holds the scales of
// the assets that the ledger has already, which cannot change, or is to have; any other
// commodity gets as many decimals as its most precise amount has. One of more than twelve counts if its transaction can be booked alone.
func (j *Journal) Book(existing map[string]uint8) *Booking {
	precision := maps.Clone(j.Decimals)
	alone := make(map[int]Problem) // of what cannot be booked even so
	for i := range j.Transactions {
		t := &j.Transactions[i]
		if !slices.ContainsFunc(t.Postings, func(p Posting) bool { return p.Amount.Decimals > maxTypical }) {
			continue
		}
		own := make(map[string]Precision)
		for _, p := range t.Postings {
			precise(own, p.Commodity, p.Amount.Decimals, p.Line)
		}
		if problem, ok := newBooker(own, existing).book(t); !ok {
			alone[i] = problem
			continue
		}
		for commodity, has := range own {
			precise(precision, commodity, int(has.Decimals), has.Line)
		}
	}
	b := newBooker(precision, existing)
	for i := range j.Transactions {
		problem, refused := alone[i]
		if !refused {
			var ok bool
			problem, ok = b.book(&j.Transactions[i])
			refused = !ok
		}
		if refused {
			b.Problems = append(b.Problems, problem)
			b.Refused++
		}
	}
	return &b.Booking
}

type booker struct {
	Booking
	lines map[string]int      // that gave a commodity its decimals, if it did not have them before
	seen  map[book.ID]bool    // accounts that are in Accounts
	same  map[[32]byte]uint64 // how many transactions of this content there were
}

func newBooker(precision map[string]Precision, existing map[string]uint8) *booker {
	b := &booker{Booking: Booking{Scales: make(map[string]uint8)}, lines: make(map[string]int), seen: make(map[book.ID]bool), same: make(map[[32]byte]uint64)}
	for commodity, has := range precision {
		if scale, ok := existing[commodity]; ok {
			b.Scales[commodity] = scale
		} else {
			b.Scales[commodity], b.lines[commodity] = has.Decimals, has.Line
		}
	}
	return b
}

// excess is what a transaction leaves over in a commodity.
type excess struct {
	commodity       string
	debits, credits book.Uint128
}

func (b *booker) book(t *Transaction) (Problem, bool) {
	e := book.Entry{ID: b.entryID(t), Date: t.Date, Memo: t.Description}
	var names []book.Account
	var over []excess
	var kinds [2][]excess // over, of the real postings and of the balanced virtual ones
	for _, p := range t.Postings {
		scale := b.Scales[p.Commodity]
		amount, err := book.ParseScaled(p.Amount.String(), scale)
		if err != nil {
			why := fmt.Sprintf("%s has %d decimals in the ledger, which %v does not fit", p.Commodity, scale, p.Amount)
			if line := b.lines[p.Commodity]; line != 0 {
				why = fmt.Sprintf("%s gets %d decimals, as line %d has, which %v does not fit; -scale says others", p.Commodity, scale, line, p.Amount)
			}
			return Problem{p.Line, why}, false
		}
		fits := false
		if over, fits = addTo(over, p.Commodity, amount); !fits {
			return Problem{p.Line, fmt.Sprintf("the amounts in %s are over 128 bits", p.Commodity)}, false
		}
		if p.Kind != Virtual {
			kinds[p.Kind], _ = addTo(kinds[p.Kind], p.Commodity, amount)
		}
		names = append(names, account(p.Account, p.Commodity, scale))
		e.Legs = append(e.Legs, leg(names[len(names)-1].ID, amount))
	}
	if !sound(kinds) {
		return Problem{t.Postings[0].Line, fmt.Sprintf("transaction %s does not balance, and is no conversion from one commodity to another", t.Index)}, false
	}
	for _, x := range over {
		// One posting alone is no entry: it gets its counterpart, even if that is zero.
		if rest := book.NetOf(x.credits, x.debits); !rest.Magnitude.IsZero() || len(t.Postings) == 1 {
			names = append(names, account(ConversionAccount, x.commodity, b.Scales[x.commodity]))
			e.Legs = append(e.Legs, leg(names[len(names)-1].ID, rest))
		}
	}
	if len(e.Legs) > book.MaxLegs {
		return Problem{t.Postings[0].Line, fmt.Sprintf("transaction %s makes %d legs, an entry has at most %d", t.Index, len(e.Legs), book.MaxLegs)}, false
	}
	for _, a := range names {
		if !b.seen[a.ID] {
			b.seen[a.ID] = true
			b.Accounts = append(b.Accounts, a)
		}
	}
	b.Entries = append(b.Entries, e)
	return Problem{}, true
}

// sound reports whether what a transaction leaves over is nothing, or a conversion: at least one commodity is
// given and at least one other taken. Anything else is a wrong amount or a lost line, which no book would hold.
func sound(kinds [2][]excess) bool {
	for _, over := range kinds {
		given, taken := false, false
		for _, x := range over {
			order := x.debits.Cmp(x.credits)
			given, taken = given || order < 0, taken || order > 0
		}
		if given != taken {
			return false
		}
	}
	return true
}

// addTo adds an amount to the excess in its commodity, and reports whether the sum still fits.
func addTo(over []excess, commodity string, amount book.Net) ([]excess, bool) {
	i := slices.IndexFunc(over, func(x excess) bool { return x.commodity == commodity })
	if i < 0 {
		i, over = len(over), append(over, excess{commodity: commodity})
	}
	return over, over[i].add(amount)
}

func account(name, commodity string, scale uint8) book.Account {
	return book.Account{ID: AccountID(name, commodity), Name: name, Asset: commodity, Scale: scale}
}

func leg(id book.ID, amount book.Net) book.Leg {
	l := book.Leg{Account: id, Side: book.Debit, Amount: amount.Magnitude}
	if amount.Negative {
		l.Side = book.Credit
	}
	return l
}

// add reports whether the sum still fits.
func (x *excess) add(amount book.Net) bool {
	total := &x.debits
	if amount.Negative {
		total = &x.credits
	}
	sum, overflow := total.Add(amount.Magnitude)
	*total = sum
	return !overflow
}

// NextID is the id of an entry whose own id is burnt: it failed in an import before, for a reason that may have passed.
func NextID(id book.ID) book.ID {
	sum := sha256.Sum256(append([]byte("decree ledger import again"), id[:]...))
	return book.ID(sum[:16])
}

// entryID derives an entry's id from what the transaction says, so that
// importing a file again finds every entry already there. Transactions that say the same are told apart by their
// order. The transaction's number is left out: it changes when the journal grows in the middle.
func (b *booker) entryID(t *Transaction) book.ID {
	h := sha256.New()
	text := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	text("decree ledger import 1")
	text(t.Date.String())
	text(t.Description)
	for _, p := range t.Postings {
		text(p.Account)
		text(p.Commodity)
		text(p.Amount.canonical())
	}
	content := [32]byte(h.Sum(nil))
	ordinal := b.same[content]
	b.same[content]++
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(content[:], ordinal))
	return book.ID(sum[:16])
}
