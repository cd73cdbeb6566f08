package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// RunPulse lets pending entries expire in time, until ctx ends: once per
// interval, if this node leads and something is due by its clock or by the ledger's time, it submits pulses. A
// failure needs no care, as whoever leads a moment later does the same.
func (s *Server) RunPulse(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := s.pulse(ctx); err != nil {
				s.cfg.Logger.Debug("pulse failed", "reason", err)
			}
		}
	}
}

func (s *Server) pulse(ctx context.Context) error {
	for s.cfg.Replica.Leader() == s.cfg.Node {
		due, err := s.due(ctx)
		if err != nil || !due {
			return err
		}
		if _, err := s.cfg.Replica.Do(ctx, rsm.Request{Commands: [][]byte{book.Pulse()}, MakesRoom: true}); err != nil {
			return err
		}
	}
	return nil
}

// due asks the local state, without a place in the log: it is asked every
// second, and the decision is taken by the pulse, not here.
func (s *Server) due(ctx context.Context) (bool, error) {
	q, err := proto.Marshal(&ledgerv1.Query{Query: &ledgerv1.Query_Due{Due: &ledgerv1.DueRequest{}}})
	if err != nil {
		return false, err
	}
	data, err := s.cfg.Replica.Read(ctx, rsm.Stale, q)
	if err != nil {
		return false, err
	}
	a := new(ledgerv1.Answer)
	if err := proto.Unmarshal(data, a); err != nil {
		return false, err
	}
	st, err := s.cfg.Replica.Status()
	if err != nil {
		return false, err
	}
	// Where an earlier leader's clock was ahead, the ledger's time is, and everybody who asks is told that the entry has expired.
	next := a.GetDue().GetNextExpiry()
	return next != 0 && next <= max(time.Now().UnixNano(), int64(st.Time)), nil
}
