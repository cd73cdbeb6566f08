package sim

import (
	"math/rand/v2"

	"github.com/decree-raft/decree/internal/core"
)

// workload is what a run is about: the machines, and what clients ask of them. There are two: the simulator's own machines, whose
// every decision an independent model can judge (builtin.go), and a user's (user.go). Clients, sessions, faults and all
// rules that do not depend on what a command means are the same for both.
type workload interface {
	// tune may change what the seed drew.
	tune(w *swarm)
	// shards is how many there are, with ids from 1.
	shards() core.ShardID
	machine(n *node, id core.ShardID) core.Machine
	// reads reports whether there are queries to ask.
	reads() bool
	// place chooses the operation's shard; drawRead and drawCommands choose what it asks for. All draw from the operation's own stream.
	place(o *operation)
	drawRead(o *operation)
	drawCommands(o *operation)
	// readAll makes the operation a read of as much as there is.
	readAll(o *operation)
	// describe says what an operation asks for.
	describe(o *operation) string
	// describeAnswer says what it was answered, if that is no error.
	describeAnswer(a *attempt) string
	newModel(o *oracle) model
}

// model is what a workload knows of one shard. It follows the log, and so knows what every decision and answer has to be.
type model interface {
	// begin and end enclose the requests of an entry; an entry of raft's own has none, and d is nil.
	begin(i core.Index, term uint64, d *logEntry)
	// request takes a request that is not the opening or closing of a session. It calls oracle.commit if it made something happen.
	request(i core.Index, ordinal int, now int64, r *logRequest)
	end(i core.Index)
	// rejected checks a rejection of which the log has no record, because the command had no session.
	rejected(o *operation, at core.Index, r *core.Rejection)
	// read checks an answer.
	read(a *attempt)
	// compare checks all of a replica's state.
	compare(n *node, v core.View, at core.Index)
	// applied is called when a replica has applied an entry that has been learned.
	applied(n *node, i core.Index)
	// finish is called when all is over and agreed.
	finish()
}

// opKey names an operation whatever else is left out of a run: the n-th that a lane of a client begins.
type opKey struct {
	client, lane, n int
}

func (k opKey) id() uint64 { return uint64(k.client+1)<<40 | uint64(k.lane+1)<<32 | uint64(k.n) }

// opStream is the source of all that is left to chance in one operation: what it asks for, how long it waits, which way it goes.
func opStream(seed uint64, k opKey) *rand.Rand { return stream(seed, scramble(k.id())) }

// scramble spreads numbers that are close to each other (splitmix64).
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
