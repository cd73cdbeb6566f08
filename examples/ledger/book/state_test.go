package book

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book/booktest"
	"github.com/decree-raft/decree/rsm"
)

// ledger is a machine of one replica, with a clock and a version that the test moves.
type ledger struct {
	t        testing.TB
	machine  Machine
	version  uint64 // that is active
	state    booktest.Memory
	now      rsm.Timestamp
	index    rsm.Index
	events   [][]byte // all, ever
	times    []rsm.Timestamp
	versions []uint64
}

func newLedger(t testing.TB) *ledger {
	return &ledger{t: t, version: VersionReferences, now: rsm.Timestamp(1_700_000_000 * time.Second)}
}

// submit decides a command and applies its events, as the library would.
func (l *ledger) submit(command []byte) Reply {
	l.t.Helper()
	l.index++
	l.now++
	c := rsm.Command{Data: bytes.Clone(command), Time: l.now, Version: l.version, Rand: rand.New(rand.NewPCG(1, 2))}
	before := l.state.Dump()
	events, reply, err := l.machine.Decide(&l.state, c)
	if err != nil {
		l.t.Fatalf("Decide: %v", err)
	}
	if l.state.Dump() != before {
		l.t.Fatal("Decide changed the state")
	}
	for i, e := range events {
		l.apply(rsm.Event{Data: bytes.Clone(e), Time: l.now, Version: l.version, Position: rsm.Position{Shard: 1, Index: l.index, Ordinal: uint32(i)}})
	}
	r, err := ParseReply(reply)
	if err != nil {
		l.t.Fatalf("ParseReply: %v", err)
	}
	if r.Time != l.now {
		l.t.Fatalf("the reply says it is %v, want %v", r.Time, l.now)
	}
	return r
}

func (l *ledger) apply(e rsm.Event) {
	l.events, l.times, l.versions = append(l.events, e.Data), append(l.times, e.Time), append(l.versions, e.Version)
	l.machine.Apply(&l.state, e)
}

func (l *ledger) open(accounts ...Account) []Outcome {
	l.t.Helper()
	command, err := AppendCreateAccounts(nil, accounts...)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.submit(command).Outcomes
}

func (l *ledger) post(entries ...Entry) []Outcome {
	l.t.Helper()
	command, err := AppendPostEntries(nil, entries...)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.submit(command).Outcomes
}

func (l *ledger) pulse() { l.t.Helper(); l.submit(Pulse()) }

func (l *ledger) account(id ID) AccountState {
	l.t.Helper()
	a, ok := LookupAccount(&l.state, id)
	if !ok {
		l.t.Fatalf("account %v is not there", id)
	}
	return a
}

// auditOf is an audit for which somebody waits.
func auditOf(v rsm.View) *Report {
	report, err := Audit(context.Background(), v)
	if err != nil {
		panic(err)
	}
	return report
}

// audit fails the test if the book is not sound.
func (l *ledger) audit() *Report {
	l.t.Helper()
	report := auditOf(&l.state)
	for _, v := range report.Violations {
		l.t.Errorf("audit: %s", v)
	}
	return report
}

// wait moves the clock on.
func (l *ledger) wait(d time.Duration) { l.now += rsm.Timestamp(d) }

func id(n int) ID {
	var i ID
	i[0], i[14], i[15] = 0xA0, byte(n>>8), byte(n)
	return i
}

func debit(account int, amount uint64) Leg {
	return Leg{Account: id(account), Side: Debit, Amount: U64(amount)}
}

func credit(account int, amount uint64) Leg {
	return Leg{Account: id(account), Side: Credit, Amount: U64(amount)}
}

func entry(n int, legs ...Leg) Entry { return Entry{ID: id(n), Legs: legs} }

func (e Entry) with(f EntryFlags) Entry { e.Flags |= f; return e }

func (e Entry) of(pending int) Entry { e.PendingID = id(pending); return e }

func (e Entry) citing(reference string) Entry { e.Reference = reference; return e }

func (e Entry) within(seconds uint32) Entry { e.Timeout = seconds; return e }

// eur returns an account in EUR with scale 2.
func eur(n int, flags AccountFlags) Account {
	return Account{ID: id(n), Asset: "EUR", Scale: 2, Flags: flags}
}

func wantCodes(t testing.TB, got []Outcome, want ...Code) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d outcomes, want %d: %v", len(got), len(want), got)
	}
	for i := range got {
		if got[i].Code != want[i] {
			t.Errorf("item %d: %v, want %v", i, got[i].Code, want[i])
		}
	}
}
