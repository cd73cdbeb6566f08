package rsm

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/snapshot"
)

// Repair gives a replica that is out of service the state of another replica, and starts it again. A replica whose disk turns out
// to be damaged is repaired so by itself (Config.KeepDamage); for one that diverged, find out why first: it is a fault of a
// program, and the evidence goes. The journal goes too, whatever Config.KeepJournal says: a snapshot has none. What the replica has promised to the others is kept: it is in the log, which is not touched. It
// waits for what the replica was writing when it stopped, and returns when the replica is in service again, or with what kept it from that; the replica is then
// as it was. With ErrUnknown, when ctx ends or the node does, it may be in service yet.
func (s *Shard) Repair(ctx context.Context) error {
	e := s.node.engine
	least, members, err := s.repairable(ctx)
	if err != nil {
		return err
	}
	var snap *snapshot.Snapshot
	if cerr := e.foreground(ctx, func(ctx context.Context) { snap, err = s.snapshotOf(ctx, members, least) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return &Error{Kind: ErrNotProposed, Code: core.CodeRepair, Message: fmt.Sprintf("no member of shard %d could help", s.id), Cause: err}
	}
	return s.install(ctx, snap)
}

// repairable asks what a repair takes. What the replica was writing when it stopped may not be written yet: that is waited for.
func (s *Shard) repairable(ctx context.Context) (Index, []NodeID, error) {
	e := s.node.engine
	for {
		var least Index
		var members []NodeID
		var err error // none of them a result: the worker may write to them when this has returned
		if cerr := e.look(ctx, s.id, func(w *core.Worker) { least, members, err = w.Repairable(s.id) }); cerr != nil {
			return 0, nil, cerr
		}
		var again *Error
		if !errors.As(err, &again) || again.RetryAfter == 0 {
			return least, members, err
		}
		select {
		case <-ctx.Done():
			return 0, nil, err
		case <-e.quit:
			return 0, nil, errClosed
		case <-time.After(again.RetryAfter):
		}
	}
}

// install has the worker put a snapshot in the place of the state, and waits for it.
func (s *Shard) install(ctx context.Context, snap *snapshot.Snapshot) (err error) {
	e := s.node.engine
	done := make(chan error, 1)
	if err := e.call(ctx, s.id, func(w *core.Worker) {
		w.Repair(s.id, snap, func(err error) {
			if err == nil {
				s.stopped.Store(nil) // here, before the replica does anything: it may stop again at once
			}
			done <- err
		})
	}); err != nil {
		return err
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		err = &Error{Kind: ErrUnknown, Code: core.CodeRepair, Message: fmt.Sprintf("the snapshot of shard %d is being installed, which goes on", s.id), Cause: ctx.Err()}
	case <-e.quit: // its end waits for who repairs by itself, and is counted; the installation is, too
		err = &Error{Kind: ErrUnknown, Code: CodeClosed, Message: fmt.Sprintf("the node was closed while the snapshot of shard %d was being installed", s.id)}
	}
	return err
}

// snapshotOf fetches a snapshot of at least an index from the first of the members that has one.
func (s *Shard) snapshotOf(ctx context.Context, members []NodeID, least Index) (snap *snapshot.Snapshot, err error) {
	e := s.node.engine
	request := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(s.id)), uint64(least))
	for _, m := range members {
		manifest, cerr := s.askForCut(ctx, m, request)
		if cerr != nil {
			err = errors.Join(err, cerr)
			continue
		}
		sources := append([]NodeID{m}, slices.DeleteFunc(slices.Clone(members), func(n NodeID) bool { return n == m })...)
		snap, cerr = e.fetch(ctx, &core.Fetch{Shard: s.id, Manifest: manifest, Sources: sources, Progress: func(int64, int64) {}})
		if cerr == nil {
			return snap, nil
		}
		err = errors.Join(err, cerr)
	}
	return nil, err
}

// peerPatience is how long the worker of a shard on another node may take to say something. That its node is connected says nothing of the worker: it may hang in a disk, or in a machine.
const peerPatience = 20 * time.Second

// askForCut has a member cut a snapshot, and returns its manifest. That takes as long as it takes, but no longer than the member's worker answers.
func (s *Shard) askForCut(ctx context.Context, m NodeID, request []byte) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if _, _, err := s.askForJournal(ctx, m); errors.Is(err, context.DeadlineExceeded) {
				cancel(err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(s.peerPatience()):
			}
		}
	}()
	manifest, err := s.node.engine.transport.Call(ctx, uint64(m), callCut, request)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	<-ended
	return manifest, err
}

// askForJournal returns the bounds of the journal that a member has; context.DeadlineExceeded if it does not say.
func (s *Shard) askForJournal(ctx context.Context, m NodeID) (from, to Index, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.peerPatience())
	defer cancel()
	answer, err := s.node.engine.transport.Call(ctx, uint64(m), callJournal, binary.AppendUvarint(nil, uint64(s.id)))
	if err != nil {
		return 0, 0, err
	}
	first, k := binary.Uvarint(answer)
	last, l := binary.Uvarint(answer[max(k, 0):])
	if k <= 0 || l <= 0 {
		return 0, 0, fmt.Errorf("node %d answers the question for its journal with %d bytes that mean nothing", m, len(answer))
	}
	return Index(first), Index(last), nil
}

func (s *Shard) peerPatience() time.Duration { return cmp.Or(s.node.cfg.peerPatience, peerPatience) }

const (
	// repairsAtMost: damage that comes back again and again is not worth a transfer each time.
	repairsAtMost = 5
	// A peer that could help may be away for long, so it is asked for as long as it takes, but ever more seldom.
	repairPause    = 5 * time.Second
	repairPauseMax = 5 * time.Minute
)

// journalElsewhere returns nil if the replica may be repaired without being asked. A repair replaces all that there is of the replica, the journal too. Where that is kept
// as history, it is not for a program to drop what no other voter has.
func (s *Shard) journalElsewhere(ctx context.Context) error {
	n := s.node
	if !n.cfg.KeepJournal && n.cfg.JournalBytes == 0 && n.cfg.JournalAge == 0 {
		return nil
	}
	var first, last Index
	if cerr := n.engine.look(ctx, s.id, func(w *core.Worker) { first, last, _ = w.JournalBounds(s.id) }); cerr != nil {
		return cerr
	}
	if first == 0 {
		return nil
	}
	_, members, err := s.repairable(ctx)
	if err != nil {
		return err
	}
	enough := first
	if !n.cfg.KeepJournal {
		enough += (last - first) / 2 // each drops old entries with flushes of its own
	}
	for _, m := range members {
		from, to, cerr := s.askForJournal(ctx, m)
		switch {
		case cerr != nil:
			err = errors.Join(err, cerr)
		case from == 0 || from > enough || to < first:
			err = errors.Join(err, fmt.Errorf("node %d has the entries %d to %d", m, from, to))
		default:
			return nil
		}
	}
	return &Error{Kind: ErrNotProposed, Code: core.CodeRepair, Cause: err, Message: fmt.Sprintf("a repair would drop the journal of shard %d on node %d, the entries %d to %d, and no other member is known to have it from entry %d on. "+
		"If it matters, stop the node and copy its directory; then ask for the repair (decree repair)", s.id, n.cfg.Node, first, last, enough)}
}

// repairStopped repairs a replica whose disk is damaged, in the background. It is called on a worker's goroutine.
func (n *Node) repairStopped(s *Shard, why *Error) {
	if why.Code != core.CodeStorage || n.cfg.KeepDamage || s.repairs.Load() >= repairsAtMost {
		return
	}
	s.repairs.Add(1)
	n.engine.background(func(ctx context.Context) {
		first := cmp.Or(n.cfg.repairPause, repairPause)
		for pause := first; s.stopped.Load() == why; pause = min(2*pause, repairPauseMax) { // else somebody else has repaired it
			err := s.journalElsewhere(ctx)
			if err == nil {
				err = s.Repair(ctx)
			}
			if err == nil {
				n.cfg.Logger.Warn("a damaged replica was given the state of a peer; check the disk", "shard", uint64(s.id), "damage", why)
				return
			}
			n.cfg.Logger.Error("a damaged replica could not be repaired", "shard", uint64(s.id), "reason", err, "again_in", pause)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	})
}
