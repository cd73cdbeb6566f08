package server

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// The kinds of error, as ErrorDetail.Kind has them. They answer one question: did it happen?
const (
	KindRejected    = "rejected"
	KindNotProposed = "not_proposed"
	KindUnknown     = "unknown"
	KindBroken      = "broken"
)

// codeNoReplica: the call is about the state of one node.
const codeNoReplica rsm.Code = "no_replica"

var errNoReplica = rsm.Reject(codeNoReplica, "this is a proxy, without a replica of its own: ask a node, at its own address for the ledger")

func badRequest(format string, args ...any) error {
	return rsm.Reject(rsm.CodeBadRequest, format, args...)
}

// detail describes any error of a call.
func (s *Server) detail(err error) *ledgerv1.ErrorDetail {
	var rejection *rsm.Rejection
	if errors.As(err, &rejection) {
		return &ledgerv1.ErrorDetail{Kind: KindRejected, Code: string(rejection.Code), Message: rejection.Message}
	}
	d := &ledgerv1.ErrorDetail{Kind: KindUnknown, Message: err.Error()}
	var e *rsm.Error
	if errors.As(err, &e) {
		d.Code, d.Message = string(e.Code), e.Message
		d.RetryAfterMs = uint32(min(e.RetryAfter, time.Hour) / time.Millisecond)
		if d.Leader = uint64(e.Leader); d.Leader != 0 {
			d.LeaderApi = s.cfg.API[e.Leader]
		}
	}
	switch {
	case errors.Is(err, rsm.ErrNotProposed):
		d.Kind = KindNotProposed
	case errors.Is(err, rsm.ErrBroken):
		d.Kind = KindBroken
	}
	return d
}

// status is the gRPC error of a call, with its ErrorDetail.
func (s *Server) status(err error) error {
	d := s.detail(err)
	code := grpcCode(err, d)
	s.cfg.Logger.Debug("call failed", "kind", d.Kind, "code", d.Code, "message", d.Message)
	st, e := status.New(code, d.Kind+" ("+d.Code+"): "+d.Message).WithDetails(d)
	if e != nil {
		return status.Error(code, d.Message)
	}
	return st.Err()
}

func grpcCode(err error, d *ledgerv1.ErrorDetail) codes.Code {
	switch d.Kind {
	case KindRejected:
		switch rsm.Code(d.Code) {
		case rsm.CodeBadRequest, book.CodeBadCommand, book.CodeBadQuery:
			return codes.InvalidArgument
		case book.CodeAccountNotFound:
			return codes.NotFound
		case codeNoReplica:
			return codes.Unimplemented
		}
		return codes.FailedPrecondition
	case KindNotProposed:
		switch code := rsm.Code(d.Code); {
		case code == rsm.CodeCommandTooLarge, code == rsm.CodeTooManyCommands, code == rsm.CodeBadRequest:
			return codes.InvalidArgument // it will be next time, too
		case code.Ended():
			return codes.FailedPrecondition // and so will this: another session, or another number, is needed
		}
		return codes.Unavailable
	case KindBroken:
		return codes.Internal
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Unknown
}
