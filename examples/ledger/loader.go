package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	"github.com/decree-raft/decree/examples/ledger/hledger"
)

const (
	loadAsset = "LOAD"
	loadScale = 2
	// loadFunds is what each account begins with: 10,000.00.
	loadFunds = 10_000_00
	// loadPatience bounds one command: longer than any fail-over.
	loadPatience = 30 * time.Second
)

// load posts random entries. Its counters may be read at any time.
type load struct {
	accounts []book.ID
	funds    book.ID // account that the others are funded from, and that takes the fees
	batch    int

	prepared imported // what it took to open and fund the accounts

	// Counted while the load runs.
	commands, booked, refused atomic.Uint64
	// lastAnswer is when the latest command was answered, and silence the longest time without an answer, in nanoseconds since begin.
	begin               time.Time
	lastAnswer, silence atomic.Int64

	mu      sync.Mutex
	total   histogram // of finished clients
	recent  histogram // since the last progress line
	failed  error     // the first failure
	elapsed time.Duration
	shown   uint64 // commands at the last progress line
	shownAt time.Time
}

// loadResult sums up a run, without what was prepared.
type loadResult struct {
	Commands, Booked, Refused uint64
	Rate, EntryRate           float64
	Silence                   time.Duration
	latency                   histogram
	err                       error
}

func newLoad(accounts, batch int) *load {
	l := &load{batch: batch, funds: hledger.AccountID("Load:Funds", loadAsset)}
	for n := range accounts {
		l.accounts = append(l.accounts, hledger.AccountID(loadName(n), loadAsset))
	}
	return l
}

func loadName(n int) string { return fmt.Sprintf("Load:Account:%06d", n) }

// prepare opens and funds the accounts, if they are not from an earlier run.
func (l *load) prepare(ctx context.Context, to ledger) error {
	accounts := []book.Account{{ID: l.funds, Name: "Load:Funds", Asset: loadAsset, Scale: loadScale}}
	entries := []book.Entry{}
	for n, id := range l.accounts {
		accounts = append(accounts, book.Account{
			ID: id, Name: loadName(n), Asset: loadAsset, Scale: loadScale, Flags: book.DebitsMustNotExceedCredits})
		entries = append(entries, book.Entry{ID: id, Legs: transfer(l.funds, id, loadFunds), Memo: "load: funds"}) // an account's id serves once as an entry's
	}
	done := &l.prepared
	for at := 0; at < len(accounts); at += importBatch {
		if err := done.open(ctx, to, accounts[at:min(at+importBatch, len(accounts))]); err != nil {
			return err
		}
	}
	for at := 0; at < len(entries); at += importBatch {
		if err := done.post(ctx, to, entries[at:min(at+importBatch, len(entries))]); err != nil {
			return err
		}
	}
	if done.Refused > 0 {
		return errors.New(done.problems[0])
	}
	return nil
}

func transfer(from, to book.ID, amount uint64) []book.Leg {
	return []book.Leg{
		{Account: from, Side: book.Debit, Amount: book.U64(amount)},
		{Account: to, Side: book.Credit, Amount: book.U64(amount)},
	}
}

// run posts for a duration, or until ctx ends. Commands under way at the end are waited for, so that every outcome is known.
func (l *load) run(ctx context.Context, duration time.Duration, clients int, ledgerOf func(client int) ledger) {
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	l.mu.Lock()
	l.begin, l.shownAt = time.Now(), time.Now()
	l.mu.Unlock()
	var wg sync.WaitGroup
	for n := range clients {
		wg.Go(func() {
			p := &poster{load: l, to: ledgerOf(n), rand: rand.New(rand.NewPCG(rand.Uint64(), uint64(n)))}
			p.run(ctx)
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.elapsed = time.Since(l.begin)
}

func (l *load) result() *loadResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &loadResult{Commands: l.commands.Load(), Booked: l.booked.Load(), Refused: l.refused.Load(),
		Silence: time.Duration(l.silence.Load()), latency: l.total, err: l.failed}
	seconds := max(l.elapsed.Seconds(), 1e-9)
	r.Rate, r.EntryRate = float64(r.Commands)/seconds, float64(r.Booked)/seconds
	return r
}

// answered notes an answer, and the silence before it.
func (l *load) answered() {
	now := int64(time.Since(l.begin))
	gap := now - l.lastAnswer.Swap(now)
	for {
		longest := l.silence.Load()
		if gap <= longest || l.silence.CompareAndSwap(longest, gap) {
			return
		}
	}
}

// line is the progress since the line before.
func (l *load) line() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, commands := time.Now(), l.commands.Load()
	rate := float64(commands-l.shown) / max(now.Sub(l.shownAt).Seconds(), 1e-9)
	l.shown, l.shownAt = commands, now
	p99 := "-"
	if l.recent.count > 0 {
		p99 = milliseconds(l.recent.quantile(0.99))
	}
	l.recent = histogram{}
	return fmt.Sprintf("%4.1f s  %s commands  %s/s  p99 %s", now.Sub(l.begin).Seconds(), thousands(commands), thousands(uint64(rate)), p99)
}

// poster is one client of a load: one goroutine, one command at a time.
type poster struct {
	load *load
	to   ledger
	rand *rand.Rand

	total, recent histogram
	flushed       time.Time
}

func (p *poster) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := p.step(ctx); err != nil {
			p.load.mu.Lock()
			if p.load.failed == nil {
				p.load.failed = err
			}
			p.load.mu.Unlock()
			break
		}
		if time.Since(p.flushed) > 100*time.Millisecond {
			p.flush()
		}
	}
	p.flush()
	p.load.mu.Lock()
	p.load.total.merge(&p.total)
	p.load.mu.Unlock()
}

func (p *poster) flush() {
	p.load.mu.Lock()
	p.load.recent.merge(&p.recent)
	p.load.mu.Unlock()
	p.recent, p.flushed = histogram{}, time.Now()
}

// step posts one command, or the two of a two-phase entry.
func (p *poster) step(ctx context.Context) error {
	if p.rand.IntN(100) < 15 {
		return p.twoPhase(ctx)
	}
	entries := make([]book.Entry, 0, p.load.batch+1)
	for len(entries) < p.load.batch {
		switch r := p.rand.IntN(100); {
		case r < 10:
			entries = append(entries, p.withFee())
		case r < 15 && len(entries)+2 <= p.load.batch:
			entries = append(entries, p.chain()...)
		default:
			entries = append(entries, p.single())
		}
	}
	_, err := p.post(ctx, entries)
	return err
}

func (p *poster) single() book.Entry {
	from, to := p.pair()
	return book.Entry{ID: client.NewID(), Legs: transfer(from, to, p.amount())}
}

// withFee has three legs: what is sent is what arrives, and a hundredth.
func (p *poster) withFee() book.Entry {
	e := p.single()
	fee := book.U64(e.Legs[1].Amount.Lo / 100)
	sent, _ := e.Legs[1].Amount.Add(fee)
	e.Legs[0].Amount = sent
	e.Legs = append(e.Legs, book.Leg{Account: p.load.funds, Side: book.Credit, Amount: fee})
	return e
}

// chain moves an amount over an account in between, in two linked entries.
func (p *poster) chain() []book.Entry {
	first, second := p.single(), p.single()
	first.Flags = book.Linked
	second.Legs = transfer(first.Legs[1].Account, second.Legs[1].Account, first.Legs[0].Amount.Lo)
	return []book.Entry{first, second}
}

// twoPhase reserves an amount, and then posts it, a part of it, or none.
func (p *poster) twoPhase(ctx context.Context) error {
	e := p.single()
	e.Flags, e.Timeout = book.Pending, 60
	outcomes, err := p.post(ctx, []book.Entry{e})
	if err != nil || outcomes[0].Code != book.Created {
		return err
	}
	settle := book.Entry{ID: client.NewID(), Flags: book.PostPending, PendingID: e.ID}
	switch p.rand.IntN(3) {
	case 0:
		settle.Flags = book.VoidPending
	case 1:
		settle.Legs = transfer(e.Legs[0].Account, e.Legs[1].Account, e.Legs[0].Amount.Lo/2)
	}
	_, err = p.post(ctx, []book.Entry{settle})
	return err
}

func (p *poster) pair() (from, to book.ID) {
	a, b := p.rand.IntN(len(p.load.accounts)), p.rand.IntN(len(p.load.accounts)-1)
	if b >= a {
		b++
	}
	return p.load.accounts[a], p.load.accounts[b]
}

func (p *poster) amount() uint64 { return 1 + p.rand.Uint64N(500_00) }

// post posts one command and counts its outcomes. It goes on when the load's time is over: the outcome shall be known.
func (p *poster) post(ctx context.Context, entries []book.Entry) ([]book.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadPatience)
	defer cancel()
	begin := time.Now()
	outcomes, err := p.to.PostEntries(ctx, entries...)
	if err != nil {
		return nil, err
	}
	p.load.answered()
	took := time.Since(begin)
	p.total.add(took)
	p.recent.add(took)
	p.load.commands.Add(1)
	for i, o := range outcomes {
		switch o.Code {
		case book.Created, book.Exists: // it exists if the session of the first attempt was lost
			p.load.booked.Add(1)
		case book.ExceedsCredits, book.LinkedEventFailed, book.IDAlreadyFailed, book.ExpiriesOutstanding:
			p.load.refused.Add(1)
		default:
			return nil, fmt.Errorf("entry %v: %v (leg %d), which a load never deserves", entries[i].ID, o.Code, o.Leg)
		}
	}
	return outcomes, nil
}
