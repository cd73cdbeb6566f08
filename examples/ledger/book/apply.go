package book

import (
	"fmt"
	"sync"

	"github.com/decree-raft/decree/rsm"
)

// Apply folds one event into the state. It does what the draft did when the
// event was decided, but trusts the decision: what cannot be
// is a panic, which stops the replica before it can answer wrongly.
func (Machine) Apply(s rsm.State, e rsm.Event) {
	f := folders.Get().(*folder)
	defer f.free()
	f.s, f.at = s, e
	if len(e.Data) == 0 {
		f.fail("it is empty")
	}
	r := reader{b: e.Data}
	switch e.Data[0] {
	case kindAccount:
		f.account(&r)
	case kindEntry:
		f.entry(&r)
	case kindExpiry:
		f.expiry(&r)
	case kindBurnt:
		r.header(kindBurnt)
		id := r.id()
		r.u8()
		f.s.Set(f.keys.id(keyEntry, id), f.stamped())
	default:
		f.fail("its kind is %d", e.Data[0])
	}
	if err := r.end(); err != nil {
		f.fail("%v", err)
	}
}

// folder is one call of Apply, with its scratch memory: what is handed to an interface escapes, so it escapes once.
type folder struct {
	s    rsm.State
	at   rsm.Event
	keys keys
	// value holds any record but an entry with many legs or a long memo.
	value   [256]byte
	balance [accountRecordFixed + 32]byte
	legs    [4]Leg
	// record is that of the entry at hand: its postings are added as its legs are booked.
	record []byte
}

// folders keeps the memory of finished calls, as drafts does for Decide.
var folders = sync.Pool{New: func() any { return new(folder) }}

func (f *folder) free() {
	f.s, f.at, f.record = nil, rsm.Event{}, nil
	folders.Put(f)
}

func (f *folder) fail(format string, args ...any) {
	panic(fmt.Sprintf("book: the event at %v cannot be applied: %s", f.at.Position, fmt.Sprintf(format, args...)))
}

func (f *folder) account(r *reader) {
	var a Account
	if r.account(&a); r.err != nil {
		return
	}
	f.s.Set(f.keys.id(keyInfo, a.ID), f.stamped())
	opened := account{flags: a.Flags, scale: a.Scale, asset: []byte(a.Asset)}
	f.store(a.ID, &opened)
	f.s.Set(assetKey(a.Asset), []byte{formatVersion, a.Scale})
	f.s.Set(nameKey(&a), nil)
}

// stamped is the event with its time in front: how entries and accounts are kept.
func (f *folder) stamped() []byte {
	return append(appendU64(f.value[:0], uint64(f.at.Time)), f.at.Data...)
}

func (f *folder) entry(r *reader) {
	e := Entry{Legs: f.legs[:0]}
	if r.entry(&e); r.err != nil {
		return
	}
	if e.Reference != "" && f.at.Version < VersionReferences {
		f.fail("entry %v has a reference under version %d", e.ID, f.at.Version)
	}
	f.record = f.stamped()
	if e.Flags&(PostPending|VoidPending) != 0 {
		f.resolve(&e)
	} else {
		f.book(&e)
	}
	f.s.Set(f.keys.id(keyEntry, e.ID), f.record)
}

// book books a single-phase entry, or reserves for a pending one.
func (f *folder) book(e *Entry) {
	pending := e.Flags&Pending != 0
	for i := range e.Legs {
		l := &e.Legs[i]
		a := f.load(l.Account)
		a.book(l, pending)
		if !pending {
			f.addRow(e.ID, l.Account, &a)
		}
		f.store(l.Account, &a)
	}
	if pending {
		expires, _ := expiryOf(e, f.at.Time)
		f.setPending(e.ID, pendingState{status: StillPending, expiresAt: expires})
		if expires != 0 {
			f.s.Set(f.keys.expiry(expires, e.ID), nil)
		}
	}
}

// resolve posts or voids what a pending entry reserved.
func (f *folder) resolve(e *Entry) {
	status := resolvedStatus(e.Flags)
	p := f.pendingEntry(e.PendingID)
	for i := range p.Legs {
		id := p.Legs[i].Account
		a := f.load(id)
		a.settle(&p.Legs[i], e.Legs[i].Amount, status)
		if status == Posted {
			f.addRow(e.ID, id, &a)
		}
		f.store(id, &a)
	}
	f.settle(e.PendingID, status, e.ID)
}

func (f *folder) expiry(r *reader) {
	r.header(kindExpiry)
	id := r.id()
	if r.err != nil {
		return
	}
	p := f.pendingEntry(id)
	for i := range p.Legs {
		a := f.load(p.Legs[i].Account)
		a.settle(&p.Legs[i], Uint128{}, Expired)
		f.store(p.Legs[i].Account, &a)
	}
	f.settle(id, Expired, ID{})
}

// settle notes how a pending entry ended.
func (f *folder) settle(id ID, as PendingStatus, by ID) {
	value, ok := f.s.Get(f.keys.id(keyPending, id))
	if !ok {
		f.fail("pending entry %v has no status", id)
	}
	state := must(decodePending(value))
	if state.status != StillPending {
		f.fail("pending entry %v is already %v", id, state.status)
	}
	if state.expiresAt != 0 {
		f.s.Delete(f.keys.expiry(state.expiresAt, id))
	}
	state.status, state.resolvedBy = as, by
	f.setPending(id, state)
}

func (f *folder) setPending(id ID, p pendingState) {
	f.s.Set(f.keys.id(keyPending, id), p.append(f.balance[:0]))
}

func (f *folder) pendingEntry(id ID) *Entry {
	value, ok := f.s.Get(f.keys.id(keyEntry, id))
	if !ok {
		f.fail("pending entry %v is not there", id)
	}
	p := new(Entry)
	mustDecode(must(decodeEntryRecord(value)), p)
	return p
}

func (f *folder) load(id ID) account {
	value, ok := f.s.Get(f.keys.id(keyAccount, id))
	if !ok {
		f.fail("account %v is not there", id)
	}
	return must(decodeAccount(value))
}

func (f *folder) store(id ID, a *account) {
	f.s.Set(f.keys.id(keyAccount, id), a.append(f.balance[:0]))
}

// addRow adds the row of a leg of entry, which has just been posted, to the statement of account id.
func (f *folder) addRow(entry, id ID, a *account) {
	p := posting{number: a.rows, before: a.last, debitsPosted: a.DebitsPosted, creditsPosted: a.CreditsPosted}
	f.record = p.append(f.record)
	a.last = entry
	if a.rows%rowsPerMark == 0 {
		f.s.Set(f.keys.mark(id, a.rows/rowsPerMark), entry[:])
	}
}
