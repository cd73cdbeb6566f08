package transport

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := waitClosed(make(chan struct{})); !errors.Is(err, ErrCloseTimeout) || time.Since(began) != closeTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func FuzzOpenFrame(f *testing.F) {
	f.Add(sealed("payload"))
	f.Add(sealed("payload")[:11])
	f.Add([]byte("DPF\x02\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		const most = 1 << 10
		before := bytes.Clone(data)
		payload, err := openFrame(data, most)
		if !bytes.Equal(data, before) {
			t.Fatal("the frame was changed")
		}
		if err != nil {
			if !errors.Is(err, errBadFrame) && !errors.Is(err, errFrameVersion) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		if len(payload) == 0 || len(payload) > most {
			t.Fatalf("payload of %d bytes", len(payload))
		}
		if !bytes.Equal(sealed(string(payload)), data) {
			t.Fatal("the frame is not what its payload is sealed to")
		}
	})
}

// TestEveryBitCounts flips each bit of a frame.
func TestEveryBitCounts(t *testing.T) {
	f := sealed("some payload")
	for i := range len(f) * 8 {
		f[i/8] ^= 1 << (i % 8)
		if _, err := openFrame(f, 100); err == nil {
			t.Errorf("bit %d of byte %d may be flipped", i%8, i/8)
		}
		f[i/8] ^= 1 << (i % 8)
	}
}

// TestQueueModel compares a queue with its accounting written down plainly.
func TestQueueModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const limit, maxItem = 20 << 20, 6 << 20
	q := newQueue(limit, maxItem, &bufferPool{})
	var want, got []byte // a byte per item, in order
	var taken []frame
	bytesIn, next := 0, byte(0)
	for range 3000 {
		switch rng.IntN(4) {
		case 0, 1:
			size := 1 + rng.IntN(1<<rng.IntN(24))
			n, ok := q.append(rng.IntN(2*size), func(b []byte) []byte {
				b = append(b, make([]byte, size)...)
				b[len(b)-1] = next
				return b
			})
			if ok {
				want = append(want, next)
				bytesIn += n
				next++
			}
			if ok && n != size {
				t.Fatalf("size %d instead of %d", n, size)
			}
			if !ok && size*2 <= limit-bytesIn && size*2 <= maxItem {
				t.Fatalf("%d bytes were refused with %d queued", size, bytesIn)
			}
		case 2:
			if f, ok := q.take(); ok {
				if f.payload() > softFrameBytes && f.items > 1 && f.payload() > softFrameBytes+maxItem {
					t.Fatalf("a frame of %d items has %d bytes", f.items, f.payload())
				}
				got = append(got, (*f.buf)[len(*f.buf)-1]) // the last item of the frame
				want = want[f.items-1:]
				if want[0] != got[len(got)-1] {
					t.Fatal("out of order")
				}
				want = want[1:]
				taken = append(taken, f)
			}
		case 3:
			if len(taken) > 0 {
				q.release(taken[0].payload())
				bytesIn -= taken[0].payload()
				q.pool.Put(taken[0].buf)
				taken = taken[1:]
			}
		}
		if q.size() != bytesIn || bytesIn > limit {
			t.Fatalf("the queue counts %d bytes, there are %d of %d", q.size(), bytesIn, limit)
		}
	}
	items, n := q.drop()
	for _, f := range taken {
		bytesIn -= f.payload()
	}
	if items != len(want) || n != bytesIn {
		t.Errorf("dropped %d items of %d bytes, expected %d of %d", items, n, len(want), bytesIn)
	}
	q.close()
	if _, ok := q.append(1, func(b []byte) []byte { return append(b, 1) }); ok {
		t.Error("append after close")
	}
}

// TestEncodePanic leaves a queue that works.
func TestEncodePanic(t *testing.T) {
	q := newQueue(1<<20, 1<<20, &bufferPool{})
	put := func(b []byte) []byte { return append(b, 'x') }
	fail := func([]byte) []byte { panic("encode") }
	shrink := func(b []byte) []byte { return b[:0] }
	q.append(1, put)
	for _, f := range []func([]byte) []byte{fail, shrink} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			q.append(100_000, f)
		}()
	}
	q.append(1, put)
	f, ok := q.take()
	if !ok || f.items != 2 || string((*f.buf)[frameHeaderSize:]) != "xx" {
		t.Errorf("got %+v", f)
	}
}

func TestBufferPool(t *testing.T) {
	var p bufferPool
	for _, n := range []int{1, 4 << 10, 4<<10 + 1, 512 << 10, softFrameBytes, 64 << 20} {
		b := p.Get(n)
		if len(*b) != 0 || cap(*b) < n {
			t.Errorf("Get(%d): length %d, capacity %d", n, len(*b), cap(*b))
		}
		*b = append(*b, 1, 2, 3)
		b = p.grow(b, 2*n)
		if !bytes.Equal(*b, []byte{1, 2, 3}) || cap(*b)-len(*b) < 2*n {
			t.Errorf("grow(%d): %v, capacity %d", n, *b, cap(*b))
		}
		p.Put(b)
	}
}
