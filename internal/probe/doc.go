// Package probe runs the three functions of a machine one call at a time, as the library does, and finds out whether they keep to
// their contract: that nothing but Apply writes, that nobody changes or keeps bytes that belong to the library, and
// that applying an event twice to one state writes the same.
//
//	probe.go    one call of Decide, Apply or Query, and what was wrong with it
//	guard.go    the view that a machine is given: copies, so that what it does to them can be seen
//	overlay.go  a state, and over it what an event writes
//	memory.go   a state in memory, with versions that cost next to nothing
//
// The simulator wraps the machines of its nodes in it, and replays the log with it.
package probe
