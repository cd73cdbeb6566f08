package rsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/decree-raft/decree/internal/crash"
	"github.com/decree-raft/decree/wal"
)

// The load of the crash tests: every shard is a list of commands 1, 2, 3 ..., whose contents follow from shard and
// number, so that what a crash has left can be told right or wrong by itself.

// window is how many commands a shard keeps.
const window = 40

// list is the machine: command n is taken if n-1 was the last, and then stands in the ring of the newest ones.
type list struct{}

// commands has what listCommand returned before.
var commands sync.Map

// listCommand is command n of a shard. It must not be changed.
func listCommand(shard ShardID, n uint64) []byte {
	key := [2]uint64{uint64(shard), n}
	if b, ok := commands.Load(key); ok {
		return b.([]byte)
	}
	r := rand.New(rand.NewPCG(uint64(shard), n))
	b := binary.BigEndian.AppendUint64(nil, n)
	for range r.IntN(350) {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	if n%3 == 0 {
		b = append(b, make([]byte, 700)...) // a torn write must not be taken for these zeros
	}
	b = append(b, byte(n))
	commands.Store(key, b)
	return b
}

var listEnd = []byte("n")

func listSlot(n uint64) []byte { return fmt.Appendf(nil, "slot %d", n%window) }
func listTail(n uint64) []byte { return fmt.Appendf(nil, "tail %d", n) }

func (list) Decide(v View, c Command) ([][]byte, []byte, error) {
	if last, n := number(v, listEnd), binary.BigEndian.Uint64(c.Data); n != last+1 {
		return nil, nil, Reject("order", "%d after %d", n, last)
	}
	return [][]byte{c.Data}, c.Data[:8:8], nil
}

func (list) Apply(s State, e Event) {
	n := binary.BigEndian.Uint64(e.Data)
	s.Set(listEnd, e.Data[:8])
	s.Set(listSlot(n), e.Data)
	s.Delete(listTail(n - 1)) // something that is removed again each time
	s.Set(listTail(n), nil)
}

func (list) Query(v View, _ []byte) ([]byte, error) {
	n, err := listCheck(v, ShardID(0))
	return binary.BigEndian.AppendUint64(nil, n), err
}

// listCheck returns how many commands are in a shard's state, and an error unless the state is just what they make of it.
func listCheck(v View, shard ShardID) (uint64, error) {
	n, keys := number(v, listEnd), 0
	for k, value := range v.Scan(nil, nil) {
		keys++
		switch {
		case bytes.Equal(k, listEnd):
		case bytes.Equal(k, listTail(n)):
		case bytes.HasPrefix(k, []byte("slot ")) && len(value) >= 8:
			at := binary.BigEndian.Uint64(value)
			if at == 0 || at > n || at+window <= n || !bytes.Equal(k, listSlot(at)) || shard != 0 && !bytes.Equal(value, listCommand(shard, at)) {
				return n, fmt.Errorf("shard %d: of %d commands, %s has number %d", shard, n, k, at)
			}
		default:
			return n, fmt.Errorf("shard %d: after %d commands there is a key %q", shard, n, k)
		}
	}
	if want := int(min(n, window)) + 2; n > 0 && keys != want || n == 0 && keys != 0 {
		return n, fmt.Errorf("shard %d: after %d commands there are %d keys, not %d", shard, n, keys, want)
	}
	return n, nil
}

// crashShards: two that are busy, and one that is written to at the start only.
var crashShards = []ShardID{1, 2, 3}

const coldShard ShardID = 3

func crashConfig(dir string) Config {
	cfg := Config{
		Cluster: "crash", Node: 1, Dir: filepath.Join(dir, "data", "node"), Peers: map[NodeID]string{1: "127.0.0.1:0"},
		HeartbeatInterval: 2 * time.Millisecond, ElectionTimeout: 6 * time.Millisecond, QuiesceAfter: -1,
		Workers: 1, CacheBytes: 1 << 20, LogSegments: 2, DiskWatermark: -1, KeepGOMAXPROCS: true,
		segmentBytes: crashSegment,
	}
	cfg.Limits.FlushBytes = 64 << 10
	for _, id := range crashShards {
		cfg.Shards = append(cfg.Shards, ShardConfig{ID: id, Machine: list{}})
	}
	return cfg
}

const crashSegment = 64 << 10

// crashLoad is the program that is recorded: a node of its own, written to, closed, opened, killed and opened again.
type crashLoad struct {
	dir   string
	early bool // a log that answers before it has written: the control

	mu       sync.Mutex // marks
	marks    *os.File
	sessions map[ShardID]SessionID
	last     map[ShardID]uint64
}

// mark says something to the recorder, between one system call and another.
func (l *crashLoad) mark(what string, shard ShardID, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := fmt.Fprintf(l.marks, "%s %d %d", what, shard, n); err != nil {
		panic(err)
	}
}

func (l *crashLoad) run() error {
	l.marks = os.NewFile(crash.MarkFD, "marks")
	l.sessions, l.last = map[ShardID]SessionID{}, map[ShardID]uint64{}
	rounds := []func(*Node){func(n *Node) { _ = n.Close() }, (*Node).Kill, (*Node).Kill}
	if l.early {
		rounds = rounds[2:] // it would not survive the first
	}
	for round, end := range rounds {
		if err := l.round(round, end); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	return nil
}

func (l *crashLoad) round(round int, end func(*Node)) error {
	cfg := crashConfig(l.dir)
	// A busy machine must not cost the leadership.
	cfg.HeartbeatInterval, cfg.ElectionTimeout = 20*time.Millisecond, 100*time.Millisecond
	if l.early {
		cfg.wrapLog = func(log wal.Log) wal.Log { return &earlyLog{Log: log} }
	}
	n, err := Start(cfg)
	if err != nil {
		return err
	}
	defer end(n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, id := range crashShards {
		if err := n.Shard(id).WaitReady(ctx); err != nil {
			return err
		}
		if round == 0 {
			if l.sessions[id], err = n.Shard(id).OpenSession(ctx); err != nil {
				return err
			}
			l.mark("session", id, uint64(l.sessions[id]))
		}
	}
	if round == 0 {
		if err := l.submit(ctx, n, coldShard, 3); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	for id, count := range map[ShardID]int{1: 120, 2: 50} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs <- l.submit(ctx, n, id, count)
		}()
	}
	wg.Wait()
	return errors.Join(<-errs, <-errs)
}

// submit has the next commands of a shard executed, one by one, in its session.
func (l *crashLoad) submit(ctx context.Context, n *Node, shard ShardID, count int) error {
	l.mu.Lock()
	next, session := l.last[shard]+1, l.sessions[shard]
	l.mu.Unlock()
	clock := n.newClock()
	for range count {
		l.mark("submit", shard, next)
		res, err := n.Shard(shard).Do(ctx, Request{
			Commands: [][]byte{listCommand(shard, next)}, Session: session, Sequence: next, Acknowledged: next - 1,
		})
		if err != nil {
			return err
		}
		if got := binary.BigEndian.Uint64(res.Replies[0]); got != next {
			return fmt.Errorf("shard %d answers %d to command %d", shard, got, next)
		}
		l.mark("ack", shard, next)
		if next++; next%20 == 0 {
			clock.release() // which otherwise happens once a second
		}
	}
	l.mu.Lock()
	l.last[shard] = next - 1
	l.mu.Unlock()
	return nil
}

// earlyLog says that it has written before it has: what a product must never do.
type earlyLog struct {
	wal.Log
	late []wal.Record
}

func (l *earlyLog) Append(records []wal.Record) error {
	err := l.Log.Append(l.late)
	l.late = l.late[:0]
	for _, r := range records {
		r.Entries = append([]wal.Entry(nil), r.Entries...)
		for i := range r.Entries {
			r.Entries[i].Data = bytes.Clone(r.Entries[i].Data)
		}
		l.late = append(l.late, r)
	}
	return err
}
