package admit

import (
	"testing"
	"time"
)

// A call that ran into a very short deadline says nothing about how fast the others are.
func TestLateIsNotFast(t *testing.T) {
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	k := c.Client("a")
	defer k.Release()
	now := int64(time.Hour)
	run := func(took time.Duration, o Outcome) {
		for end := now + int64(20*time.Second); now < end; {
			ticket, err := k.Admit(1, 10, false, now)
			if err != nil {
				t.Fatal(err)
			}
			now += int64(took)
			ticket.Done(now, o)
		}
	}
	run(10*time.Millisecond, Answered)
	base := c.Snapshot().Shards[0].Base
	if base != 10*time.Millisecond {
		t.Fatalf("the base is %v", base)
	}
	run(100*time.Microsecond, Late)
	if got := c.Snapshot().Shards[0].Base; got < base {
		t.Errorf("the base is %v, after deadlines that were over sooner", got)
	}
}
