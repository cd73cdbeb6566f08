package wire

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
)

// kindOf answers whether it happened. Whatever does not say so may have.
func kindOf(kind error) decreev1.Kind {
	switch kind {
	case core.ErrNotProposed:
		return decreev1.Kind_KIND_NOT_PROPOSED
	case core.ErrBroken:
		return decreev1.Kind_KIND_BROKEN
	}
	return decreev1.Kind_KIND_UNKNOWN
}

// ErrorOf takes an error apart.
func ErrorOf(err error) *decreev1.Error {
	d := errorOf(err)
	// A machine's text is whatever it likes; protobuf wants UTF-8.
	d.Code, d.Message = strings.ToValidUTF8(d.Code, "\uFFFD"), strings.ToValidUTF8(d.Message, "\uFFFD")
	d.LeaderAddress = strings.ToValidUTF8(d.LeaderAddress, "\uFFFD")
	return d
}

func errorOf(err error) *decreev1.Error {
	switch e, r := core.Verdict(err); {
	case r != nil:
		return &decreev1.Error{Kind: decreev1.Kind_KIND_REJECTED, Code: string(r.Code), Message: r.Message, Detail: r.Detail}
	case e != nil:
		m := e.Message
		if e.Cause != nil {
			m += ": " + e.Cause.Error()
		}
		return &decreev1.Error{Kind: kindOf(e.Kind), Code: string(e.Code), Message: m, Leader: uint64(e.Leader), LeaderAddress: e.LeaderAddress,
			RetryAfterMs: milliseconds(e.RetryAfter)}
	}
	d := &decreev1.Error{Kind: decreev1.Kind_KIND_UNKNOWN, Message: err.Error()}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		d.Code = string(core.CodeCancelled)
	}
	return d
}

// milliseconds rounds up: to come back too early is to be refused again.
func milliseconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(min((d+time.Millisecond-1)/time.Millisecond, math.MaxUint32))
}

// FromError makes the error again: a *core.Rejection, or a *core.Error, with the same kind, code and hints.
func FromError(d *decreev1.Error) error {
	if d.GetKind() == decreev1.Kind_KIND_REJECTED {
		return &core.Rejection{Code: core.Code(d.GetCode()), Message: d.GetMessage(), Detail: d.GetDetail()}
	}
	kind := core.ErrUnknown // of a newer version, too
	switch d.GetKind() {
	case decreev1.Kind_KIND_NOT_PROPOSED:
		kind = core.ErrNotProposed
	case decreev1.Kind_KIND_BROKEN:
		kind = core.ErrBroken
	}
	return &core.Error{Kind: kind, Code: core.Code(d.GetCode()), Message: d.GetMessage(), Leader: core.NodeID(d.GetLeader()),
		LeaderAddress: d.GetLeaderAddress(), RetryAfter: time.Duration(d.GetRetryAfterMs()) * time.Millisecond}
}

// Status is the gRPC error of a unary call, with the Error among its details.
func Status(err error) error {
	d := ErrorOf(err)
	st, e := status.New(grpcCode(d, err), strings.ToValidUTF8(err.Error(), "\uFFFD")).WithDetails(d)
	if e != nil {
		return status.Error(codes.Internal, e.Error())
	}
	return st.Err()
}

// grpcCode is for clients that look no further. Unavailable: asking again may help.
func grpcCode(d *decreev1.Error, err error) codes.Code {
	code := core.Code(d.GetCode())
	if d.GetKind() == decreev1.Kind_KIND_REJECTED {
		return codes.FailedPrecondition // final, and the code is the machine's own: it may be one of those below
	}
	if d.GetKind() == decreev1.Kind_KIND_UNKNOWN && (code.Final() || code.Busy() || code == core.CodeNoShard || code == core.CodeNoLeader) {
		return codes.DeadlineExceeded // it may have happened, whatever the last answer was: no code of those that say that it was refused
	}
	switch code {
	case core.CodeBadRequest, core.CodeCommandTooLarge, core.CodeTooManyCommands:
		return codes.InvalidArgument
	case core.CodeOverloaded, core.CodeDiskLow:
		return codes.ResourceExhausted
	case core.CodeNoShard:
		return codes.NotFound
	case core.CodeUnauthenticated:
		return codes.Unauthenticated
	case core.CodeForbidden:
		return codes.PermissionDenied
	case core.CodeCancelled:
		if errors.Is(err, context.Canceled) {
			return codes.Canceled
		}
		return codes.DeadlineExceeded
	}
	switch d.GetKind() {
	case decreev1.Kind_KIND_NOT_PROPOSED:
		if code.Ended() {
			return codes.FailedPrecondition // asking again does not help
		}
		return codes.Unavailable
	case decreev1.Kind_KIND_BROKEN:
		return codes.Internal
	}
	return codes.Unknown
}

// FromStatus makes the library's error again of what a unary call, or a stream as a whole, ended with. One without details
// comes from the way there: the call may have arrived.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	for _, d := range st.Details() {
		if d, ok := d.(*decreev1.Error); ok {
			return FromError(d)
		}
	}
	code, kind := core.CodeUnreachable, core.ErrUnknown
	switch st.Code() {
	case codes.Unauthenticated:
		code, kind = core.CodeUnauthenticated, core.ErrNotProposed
	case codes.PermissionDenied:
		code, kind = core.CodeForbidden, core.ErrNotProposed
	case codes.Unimplemented:
		code, kind = core.CodeBadRequest, core.ErrNotProposed
	}
	return &core.Error{Kind: kind, Code: code, Message: st.Message()}
}
