// Package yield lets the other threads of a machine run first, where what they are about to do makes one's own work less: calls that come in on many connections
// travel on as one frame if whoever sends them waits until the readers of those connections have had the processors.
//
// runtime.Gosched lets goroutines run that have no thread. With more of Go's processors than the machine has (see docs/decisions/0006-gomaxprocs.md) each that is
// ready has one, and it is the machine's that they wait for.
package yield

import "time"

const (
	// long is how long others may run meanwhile, in the order of a slice of the system's scheduler. Where it takes longer, programs that do nothing but compute want
	// the processors, and who gives them away again and again gets next to nothing.
	long = 2 * time.Millisecond
	// abstention is for how long nothing is given away after that.
	abstention = 50 * time.Millisecond
)

// Yielder yields. Its zero value is ready for use, by one goroutine at a time.
type Yielder struct{ next time.Time }

// Yield lets other threads that are ready run, if there are more of them than processors, and returns at once if there are not. Where the system does not offer that it
// does nothing.
func (y *Yielder) Yield() { y.yield(processor) }

func (y *Yielder) yield(processor func()) {
	began := time.Now()
	if began.Before(y.next) {
		return
	}
	processor()
	if now := time.Now(); now.Sub(began) > long {
		y.next = now.Add(abstention)
	}
}
