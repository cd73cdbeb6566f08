package rsm

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// blobs is the machine of the long runs and of the measurements: a command is a key of eight bytes and its new value.
type blobs struct{}

func (blobs) Decide(_ View, c Command) ([][]byte, []byte, error) {
	if len(c.Data) < blobKey {
		return nil, nil, Reject("short", "a command has %d bytes, the key alone has %d", len(c.Data), blobKey)
	}
	return [][]byte{c.Data}, nil, nil
}

func (blobs) Apply(s State, e Event) { s.Set(e.Data[:blobKey], e.Data[blobKey:]) }

func (blobs) Query(v View, key []byte) ([]byte, error) {
	data, _ := v.Get(key)
	return data, nil
}

const blobKey = 8

// noise is what values are cut from: no compression makes it smaller.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
})

// blob returns the command that sets a key to a value of that size, another one for another salt.
func blob(key, salt uint64, size int) []byte {
	b := make([]byte, blobKey+size)
	binary.BigEndian.PutUint64(b, key)
	r := rand.NewPCG(key, salt)
	for v := b[blobKey:]; len(v) > 0; {
		n := noise()
		v = v[copy(v, n[r.Uint64()%uint64(len(n)-4096):]):]
	}
	return b
}

// fillBlobs sets keys, in their order, to values of the given size, until the state has that many bytes.
func fillBlobs(t testing.TB, c *Cluster, id ShardID, bytes int64, size int) (keys uint64) {
	t.Helper()
	s, client := leaderOf(t, c, id).Shard(id), c.Client(id)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	perCall := max(1, (64<<10)/(blobKey+size))
	var flight [64]*Call
	var sent [len(flight)][][]byte
	take := func(i int) {
		if flight[i] == nil {
			return
		}
		if _, err := flight[i].Wait(ctx); err != nil { // it does not lead any more, perhaps; and what was set may be set again
			if _, err := client.SubmitAll(within(t), sent[i]...); err != nil {
				t.Fatal(err)
			}
			s = leaderOf(t, c, id).Shard(id)
		}
		flight[i] = nil
	}
	for n := 0; int64(keys)*int64(blobKey+size) < bytes; n++ {
		take(n % len(flight))
		var commands [][]byte
		for range perCall {
			commands = append(commands, blob(keys, 0, size))
			keys++
		}
		sent[n%len(flight)], flight[n%len(flight)] = commands, s.Go(Request{Commands: commands})
	}
	for i := range flight {
		take(i)
	}
	return keys
}

// A pump has callers overwrite keys at random, each one call after the other, through a Client, until it is stopped.
type pump struct {
	keys  uint64
	size  int
	every time.Duration // between two calls of one caller, at least; 0: at once

	now    atomic.Pointer[interval]
	failed atomic.Uint64
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// interval is what a pump did between two looks at it.
type interval struct {
	began   time.Time
	took    time.Duration // set when it has ended
	calls   atomic.Int64
	buckets [64 * bucketsPerDoubling]atomic.Int64
	longest atomic.Int64
}

// bucketsPerDoubling of the latencies: 3 % is near enough.
const bucketsPerDoubling = 32

func startPump(t testing.TB, c *Cluster, id ShardID, callers int, keys uint64, size int, every time.Duration) *pump {
	p := &pump{keys: keys, size: size, every: every}
	p.now.Store(&interval{began: time.Now()})
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	t.Cleanup(p.finish)
	client := c.Client(id)
	for i := range callers {
		p.done.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for ctx.Err() == nil {
				command := blob(r.Uint64N(p.keys), r.Uint64(), p.size)
				began := time.Now()
				if _, err := client.Submit(context.Background(), command); err != nil {
					p.failed.Add(1)
					t.Errorf("a caller gives up: %v", err)
					return
				}
				took := time.Since(began)
				p.now.Load().note(took)
				if p.every > took {
					select {
					case <-ctx.Done():
					case <-time.After(p.every - took):
					}
				}
			}
		})
	}
	return p
}

func (p *pump) finish() {
	p.stop()
	p.done.Wait()
}

// next ends the present interval and returns it.
func (p *pump) next() *interval {
	old := p.now.Swap(&interval{began: time.Now()})
	old.took = time.Since(old.began)
	return old
}

func (v *interval) note(d time.Duration) {
	v.calls.Add(1)
	n := uint64(max(1, d.Microseconds()))
	e := bits.Len64(n) - 1
	sub := n << (63 - e) << 1 >> (64 - 5)
	v.buckets[e*bucketsPerDoubling+int(sub)].Add(1)
	for {
		longest := v.longest.Load()
		if int64(d) <= longest || v.longest.CompareAndSwap(longest, int64(d)) {
			return
		}
	}
}

// merge adds what another interval counted.
func (v *interval) merge(o *interval) {
	v.took += o.took
	v.calls.Add(o.calls.Load())
	for i := range o.buckets {
		v.buckets[i].Add(o.buckets[i].Load())
	}
	v.longest.Store(max(v.longest.Load(), o.longest.Load()))
}

func (v *interval) perSecond() float64 { return float64(v.calls.Load()) / v.took.Seconds() }

// quantile returns the latency, in milliseconds, that the share q of the calls did not exceed.
func (v *interval) quantile(q float64) float64 {
	left := int64(q * float64(v.calls.Load()))
	for i := range v.buckets {
		if left -= v.buckets[i].Load(); left < 0 {
			return float64(uint64(bucketsPerDoubling+i%bucketsPerDoubling+1)<<(i/bucketsPerDoubling)) / bucketsPerDoubling / 1000
		}
	}
	return float64(v.longest.Load()) / 1e6
}

func (v *interval) String() string {
	return fmt.Sprintf("%.0f/s, p50 %.2f ms, p99 %.2f ms, longest %.0f ms", v.perSecond(), v.quantile(0.5), v.quantile(0.99), float64(v.longest.Load())/1e6)
}
