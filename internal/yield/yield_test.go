package yield

import (
	"testing"
	"testing/synctest"
	"time"
)

// Who has to wait for long when it gives the processor away keeps it for a while.
func TestAbstains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var y Yielder
		given := 0
		yield := func(takes time.Duration) {
			y.yield(func() { given++; time.Sleep(takes) })
		}
		for range 10 {
			yield(long)
		}
		if given != 10 {
			t.Fatalf("of 10 times at which it took %v it was given away %d", long, given)
		}
		yield(long + time.Nanosecond)
		yield(0)
		time.Sleep(abstention - time.Nanosecond)
		yield(0)
		if given != 11 {
			t.Errorf("within %v after it took longer than %v it was given away %d times", abstention, long, given-11)
		}
		time.Sleep(time.Nanosecond)
		yield(0)
		if given != 12 {
			t.Errorf("%v later it is not given away", abstention)
		}
	})
	new(Yielder).Yield() // the system's own
}
