package book

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"slices"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/rsm"
)

// maxViolations is how many violations a report spells out.
const maxViolations = 100

// Report is what an audit found.
type Report struct {
	Accounts, Entries, Pending, Burnt, Rows uint64
	References                              uint64       // entries that have one
	Assets                                  []AssetTotal // by asset code
	Violations                              []string     // at most maxViolations of them
	ViolationCount                          uint64
	ContentHash                             [16]byte // of all keys and values: the same on every replica at the same position
}

// AssetTotal adds up the accounts of one asset. Totals are decimal, as they may be over 128 bits.
type AssetTotal struct {
	Asset    string
	Scale    uint8
	Accounts uint64

	DebitsPending, DebitsPosted, CreditsPending, CreditsPosted string
}

// Audit recomputes everything that the state says twice, from the entries up,
// and believes none of it:
//
//   - every entry balances per asset, stands under its own id, and is one that Decide takes, as far as that shows in the entry alone;
//   - an account's posted totals are the sums of the legs that were posted to it,
//     its pending totals those of the entries that are still pending; both together fit;
//   - its statement has one row for each posted leg, without gaps, with the running totals;
//   - no account is beyond what its flags allow; closed is who was opened so or has a pending closing leg;
//   - per asset, debits equal credits, posted and pending, and all accounts have its scale;
//   - a pending entry is resolved by what claims to have resolved it, in its accounts and for no more than it reserved, after it was
//     made and before it expires; it expires when its timeout says, and stands in the expiry index while it can;
//   - what an account was opened as, what it stands as and the list of names agree; a burnt id is its own;
//   - whoever resolved a pending entry with a reference has one.
//
// When an entry expired is recorded nowhere, so that it is not judged either.
//
// It reads the whole state in the order of its keys, once to judge it and once for the ContentHash, and keeps a few
// hundred bytes for each account. When ctx ends, it ends with ctx's error, and no report.
func Audit(ctx context.Context, v rsm.View) (report *Report, err error) {
	report = new(Report)
	a := &auditor{v: attended{v, ctx}, report: report, accounts: make(map[ID]*audited), seed: maphash.MakeSeed()}
	defer func() {
		if r := recover(); r != nil { // by a lookup that met damage
			a.violation("the audit could not go on: %v", r)
		}
		if err = ctx.Err(); err != nil {
			report = nil // it has not seen all
		}
	}()
	for _, step := range []func(){a.hashContent, a.readAccounts, a.readNames, a.readEntries, a.readStatuses, a.readMarks, a.readExpiries, a.judgeAccounts, a.sumAssets} {
		if ctx.Err() == nil {
			step()
		}
	}
	return report, nil
}

// attended is a view whose scans end early when nobody waits any more.
type attended struct {
	rsm.View
	ctx context.Context
}

func (a attended) Scan(start, end []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		for k, v := range a.View.Scan(start, end) {
			if a.ctx.Err() != nil || !yield(k, v) {
				return
			}
		}
	}
}

type auditor struct {
	v        rsm.View
	report   *Report
	accounts map[ID]*audited
	expiring uint64 // pending entries with a timeout
	twoPhase uint64 // entries that are or were pending
	nameSum  uint64 // of the hashes of the keys that the accounts' names should have
	seed     maphash.Seed
}

// audited is what the audit knows of one account: what the state says, and what the entries say.
type audited struct {
	stated account
	opened account // flags, scale and asset alone
	sum    Balances
	legs   uint64 // posted to it
	closed bool
	// before and after add up a hash of the place before and after each row. Each row leads to the next, and the last
	// to what the account states, if and only if the sums are equal but for both ends: a statement is checked without
	// an order and without a lookup for every row.
	before, after uint64
	markSum       uint64 // of the marks that its rows should have
	marks         uint64
}

func (a *auditor) violation(format string, args ...any) { a.report.violation(format, args...) }

func (r *Report) violation(format string, args ...any) {
	if r.ViolationCount++; len(r.Violations) < maxViolations {
		r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
	}
}

// UnderVersion adds what is wrong with the audited state given the version of the machine that is active, now or later: a view does
// not say it.
func (r *Report) UnderVersion(version uint64) {
	if r.References > 0 && version < VersionReferences {
		r.violation("%d entries have a reference, and version %d of the machine, which knows none, is active", r.References, version)
	}
}

func scanKind(v rsm.View, kind byte) func(func(k, v []byte) bool) {
	return v.Scan([]byte{kind}, []byte{kind + 1})
}

func (a *auditor) readAccounts() {
	for key, value := range scanKind(a.v, keyInfo) {
		id := ID(key[1:])
		opened, err := decodeInfo(value)
		if err != nil || opened.ID != id {
			a.violation("account %v: what it was opened as is damaged: %v", id, err)
			continue
		}
		a.accounts[id] = &audited{closed: opened.Flags&Closed != 0,
			opened: account{flags: opened.Flags, scale: opened.Scale, asset: []byte(opened.Asset)}}
		a.nameSum += maphash.Bytes(a.seed, nameKey(&opened.Account))
		a.report.Accounts++
	}
	for key, value := range scanKind(a.v, keyAccount) {
		id := ID(key[1:])
		stated, err := decodeAccount(value)
		switch known := a.accounts[id]; {
		case err != nil:
			a.violation("account %v: %v", id, err)
		case known == nil:
			a.violation("account %v has balances but was never opened", id)
		default:
			stated.asset = bytes.Clone(stated.asset)
			known.stated = stated
		}
	}
}

// hashContent folds in every key and value as it lies there. The state's own hash is of the changes as they were
// made, and says nothing about bytes that changed by themselves since.
func (a *auditor) hashContent() {
	h := sha256.New()
	var lengths [8]byte
	for key, value := range a.v.Scan(nil, nil) {
		if !soundKey(key) {
			a.violation("key %q is of no kind", key)
		}
		binary.BigEndian.PutUint32(lengths[:], uint32(len(key)))
		binary.BigEndian.PutUint32(lengths[4:], uint32(len(value)))
		h.Write(lengths[:])
		h.Write(key)
		h.Write(value)
	}
	copy(a.report.ContentHash[:], h.Sum(nil))
}

// soundKey reports whether a key is one that Apply writes, to the byte: what stands beside it would never be looked up.
func soundKey(key []byte) bool {
	if len(key) == 0 {
		return false
	}
	switch key[0] {
	case keyAccount, keyInfo, keyEntry, keyPending:
		return len(key) == 1+16
	case keyMark, keyExpiry:
		return len(key) == 1+8+16
	case keyAsset:
		return len(key) > 1
	case keyName: // judged as a whole, see readNames
		return len(key) >= 1+1+1+16
	}
	return false
}

// readNames checks that the list of names has each account, as it was opened, and nothing else.
func (a *auditor) readNames() {
	var found, sum uint64
	for key := range scanKind(a.v, keyName) {
		found++
		sum += maphash.Bytes(a.seed, key)
	}
	if found != a.report.Accounts || sum != a.nameSum {
		a.violation("the list of names has %d accounts, %d were opened; or their names differ", found, a.report.Accounts)
	}
}

// readStatuses checks that only entries that were pending have a status.
func (a *auditor) readStatuses() {
	var found uint64
	for range scanKind(a.v, keyPending) {
		found++
	}
	if found != a.twoPhase {
		a.violation("%d entries are or were pending, %d have a status", a.twoPhase, found)
	}
}

func (a *auditor) readEntries() {
	for key, value := range scanKind(a.v, keyEntry) {
		id := ID(key[1:])
		record, err := decodeEntryRecord(value)
		if err != nil {
			a.violation("entry %v: %v", id, err)
			continue
		}
		if record.burnt() {
			r := reader{b: record.event}
			r.header(kindBurnt)
			burnt := r.id()
			if why := Code(r.u8()); r.end() != nil || burnt != id || !why.Passing() {
				a.violation("burnt id %v is damaged", id)
			}
			a.report.Burnt++
			continue
		}
		var e Entry
		postings, err := record.decodeAll(&e)
		if err != nil || e.ID != id {
			a.violation("entry %v is damaged: %v", id, err)
			continue
		}
		a.report.Entries++
		a.addEntry(&e, postings)
	}
}

func (a *auditor) addEntry(e *Entry, postings []posting) {
	sums := make(map[string]*assetSum)
	status := a.statusOf(e)
	if e.Reference != "" {
		a.report.References++
	}
	out := checkNamed(e)
	if out.Code == Created {
		out = checkEntry(e, VersionReferences)
	}
	if out.Code != Created {
		a.violation("entry %v is one that no version would have taken: %v", e.ID, out.Code)
	}
	if posted := e.Flags&(Pending|VoidPending) == 0; posted != (len(postings) > 0) {
		a.violation("entry %v has %d legs, and rows for %d in the statements", e.ID, len(e.Legs), len(postings))
		postings = nil
	}
	for i := range e.Legs {
		l := &e.Legs[i]
		acct := a.accounts[l.Account]
		if acct == nil {
			a.violation("entry %v books to account %v, which does not exist", e.ID, l.Account)
			return
		}
		asset := string(acct.stated.asset)
		if sums[asset] == nil {
			sums[asset] = new(assetSum)
		}
		sum := &sums[asset].debits
		if l.Side == Credit {
			sum = &sums[asset].credits
		}
		sum.add(l.Amount)
		a.addLeg(e, i, acct, status)
		if postings != nil {
			a.addRow(e, i, acct, &postings[i])
		}
	}
	for asset, sum := range sums {
		if sum.debits != sum.credits {
			a.violation("entry %v: debits of %v and credits of %v in %s", e.ID, sum.debits, sum.credits, asset)
		}
	}
}

// addLeg books a leg in the audit's own accounts.
func (a *auditor) addLeg(e *Entry, i int, acct *audited, status PendingStatus) {
	l := &e.Legs[i]
	mine := account{Balances: acct.sum}
	total := mine.posted(l.Side)
	switch {
	case e.Flags&VoidPending != 0:
		return
	case e.Flags&Pending == 0:
		acct.legs++
	case status == StillPending:
		total = mine.pending(l.Side)
		acct.closed = acct.closed || l.Closing
	default:
		return
	}
	var overflow bool
	if *total, overflow = total.Add(l.Amount); overflow {
		a.violation("entry %v: what is booked to account %v on its side is over 2^128 - 1 with it", e.ID, l.Account)
	}
	acct.sum = mine.Balances
}

// statusOf returns the status of a pending entry, and checks it against what resolved it.
func (a *auditor) statusOf(e *Entry) PendingStatus {
	if e.Flags&(PostPending|VoidPending) != 0 {
		if p, ok := LookupEntry(a.v, e.PendingID); !ok || p.ResolvedBy != e.ID || p.Status != resolvedStatus(e.Flags) {
			a.violation("entry %v resolves %v, which says otherwise", e.ID, e.PendingID)
		} else if by, _ := LookupEntry(a.v, e.ID); by.Time < p.Time || p.ExpiresAt != 0 && by.Time >= p.ExpiresAt {
			a.violation("entry %v of time %d resolves %v of time %d, which expires at %d", e.ID, by.Time, e.PendingID, p.Time, p.ExpiresAt)
		} else if !settles(e, &p.Entry) {
			a.violation("entry %v resolves %v in other legs or for more than it reserved", e.ID, e.PendingID)
		} else if p.Reference != "" && e.Reference == "" {
			a.violation("entry %v resolves %v and has lost its reference %q", e.ID, e.PendingID, p.Reference)
		}
	}
	if e.Flags&Pending == 0 {
		return NotPending
	}
	a.twoPhase++
	p, _ := LookupEntry(a.v, e.ID)
	if expires, out := expiryOf(e, p.Time); out.Code != Created || expires != p.ExpiresAt {
		a.violation("entry %v of time %d and a timeout of %d s expires at %d", e.ID, p.Time, e.Timeout, p.ExpiresAt)
	}
	switch {
	case p.Status == StillPending:
		if a.report.Pending++; p.ExpiresAt != 0 {
			a.expiring++
		}
	case p.Status == Expired:
		if p.ExpiresAt == 0 {
			a.violation("entry %v expired without a timeout", e.ID)
		}
	default:
		if by, ok := LookupEntry(a.v, p.ResolvedBy); !ok || by.PendingID != e.ID {
			a.violation("entry %v was %v by %v, which says otherwise", e.ID, p.Status, p.ResolvedBy)
		}
	}
	return p.Status
}

// settles reports whether the legs of e are those of the pending entry p, with amounts that e may take.
func settles(e, p *Entry) bool {
	if len(e.Legs) != len(p.Legs) {
		return false
	}
	for i := range e.Legs {
		mine, theirs := &e.Legs[i], &p.Legs[i]
		order := mine.Amount.Cmp(theirs.Amount)
		if mine.Account != theirs.Account || mine.Side != theirs.Side || order > 0 || order < 0 && e.Flags&VoidPending != 0 {
			return false
		}
	}
	return true
}

// rowMark is a row that can be found without the rows after it.
type rowMark struct {
	account ID
	n       uint64
	entry   ID
}

func (a *auditor) addRow(e *Entry, i int, acct *audited, p *posting) {
	a.report.Rows++
	before, after := p.places(e.ID, &e.Legs[i])
	acct.before += maphash.Comparable(a.seed, before)
	acct.after += maphash.Comparable(a.seed, after)
	if p.number%rowsPerMark == 0 {
		acct.markSum += maphash.Comparable(a.seed, rowMark{e.Legs[i].Account, p.number / rowsPerMark, e.ID})
	}
}

func (a *auditor) readMarks() {
	for key, value := range scanKind(a.v, keyMark) {
		m := rowMark{account: ID(key[1:17]), n: binary.BigEndian.Uint64(key[17:])}
		acct := a.accounts[m.account]
		if acct == nil || len(value) != len(m.entry) {
			a.violation("mark %d of the statement of account %v is damaged, or the account does not exist", m.n, m.account)
			continue
		}
		m.entry = ID(value)
		acct.marks++
		acct.markSum -= maphash.Comparable(a.seed, m)
	}
}

// explain looks for the row of an account's statement that is not what its entry says.
func (a *auditor) explain(id ID, acct *audited) {
	defer func() {
		if r := recover(); r != nil { // a lookup met the damage, and says where
			a.violation("account %v: %v", id, r)
		}
	}()
	now := acct.stated.place()
	for number := now.number; number > 0 && a.report.ViolationCount < maxViolations; number-- {
		row, before := rowOf(a.v, id, number, now.entry)
		if row.DebitsPosted != now.debits || row.CreditsPosted != now.credits {
			a.violation("account %v: row %d shows totals of %v and %v, what follows says %v and %v",
				id, number, row.DebitsPosted, row.CreditsPosted, now.debits, now.credits)
		}
		p := posting{number: number, before: before, debitsPosted: row.DebitsPosted, creditsPosted: row.CreditsPosted}
		now, _ = p.places(row.Entry, &Leg{Side: row.Side, Amount: row.Amount})
	}
}

func (a *auditor) readExpiries() {
	var found uint64
	for key := range scanKind(a.v, keyExpiry) {
		found++
		at, id := rsm.Timestamp(binary.BigEndian.Uint64(key[1:])), ID(key[9:])
		if e, ok := LookupEntry(a.v, id); !ok || e.Status != StillPending || e.ExpiresAt != at {
			a.violation("entry %v stands among the expiring ones and does not expire", id)
		}
	}
	if found != a.expiring {
		a.violation("%d pending entries have a timeout, %d are listed to expire", a.expiring, found)
	}
}

func (a *auditor) judgeAccounts() {
	for _, id := range slices.SortedFunc(maps.Keys(a.accounts), func(x, y ID) int { return bytes.Compare(x[:], y[:]) }) {
		acct := a.accounts[id]
		s := &acct.stated
		if o := &acct.opened; !bytes.Equal(s.asset, o.asset) || s.scale != o.scale || s.flags&^Closed != o.flags&^Closed {
			a.violation("account %v was opened in %q with scale %d and flags %b, and stands in %q with %d and %b",
				id, o.asset, o.scale, o.flags, s.asset, s.scale, s.flags)
		}
		if s.Balances != acct.sum {
			a.violation("account %v states %+v, its entries say %+v", id, s.Balances, acct.sum)
		}
		for _, side := range []Side{Debit, Credit} {
			if _, overflow := s.pending(side).Add(*s.posted(side)); overflow {
				a.violation("account %v: what is pending and posted on its %v side is together over 2^128 - 1", id, side)
			}
		}
		if s.rows != acct.legs {
			a.violation("account %v has %d posted legs, and states %d", id, acct.legs, s.rows)
		}
		if maphash.Comparable(a.seed, place{})+acct.after != acct.before+maphash.Comparable(a.seed, s.place()) {
			a.violation("account %v: its statement does not show what was posted to it", id)
			a.explain(id, acct)
		}
		if acct.marks != s.rows/rowsPerMark || acct.markSum != 0 {
			a.violation("account %v: its statement of %d rows has %d marks, or they are of other entries", id, s.rows, acct.marks)
		}
		if closed := s.flags&Closed != 0; closed != acct.closed {
			a.violation("account %v: closed is %v, its entries say %v", id, closed, acct.closed)
		}
		if s.flags&DebitsMustNotExceedCredits != 0 && s.exceeds(Debit) {
			a.violation("account %v: its debits exceed its credits", id)
		}
		if s.flags&CreditsMustNotExceedDebits != 0 && s.exceeds(Credit) {
			a.violation("account %v: its credits exceed its debits", id)
		}
	}
}

// assetAudit adds up the accounts of an asset.
type assetAudit struct {
	scale                                                      uint8
	accounts                                                   uint64
	debitsPending, debitsPosted, creditsPending, creditsPosted sum192
}

func (a *auditor) sumAssets() {
	sums := make(map[string]*assetAudit)
	for key, value := range scanKind(a.v, keyAsset) {
		scale, err := decodeScale(value)
		if err != nil {
			a.violation("asset %q: %v", key[1:], err)
		}
		sums[string(key[1:])] = &assetAudit{scale: scale}
	}
	for id, acct := range a.accounts {
		s := &acct.stated
		sum := sums[string(s.asset)]
		if sum == nil || sum.scale != s.scale {
			a.violation("account %v: its asset %q has no scale, or another", id, s.asset)
			continue
		}
		sum.accounts++
		sum.debitsPending.add(s.DebitsPending)
		sum.debitsPosted.add(s.DebitsPosted)
		sum.creditsPending.add(s.CreditsPending)
		sum.creditsPosted.add(s.CreditsPosted)
	}
	for _, asset := range slices.Sorted(maps.Keys(sums)) {
		t := sums[asset]
		if t.debitsPosted != t.creditsPosted || t.debitsPending != t.creditsPending {
			a.violation("%s does not balance: posted %v and %v, pending %v and %v",
				asset, t.debitsPosted, t.creditsPosted, t.debitsPending, t.creditsPending)
		}
		a.report.Assets = append(a.report.Assets, AssetTotal{
			Asset: asset, Scale: t.scale, Accounts: t.accounts,
			DebitsPending: t.debitsPending.String(), DebitsPosted: t.debitsPosted.String(),
			CreditsPending: t.creditsPending.String(), CreditsPosted: t.creditsPosted.String(),
		})
	}
}

// Proto returns the report as the public API shows it.
func (r *Report) Proto() *ledgerv1.AuditResponse {
	m := &ledgerv1.AuditResponse{
		Accounts: r.Accounts, Entries: r.Entries, Pending: r.Pending, Burnt: r.Burnt, Rows: r.Rows, References: r.References,
		Violations: r.Violations, ViolationCount: r.ViolationCount, ContentHash: hex.EncodeToString(r.ContentHash[:]),
	}
	for _, t := range r.Assets {
		m.Assets = append(m.Assets, &ledgerv1.AssetTotal{
			Asset: t.Asset, Scale: uint32(t.Scale), Accounts: t.Accounts,
			DebitsPending: t.DebitsPending, DebitsPosted: t.DebitsPosted,
			CreditsPending: t.CreditsPending, CreditsPosted: t.CreditsPosted,
		})
	}
	return m
}
