package book

import (
	"bytes"
	"encoding/binary"

	"github.com/decree-raft/decree/rsm"
)

// The reads. Each is a function of one view, and so of one position of the log.

// LookupAccount returns an account as it stands.
func LookupAccount(v rsm.View, id ID) (AccountState, bool) {
	var k keys
	value, ok := v.Get(k.id(keyAccount, id))
	if !ok {
		return AccountState{}, false
	}
	now := must(decodeAccount(value))
	value, ok = v.Get(k.id(keyInfo, id))
	if !ok {
		panic("book: account " + id.String() + " was never opened")
	}
	opened := must(decodeInfo(value))
	s := AccountState{Account: opened.Account, Balances: now.Balances, Rows: now.rows, Time: opened.time}
	s.Flags = now.flags
	return s, true
}

// ListAccounts returns up to limit accounts whose name begins with prefix, by
// name, then asset, then id, from after a token on; and the token to go on from, nil at the end.
func ListAccounts(v rsm.View, prefix string, after []byte, limit int) (accounts []AccountState, next []byte) {
	start := append([]byte{keyName}, prefix...)
	end := successor(start)
	if len(after) > 0 && bytes.Compare(after, start) >= 0 {
		start = append(bytes.Clone(after), 0)
	}
	for key := range v.Scan(start, end) {
		if len(accounts) == limit {
			return accounts, next
		}
		a, ok := LookupAccount(v, ID(key[len(key)-len(ID{}):]))
		if !ok {
			panic("book: a listed account is not there")
		}
		accounts = append(accounts, a)
		next = append(next[:0], key...)
	}
	return accounts, nil
}

// successor returns the first key after all those that begin with prefix, which is not all 0xFF.
func successor(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for end[len(end)-1] == 0xFF {
		end = end[:len(end)-1]
	}
	end[len(end)-1]++
	return end
}

// LookupEntry returns an entry as it stands. A burnt id names no entry.
func LookupEntry(v rsm.View, id ID) (RecordedEntry, bool) {
	var k keys
	value, ok := v.Get(k.id(keyEntry, id))
	if !ok {
		return RecordedEntry{}, false
	}
	record := must(decodeEntryRecord(value))
	if record.burnt() {
		return RecordedEntry{}, false
	}
	e := RecordedEntry{Time: record.time}
	mustDecode(record, &e.Entry)
	if e.Flags&Pending != 0 {
		value, ok := v.Get(k.id(keyPending, id))
		if !ok {
			panic("book: pending entry " + id.String() + " has no status")
		}
		p := must(decodePending(value))
		e.Status, e.ResolvedBy, e.ExpiresAt = p.status, p.resolvedBy, p.expiresAt
	}
	return e, true
}

// NextExpiry returns when the next pending entry expires, and false if none has a timeout.
func NextExpiry(v rsm.View) (rsm.Timestamp, bool) {
	for key := range v.Scan([]byte{keyExpiry}, []byte{keyExpiry + 1}) {
		return rsm.Timestamp(binary.BigEndian.Uint64(key[1:])), true
	}
	return 0, false
}
