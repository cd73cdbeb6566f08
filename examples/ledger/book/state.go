package book

import (
	"encoding/binary"
	"fmt"

	"github.com/decree-raft/decree/rsm"
)

// The first byte of every key says what stands under it. See doc.go for the table.
const (
	keyAccount = 'a' // id: balances and what decides about an entry; written by every entry
	keyAsset   = 'c' // asset code: its scale
	keyEntry   = 'e' // id: an entry, or the mark that the id is burnt; never changed
	keyInfo    = 'i' // id: the account as it was opened; never changed
	keyMark    = 'm' // account, n (8): the entry of row n*rowsPerMark of the statement; never changed
	keyName    = 'n' // name 0 asset 0 id: nothing; for listing
	keyPending = 'p' // id: status of a pending entry
	keyExpiry  = 'x' // expiry (8), id: nothing; the pending entries with a timeout in the order of their expiry
)

// keys builds keys in one piece of memory: each call overwrites the key before it.
// It lives in what Decide and Apply allocate once, because a key that is handed to an interface escapes.
type keys struct{ b [25]byte }

func (k *keys) id(kind byte, id ID) []byte {
	k.b[0] = kind
	copy(k.b[1:], id[:])
	return k.b[:17]
}

func (k *keys) mark(account ID, n uint64) []byte {
	k.id(keyMark, account)
	binary.BigEndian.PutUint64(k.b[17:], n)
	return k.b[:25]
}

func (k *keys) expiry(at rsm.Timestamp, id ID) []byte {
	k.b[0] = keyExpiry
	binary.BigEndian.PutUint64(k.b[1:], uint64(at))
	copy(k.b[9:], id[:])
	return k.b[:25]
}

func assetKey(asset string) []byte { return append([]byte{keyAsset}, asset...) }

func nameKey(a *Account) []byte {
	b := make([]byte, 0, 1+len(a.Name)+1+len(a.Asset)+1+len(a.ID))
	b = append(append(b, keyName), a.Name...)
	b = append(append(b, 0), a.Asset...)
	return append(append(b, 0), a.ID[:]...)
}

// account is the part of an account that entries read and write.
type account struct {
	Balances
	rows  uint64
	last  ID // the entry of the newest row
	flags AccountFlags
	scale uint8
	asset []byte // belongs to whom it was decoded from
}

// Offsets of the account record:
//
//	0   1  version 1
//	1   1  flags
//	2   1  scale
//	3   1  length of the asset code
//	4   8  rows of the statement
//	12 16  debits pending
//	28 16  debits posted
//	44 16  credits pending
//	60 16  credits posted
//	76 16  entry of the newest row of the statement
//	92  n  asset code
const accountRecordFixed = 92

func (a *account) append(b []byte) []byte {
	var f [accountRecordFixed]byte
	f[0], f[1], f[2], f[3] = formatVersion, byte(a.flags), a.scale, byte(len(a.asset))
	binary.BigEndian.PutUint64(f[4:], a.rows)
	put128(f[12:], a.DebitsPending)
	put128(f[28:], a.DebitsPosted)
	put128(f[44:], a.CreditsPending)
	put128(f[60:], a.CreditsPosted)
	copy(f[76:], a.last[:])
	return append(append(b, f[:]...), a.asset...)
}

func decodeAccount(b []byte) (a account, err error) {
	if len(b) < accountRecordFixed || b[0] != formatVersion || len(b) != accountRecordFixed+int(b[3]) {
		return account{}, fmt.Errorf("%w: account record of %d bytes", ErrEncoding, len(b))
	}
	a.flags, a.scale = AccountFlags(b[1]), b[2]
	a.rows = binary.BigEndian.Uint64(b[4:])
	a.DebitsPending, a.DebitsPosted = get128(b[12:]), get128(b[28:])
	a.CreditsPending, a.CreditsPosted = get128(b[44:]), get128(b[60:])
	a.last = ID(b[76:])
	a.asset = b[accountRecordFixed:]
	return a, nil
}

// reserve, release and post are the three movements of an account. All else is
// made of them, in the draft on the leader as in Apply on every replica. The draft has checked before that nothing overflows.

func (a *account) reserve(side Side, amount Uint128) {
	total := a.pending(side)
	*total = mustAdd(*total, amount)
}

func (a *account) release(side Side, amount Uint128) {
	total := a.pending(side)
	difference, under := total.Sub(amount)
	if under {
		panic(fmt.Sprintf("book: releasing %v of a pending %v on the %v side", amount, *total, side))
	}
	*total = difference
}

func (a *account) post(side Side, amount Uint128) {
	total := a.posted(side)
	*total = mustAdd(*total, amount)
	a.rows++
}

// book is what an entry's leg does to its account.
func (a *account) book(l *Leg, pending bool) {
	if !pending {
		a.post(l.Side, l.Amount)
		return
	}
	a.reserve(l.Side, l.Amount)
	if l.Closing {
		a.flags |= Closed
	}
}

// settle is what resolving a pending entry does to the account of its leg p. Posted is the amount to post.
func (a *account) settle(p *Leg, posted Uint128, as PendingStatus) {
	a.release(p.Side, p.Amount)
	if as == Posted {
		a.post(p.Side, posted)
	} else if p.Closing {
		a.flags &^= Closed
	}
}

// exceeds reports whether the side, with what is pending on it, exceeds what is posted on the other.
func (a *account) exceeds(side Side) bool {
	both, overflow := a.pending(side).Add(*a.posted(side))
	return overflow || both.Cmp(*a.posted(Credit - side)) > 0
}

func (a *account) pending(side Side) *Uint128 {
	if side == Credit {
		return &a.CreditsPending
	}
	return &a.DebitsPending
}

func (a *account) posted(side Side) *Uint128 {
	if side == Credit {
		return &a.CreditsPosted
	}
	return &a.DebitsPosted
}

func mustAdd(u, v Uint128) Uint128 {
	sum, overflow := u.Add(v)
	if overflow {
		panic(fmt.Sprintf("book: %v + %v overflows", u, v))
	}
	return sum
}

// pendingState is where a pending entry stands.
type pendingState struct {
	status     PendingStatus
	expiresAt  rsm.Timestamp // 0 is never
	resolvedBy ID
}

// due reports whether the entry's timeout has passed at now, noticed or not.
func (p pendingState) due(now rsm.Timestamp) bool { return p.expiresAt != 0 && p.expiresAt <= now }

// append appends version 1, status, expiry (8), id of the entry that resolved it (16).
func (p pendingState) append(b []byte) []byte {
	b = appendU64(append(b, formatVersion, byte(p.status)), uint64(p.expiresAt))
	return append(b, p.resolvedBy[:]...)
}

func decodePending(b []byte) (p pendingState, err error) {
	r := reader{b: b}
	if v := r.u8(); r.err == nil && v != formatVersion {
		r.fail("pending record of version %d", v)
	}
	p.status = PendingStatus(r.u8())
	p.expiresAt = rsm.Timestamp(r.u64())
	p.resolvedBy = r.id()
	if r.err == nil && (p.status < StillPending || p.status > Expired) {
		r.fail("pending status %d", p.status)
	}
	return p, r.end()
}

// recordTime is the length of the timestamp in front of an entry's or account's event in the state.
const recordTime = 8

// entryRecord is what stands under an entry's id: when (8), what, and, if it was posted, what it did to its accounts:
// a posting for each leg.
type entryRecord struct {
	time rsm.Timestamp
	// event is of kindEntry, and then the postings follow, or kindBurnt.
	event []byte
}

func decodeEntryRecord(b []byte) (entryRecord, error) {
	if len(b) < recordTime+2 || b[recordTime] != kindEntry && b[recordTime] != kindBurnt {
		return entryRecord{}, fmt.Errorf("%w: entry record of %d bytes", ErrEncoding, len(b))
	}
	return entryRecord{time: rsm.Timestamp(binary.BigEndian.Uint64(b)), event: b[recordTime:]}, nil
}

// decodeInfo decodes what stands under keyInfo: when the account was opened (8), and its event.
func decodeInfo(b []byte) (info, error) {
	if len(b) < recordTime {
		return info{}, fmt.Errorf("%w: account of %d bytes", ErrEncoding, len(b))
	}
	i := info{time: rsm.Timestamp(binary.BigEndian.Uint64(b))}
	r := reader{b: b, at: recordTime}
	r.account(&i.Account)
	return i, r.end()
}

// info is an account as it was opened.
type info struct {
	Account
	time rsm.Timestamp
}

// decodeScale decodes what stands under keyAsset: version 1, scale.
func decodeScale(b []byte) (uint8, error) {
	if len(b) != 2 || b[0] != formatVersion {
		return 0, fmt.Errorf("%w: asset record of %d bytes", ErrEncoding, len(b))
	}
	return b[1], nil
}

func (e entryRecord) burnt() bool { return e.event[0] == kindBurnt }

// decode decodes the entry alone.
func (e entryRecord) decode(into *Entry) error {
	r := reader{b: e.event}
	r.entry(into)
	return r.err
}

// decodeAll decodes the entry and its postings: one for each leg, or none.
func (e entryRecord) decodeAll(into *Entry) ([]posting, error) {
	r := reader{b: e.event}
	if r.entry(into); r.err != nil || r.at == len(r.b) {
		return nil, r.err
	}
	postings := make([]posting, len(into.Legs))
	for i := range postings {
		postings[i] = r.posting()
	}
	return postings, r.end()
}

// must is for bytes of our own state: when they do not parse, to go on would be to make up money.
// The library contains the panic: in Decide it rejects the command, in Apply it stops the replica.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
