package book

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

// underTest is the ledger in simulated clusters: accounts that are opened again and again, entries, reservations
// that are posted, voided or expire (the clocks of the simulated nodes jump), chains, and
// references, which are taken when every node has got a program for version 2. After each of the first entries of the log, and of many
// later ones, every invariant of the audit must hold; that money is neither made nor lost is one of them.
func underTest() rsmtest.Config {
	return rsmtest.Config{
		New:     func() rsm.Machine { return Machine{} },
		Command: drawCommand,
		Query:   drawQuery,
		Invariant: func(v rsm.View) error {
			if r := auditOf(v); r.ViolationCount > 0 {
				return errors.New(strings.Join(r.Violations, "; "))
			}
			return nil
		},
		ShowCommand: showCommand,
		ShowEvent:   showEvent,
		ShowReply:   showReply,
		ShowQuery:   func(b []byte) string { return showProto(b, new(ledgerv1.Query)) },
		ShowAnswer:  func(b []byte) string { return showProto(b, new(ledgerv1.Answer)) },
	}
}

func TestSimulatedClusters(t *testing.T) {
	rsmtest.Run(t, underTest())
}

func TestGoldenFiles(t *testing.T) {
	rsmtest.Golden(t, "testdata", "v2", underTest())
}

// The ids of what is drawn. Accounts and reservations are few, so that commands meet.
const (
	drawnAccounts = 8
	drawnPending  = 60  // from 100
	drawnPosting  = 400 // from 1000
	drawnPlain    = 20000
)

func drawCommand(r *rand.Rand) []byte {
	switch p := r.IntN(20); {
	case p == 0:
		return Pulse()
	case p <= 3:
		var list []Account
		for range 1 + r.IntN(3) {
			list = append(list, drawAccount(r))
		}
		return must(AppendCreateAccounts(nil, list...))
	}
	var list []Entry
	for n := 1 + r.IntN(2)*r.IntN(4); n > 0; n-- {
		e := drawEntry(r)
		if n > 1 && r.IntN(2) == 0 {
			e.Flags |= Linked
		}
		list = append(list, e)
	}
	return must(AppendPostEntries(nil, list...))
}

func drawAccount(r *rand.Rand) Account {
	n := 1 + r.IntN(drawnAccounts)
	a := eur(n, []AccountFlags{0, 0, DebitsMustNotExceedCredits, CreditsMustNotExceedDebits}[n%4])
	if n > drawnAccounts/2 {
		a.Asset = "USD"
	}
	return a
}

func drawEntry(r *rand.Rand) Entry {
	switch r.IntN(4) {
	case 0:
		e := entry(100+r.IntN(drawnPending), drawLegs(r)...).with(Pending)
		if r.IntN(2) == 0 {
			e.Timeout = uint32(1 + r.IntN(60))
		}
		return e
	case 1:
		return entry(1000 + r.IntN(drawnPosting)).with(PostPending).of(100 + r.IntN(drawnPending))
	case 2:
		return entry(1000 + r.IntN(drawnPosting)).with(VoidPending).of(100 + r.IntN(drawnPending))
	}
	e := entry(2000+r.IntN(drawnPlain), drawLegs(r)...)
	if r.IntN(3) == 0 {
		e.Reference = fmt.Sprintf("R-%d", r.IntN(3))
	}
	return e
}

// drawLegs draws two legs of one asset, mostly.
func drawLegs(r *rand.Rand) []Leg {
	first := 1 + r.IntN(2)*drawnAccounts/2
	amount := uint64(1 + r.IntN(50))
	legs := []Leg{debit(first+r.IntN(drawnAccounts/2), amount), credit(first+r.IntN(drawnAccounts/2), amount)}
	if r.IntN(20) == 0 {
		legs[1] = credit(1+r.IntN(drawnAccounts), amount+uint64(r.IntN(2)))
	}
	return legs
}

func drawQuery(r *rand.Rand) []byte {
	q := new(ledgerv1.Query)
	name := id(1 + r.IntN(drawnAccounts+1)).String()
	switch r.IntN(5) {
	case 0:
		q.Query = &ledgerv1.Query_ListAccounts{ListAccounts: &ledgerv1.ListAccountsRequest{}}
	case 1:
		q.Query = &ledgerv1.Query_GetEntries{GetEntries: &ledgerv1.GetEntriesRequest{Ids: []string{id(100 + r.IntN(drawnPending)).String()}}}
	case 2:
		q.Query = &ledgerv1.Query_GetStatement{GetStatement: &ledgerv1.GetStatementRequest{Account: name, PageSize: 5}}
	case 3:
		q.Query = &ledgerv1.Query_Due{Due: &ledgerv1.DueRequest{}}
	default:
		q.Query = &ledgerv1.Query_GetAccounts{GetAccounts: &ledgerv1.GetAccountsRequest{Ids: []string{name}}}
	}
	return must(proto.Marshal(q))
}

// What follows is for stories: commands, events and replies as people read them.

func showCommand(b []byte) string {
	r := reader{b: b}
	kind, _ := r.u8(), r.u8()
	if kind == opPulse {
		return "pulse"
	}
	var items []string
	for n := r.u16(); n > 0 && r.err == nil; n-- {
		if kind == opCreateAccounts {
			var a Account
			r.account(&a)
			items = append(items, showAccount(&a))
		} else {
			var e Entry
			r.entry(&e)
			items = append(items, showEntry(&e))
		}
	}
	if r.err != nil {
		return fmt.Sprintf("%x (%v)", b, r.err)
	}
	return strings.Join(items, ", ")
}

func showEvent(b []byte) string {
	e, err := parseEvent(b)
	switch {
	case err != nil:
		return fmt.Sprintf("%x (%v)", b, err)
	case e.Account != nil:
		return showAccount(e.Account)
	case e.Entry != nil:
		return showEntry(e.Entry)
	case e.Expired != nil:
		return "entry " + shortID(*e.Expired) + " expires"
	}
	return fmt.Sprintf("entry id %s is burnt (%v)", shortID(e.Burnt.ID), e.Burnt.Why)
}

func showReply(b []byte) string {
	r, err := ParseReply(b)
	if err != nil {
		return fmt.Sprintf("%x (%v)", b, err)
	}
	var codes []string
	for _, o := range r.Outcomes {
		codes = append(codes, o.Code.String())
	}
	return strings.Join(codes, ", ")
}

func showAccount(a *Account) string {
	return fmt.Sprintf("open account %s (%s, flags %b)", shortID(a.ID), a.Asset, a.Flags)
}

func showEntry(e *Entry) string {
	s := "entry " + shortID(e.ID)
	for _, f := range []struct {
		flag EntryFlags
		name string
	}{{Linked, "linked"}, {Pending, "pending"}, {PostPending, "posts " + shortID(e.PendingID)}, {VoidPending, "voids " + shortID(e.PendingID)}} {
		if e.Flags&f.flag != 0 {
			s += " " + f.name
		}
	}
	for _, l := range e.Legs {
		s += fmt.Sprintf(" %v %s %v", l.Side, shortID(l.Account), l.Amount)
	}
	if e.Timeout > 0 {
		s += fmt.Sprintf(" within %ds", e.Timeout)
	}
	if e.Reference != "" {
		s += " for " + e.Reference
	}
	return s
}

// shortID is the number that the test gave to id.
func shortID(i ID) string { return fmt.Sprint(int(i[14])<<8 | int(i[15])) }

func showProto(b []byte, m proto.Message) string {
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Sprintf("%x (%v)", b, err)
	}
	return strings.Join(strings.Fields(fmt.Sprint(m)), " ")
}

// TestDrawnCommands: what is drawn must come as far as what it is to test.
func TestDrawnCommands(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	l := newLedger(t)
	codes, statuses := map[Code]int{}, map[PendingStatus]int{}
	for range 600 {
		l.now += rsm.Timestamp(r.IntN(int(time.Second)))
		for _, o := range l.submit(drawCommand(r)).Outcomes {
			codes[o.Code]++
		}
	}
	for n := range drawnPending {
		e, _ := LookupEntry(&l.state, id(100+n))
		statuses[e.Status]++
	}
	l.audit()
	for _, c := range []Code{Created, Exists, LinkedEventFailed, ExceedsCredits, ExceedsDebits, PendingEntryNotFound, PendingEntryAlreadyPosted, PendingEntryAlreadyVoided, PendingEntryExpired} {
		if codes[c] == 0 {
			t.Errorf("no outcome is %v", c)
		}
	}
	for _, s := range []PendingStatus{Posted, Voided, Expired} {
		if statuses[s] == 0 {
			t.Errorf("no reservation was %v", s)
		}
	}
	t.Log(codes, statuses)
}
