package book

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/decree-raft/decree/rsm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGoldenEvents applies events as each version wrote them. Events live
// for ever: these files may get more lines, but none may change.
func TestGoldenEvents(t *testing.T) {
	for _, c := range []struct {
		file     string
		version  uint64
		programs []Machine // that can apply them
	}{
		{"events-v1.txt", VersionFirst, []Machine{{OldProgram: true}, {}}},
		{"events-v2.txt", VersionReferences, []Machine{{}}},
	} {
		for _, m := range c.programs {
			t.Run(fmt.Sprintf("%s/version=%d", c.file, m.MaxVersion()), func(t *testing.T) { goldenEvents(t, c.file, c.version, m) })
		}
	}
}

func goldenEvents(t *testing.T, file string, version uint64, m Machine) {
	l := goldenHistory(t, version)
	var b strings.Builder
	for i, e := range l.events {
		b.WriteString(hex.EncodeToString(appendU64(nil, uint64(l.times[i]))) + " " + hex.EncodeToString(e) + "\n")
	}
	name := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(golden) != b.String() {
		t.Errorf("this version writes other events:\n%s", b.String())
	}
	replica := newLedger(t)
	replica.machine = m
	for line := range strings.Lines(string(golden)) {
		at, event, _ := strings.Cut(strings.TrimSpace(line), " ")
		when, err1 := hex.DecodeString(at)
		data, err2 := hex.DecodeString(event)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		r := reader{b: when}
		replica.apply(rsm.Event{Data: data, Time: rsm.Timestamp(r.u64()), Version: version})
	}
	if replica.state.Dump() != l.state.Dump() {
		t.Error("the golden events give another state")
	}
	replica.audit()
}

// goldenHistory has an event of each kind with each field that there is in a version.
func goldenHistory(t testing.TB, version uint64) *ledger {
	l := standard(t)
	l.version = version
	full := func(n int) Entry {
		e := full(n)
		if version < VersionReferences {
			e.Reference = ""
		}
		return e
	}
	l.open(Account{ID: id(10), Name: "Assets:Bank", Asset: "EUR", Scale: 2, Code: 3, UserData: id(4), Linked: true}, eur(11, 0))
	l.post(
		entry(50, debit(1, 5), credit(2, 5)),
		entry(51, Leg{Account: id(3), Amount: Uint128{1, 2}}, Leg{Account: id(4), Side: Credit, Amount: Uint128{1, 2}}),
		full(52),
		entry(53).with(PostPending).of(52),
		full(54),
		entry(55).with(VoidPending).of(54),
		edit(full(56), func(e *Entry) { e.Legs[0].Closing = true }),
		entry(57, debit(7, 1), credit(2, 1)))
	l.wait(61e9)
	l.pulse()
	return l
}

func FuzzEvent(f *testing.F) {
	for _, e := range goldenHistory(f, VersionReferences).events {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEvent(data)
		if err != nil {
			return
		}
		var again []byte
		switch {
		case e.Account != nil:
			again = appendAccount(nil, e.Account)
		case e.Entry != nil:
			again = appendEntry(nil, e.Entry)
		case e.Expired != nil:
			again = appendExpiry(nil, *e.Expired)
		case e.Burnt != nil:
			again = appendBurnt(nil, e.Burnt.ID, e.Burnt.Why)
		}
		if !bytes.Equal(again, data) {
			t.Errorf("%x is written again as %x", data, again)
		}
	})
}

// FuzzDecide submits anything as a command: it is rejected, or leaves a sound book.
func FuzzDecide(f *testing.F) {
	for _, entries := range [][]Entry{{full(50)}, {entry(50, debit(1, 5), credit(2, 5)).with(Linked), entry(51).with(PostPending).of(50)}} {
		c, _ := AppendPostEntries(nil, entries...)
		f.Add(c)
	}
	c, _ := AppendCreateAccounts(nil, eur(50, 0), Account{ID: id(51), Name: "n", Asset: "A", Code: 1, UserData: id(1), Linked: true})
	f.Add(c)
	f.Add(Pulse())
	f.Fuzz(func(t *testing.T, command []byte) {
		l := standard(t)
		events, reply, err := l.machine.Decide(&l.state, rsm.Command{Data: command, Time: l.now, Version: l.version})
		if err != nil {
			return
		}
		for _, e := range events {
			l.apply(rsm.Event{Data: e, Time: l.now, Version: l.version})
		}
		if _, err := ParseReply(reply); err != nil {
			t.Error(err)
		}
		l.audit()
	})
}

// FuzzRecords decodes anything as each record of the state.
func FuzzRecords(f *testing.F) {
	l := goldenHistory(f, VersionReferences)
	for _, v := range l.state.Values() {
		f.Add(v)
	}
	reply, _ := AppendPostEntries(nil, full(1))
	f.Add(append(appendReplyHeader(nil, 1, 1), 0, 0))
	f.Add(reply)
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := decodeAccount(data); err == nil && !bytes.Equal(a.append(nil), data) {
			t.Errorf("account %x", data)
		}
		if p, err := decodePending(data); err == nil && !bytes.Equal(p.append(nil), data) {
			t.Errorf("pending %x", data)
		}
		_, _ = decodeScale(data)
		_, _ = decodeInfo(data)
		if e, err := decodeEntryRecord(data); err == nil {
			var entry Entry
			if postings, err := e.decodeAll(&entry); err == nil {
				again := appendEntry(data[:recordTime:recordTime], &entry)
				for i := range postings {
					again = postings[i].append(again)
				}
				if !bytes.Equal(again, data) {
					t.Errorf("entry %x", data)
				}
			}
		}
		_, _ = ParseReply(data)
	})
}

func TestIDs(t *testing.T) {
	want := ID{0x01, 0x93, 14: 0xAB, 15: 0xCD}
	for _, s := range []string{"0193000000000000000000000000abcd", "01930000-0000-0000-0000-00000000ABCD", "193000000000000000000000000abcd"} {
		if got, err := ParseID(s); err != nil || got != want {
			t.Errorf("ParseID(%q) = %v, %v", s, got, err)
		}
	}
	if got, err := ParseID(""); err != nil || !got.IsZero() {
		t.Errorf("empty: %v, %v", got, err)
	}
	for _, s := range []string{"0193000000000000000000000000abcd0", "xyz", "-1", "01930000-0000-0000-0000-00000000ABC"} {
		if got, err := ParseID(s); err == nil {
			t.Errorf("ParseID(%q) = %v", s, got)
		}
	}
}

func TestDates(t *testing.T) {
	for _, s := range []string{"2024-02-29", "0001-01-01", "9999-12-31", ""} {
		if d, err := ParseDate(s); err != nil || d.String() != s || !d.Valid() {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
	for _, s := range []string{"2023-02-29", "2024-1-1", "2024/01/01", "0000-01-01", "24-01-01", "2024-13-01", "today"} {
		if d, err := ParseDate(s); err == nil {
			t.Errorf("%q is %v", s, d)
		}
	}
	for _, d := range []Date{1, 20230229, 20231301, 20231200, 4294967295} {
		if d.Valid() {
			t.Errorf("%d is valid", d)
		}
	}
}
