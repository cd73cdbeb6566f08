package book

import (
	"sync"

	"github.com/decree-raft/decree/rsm"
)

// A draft is the state as Decide sees it while it works on the items of one
// command: the view, and over it what the items before have done. Decide cannot write, so
// the draft keeps what would be written, and can take it back: a chain that
// fails leaves no trace.
//
// Everything is undone through one journal, even a single entry that fails at
// its last check. The simpler way, to check everything first and then to move, needs every
// check twice as soon as an account stands in two legs.
type draft struct {
	view    rsm.View
	now     rsm.Timestamp
	version uint64 // of the machine, that is active

	accounts []draftAccount
	byID     map[ID]int    // index into accounts; nil while they are few
	recorded map[ID][]byte // events of entries, and of burnt ids
	pendings map[ID]pendingState
	opened   map[ID]Account
	scales   map[string]uint8 // by asset
	undo     []undo

	events   [][]byte
	expiries int // how many this command has let expire, those of failed chains included: it is their work that is bounded
	// last says that no item follows: what only later items could ask for need not be noted.
	last bool

	keys     keys
	entry    Entry        // scratch: the item at hand
	other    Entry        // scratch: the entry that it repeats or resolves
	indexes  [MaxLegs]int // scratch: where the accounts of the entry's legs stand in accounts
	balances []assetSum   // scratch
}

type draftAccount struct {
	id    ID
	found bool
	account
}

// undo is one step back.
type undo struct {
	kind    undoKind
	index   int // undoAccount: which, and its former value
	account account
	id      ID
	pending pendingState // undoPending: its former state,
	had     bool         // if it was in the draft at all
	asset   string
}

type undoKind uint8

const (
	undoAccount undoKind = iota
	undoRecord
	undoPending
	undoOpened
	undoScale
)

// mark is a point to go back to.
type mark struct{ undo, events int }

// drafts keeps the memory of finished drafts. A command of one entry would otherwise
// allocate a kilobyte or two, which at 100,000 commands a second is most of the garbage of a node.
var drafts = sync.Pool{New: func() any { return new(draft) }}

func newDraft(v rsm.View, c rsm.Command) *draft {
	d := drafts.Get().(*draft)
	d.view, d.now, d.version = v, c.Time, c.Version
	d.events = make([][]byte, 0, 1)
	return d
}

// free gives the draft back. The events stay good; nothing else of it may be used any more.
func (d *draft) free() {
	clear(d.accounts) // they alias memory of the view
	clear(d.undo)
	*d = draft{
		accounts: d.accounts[:0], undo: d.undo[:0], balances: d.balances[:0],
		entry: Entry{Legs: d.entry.Legs[:0]}, other: Entry{Legs: d.other.Legs[:0]},
	}
	drafts.Put(d)
}

// fewAccounts is up to how many a linear search beats a map.
const fewAccounts = 8

// accountAt returns the index of an account in d.accounts. It is there from
// then on, found or not: its index stays good for the whole command.
func (d *draft) accountAt(id ID) int {
	if i, ok := d.find(id); ok {
		return i
	}
	a := draftAccount{id: id}
	if value, ok := d.view.Get(d.keys.id(keyAccount, id)); ok {
		a.account, a.found = must(decodeAccount(value)), true
	}
	d.accounts = append(d.accounts, a)
	if i := len(d.accounts) - 1; d.byID != nil {
		d.byID[id] = i
	} else if i == fewAccounts {
		d.byID = make(map[ID]int, 4*fewAccounts)
		for i := range d.accounts {
			d.byID[d.accounts[i].id] = i
		}
	}
	return len(d.accounts) - 1
}

func (d *draft) find(id ID) (int, bool) {
	if d.byID != nil {
		i, ok := d.byID[id]
		return i, ok
	}
	for i := range d.accounts {
		if d.accounts[i].id == id {
			return i, true
		}
	}
	return 0, false
}

// change returns an account to be changed, after it has noted its value.
func (d *draft) change(i int) *account {
	a := &d.accounts[i].account
	d.undo = append(d.undo, undo{kind: undoAccount, index: i, account: *a})
	return a
}

// record returns what stands under an entry's id.
func (d *draft) record(id ID) (entryRecord, bool) {
	if event, ok := d.recorded[id]; ok {
		return entryRecord{time: d.now, event: event}, true
	}
	value, ok := d.view.Get(d.keys.id(keyEntry, id))
	if !ok {
		return entryRecord{}, false
	}
	return must(decodeEntryRecord(value)), true
}

// setRecord notes that event is recorded under id, and emits it.
func (d *draft) setRecord(id ID, event []byte) {
	d.events = append(d.events, event)
	if d.last {
		return
	}
	if d.recorded == nil {
		d.recorded = make(map[ID][]byte)
	}
	d.recorded[id] = event
	d.undo = append(d.undo, undo{kind: undoRecord, id: id})
}

// pendingOf returns the state of the pending entry id, which exists.
func (d *draft) pendingOf(id ID) pendingState {
	if p, ok := d.pendings[id]; ok {
		return p
	}
	value, ok := d.view.Get(d.keys.id(keyPending, id))
	if !ok {
		panic("book: pending entry " + id.String() + " has no status")
	}
	return must(decodePending(value))
}

func (d *draft) setPending(id ID, p pendingState) {
	if d.pendings == nil {
		d.pendings = make(map[ID]pendingState)
	}
	before, had := d.pendings[id]
	d.undo = append(d.undo, undo{kind: undoPending, id: id, pending: before, had: had})
	d.pendings[id] = p
}

func (d *draft) mark() mark { return mark{len(d.undo), len(d.events)} }

// rollback takes back everything since the mark.
func (d *draft) rollback(m mark) {
	for i := len(d.undo) - 1; i >= m.undo; i-- {
		switch u := &d.undo[i]; u.kind {
		case undoAccount:
			d.accounts[u.index].account = u.account
		case undoRecord:
			delete(d.recorded, u.id)
		case undoOpened:
			delete(d.opened, u.id)
		case undoScale:
			delete(d.scales, u.asset)
		case undoPending:
			if delete(d.pendings, u.id); u.had {
				d.pendings[u.id] = u.pending
			}
		}
	}
	d.undo, d.events = d.undo[:m.undo], d.events[:m.events]
}
