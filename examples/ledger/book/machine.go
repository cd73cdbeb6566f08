package book

import (
	"github.com/decree-raft/decree/rsm"
)

// Rejections of a command as a whole. What is wrong with one item is an Outcome instead.
const (
	// CodeBadCommand: the bytes are no command of this package.
	CodeBadCommand rsm.Code = "bad_command"
	// CodeAccountNotFound: a statement was asked of an account that does not exist.
	CodeAccountNotFound rsm.Code = "account_not_found"
	// CodeBadQuery: the bytes are no query, or a field of it does not parse.
	CodeBadQuery rsm.Code = "bad_query"
)

// The versions of the machine, as rsm.Versioned counts them. The first program had none, which the library counts
// as 0; people call it version 1. No version has the number 1, so that from 2 on both say the same.
const (
	VersionFirst uint64 = 0
	// VersionReferences: an entry may have a reference.
	VersionReferences uint64 = 2
)

// Machine is the ledger as a replicated state machine. All state stands in the view.
//
// A new version of its rules is active when every replica can run it: see rsm.Versioned. Events of all versions apply under all
// later ones.
type Machine struct {
	// OldProgram: says that it can run the first version alone, as the program before references did. Until it is gone from every node,
	// all of them can still go back to that program.
	OldProgram bool
}

var _ rsm.Versioned = Machine{}

// MaxVersion is the highest version that this program can run.
func (m Machine) MaxVersion() uint64 {
	if m.OldProgram {
		return VersionFirst
	}
	return VersionReferences
}

// Decide turns a command into events and a Reply with an outcome for each
// item. It rejects only what is no command at all.
func (Machine) Decide(v rsm.View, c rsm.Command) (events [][]byte, reply []byte, err error) {
	d := newDraft(v, c)
	defer d.free()
	if reply, err = d.decide(c.Data); err != nil {
		return nil, nil, rsm.Reject(CodeBadCommand, "%v", err)
	}
	return d.events, reply, nil
}

func (d *draft) decide(data []byte) (reply []byte, err error) {
	r := reader{b: data}
	kind := r.u8()
	if v := r.u8(); r.err == nil && v != formatVersion {
		r.fail("command of version %d", v)
	}
	if kind == opPulse && r.err == nil {
		d.expireDue()
		return appendReplyHeader(nil, d.now, 0), r.end()
	}
	n := int(r.u16())
	if r.err == nil && (n < 1 || n > MaxBatch) {
		r.fail("%d items, want 1 to %d", n, MaxBatch)
	}
	if r.err != nil {
		return nil, r.err
	}
	b := batch{d: d, n: n, chain: -1}
	b.reply = appendReplyHeader(make([]byte, 0, 12+2*n), d.now, n)
	b.first = len(b.reply)
	switch kind {
	case opCreateAccounts:
		b.accounts(&r)
	case opPostEntries:
		b.entries(&r)
	default:
		r.fail("command of kind %d", kind)
	}
	return b.reply, r.end()
}

// batch takes the items of one command in their order. Items that are linked
// form a chain, which is recorded whole or not at all.
type batch struct {
	d     *draft
	n     int // items
	reply []byte
	first int // offset of the first outcome in the reply

	chain  int  // index of the first item of the chain at hand, -1 outside of chains
	broken bool // the chain at hand has failed
	start  mark // where it began
}

func (b *batch) accounts(r *reader) {
	for i := 0; i < b.n; i++ {
		var a Account
		from := r.at
		if r.account(&a); r.err != nil {
			return
		}
		out, decided := b.begin(i, a.Linked)
		if !decided {
			out = b.d.openAccount(&a, r.b[from:r.at])
		}
		b.end(i, a.Linked, out)
	}
}

func (b *batch) entries(r *reader) {
	e := &b.d.entry
	for i := 0; i < b.n; i++ {
		from := r.at
		if r.entry(e); r.err != nil {
			return
		}
		// The chain may go on in the item after, but what this item asks for is in e.
		id, linked := e.ID, e.Flags&Linked != 0
		out, decided := b.begin(i, linked)
		if !decided {
			out = b.d.postEntry(e, r.b[from:r.at])
		}
		b.end(i, linked, out)
		if out.Code.Passing() {
			// After the rollback of its chain, if it stood in one: the culprit's id burns, the innocents' do not.
			b.d.setRecord(id, appendBurnt(nil, id, out.Code))
		}
	}
}

// begin opens a chain where one begins, and says if the item's outcome is decided by its chain alone.
func (b *batch) begin(i int, linked bool) (out Outcome, decided bool) {
	b.d.last = i == b.n-1
	if linked && b.chain < 0 {
		b.chain, b.start = i, b.d.mark()
	}
	switch {
	case linked && b.d.last:
		return Outcome{Code: LinkedEventChainOpen}, true
	case b.broken:
		return Outcome{Code: LinkedEventFailed}, true
	}
	return Outcome{}, false
}

// end notes the item's outcome; a first failure in a chain takes back the items before it.
func (b *batch) end(i int, linked bool, out Outcome) {
	b.reply = append(b.reply, byte(out.Code), out.Leg)
	if b.chain < 0 {
		return
	}
	if out.Code != Created && !b.broken {
		b.broken = true
		b.d.rollback(b.start)
		for j := b.chain; j < i; j++ {
			at := b.first + 2*j
			b.reply[at], b.reply[at+1] = byte(LinkedEventFailed), 0
		}
	}
	if !linked {
		b.chain, b.broken = -1, false
	}
}
