package rsm

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/state"
)

// offline is a node opened as Start does it, with everything but the network and the goroutines: it is driven by hand, so that
// opening takes milliseconds and thousands of states can be opened.
type offline struct{ *Node }

func openOffline(cfg Config) (o offline, err error) {
	n := &Node{cfg: cfg.withDefaults(), shards: map[ShardID]*Shard{}, done: make(chan struct{})}
	if err := n.cfg.validate(); err != nil {
		return o, err
	}
	recovered, err := n.openData()
	if err != nil {
		return o, err
	}
	n.makeEngine()
	o = offline{n}
	if err = n.addShards(recovered); err == nil && n.newShards {
		err = n.identity.Write(theDisk(), n.cfg.Dir)
	}
	if err != nil {
		o.close()
	}
	return o, err
}

func (o offline) close() {
	<-o.engine.bg.over() // flushes
	o.closeData()
}

// step lets every worker make one pass, and the log write what came of it. idle is set if there was nothing to do but to tick.
func (o offline) step(ticks int) (idle bool, err error) {
	e := o.engine
	idle = true
	for _, w := range e.workers {
		w.mu.Lock()
		in := w.in
		w.in, w.spare = w.spare, core.Input{}
		w.requests, w.reqBytes = 0, 0
		w.mu.Unlock()
		if len(in.Written)+len(in.Flushed)+len(in.Requests) > 0 {
			idle = false
		}
		in.Ticks = ticks
		w.core.Pass(e.now(), &in)
		w.spare = emptied(in)
	}
	for _, lw := range e.toWrite {
		idle = false
		if err := e.log.Append(lw.write.Records); err != nil {
			return false, err
		}
		lw.from.post(func(in *core.Input) { in.Written = append(in.Written, lw.write) })
	}
	e.toWrite = e.toWrite[:0]
	for id, s := range o.shards {
		if stopped := s.stopped.Load(); stopped != nil {
			return false, fmt.Errorf("shard %d stopped: %w", id, stopped)
		}
	}
	return idle, o.Err()
}

// run steps until done says so.
func (o offline) run(what string, done func() bool) error {
	ticks := 0
	for range 2000 {
		idle, err := o.step(ticks)
		if err != nil || done() {
			return err
		}
		if ticks = 0; idle {
			ticks = 1
		}
	}
	return fmt.Errorf("%s: not within 2000 steps", what)
}

// lead waits until every shard is led from here, with all of its log applied.
func (o offline) lead() error {
	return o.run("lead", func() bool {
		for id, s := range o.shards {
			st, ok := s.w.core.Status(id)
			if !ok || st.Role != "leader" || st.Applied != st.Last || s.Leader() != 1 {
				return false
			}
		}
		return true
	})
}

// do executes a command in a session.
func (o offline) do(shard ShardID, session SessionID, sequence uint64) (n uint64, err error) {
	call := o.Shard(shard).Go(Request{
		Commands: [][]byte{listCommand(shard, sequence)}, Session: session, Sequence: sequence, Acknowledged: sequence - 1,
	})
	if err := o.run("a command", func() bool { return len(call.done) > 0 }); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	res, err := call.Wait(ctx)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(res.Replies[0]), nil
}

// wrongError says that a directory was opened and has what it should not have, or lacks what it should: not that
// it was refused.
type wrongError struct{ error }

func (e wrongError) Unwrap() error { return e.error }

func wrong(format string, args ...any) error { return wrongError{fmt.Errorf(format, args...)} }

// found is what a directory holds: commands per shard, or why that is not known.
type found struct {
	n   map[ShardID]uint64
	err error
}

// inspect opens a directory as a node would and looks at everything that is in it: the state as flushed, its
// journal and sessions; the state after the log; that it answers what was decided, and goes on. If twice is set, it
// opens it once more and looks whether what it has written itself is there.
func inspect(cfg Config, sessions map[ShardID]SessionID, twice bool) (f found) {
	defer func() {
		if r := recover(); r != nil {
			if rerr, ok := r.(*state.ReadError); ok {
				f.err = rerr
				return
			}
			f.err = wrong("panic: %v", r)
		}
	}()
	f.n, f.err = inspectOnce(cfg, sessions, true)
	if f.err != nil || !twice {
		return f
	}
	again, err := inspectOnce(cfg, sessions, false)
	if err != nil {
		f.err = wrong("the second time: %w", err)
	}
	for id, n := range f.n {
		if err == nil && sessions[id] != 0 && n > 0 && again[id] != n+1 {
			f.err = wrong("shard %d had %d commands, one more was executed, and then there are %d", id, n, again[id])
		}
	}
	return f
}

func inspectOnce(cfg Config, sessions map[ShardID]SessionID, write bool) (map[ShardID]uint64, error) {
	o, err := openOffline(cfg)
	if err != nil {
		return nil, err
	}
	defer o.close()
	for id, s := range o.shards {
		if err := inspectFlushed(id, s.state); err != nil {
			return nil, err
		}
	}
	for id, s := range o.shards {
		if st, _ := s.w.core.Status(id); st.Err != nil {
			return nil, st.Err // it serves nobody, and waits to be repaired
		}
	}
	if err := o.lead(); err != nil {
		return nil, err
	}
	counts := map[ShardID]uint64{}
	for id, s := range o.shards {
		v, _, _, ok := s.w.core.Version(id)
		if !ok {
			return nil, wrong("shard %d has no version", id)
		}
		n, err := listCheck(v, id)
		v.Close()
		if err != nil {
			return nil, wrongError{err}
		}
		counts[id] = n
		if session := sessions[id]; session != 0 && n > 0 && write {
			// The last command again, and the next one.
			for _, seq := range []uint64{n, n + 1} {
				if got, err := o.do(id, session, seq); err != nil || got != seq {
					return nil, wrong("shard %d with %d commands answers %d to number %d: %w", id, n, got, seq, err)
				}
			}
		}
	}
	return counts, nil
}

// inspectFlushed looks at what the state store has of a shard, before anything of the log is applied.
func inspectFlushed(id ShardID, s *state.Shard) error {
	n, err := listCheck(s, id)
	if err != nil {
		return wrong("as flushed at %d: %w", s.FlushedIndex(), err)
	}
	first, last := s.JournalBounds()
	if last != s.FlushedIndex() {
		return wrong("shard %d is flushed up to %d, its journal goes from %d to %d", id, s.FlushedIndex(), first, last)
	}
	entries, err := s.Journal(first, last+1, 1<<30)
	if err != nil {
		return err
	}
	if last > 0 && uint64(len(entries)) != last-first+1 {
		return wrong("shard %d: %d journal entries from %d to %d", id, len(entries), first, last)
	}
	sessions := 0
	if err := s.LoadSessions(func(_, _ []byte) error { sessions++; return nil }); err != nil {
		return err
	}
	if n > 0 && sessions != 1 {
		return wrong("shard %d: commands of a session were flushed without it", id)
	}
	return nil
}
