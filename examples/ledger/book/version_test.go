package book

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/decree-raft/decree/rsm"
)

// TestVersions: before version 2 is active, whichever program decides, an entry with a reference is told so and its id
// stays usable: the same entry is booked under the same id as soon as the version is active.
func TestVersions(t *testing.T) {
	for name, old := range map[string]Machine{"old program": {OldProgram: true}, "new program": {}} {
		t.Run(name, func(t *testing.T) {
			l := standard(t)
			l.machine, l.version = old, VersionFirst
			single := entry(50, debit(1, 5), credit(2, 5)).citing("INV-50")
			chain := []Entry{entry(51, debit(1, 1), credit(2, 1)).with(Linked), entry(52, debit(1, 1), credit(2, 1)).citing("INV-52")}
			reserved := entry(53, debit(1, 7), credit(2, 7)).with(Pending)
			wantCodes(t, l.post(reserved), Created)
			before := l.state.Dump()
			for range 2 { // a retry is told the same
				wantCodes(t, l.post(single), ReferenceNeedsVersion2)
				wantCodes(t, l.post(chain...), LinkedEventFailed, ReferenceNeedsVersion2)
				wantCodes(t, l.post(entry(54).with(PostPending).of(53).citing("INV-54")), ReferenceNeedsVersion2)
			}
			if l.state.Dump() != before {
				t.Error("entries that were not booked have changed the state: an id is burnt")
			}

			l.machine, l.version = Machine{}, VersionReferences
			wantCodes(t, l.post(single), Created)
			wantCodes(t, l.post(single), Exists)
			wantCodes(t, l.post(chain...), Created, Created)
			wantCodes(t, l.post(entry(54).with(PostPending).of(53).citing("INV-54")), Created)
			for n, want := range map[int]string{50: "INV-50", 51: "", 52: "INV-52", 53: "", 54: "INV-54"} {
				if e, ok := LookupEntry(&l.state, id(n)); !ok || e.Reference != want {
					t.Errorf("entry %d has the reference %q (there: %v), want %q", n, e.Reference, ok, want)
				}
			}
			var cited []string
			for _, row := range Statement(&l.state, id(1), 0, 10) {
				cited = append(cited, row.Reference)
			}
			if got := strings.Join(cited, ","); got != "INV-50,,INV-52,INV-54" {
				t.Errorf("the statement has the references %q", got)
			}
			if r := l.audit(); r.References != 3 {
				t.Errorf("the audit counts %d entries with a reference, want 3", r.References)
			}
			checkReplay(t, l)
		})
	}
	if v := (Machine{OldProgram: true}).MaxVersion(); v != VersionFirst {
		t.Errorf("the old program can run version %d", v)
	}
	if v := (Machine{}).MaxVersion(); v != VersionReferences {
		t.Errorf("the new program can run version %d", v)
	}
}

// A post or void has the reference of what it resolves, unless it has its own.
func TestReferenceIsInherited(t *testing.T) {
	l := standard(t)
	reserve := func(n int) Entry {
		return entry(n, debit(1, 5), credit(2, 5)).with(Pending).citing(fmt.Sprint("R-", n))
	}
	wantCodes(t, l.post(reserve(50), reserve(51), reserve(52)), Created, Created, Created)
	post, void, own := entry(60).with(PostPending).of(50), entry(61).with(VoidPending).of(51), entry(62).with(PostPending).of(52).citing("R-62")
	wantCodes(t, l.post(post, void, own), Created, Created, Created)
	for n, want := range map[int]string{60: "R-50", 61: "R-51", 62: "R-62"} {
		if e, _ := LookupEntry(&l.state, id(n)); e.Reference != want {
			t.Errorf("entry %d has the reference %q, want %q", n, e.Reference, want)
		}
	}
	wantCodes(t, l.post(post, void, own, post.citing("R-50"), own.citing("")), Exists, Exists, Exists, Exists, ExistsWithDifferentReference)
	l.audit()
}

// TestFormatOfReference: an entry without a reference has the bytes that it had before there were any, and one with a reference
// has format version 2 and the bytes that are documented, and no others.
func TestFormatOfReference(t *testing.T) {
	plain := full(50).citing("")
	old, cited := appendEntry(nil, &plain), full(50)
	got := appendEntry(nil, &cited)
	want := bytes.Clone(old)
	want[1] = 2
	want[len(want)-len("lunch")-2-4-4-16-2-1] |= 1 << 6 // the byte of fields: memo, date, timeout, user data and code follow
	want = append(want, 0, byte(len("R-2024/17")))
	want = append(want, "R-2024/17"...)
	if old[1] != 1 || !bytes.Equal(got, want) {
		t.Errorf("the entry is\n%x, want\n%x; without a reference it has version %d", got, want, old[1])
	}
	for name, bad := range map[string][]byte{
		"a reference in version 1":    append([]byte{kindEntry, 1}, got[2:]...),
		"version 2 without reference": append([]byte{kindEntry, 2}, old[2:]...),
		"version 3":                   append([]byte{kindEntry, 3}, got[2:]...),
		"an empty reference":          append(bytes.Clone(got[:len(got)-len("R-2024/17")-2]), 0, 0),
		"cut short":                   got[:len(got)-1],
	} {
		if e, err := parseEvent(bad); err == nil {
			t.Errorf("%s: %+v", name, e.Entry)
		}
	}
}

// What was decided by rules that are not active must stop a replica.
func TestReferenceBeforeItsVersion(t *testing.T) {
	l := standard(t)
	e := full(50)
	defer func() {
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "has a reference under version 0") {
			t.Errorf("applied with %v", r)
		}
	}()
	l.apply(rsm.Event{Data: appendEntry(nil, &e), Time: l.now, Version: VersionFirst})
}

func TestAuditUnderVersion(t *testing.T) {
	l := standard(t)
	wantCodes(t, l.post(full(50)), Created)
	for version, violations := range map[uint64]uint64{VersionFirst: 1, 1: 1, VersionReferences: 0, 3: 0} {
		r := auditOf(&l.state)
		r.UnderVersion(version)
		if r.ViolationCount != violations {
			t.Errorf("under version %d: %q", version, r.Violations)
		}
	}
	none := auditOf(&standard(t).state)
	if none.UnderVersion(VersionFirst); none.ViolationCount != 0 {
		t.Errorf("without references: %q", none.Violations)
	}
}
