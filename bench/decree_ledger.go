package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
)

// The ledger's load: two-leg entries between random accounts out of ledgerAccounts, each with an id of its own.
const ledgerAccounts = 10_000

// entryIDs makes an entry's id unique: the prepared commands are sent again and again, and a ledger books an id once.
var entryIDs atomic.Uint64

// idMark stands in the prepared commands where the id goes.
var idMark = book.ID{0xde, 0xc4, 0xee, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}

// stamped returns a copy of a prepared command with a fresh id, or the command itself if it has none to replace.
func stamped(command []byte) []byte {
	at := bytes.Index(command, idMark[:])
	if at < 0 {
		return command
	}
	c := bytes.Clone(command)
	binary.BigEndian.PutUint64(c[at+8:], entryIDs.Add(1))
	return c
}

func account(n int) (id book.ID) {
	binary.BigEndian.PutUint64(id[:8], 1)
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	return id
}

// decreeWorkload makes the ledger's commands; the other machines' are common to all systems.
func decreeWorkload(m machine, payload int) (workload, error) {
	if m != ledger {
		return newWorkload(m, payload)
	}
	var w workload
	for n := 0; n < ledgerAccounts; n += 1000 {
		var batch []book.Account
		for i := n; i < n+1000; i++ {
			batch = append(batch, book.Account{ID: account(i + 1), Name: fmt.Sprintf("Bench:%05d", i), Asset: "EUR", Scale: 2})
		}
		command, err := book.AppendCreateAccounts(nil, batch...)
		if err != nil {
			return w, err
		}
		w.setup = append(w.setup, command)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range distinctCommands {
		from, to := rng.IntN(ledgerAccounts), rng.IntN(ledgerAccounts-1)
		if to >= from {
			to++
		}
		amount := book.U64(1 + rng.Uint64N(1000))
		command, err := book.AppendPostEntries(nil, book.Entry{ID: idMark, Legs: []book.Leg{
			{Account: account(from + 1), Side: book.Debit, Amount: amount},
			{Account: account(to + 1), Side: book.Credit, Amount: amount},
		}})
		if err != nil {
			return w, err
		}
		if !bytes.Contains(command, idMark[:]) {
			return w, fmt.Errorf("an entry's id does not stand in its command as it is")
		}
		query, err := proto.Marshal(&ledgerv1.Query{Query: &ledgerv1.Query_GetAccounts{
			GetAccounts: &ledgerv1.GetAccountsRequest{Ids: []string{account(from + 1).String()}}}})
		if err != nil {
			return w, err
		}
		w.writes, w.reads = append(w.writes, command), append(w.reads, query)
	}
	return w, nil
}
