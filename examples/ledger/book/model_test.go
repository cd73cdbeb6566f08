package book

import (
	"math/big"
	"slices"
	"sort"
	"time"

	"github.com/decree-raft/decree/rsm"
)

// The model is the ledger once more, written for nothing but to be
// obvious: big.Int amounts, whole copies for rollback, no encodings. It shares
// only the names of types and codes with the machine.
type model struct {
	now      rsm.Timestamp
	version  uint64
	accounts map[ID]*modelAccount
	entries  map[ID]*modelEntry
	burnt    map[ID]bool
	expired  int // in the command at hand
}

type modelAccount struct {
	asset  string
	flags  AccountFlags
	totals [2][2]*big.Int // by side, then posted (0) or pending (1)
	rows   []modelRow
}

type modelRow struct {
	entry           ID
	debits, credits *big.Int
}

type modelEntry struct {
	Entry
	status  PendingStatus
	expires rsm.Timestamp
}

func newModel() *model {
	return &model{accounts: map[ID]*modelAccount{}, entries: map[ID]*modelEntry{}, burnt: map[ID]bool{}}
}

func (m *model) open(a Account) {
	zero := func() *big.Int { return new(big.Int) }
	m.accounts[a.ID] = &modelAccount{asset: a.Asset, flags: a.Flags,
		totals: [2][2]*big.Int{{zero(), zero()}, {zero(), zero()}}}
}

func (m *model) clone() *model {
	c := newModel()
	c.now, c.version, c.expired = m.now, m.version, m.expired
	for id, a := range m.accounts {
		b := *a
		for side := range b.totals {
			for k := range b.totals[side] {
				b.totals[side][k] = new(big.Int).Set(a.totals[side][k])
			}
		}
		b.rows = slices.Clone(a.rows)
		c.accounts[id] = &b
	}
	for id, e := range m.entries {
		f := *e
		c.entries[id] = &f
	}
	for id := range m.burnt {
		c.burnt[id] = true
	}
	return c
}

// post books a command of entries.
func (m *model) post(now rsm.Timestamp, entries []Entry) []Outcome {
	m.now, m.expired = now, 0
	var out []Outcome
	for len(entries) > 0 {
		n := 1
		for n < len(entries) && entries[n-1].Flags&Linked != 0 {
			n++
		}
		out = append(out, m.chain(entries[:n])...)
		entries = entries[n:]
	}
	return out
}

// chain books entries that are linked, or a single one.
func (m *model) chain(entries []Entry) []Outcome {
	before := m.clone()
	out := make([]Outcome, len(entries))
	for i, e := range entries {
		if i == len(entries)-1 && e.Flags&Linked != 0 {
			out[i] = Outcome{Code: LinkedEventChainOpen}
		} else {
			out[i] = m.one(e)
		}
		if out[i].Code == Created {
			continue
		}
		if len(entries) > 1 || entries[0].Flags&Linked != 0 {
			before.expired = m.expired
			*m = *before
			for j := range out {
				if j != i {
					out[j] = Outcome{Code: LinkedEventFailed}
				}
			}
			if last := len(entries) - 1; entries[last].Flags&Linked != 0 {
				out[last] = Outcome{Code: LinkedEventChainOpen}
			}
		}
		if out[i].Code.Passing() {
			m.burnt[e.ID] = true
		}
		break
	}
	return out
}

func (m *model) one(e Entry) Outcome {
	e.Legs = slices.Clone(e.Legs)
	for {
		before := m.clone()
		out := m.try(&e)
		if out.Code == Created {
			return out
		}
		*m = *before
		blocked := out.Code == DebitAccountAlreadyClosed || out.Code == CreditAccountAlreadyClosed
		if out.Code == ExceedsCredits || out.Code == ExceedsDebits {
			l := e.Legs[out.Leg-1]
			blocked = m.accounts[l.Account].totals[l.Side][1].Sign() != 0
		}
		if !blocked {
			return out
		}
		if n, more := m.expire(); n == 0 && more {
			return Outcome{ExpiriesOutstanding, out.Leg}
		} else if n == 0 {
			return out
		}
	}
}

// expire lets due entries expire, the earliest first.
func (m *model) expire() (n int, more bool) {
	var due []*modelEntry
	for _, e := range m.entries {
		if e.status == StillPending && e.expires != 0 && e.expires <= m.now {
			due = append(due, e)
		}
	}
	sort.Slice(due, func(i, j int) bool {
		if due[i].expires != due[j].expires {
			return due[i].expires < due[j].expires
		}
		return due[i].ID.String() < due[j].ID.String()
	})
	n = min(len(due), 64-m.expired)
	due, more = due[:n], len(due) > n
	for _, e := range due {
		m.release(e, Expired)
	}
	m.expired += n
	return n, more
}

func (m *model) release(p *modelEntry, as PendingStatus) {
	p.status = as
	for _, l := range p.Legs {
		a := m.accounts[l.Account]
		a.totals[l.Side][1].Sub(a.totals[l.Side][1], l.Amount.big())
		if l.Closing && as != Posted {
			a.flags &^= Closed
		}
	}
}

func (m *model) try(e *Entry) Outcome {
	whole := func(c Code) Outcome { return Outcome{Code: c} }
	if e.ID.IsZero() {
		return whole(IDMustNotBeZero)
	}
	if m.burnt[e.ID] {
		return whole(IDAlreadyFailed)
	}
	if old := m.entries[e.ID]; old != nil {
		return m.differ(e, old)
	}
	phases := 0
	for _, f := range []EntryFlags{Pending, PostPending, VoidPending} {
		if e.Flags&f != 0 {
			phases++
		}
	}
	if phases > 1 {
		return whole(FlagsAreMutuallyExclusive)
	}
	if e.Flags&(PostPending|VoidPending) != 0 {
		return m.settle(e)
	}
	for i, l := range e.Legs {
		if l.Closing && e.Flags&Pending == 0 {
			return Outcome{ClosingEntryMustBePending, uint8(i + 1)}
		}
	}
	if e.Reference != "" && m.version < 2 {
		return whole(ReferenceNeedsVersion2)
	}
	k := 0
	if e.Flags&Pending != 0 {
		k = 1
	}
	sums := map[string]*big.Int{}
	for i, l := range e.Legs {
		a := m.accounts[l.Account]
		if a == nil {
			return bySide(l, i, DebitAccountNotFound, CreditAccountNotFound)
		}
		addSigned(sums, a.asset, l)
	}
	for _, sum := range sums {
		if sum.Sign() != 0 {
			return whole(LegsDoNotBalance)
		}
	}
	for i, l := range e.Legs {
		if m.accounts[l.Account].flags&Closed != 0 {
			return bySide(l, i, DebitAccountAlreadyClosed, CreditAccountAlreadyClosed)
		}
	}
	for _, l := range e.Legs {
		a := m.accounts[l.Account]
		a.totals[l.Side][k].Add(a.totals[l.Side][k], l.Amount.big())
		if l.Closing {
			a.flags |= Closed
		}
		if k == 0 {
			a.row(e.ID)
		}
	}
	for _, check := range []struct {
		side Side
		flag AccountFlags
		code Code
	}{{Debit, DebitsMustNotExceedCredits, ExceedsCredits}, {Credit, CreditsMustNotExceedDebits, ExceedsDebits}} {
		for i, l := range e.Legs {
			a := m.accounts[l.Account]
			used := new(big.Int).Add(a.totals[check.side][0], a.totals[check.side][1])
			if l.Side == check.side && a.flags&check.flag != 0 && used.Cmp(a.totals[1-check.side][0]) > 0 {
				return Outcome{check.code, uint8(i + 1)}
			}
		}
	}
	recorded := &modelEntry{Entry: *e}
	if k == 1 {
		recorded.status = StillPending
		if e.Timeout != 0 {
			recorded.expires = m.now + rsm.Timestamp(e.Timeout)*rsm.Timestamp(time.Second)
		}
	}
	m.entries[e.ID] = recorded
	return Outcome{}
}

func (a *modelAccount) row(entry ID) {
	a.rows = append(a.rows, modelRow{entry, new(big.Int).Set(a.totals[0][0]), new(big.Int).Set(a.totals[1][0])})
}

func addSigned(sums map[string]*big.Int, asset string, l Leg) {
	if sums[asset] == nil {
		sums[asset] = new(big.Int)
	}
	if l.Side == Debit {
		sums[asset].Add(sums[asset], l.Amount.big())
	} else {
		sums[asset].Sub(sums[asset], l.Amount.big())
	}
}

func bySide(l Leg, i int, debit, credit Code) Outcome {
	if l.Side == Debit {
		return Outcome{debit, uint8(i + 1)}
	}
	return Outcome{credit, uint8(i + 1)}
}

// settle posts or voids.
func (m *model) settle(e *Entry) Outcome {
	whole := func(c Code) Outcome { return Outcome{Code: c} }
	if e.PendingID.IsZero() {
		return whole(PendingIDMustNotBeZero)
	}
	if e.PendingID == e.ID {
		return whole(PendingIDMustBeDifferent)
	}
	if e.Reference != "" && m.version < 2 {
		return whole(ReferenceNeedsVersion2)
	}
	p := m.entries[e.PendingID]
	if p == nil {
		return whole(PendingEntryNotFound)
	}
	if p.Flags&Pending == 0 {
		return whole(PendingEntryNotPending)
	}
	if len(e.Legs) != 0 {
		if len(e.Legs) != len(p.Legs) {
			return whole(PendingEntryHasDifferentLegCount)
		}
		for i := range e.Legs {
			if e.Legs[i].Account != p.Legs[i].Account {
				return Outcome{PendingEntryHasDifferentAccountID, uint8(i + 1)}
			}
		}
		for i := range e.Legs {
			if e.Legs[i].Side != p.Legs[i].Side {
				return Outcome{PendingEntryHasDifferentSide, uint8(i + 1)}
			}
		}
		for i := range e.Legs {
			order := e.Legs[i].Amount.big().Cmp(p.Legs[i].Amount.big())
			if order > 0 {
				return Outcome{ExceedsPendingEntryAmount, uint8(i + 1)}
			}
			if order < 0 && e.Flags&VoidPending != 0 {
				return Outcome{PendingEntryHasDifferentAmount, uint8(i + 1)}
			}
		}
	}
	*e = m.inherited(*e, p)
	sums := map[string]*big.Int{}
	for _, l := range e.Legs {
		addSigned(sums, m.accounts[l.Account].asset, l)
	}
	for _, sum := range sums {
		if sum.Sign() != 0 {
			return whole(LegsDoNotBalance)
		}
	}
	switch {
	case p.status == Posted:
		return whole(PendingEntryAlreadyPosted)
	case p.status == Voided:
		return whole(PendingEntryAlreadyVoided)
	case p.status == Expired || p.expires != 0 && p.expires <= m.now:
		return whole(PendingEntryExpired)
	}
	if e.Flags&VoidPending != 0 {
		m.release(p, Voided)
		m.entries[e.ID] = &modelEntry{Entry: *e}
		return Outcome{}
	}
	for i, l := range e.Legs {
		if m.accounts[l.Account].flags&Closed != 0 {
			return bySide(l, i, DebitAccountAlreadyClosed, CreditAccountAlreadyClosed)
		}
	}
	m.release(p, Posted)
	for _, l := range e.Legs {
		a := m.accounts[l.Account]
		a.totals[l.Side][0].Add(a.totals[l.Side][0], l.Amount.big())
		a.row(e.ID)
	}
	m.entries[e.ID] = &modelEntry{Entry: *e}
	return Outcome{}
}

func (m *model) inherited(e Entry, p *modelEntry) Entry {
	if len(e.Legs) == 0 {
		e.Legs = slices.Clone(p.Legs)
		for i := range e.Legs {
			e.Legs[i].Closing = false
		}
	}
	if e.Memo == "" {
		e.Memo = p.Memo
	}
	if e.Reference == "" {
		e.Reference = p.Reference
	}
	return e
}

func (m *model) differ(e *Entry, old *modelEntry) Outcome {
	switch {
	case e.Flags != old.Flags:
		return Outcome{Code: ExistsWithDifferentFlags}
	case e.PendingID != old.PendingID:
		return Outcome{Code: ExistsWithDifferentPendingID}
	case e.Timeout != old.Timeout:
		return Outcome{Code: ExistsWithDifferentTimeout}
	}
	f := *e
	if !e.PendingID.IsZero() {
		f = m.inherited(f, m.entries[e.PendingID])
	}
	if len(f.Legs) != len(old.Legs) {
		return Outcome{Code: ExistsWithDifferentLegCount}
	}
	for _, c := range []struct {
		code Code
		same func(a, b Leg) bool
	}{
		{ExistsWithDifferentAccountID, func(a, b Leg) bool { return a.Account == b.Account }},
		{ExistsWithDifferentSide, func(a, b Leg) bool { return a.Side == b.Side }},
		{ExistsWithDifferentClosing, func(a, b Leg) bool { return a.Closing == b.Closing }},
		{ExistsWithDifferentAmount, func(a, b Leg) bool { return a.Amount.big().Cmp(b.Amount.big()) == 0 }},
	} {
		for i := range f.Legs {
			if !c.same(f.Legs[i], old.Legs[i]) {
				return Outcome{c.code, uint8(i + 1)}
			}
		}
	}
	if f.Memo != old.Memo {
		return Outcome{Code: ExistsWithDifferentMemo}
	}
	if f.Reference != old.Reference {
		return Outcome{Code: ExistsWithDifferentReference}
	}
	return Outcome{Code: Exists}
}
