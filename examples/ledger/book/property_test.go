package book

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/decree-raft/decree/rsm"
)

var (
	seedFlag  = flag.Uint64("ledger.seed", 0, "seed of the property test; 0 takes 20 seeds in turn")
	stepsFlag = flag.Int("ledger.steps", 300, "commands of each seed of the property test")
)

// TestAgainstModel submits random commands to the machine and to the model.
// Every outcome, balance, status and statement must be the same, and
// every invariant must hold after each command.
func TestAgainstModel(t *testing.T) {
	if *seedFlag != 0 {
		runSeed(t, *seedFlag)
		return
	}
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			runSeed(t, seed)
		})
	}
}

func runSeed(t *testing.T, seed uint64) {
	t.Logf("repeat with -ledger.seed=%d", seed)
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0)), l: newLedger(t), m: newModel()}
	var accounts []Account
	for n := 1; n <= 8; n++ {
		a := eur(n, []AccountFlags{0, 0, DebitsMustNotExceedCredits, CreditsMustNotExceedDebits}[n%4])
		if n > 5 {
			a.Asset = "USD"
		}
		accounts = append(accounts, a)
		g.m.open(a)
	}
	g.l.version = VersionFirst
	wantCodes(t, g.l.open(accounts...), make([]Code, len(accounts))...)
	records := make(map[ID]string) // entries are never changed
	for step := 0; step < *stepsFlag && !t.Failed(); step++ {
		if step == *stepsFlag/3 {
			g.l.version, g.m.version = VersionReferences, VersionReferences
		}
		g.step()
		g.compare()
		g.l.audit()
		checkUnchanged(t, g.l, records)
	}
	checkReplay(t, g.l)
}

func checkUnchanged(t *testing.T, l *ledger, records map[ID]string) {
	seen := 0
	for key, value := range scanKind(&l.state, keyEntry) {
		id := ID(key[1:])
		if was, ok := records[id]; ok {
			seen++
			if was != string(value) {
				t.Errorf("what stands under entry %v was changed", id)
			}
		}
		records[id] = string(value)
	}
	if seen > len(records) {
		t.Error("an entry has gone")
	}
}

// checkReplay applies the ledger's events once more, from nothing, as a new replica does.
func checkReplay(t *testing.T, l *ledger) {
	t.Helper()
	replica := newLedger(t)
	for i, data := range l.events {
		replica.apply(rsm.Event{Data: bytes.Clone(data), Time: l.times[i], Version: l.versions[i]})
		if _, err := parseEvent(data); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
	}
	if replica.state.Dump() != l.state.Dump() {
		t.Error("the replay of the events gives another state")
	}
}

type generator struct {
	*rand.Rand
	l     *ledger
	m     *model
	last  []Entry // of the last command, to be sent again
	batch []Entry // of the command that is being made
}

func (g *generator) step() {
	if g.IntN(5) == 0 {
		g.l.wait(time.Duration(g.IntN(3000)) * time.Millisecond)
	}
	if g.IntN(12) == 0 {
		g.l.pulse()
		g.m.now, g.m.expired = g.l.now, 0
		g.m.expire()
		return
	}
	entries := g.last
	if len(entries) == 0 || g.IntN(6) != 0 {
		g.batch = nil
		for n := g.IntN(7) * g.IntN(2); n >= 0; n-- {
			g.batch = append(g.batch, g.entry())
		}
		entries = g.batch
	}
	g.last = entries
	got := g.l.post(entries...)
	want := g.m.post(g.l.now, entries)
	for i := range got {
		if got[i] != want[i] {
			g.l.t.Errorf("entry %d of %+v: %v of leg %d, the model says %v of leg %d",
				i, entries, got[i].Code, got[i].Leg, want[i].Code, want[i].Leg)
		}
	}
}

func (g *generator) entry() Entry {
	e := Entry{ID: id(100 + g.IntN(400)), Memo: []string{"", "", "a", "b"}[g.IntN(4)], Reference: []string{"", "", "", "", "A-1", "A-2"}[g.IntN(6)]}
	if g.IntN(4) == 0 {
		e.Flags |= Linked
	}
	switch g.IntN(8) {
	case 0, 1, 2:
		e.Flags |= Pending
		if g.IntN(2) == 0 {
			e.Timeout = uint32(1 + g.IntN(4))
		}
	case 3:
		return g.resolution(e.with(PostPending))
	case 4:
		return g.resolution(e.with(VoidPending))
	case 5:
		if g.IntN(8) == 0 {
			e.Flags |= Pending | VoidPending
		}
	}
	e.Legs = g.legs(e.Flags&Pending != 0)
	return e
}

// resolution posts or voids something, mostly something pending.
func (g *generator) resolution(e Entry) Entry {
	var pending []ID
	for _, p := range g.batch { // earlier in the same command
		if p.Flags&Pending != 0 && g.IntN(2) == 0 {
			e.PendingID = p.ID
			return e
		}
	}
	for n := 100; n < 500; n++ {
		if p := g.m.entries[id(n)]; p != nil && p.Flags&Pending != 0 && (p.status == StillPending || g.IntN(8) == 0) {
			pending = append(pending, id(n))
		}
	}
	if len(pending) == 0 || g.IntN(10) == 0 {
		e.PendingID = id(100 + g.IntN(400))
		return e
	}
	e.PendingID = pending[g.IntN(len(pending))]
	if g.IntN(2) == 0 {
		return e // all of it
	}
	part := g.IntN(3)
	for _, l := range g.m.entries[e.PendingID].Legs {
		l.Closing = false
		switch {
		case part == 0 || g.IntN(20) == 0:
			l.Amount.Lo /= 2
		case g.IntN(20) == 0:
			l.Amount.Lo++
		case g.IntN(40) == 0:
			l.Account = id(1 + g.IntN(8))
		case g.IntN(40) == 0:
			l.Side = Credit - l.Side
		}
		e.Legs = append(e.Legs, l)
	}
	return e
}

func (g *generator) legs(pending bool) []Leg {
	var legs []Leg
	for n := 1 + g.IntN(2)*g.IntN(3); n > 0; n-- {
		// A pair of legs in one asset; now and then something in it is wrong.
		amount := uint64(g.IntN(20)) * 2
		from, to := 1+g.IntN(5), 1+g.IntN(5)
		if g.IntN(3) == 0 {
			from, to = 6+g.IntN(3), 6+g.IntN(3)
		}
		if g.IntN(30) == 0 {
			to = 1 + g.IntN(9)
		}
		pair := []Leg{debit(from, amount), credit(to, amount)}
		if g.IntN(30) == 0 {
			pair[g.IntN(2)].Amount.Lo++
		}
		if g.IntN(20) == 0 && (pending || g.IntN(8) == 0) {
			pair[g.IntN(2)].Closing = true
		}
		legs = append(legs, pair...)
	}
	g.Shuffle(len(legs), func(i, j int) { legs[i], legs[j] = legs[j], legs[i] })
	return legs
}

// compare looks at every account, statement and entry.
func (g *generator) compare() {
	t := g.l.t
	for id, want := range g.m.accounts {
		got := g.l.account(id)
		if got.Flags != want.flags {
			t.Errorf("account %v: flags %b, the model says %b", id, got.Flags, want.flags)
		}
		for _, c := range []struct {
			name string
			got  Uint128
			side Side
			k    int
		}{
			{"debits posted", got.DebitsPosted, Debit, 0}, {"debits pending", got.DebitsPending, Debit, 1},
			{"credits posted", got.CreditsPosted, Credit, 0}, {"credits pending", got.CreditsPending, Credit, 1},
		} {
			if c.got.big().Cmp(want.totals[c.side][c.k]) != 0 {
				t.Errorf("account %v: %s %v, the model says %v", id, c.name, c.got, want.totals[c.side][c.k])
			}
		}
		g.compareRows(id, want)
	}
	for n := 100; n < 500; n++ {
		got, ok := LookupEntry(&g.l.state, id(n))
		want := g.m.entries[id(n)]
		if ok != (want != nil) {
			t.Errorf("entry %d: there is %v, the model says %v", n, ok, want != nil)
		} else if ok && (got.Status != want.status || got.Memo != want.Memo || got.Reference != want.Reference || fmt.Sprint(got.Legs) != fmt.Sprint(want.Legs)) {
			t.Errorf("entry %d: %+v, the model says %+v", n, got, want)
		}
	}
}

func (g *generator) compareRows(id ID, want *modelAccount) {
	rows := Statement(&g.l.state, id, 0, 1<<30)
	if len(rows) != len(want.rows) {
		g.l.t.Errorf("account %v: %d rows, the model says %d", id, len(rows), len(want.rows))
		return
	}
	for i, r := range rows {
		w := want.rows[i]
		if r.Number != uint64(i+1) || r.Entry != w.entry || r.DebitsPosted.big().Cmp(w.debits) != 0 || r.CreditsPosted.big().Cmp(w.credits) != 0 {
			g.l.t.Errorf("account %v: row %+v, the model says %+v", id, r, w)
		}
	}
}
