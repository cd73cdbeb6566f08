package client

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
)

// NewID returns an id for an account or an entry: 48 bits of milliseconds and 80
// random bits. Ids made one after another lie near each other, which stores like; two of them never meet.
//
// Write it down before you send it: only who sends the same id again cannot book twice.
func NewID() (id book.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(time.Now().UnixMilli())<<16)
	_, _ = rand.Read(id[6:]) // never fails
	return id
}
