package book

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/decree-raft/decree/examples/ledger/book/booktest"
	"github.com/decree-raft/decree/rsm"
)

// benchAccounts is how many accounts the benchmarks spread their entries over.
const benchAccounts = 10_000

func benchID(n int) (i ID) {
	binary.BigEndian.PutUint64(i[:], uint64(n)*0x9E3779B97F4A7C15)
	i[15] = 1
	return i
}

func benchLedger(b *testing.B) *booktest.Memory {
	s := new(booktest.Memory)
	for n := range benchAccounts {
		a := Account{ID: benchID(n), Asset: "EUR", Scale: 2}
		Machine{}.Apply(s, rsm.Event{Data: appendAccount(nil, &a)})
	}
	return s
}

// benchCommands are two-leg entries, one to a command, with ids in rising order as a good client makes them.
func benchCommands(b *testing.B, n int) [][]byte {
	r := rand.New(rand.NewPCG(1, 1))
	commands := make([][]byte, n)
	for i := range commands {
		from, to := r.IntN(benchAccounts), r.IntN(benchAccounts)
		e := Entry{Legs: []Leg{
			{Account: benchID(from), Amount: U64(1050)}, {Account: benchID(to), Side: Credit, Amount: U64(1050)}}}
		binary.BigEndian.PutUint64(e.ID[:], uint64(i+1))
		var err error
		if commands[i], err = AppendPostEntries(nil, e); err != nil {
			b.Fatal(err)
		}
	}
	return commands
}

func BenchmarkDecide(b *testing.B) {
	s, commands := benchLedger(b), benchCommands(b, 10_000)
	var m Machine
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		events, _, err := m.Decide(s, rsm.Command{Data: commands[i%len(commands)], Time: 1})
		if err != nil || len(events) != 1 {
			b.Fatal(err, len(events))
		}
	}
}

// BenchmarkApply counts the test's map in, which allocates for each key and value.
func BenchmarkApply(b *testing.B) {
	s, commands := benchLedger(b), benchCommands(b, b.N)
	var m Machine
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m.Apply(s, rsm.Event{Data: commands[i][4:], Time: 1})
	}
}

// nowhere takes writes and keeps none: what is left is Apply itself.
type nowhere struct{ *booktest.Memory }

func (nowhere) Set(key, value []byte) {}

func BenchmarkApplyAlone(b *testing.B) {
	s, commands := nowhere{benchLedger(b)}, benchCommands(b, 10_000)
	var m Machine
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m.Apply(s, rsm.Event{Data: commands[i%len(commands)][4:], Time: 1})
	}
}
