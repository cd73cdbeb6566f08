package book

import (
	"fmt"
	"slices"

	"github.com/decree-raft/decree/rsm"
)

// A statement is not stored as rows of its own: three keys less for each entry to write, sort and keep are worth more
// than a cheaper page. What a leg has done to its account, its posting, stands in the entry's record, and names the
// entry of the row before; the account names that of its newest row. So a statement is a list that is read backwards,
// and every rowsPerMark-th row is marked under a key, so that reading can begin near any row.

// posting is what a posted leg adds to its account's statement.
type posting struct {
	number                      uint64 // of the row, from 1 on
	before                      ID     // the entry of row number-1
	debitsPosted, creditsPosted Uint128
}

// append appends the encoding of p:
//
//	0   8  number of the row
//	8  16  entry of the row before, zero for the first
//	24  1  length of the debits
//	25  1  length of the credits
//	26  n  debits posted after the leg
//	    m  credits posted after the leg
func (p *posting) append(b []byte) []byte {
	b = append(appendU64(b, p.number), p.before[:]...)
	b = append(b, byte(amountLen(p.debitsPosted)), byte(amountLen(p.creditsPosted)))
	return appendAmount(appendAmount(b, p.debitsPosted), p.creditsPosted)
}

func (r *reader) posting() (p posting) {
	p.number = r.u64()
	p.before = r.id()
	debits, credits := int(r.u8()), int(r.u8())
	p.debitsPosted, p.creditsPosted = r.amount(debits), r.amount(credits)
	return p
}

// rowsPerMark is how many rows there are to a mark: what a page costs at most beyond its own rows.
const rowsPerMark = 64

// place is where an account's statement stands between two rows: after row number, which entry wrote. An account's
// rows are its statement if and only if each leads from one place to the next, from the zero place to that of the account.
type place struct {
	number          uint64
	entry           ID
	debits, credits Uint128
}

func (a *account) place() place {
	return place{number: a.rows, entry: a.last, debits: a.DebitsPosted, credits: a.CreditsPosted}
}

// places returns the places before and after a leg of entry.
func (p *posting) places(entry ID, l *Leg) (before, after place) {
	after = place{number: p.number, entry: entry, debits: p.debitsPosted, credits: p.creditsPosted}
	before = place{number: p.number - 1, entry: p.before, debits: p.debitsPosted, credits: p.creditsPosted}
	total := &before.debits
	if l.Side == Credit {
		total = &before.credits
	}
	*total, _ = total.Sub(l.Amount) // what is below zero is the place of no row
	return before, after
}

// Statement returns up to limit rows of an account's statement after row number after.
func Statement(v rsm.View, account ID, after uint64, limit int) []Row {
	var k keys
	value, ok := v.Get(k.id(keyAccount, account))
	if !ok || limit <= 0 {
		return nil
	}
	a := must(decodeAccount(value))
	if after >= a.rows {
		return nil
	}
	last := after + min(a.rows-after, uint64(limit))
	number, at := a.rows, a.last
	if mark := (last + rowsPerMark - 1) / rowsPerMark; mark*rowsPerMark < a.rows {
		value, ok := v.Get(k.mark(account, mark))
		if !ok || len(value) != len(ID{}) {
			panic(fmt.Sprintf("book: account %v has no mark of row %d", account, mark*rowsPerMark))
		}
		number, at = mark*rowsPerMark, ID(value)
	}
	rows := make([]Row, 0, last-after)
	for ; number > after; number-- {
		row, before := rowOf(v, account, number, at)
		if number <= last {
			rows = append(rows, row)
		}
		at = before
	}
	slices.Reverse(rows)
	return rows
}

// rowOf returns a row of an account, which is in the entry at, and the entry of the row before.
func rowOf(v rsm.View, account ID, number uint64, at ID) (row Row, before ID) {
	var k keys
	value, ok := v.Get(k.id(keyEntry, at))
	if !ok {
		panic(fmt.Sprintf("book: row %d of account %v is in entry %v, which is not there", number, account, at))
	}
	record := must(decodeEntryRecord(value))
	var e Entry
	postings := must(record.decodeAll(&e))
	for i := range postings {
		p, l := &postings[i], &e.Legs[i]
		if p.number != number || l.Account != account {
			continue
		}
		return Row{
			Number: number, Entry: at, Leg: legNumber(i), Side: l.Side, Amount: l.Amount,
			DebitsPosted: p.debitsPosted, CreditsPosted: p.creditsPosted,
			Time: record.time, Date: e.Date, Memo: e.Memo, Reference: e.Reference,
		}, p.before
	}
	panic(fmt.Sprintf("book: row %d of account %v is not in entry %v", number, account, at))
}
