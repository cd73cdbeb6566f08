// Package rsmtest tests a machine: it runs it in simulated clusters, in virtual time, with nodes that crash, networks that lose and
// disks that are slow, and finds out whether the machine keeps to its contract.
//
//	func TestMachine(t *testing.T) {
//		rsmtest.Run(t, rsmtest.Config{
//			New:     func() rsm.Machine { return counter{} },
//			Command: func(r *rand.Rand) []byte { return []byte(strconv.Itoa(r.IntN(20) - 8)) },
//			Query:   func(*rand.Rand) []byte { return nil },
//		})
//	}
//
// That is all it takes to have checked, for every seed:
//
//   - Apply is deterministic. Each event is applied twice to one state on each replica, and what it writes is compared between
//     replicas, with a replay of the log, and under another date. What is found is named by event and key, with both values.
//   - Decide and Query do not write: neither through the view, nor into the bytes that it returned, nor into their command or query.
//   - Decide depends on nothing but its view and its command: a machine that was just made must decide the same.
//   - No function panics, and nobody keeps bytes or views beyond a call.
//   - A machine with versions (rsm.Versioned) gets from the first to the newest while it works, with nodes whose programs can run
//     different ones: its events must be applied under the version that they were decided under.
//   - Answers are what the log says at their position, exactly once, in real time; replicas agree; everything that
//     was asked ends when the faults have ended. These are the simulator's own rules.
//
// A Config can say more: an invariant of the state, and a sequential model that says what each command and query must
// be answered. The order in which the model is asked is that of the log; that this order goes against nobody's clock is a rule of
// the simulator's. So a run without a failure is linearizable with respect to the model.
//
// # Failures
//
// A failing seed is run again and again with ever fewer commands and faults. What is left is told as a short story: what was asked and what broke in
// the order of time, what was expected, what was seen, and the command line that replays it. A seed is a
// run, on every machine, as long as machine, test and library are not changed.
//
// # Flags
//
//	-rsmtest.seeds=n   run n seeds instead of Config.Seeds
//	-rsmtest.seed=n    run this one only
//	-rsmtest.first=n   begin with this one
//	-rsmtest.update    let Golden add the file of this version
//
// Import this package from tests only: it defines these flags, and reaches into the raft library to make its elections repeatable.
// Tests that use it may be parallel, and wait for one another. They are repeatable only if no rsm.Node runs
// in the same process meanwhile.
package rsmtest
