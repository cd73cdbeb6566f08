package link

import (
	"math/rand/v2"
	"testing"

	"github.com/decree-raft/decree/internal/route"
)

// Ids rise, whatever slots are used again, and each names its own call, once.
func TestPending(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var p pending
	want := map[uint64]*route.Call{}
	var ids []uint64
	for range 20000 {
		if len(ids) == 0 || r.IntN(100) < 52 {
			last := p.last
			c := &route.Call{}
			id := p.add(c, uint32(r.Uint32()))
			if id <= last {
				t.Fatalf("id %d after %d", id, last)
			}
			want[id] = c
			ids = append(ids, id)
			continue
		}
		i := r.IntN(len(ids))
		id := ids[i]
		if a := p.take(id); a.call != want[id] {
			t.Fatalf("id %d names another call, or none: %+v", id, a)
		}
		if want[id] = nil; r.IntN(3) > 0 { // it may be asked for again, to no avail
			delete(want, id)
			ids[i] = ids[len(ids)-1]
			ids = ids[:len(ids)-1]
		}
	}
	left := 0
	for a := range p.all {
		if left++; want[a.id] != a.call {
			t.Fatalf("%+v is not under way", a)
		}
	}
	there := 0
	for _, c := range want {
		if c != nil {
			there++
		}
	}
	if left != there || p.count != there {
		t.Fatalf("%d are there, counted as %d: want %d", left, p.count, there)
	}
}
