package link

import "github.com/decree-raft/decree/internal/route"

// attempt is a call on the link.
type attempt struct {
	id     uint64
	call   *route.Call
	number uint32
}

// slotBits are those of an id that say where its attempt is kept.
const slotBits = 17

// pending are the attempts that have no answer yet, by ids that rise: a number, and below it the slot.
type pending struct {
	slots []attempt // those with call nil are free
	free  []uint32
	count int
	last  uint64 // id given out
}

// add returns the id of an attempt. There must be fewer than maxPending.
func (p *pending) add(c *route.Call, number uint32) uint64 {
	slot := uint32(len(p.slots))
	if n := len(p.free); n > 0 {
		slot = p.free[n-1]
		p.free = p.free[:n-1]
	} else {
		p.slots = append(p.slots, attempt{})
	}
	p.last = (p.last>>slotBits+1)<<slotBits | uint64(slot)
	p.slots[slot] = attempt{id: p.last, call: c, number: number}
	p.count++
	return p.last
}

// take removes an attempt, which is none if there is no such id.
func (p *pending) take(id uint64) attempt {
	slot := uint32(id & (1<<slotBits - 1))
	if int(slot) >= len(p.slots) || p.slots[slot].id != id || p.slots[slot].call == nil {
		return attempt{}
	}
	a := p.slots[slot]
	p.slots[slot] = attempt{}
	p.free = append(p.free, slot)
	p.count--
	return a
}

// all calls f for every attempt. Those may be taken meanwhile.
func (p *pending) all(f func(attempt) bool) {
	for _, a := range p.slots {
		if a.call != nil && !f(a) {
			return
		}
	}
}
