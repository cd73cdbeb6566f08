package book

import "encoding/binary"

// MaxExpiries is how many pending entries one command lets expire at most.
const MaxExpiries = 64

// resolve decides an entry that posts or voids a pending one.
func (d *draft) resolve(e *Entry) Outcome {
	record, ok := d.record(e.PendingID)
	if !ok || record.burnt() {
		return Outcome{Code: PendingEntryNotFound}
	}
	p := &d.other
	mustDecode(record, p)
	if p.Flags&Pending == 0 {
		return Outcome{Code: PendingEntryNotPending}
	}
	if out := matchPending(e, p); out.Code != Created {
		return out
	}
	inherit(e, p)
	for i := range e.Legs {
		d.indexes[i] = d.accountAt(e.Legs[i].Account)
	}
	// A post of a part may take different parts of the legs.
	if e.Flags&PostPending != 0 && !d.balanced(e.Legs) {
		return Outcome{Code: LegsDoNotBalance}
	}
	state := d.pendingOf(e.PendingID)
	switch {
	case state.status == Posted:
		return Outcome{Code: PendingEntryAlreadyPosted}
	case state.status == Voided:
		return Outcome{Code: PendingEntryAlreadyVoided}
	case state.status == Expired || state.due(d.now):
		return Outcome{Code: PendingEntryExpired}
	}
	// The only thing that may still happen to a closed account is that a reservation is released.
	if e.Flags&PostPending != 0 {
		if out := d.checkOpen(e.Legs); out.Code != Created {
			return out
		}
	}
	// No limit is checked, nothing can overflow: the reservation has passed both, and only gets smaller.
	status := resolvedStatus(e.Flags)
	for i := range p.Legs {
		d.change(d.indexes[i]).settle(&p.Legs[i], e.Legs[i].Amount, status)
	}
	if !d.last {
		d.setPending(e.PendingID, pendingState{status: status, expiresAt: state.expiresAt, resolvedBy: e.ID})
	}
	d.setRecord(e.ID, appendEntry(nil, e))
	return Outcome{}
}

// matchPending checks what e says about p against p. What e leaves out it inherits.
func matchPending(e, p *Entry) Outcome {
	if len(e.Legs) != 0 && len(e.Legs) != len(p.Legs) {
		return Outcome{Code: PendingEntryHasDifferentLegCount}
	}
	for i := range e.Legs {
		if e.Legs[i].Account != p.Legs[i].Account {
			return Outcome{PendingEntryHasDifferentAccountID, legNumber(i)}
		}
	}
	for i := range e.Legs {
		if e.Legs[i].Side != p.Legs[i].Side {
			return Outcome{PendingEntryHasDifferentSide, legNumber(i)}
		}
	}
	if e.Code != 0 && e.Code != p.Code {
		return Outcome{Code: PendingEntryHasDifferentCode}
	}
	for i := range e.Legs {
		switch order := e.Legs[i].Amount.Cmp(p.Legs[i].Amount); {
		case order > 0:
			return Outcome{ExceedsPendingEntryAmount, legNumber(i)}
		case order < 0 && e.Flags&VoidPending != 0:
			return Outcome{PendingEntryHasDifferentAmount, legNumber(i)}
		}
	}
	return Outcome{}
}

// inherit fills in what an entry that posts or voids p has left out.
func inherit(e, p *Entry) {
	if len(e.Legs) == 0 {
		e.Legs = append(e.Legs, p.Legs...)
		for i := range e.Legs {
			e.Legs[i].Closing = false
		}
	}
	if e.Code == 0 {
		e.Code = p.Code
	}
	if e.UserData.IsZero() {
		e.UserData = p.UserData
	}
	if e.Date == 0 {
		e.Date = p.Date
	}
	if e.Memo == "" {
		e.Memo = p.Memo
	}
	if e.Reference == "" {
		e.Reference = p.Reference
	}
}

func resolvedStatus(f EntryFlags) PendingStatus {
	if f&PostPending != 0 {
		return Posted
	}
	return Voided
}

// compareEntry says how an entry differs from the one that is recorded under its id.
func (d *draft) compareEntry(e *Entry, record entryRecord) Outcome {
	if record.burnt() {
		return Outcome{Code: IDAlreadyFailed}
	}
	existing := &d.other
	mustDecode(record, existing)
	switch {
	case e.Flags != existing.Flags:
		return Outcome{Code: ExistsWithDifferentFlags}
	case e.PendingID != existing.PendingID:
		return Outcome{Code: ExistsWithDifferentPendingID}
	case e.Timeout != existing.Timeout:
		return Outcome{Code: ExistsWithDifferentTimeout}
	}
	if !e.PendingID.IsZero() {
		// The recorded entry has inherited what it left out, so this one must, to be compared.
		var p Entry
		pending, _ := d.record(e.PendingID)
		mustDecode(pending, &p)
		inherit(e, &p)
	}
	if out := compareLegs(e.Legs, existing.Legs); out.Code != Created {
		return out
	}
	switch {
	case e.UserData != existing.UserData:
		return Outcome{Code: ExistsWithDifferentUserData}
	case e.Code != existing.Code:
		return Outcome{Code: ExistsWithDifferentCode}
	case e.Date != existing.Date:
		return Outcome{Code: ExistsWithDifferentDate}
	case e.Memo != existing.Memo:
		return Outcome{Code: ExistsWithDifferentMemo}
	case e.Reference != existing.Reference:
		return Outcome{Code: ExistsWithDifferentReference}
	}
	return Outcome{Code: Exists}
}

func compareLegs(legs, existing []Leg) Outcome {
	if len(legs) != len(existing) {
		return Outcome{Code: ExistsWithDifferentLegCount}
	}
	differences := [...]struct {
		code   Code
		differ func(a, b *Leg) bool
	}{
		{ExistsWithDifferentAccountID, func(a, b *Leg) bool { return a.Account != b.Account }},
		{ExistsWithDifferentSide, func(a, b *Leg) bool { return a.Side != b.Side }},
		{ExistsWithDifferentClosing, func(a, b *Leg) bool { return a.Closing != b.Closing }},
		{ExistsWithDifferentAmount, func(a, b *Leg) bool { return a.Amount != b.Amount }},
	}
	for _, of := range differences {
		for i := range legs {
			if of.differ(&legs[i], &existing[i]) {
				return Outcome{of.code, legNumber(i)}
			}
		}
	}
	return Outcome{}
}

// mayBeBlocked reports whether e failed for something that an expiry could clear away.
func (d *draft) mayBeBlocked(e *Entry, out Outcome) bool {
	switch out.Code {
	case DebitAccountAlreadyClosed, CreditAccountAlreadyClosed:
		return true
	case ExceedsCredits, ExceedsDebits, OverflowsDebitsPending, OverflowsCreditsPending, OverflowsDebits, OverflowsCredits:
		l := &e.Legs[out.Leg-1]
		i, _ := d.find(l.Account)
		return !d.accounts[i].pending(l.Side).IsZero()
	}
	return false
}

// expireDue lets pending entries expire whose time is over, the earliest
// first, and returns how many, and whether more are due. A command lets no more than MaxExpiries expire, which
// bounds its work.
func (d *draft) expireDue() (n int, more bool) {
	var due [MaxExpiries]ID
	room := MaxExpiries - d.expiries
	var bound [9]byte
	bound[0] = keyExpiry
	binary.BigEndian.PutUint64(bound[1:], uint64(d.now)+1)
	for key := range d.view.Scan([]byte{keyExpiry}, bound[:]) {
		id := ID(key[9:])
		if p, ok := d.pendings[id]; !ok || p.status == StillPending { // not resolved by an item before
			if n == room {
				more = true
				break
			}
			due[n] = id
			n++
		}
	}
	for _, id := range due[:n] {
		d.expire(id)
	}
	return n, more
}

func (d *draft) expire(id ID) {
	record, ok := d.record(id)
	if !ok {
		panic("book: the expiring entry " + id.String() + " is not there")
	}
	p := &d.other
	mustDecode(record, p)
	for i := range p.Legs {
		d.change(d.accountAt(p.Legs[i].Account)).settle(&p.Legs[i], Uint128{}, Expired)
	}
	state := d.pendingOf(id)
	state.status = Expired
	d.setPending(id, state)
	d.events = append(d.events, appendExpiry(nil, id))
	d.expiries++
}

func mustDecode(record entryRecord, into *Entry) {
	if err := record.decode(into); err != nil {
		panic(err) // see must
	}
}
