package state

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestVersionsWhileWriting lets readers check versions while the owner
// writes, rolls back and flushes. Every transaction gives all keys of the
// even half one number, and each version must show exactly its own.
func TestVersionsWhileWriting(t *testing.T) {
	transactions := uint64(3000)
	if testing.Short() {
		transactions = 500
	}
	s := open(t, vfs.NewMem())
	type read struct {
		v *Version
		n uint64
	}
	reads := make(chan read, 8)
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for r := range reads {
				if err := checkNumbers(r.v, r.n); err != nil {
					t.Error(err)
				}
				r.v.Close()
			}
		})
	}
	var owners sync.WaitGroup
	for id := uint64(1); id <= 2; id++ {
		h := openShard(t, s, id)
		owners.Go(func() { ownNumbers(t, h, transactions, func(v *Version, n uint64) { reads <- read{v, n} }) })
	}
	owners.Wait()
	close(reads)
	readers.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

const numbers = 200

func numberKey(i int) []byte { return fmt.Appendf(nil, "key %03d", i) }

func writeNumbers(h *Shard, n uint64) {
	for i := range numbers {
		if (uint64(i)+n)%4 == 3 {
			h.Delete(numberKey(i)) // alternately here and there, so that tombstones meet old values
		} else {
			h.Set(numberKey(i), binary.BigEndian.AppendUint64(nil, n))
		}
	}
}

func ownNumbers(t *testing.T, h *Shard, transactions uint64, hand func(*Version, uint64)) {
	h.SetUndo(true)
	ran := make(chan *FlushJob, 1)
	var committed Mark
	for n := uint64(1); n <= transactions; n++ {
		before := h.Mark()
		writeNumbers(h, n+1000000)
		h.Rollback(before) // a leader that fell
		writeNumbers(h, n)
		hand(h.Version(), n)
		if n > 1 {
			hand(h.CommittedVersion(before), n-1)
		}
		committed = h.Mark()
		h.Release(committed)
		select {
		case j := <-ran:
			if j != nil {
				h.Flushed(j)
			}
		default:
		}
		if n%20 == 0 && h.Freeze() {
			j := h.Flush(Flush{Index: n, Meta: binary.BigEndian.AppendUint64(nil, n)})
			go func() {
				if err := j.Run(); err != nil {
					t.Error(err)
					j = nil
				}
				ran <- j
			}()
		}
	}
	if h.job != nil {
		if j := <-ran; j != nil {
			h.Flushed(j)
		}
	}
	if h.FlushedIndex() == 0 {
		t.Error("nothing was flushed")
	}
	h.Close()
}

func checkNumbers(v *Version, n uint64) error {
	next := 0
	skip := func() {
		for next < numbers && (uint64(next)+n)%4 == 3 {
			next++
		}
	}
	for k, val := range v.Scan(nil, nil) {
		skip()
		if string(k) != string(numberKey(next)) || binary.BigEndian.Uint64(val) != n {
			return fmt.Errorf("version %d has %q = %d, want %q", n, k, binary.BigEndian.Uint64(val), numberKey(next))
		}
		next++
	}
	if skip(); next != numbers {
		return fmt.Errorf("version %d ends at %d", n, next)
	}
	for i := 0; i < numbers; i += 17 {
		val, ok := v.Get(numberKey(i))
		if ok != ((uint64(i)+n)%4 != 3) || (ok && binary.BigEndian.Uint64(val) != n) {
			return fmt.Errorf("version %d: key %d is %x, %v", n, i, val, ok)
		}
	}
	return nil
}
