package book

import (
	"fmt"

	"github.com/decree-raft/decree/rsm"
)

// The kinds of command.
const (
	opCreateAccounts byte = 1
	opPostEntries    byte = 2
	opPulse          byte = 3
	opReply          byte = 4 // of a reply: kinds never overlap, so that none is mistaken for another
)

// AppendCreateAccounts appends the command that opens accounts: kind 1, version 1, count (2), the accounts.
func AppendCreateAccounts(b []byte, accounts ...Account) ([]byte, error) {
	if err := checkBatch(len(accounts)); err != nil {
		return b, err
	}
	b = appendU16(append(b, opCreateAccounts, formatVersion), uint16(len(accounts)))
	for i := range accounts {
		a := &accounts[i]
		if len(a.Asset) > 255 || len(a.Name) > 65535 {
			return b, fmt.Errorf("%w: asset or name of account %d is too long to be written down", ErrEncoding, i)
		}
		b = appendAccount(b, a)
	}
	return b, nil
}

// AppendPostEntries appends the command that records entries: kind 2, version 1, count (2), the entries.
func AppendPostEntries(b []byte, entries ...Entry) ([]byte, error) {
	if err := checkBatch(len(entries)); err != nil {
		return b, err
	}
	b = appendU16(append(b, opPostEntries, formatVersion), uint16(len(entries)))
	for i := range entries {
		e := &entries[i]
		if len(e.Legs) > 255 || len(e.Memo) > 65535 || len(e.Reference) > 65535 {
			return b, fmt.Errorf("%w: legs, memo or reference of entry %d are too long to be written down", ErrEncoding, i)
		}
		b = appendEntry(b, e)
	}
	return b, nil
}

// MakesRoom reports whether entries do no more than finish what pending ones have begun, as posts and voids do. A command of such is taken even when disks
// are low, if it is said of it (rsm.Request.MakesRoom): nobody's money stays reserved because there is no room.
func MakesRoom(entries ...Entry) bool {
	for i := range entries {
		if entries[i].Flags&(PostPending|VoidPending) == 0 {
			return false
		}
	}
	return true
}

// Pulse is the command that lets due pending entries expire: kind 3, version 1.
// Its reply's outcomes are none; MaxExpiries at most expire, so repeat it while some are due. It makes room, too.
func Pulse() []byte { return []byte{opPulse, formatVersion} }

func checkBatch(n int) error {
	if n < 1 || n > MaxBatch {
		return fmt.Errorf("%w: a command holds 1 to %d items, not %d", ErrEncoding, MaxBatch, n)
	}
	return nil
}

// Reply is the answer to a command.
type Reply struct {
	Time     rsm.Timestamp // of the decision
	Outcomes []Outcome     // one for each item of the command, in its order
}

// appendReplyHeader appends kind 4, version 1, time (8), count (2). Code and leg of each outcome follow, a byte each.
func appendReplyHeader(b []byte, t rsm.Timestamp, n int) []byte {
	b = appendU64(append(b, opReply, formatVersion), uint64(t))
	return appendU16(b, uint16(n))
}

// ParseReply decodes the reply to a command.
func ParseReply(data []byte) (Reply, error) {
	r := reader{b: data}
	r.header(opReply)
	reply := Reply{Time: rsm.Timestamp(r.u64())}
	body := r.take(2 * int(r.u16()))
	if err := r.end(); err != nil {
		return Reply{}, err
	}
	reply.Outcomes = make([]Outcome, 0, len(body)/2)
	for ; len(body) > 0; body = body[2:] {
		reply.Outcomes = append(reply.Outcomes, Outcome{Code: Code(body[0]), Leg: body[1]})
	}
	return reply, nil
}
