package admit

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/rsm"
)

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"ClientCount":  {ClientCount: 7},
		"ShardCount":   {ShardCount: -1},
		"Clients":      {Clients: -1},
		"Shards":       {Shards: 1 << 31},
		"ClientBytes":  {ClientBytes: 1},
		"ShardBytes":   {ShardBytes: math.MaxInt64},
		"MinLimit":     {MinLimit: 1},
		"MaxLimit":     {MaxLimit: 100, ShardCount: 149},
		"InitialLimit": {InitialLimit: 3},
		"Target":       {Target: math.NaN()},
		"ProbeEvery":   {ProbeEvery: time.Millisecond},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := New(Config{ShardCount: 12, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Config(); got.MaxLimit != 8 || got.InitialLimit != 8 || got.Target == 0 {
		t.Errorf("resolved: %+v", got)
	}
}

// refused checks what every refusal has.
func refused(t *testing.T, err error, has ...string) *rsm.Error {
	t.Helper()
	var e *rsm.Error
	if !errors.As(err, &e) || !errors.Is(err, rsm.ErrNotProposed) {
		t.Fatalf("not refused: %v", err)
	}
	if e.Code == rsm.CodeOverloaded && (e.RetryAfter < minRetry || e.RetryAfter > maxRetry) {
		t.Errorf("come back in %v: %v", e.RetryAfter, err)
	}
	for _, s := range has {
		if !strings.Contains(e.Message, s) {
			t.Errorf("%q does not say %q", e.Message, s)
		}
	}
	return e
}

func TestClientBounds(t *testing.T) {
	c := controller(t, Config{ClientCount: 16, ClientBytes: 8192})
	k := c.Client("alice")
	var ts []Ticket
	admit := func(shard uint64, bytes int, room bool) error {
		ticket, err := k.Admit(shard, bytes, room, 0)
		if err == nil {
			ts = append(ts, ticket)
		}
		return err
	}
	done := func() {
		for _, ticket := range ts {
			ticket.Done(ms, Answered)
		}
		ts = nil
	}
	for i := range 14 {
		if err := admit(uint64(i), 1, false); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, admit(99, 1, false), `"alice"`, "14 requests", "14 are allowed", "ClientCount")
	for range 2 {
		if err := admit(1, 1, true); err != nil {
			t.Fatalf("the reserve: %v", err)
		}
	}
	refused(t, admit(1, 1, true), "16 are allowed")
	if _, err := c.Client("bob").Admit(1, 1, false, 0); err != nil {
		t.Errorf("another client: %v", err)
	}
	done()
	if err := admit(1, 7000, false); err != nil {
		t.Fatal(err)
	}
	refused(t, admit(2, 169, false), "7000 bytes", "169 more", "7168", "ClientBytes")
	if err := admit(2, 168, false); err != nil {
		t.Fatal(err)
	}
	if err := admit(2, 1024, true); err != nil {
		t.Fatalf("the reserve: %v", err)
	}
	refused(t, admit(2, 1, true), "8192", "ClientBytes")
	done()
	if e := refused(t, admit(2, 7169, false), "7169 bytes", "7168", "smaller"); e.Code != rsm.CodeCommandTooLarge || e.RetryAfter != 0 {
		t.Errorf("too large: %+v", e)
	}
	if err := admit(2, -5, false); err != nil {
		t.Errorf("a negative size: %v", err)
	}
	done()
	s := c.Snapshot()
	if s.Refused[ClientCount] != 2 || s.Refused[ClientBytes] != 2 || s.Refused[TooLarge] != 1 || s.AtWork != 1 || s.Bytes != 1 {
		t.Errorf("%+v", s)
	}
}

func TestShardBytes(t *testing.T) {
	c := controller(t, Config{ShardBytes: 12288, ClientBytes: 1 << 20}) // 8192 and steps of 1024
	a, b := c.Client("a"), c.Client("b")
	for range 8 {
		if _, err := a.Admit(5, 1024, false, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.Admit(5, 1024, false, 0)
	refused(t, err, "shard 5", "8192 bytes", "1024 more", "ShardBytes")
	// Who has nothing there gets one, whatever its size, within the overcommitment; and what makes room up to the end.
	if _, err := b.Admit(5, 2048, false, 0); err != nil {
		t.Error(err)
	}
	_, err = b.Admit(5, 1, false, 0)
	refused(t, err, "ShardBytes")
	if _, err := b.Admit(5, 2048, true, 0); err != nil {
		t.Error(err)
	}
	_, err = a.Admit(5, 1, true, 0)
	refused(t, err, "ShardBytes", "12288")
	if s := limitOf(c); s.Bytes != 12288 || s.Refused[ShardBytes] != 3 {
		t.Errorf("%+v", s)
	}
	_, err = a.Admit(6, 10241, false, 0)
	refused(t, err, "10240")
}

// A shard at its maximum names the setting; no request of any kind exceeds it.
func TestShardCount(t *testing.T) {
	c := controller(t, Config{ShardCount: 120})
	for i := range 100 {
		k := c.Client(fmt.Sprint(i))
		for j := range 10 {
			if _, err := k.Admit(1, 0, j%2 == 1, 0); err != nil {
				refused(t, err, "shard 1")
			}
		}
	}
	s := limitOf(c)
	if s.AtWork > 120 {
		t.Errorf("%d at work, ShardCount is 120", s.AtWork)
	}
	c = controller(t, Config{ShardCount: 12})
	k := c.Client("a")
	for range 8 {
		if _, err := k.Admit(1, 0, false, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := k.Admit(1, 0, false, 0)
	refused(t, err, "ShardCount")
}

// Names and shards from outside do not make anything grow.
func TestGarbage(t *testing.T) {
	c := controller(t, Config{Clients: 10, Shards: 16, InitialLimit: 1000})
	good := c.Client("good")
	now := int64(0)
	for id := range uint64(4) {
		ticket, err := good.Admit(id, 1, false, now)
		if err != nil {
			t.Fatal(err)
		}
		now += ms
		ticket.Done(now, Answered)
	}
	var held []Ticket
	for i := range 10000 {
		now += ms / 100
		k := c.Client(strings.Repeat("x", 1000) + fmt.Sprint(i)) // all the same
		k.Release()
		k = c.Client(fmt.Sprint(i))
		ticket, err := k.Admit(rand.Uint64(), 1, false, now)
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			held = append(held, ticket) // so that there are shards that cannot be evicted
		} else {
			ticket.Done(now, Ignored)
		}
		k.Release()
	}
	s := c.Snapshot()
	if s.Clients > 10 || len(s.Shards) > 16+len(c.stripes) || !s.Shared {
		t.Errorf("%d clients, %d shards", s.Clients, len(s.Shards))
	}
	if s.Admitted != 10004 || s.AtWork != len(held) {
		t.Errorf("%d admitted, %d at work", s.Admitted, s.AtWork)
	}
	known := 0
	for _, sh := range s.Shards {
		if sh.Shard < 4 && sh.Latency > 0 {
			known++
		}
		if sh.Active > 12 {
			t.Errorf("%d clients are active on a shard, 10 have records", sh.Active)
		}
	}
	if known != 4 {
		t.Errorf("garbage pushed out all but %d of 4 good shards", known)
	}
	for _, ticket := range held {
		ticket.Done(now, Ignored)
	}
	good.Release()
	if s := c.Snapshot(); s.Clients != 0 || s.AtWork != 0 || s.Bytes != 0 || s.Shared {
		t.Errorf("in the end: %+v", s)
	}
	if n := c.others.count.Load(); n != 0 {
		t.Errorf("%d at work for the others", n)
	}
}

// All connections of one name share a record, which stays until the last request is done.
func TestClientRecord(t *testing.T) {
	c := controller(t, Config{})
	a := c.Client("a")
	if c.Client("a") != a || a.Name() != "a" {
		t.Fatal("two records for one name")
	}
	ticket, _ := a.Admit(1, 1, false, 0)
	a.Release()
	a.Release()
	a.Release() // once too often
	if c.Snapshot().Clients != 1 || c.Client("a") != a {
		t.Error("a client with a request at work was forgotten: it could have its bounds once more")
	}
	a.Release()
	ticket.Done(1, Answered)
	if c.Snapshot().Clients != 0 {
		t.Error("a client that is gone was not forgotten")
	}
	if c.Client("a") == a {
		t.Error("forgotten and not")
	}
	Ticket{}.Done(0, Answered) // no place, no effect
}

// A clock that jumps harms nothing.
func TestClock(t *testing.T) {
	c := controller(t, Config{})
	k := c.Client("a")
	rnd := rand.New(rand.NewPCG(1, 2))
	times := []int64{0, 1, math.MaxInt64, math.MinInt64, -1, 1e18}
	var held []Ticket
	for range 20000 {
		now := times[rnd.IntN(len(times))]
		if rnd.IntN(3) == 0 {
			now = rnd.Int64()
		}
		if ticket, err := k.Admit(rnd.Uint64N(3), rnd.IntN(100), rnd.IntN(2) == 0, now); err == nil {
			held = append(held, ticket)
		} else {
			refused(t, err)
		}
		if len(held) > rnd.IntN(200) {
			held[0].Done(times[rnd.IntN(len(times))], Outcome(rnd.IntN(4)))
			held = held[1:]
		}
	}
	for _, ticket := range held {
		ticket.Done(0, Answered)
	}
	if s := c.Snapshot(); s.AtWork != 0 || s.Bytes != 0 {
		t.Errorf("%+v", s)
	}
	for _, s := range c.Snapshot().Shards {
		if s.Limit < 4 || s.Limit > c.cfg.MaxLimit || s.Base < 0 {
			t.Errorf("%+v", s)
		}
	}
}

// Many goroutines, all kinds of ends; everything is back at zero, and no bound was exceeded meanwhile.
func TestConcurrent(t *testing.T) {
	cfg := Config{ClientCount: 64, ClientBytes: 64 << 10, ShardCount: 60, ShardBytes: 64 << 10, InitialLimit: 20, Clients: 6, Shards: 8}
	c := controller(t, cfg)
	start := time.Now()
	now := func() int64 { return int64(time.Since(start)) }
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			var held []Ticket
			for i := range 2000 {
				k := c.Client(fmt.Sprint(rnd.IntN(8)))
				if ticket, err := k.Admit(rnd.Uint64N(12), rnd.IntN(8000), rnd.IntN(3) == 0, now()); err == nil {
					held = append(held, ticket)
				} else if !errors.Is(err, rsm.ErrNotProposed) {
					t.Error(err)
				}
				k.Release()
				for len(held) > rnd.IntN(16) {
					held[0].Done(now(), Outcome(rnd.IntN(3)))
					held = held[1:]
				}
				if i%100 == 0 {
					for _, s := range c.Snapshot().Shards {
						if s.AtWork > cfg.ShardCount || s.Bytes > cfg.ShardBytes || s.AtWork < 0 || s.Bytes < 0 {
							t.Errorf("%+v", s)
						}
					}
				}
			}
			for _, ticket := range held {
				ticket.Done(now(), Answered)
			}
		})
	}
	wg.Wait()
	s := c.Snapshot()
	if s.AtWork != 0 || s.Bytes != 0 || s.Clients != 0 || c.others.count.Load() != 0 || c.others.bytes.Load() != 0 {
		t.Errorf("in the end: %+v", s)
	}
	for i := range c.stripes {
		for _, sh := range c.stripes[i].shards {
			for name, p := range sh.shares {
				if p.all != (use{}) || p.room != (use{}) {
					t.Errorf("shard %d, client %s: %+v", sh.id, name, *p)
				}
			}
			if sh.work != (use{}) || sh.lim.older > 0 {
				t.Errorf("shard %d: %+v, %d older", sh.id, sh.work, sh.lim.older)
			}
		}
	}
	if s.Admitted == 0 || s.Refused == (Refused{}) {
		t.Errorf("nothing was tried: %+v", s)
	}
}

func TestNoAllocations(t *testing.T) {
	c := controller(t, Config{})
	k := c.Client("a")
	now := int64(0)
	if n := testing.AllocsPerRun(10000, func() {
		ticket, err := k.Admit(7, 128, false, now)
		if err != nil {
			t.Fatal(err)
		}
		now += ms
		ticket.Done(now, Answered)
	}); n != 0 {
		t.Errorf("%v allocations for Admit and Done", n)
	}
}

func BenchmarkAdmitDone(b *testing.B) {
	c := controller(b, Config{})
	k := c.Client("a")
	now := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		now += 1000
		ticket, _ := k.Admit(7, 128, false, now)
		ticket.Done(now+500, Answered)
	}
}

// 16 goroutines, each of its own client; on one shard, and on 64.
func BenchmarkAdmitDoneParallel(b *testing.B) {
	for _, shards := range []uint64{1, 64} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			c := controller(b, Config{InitialLimit: 8192})
			b.ReportAllocs()
			var wg sync.WaitGroup
			for g := range 16 {
				k := c.Client(fmt.Sprint(g))
				wg.Go(func() {
					for i := range b.N / 16 {
						now := int64(i) * 1000
						ticket, _ := k.Admit(uint64(i)%shards, 128, false, now)
						ticket.Done(now+500, Answered)
					}
				})
			}
			wg.Wait()
		})
	}
}

func BenchmarkRefused(b *testing.B) {
	c := controller(b, Config{InitialLimit: 8})
	k := c.Client("a")
	for range 8 {
		if _, err := k.Admit(7, 128, false, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Admit(7, 128, false, 1); err == nil {
			b.Fatal("admitted")
		}
	}
}
