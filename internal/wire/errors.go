package wire

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

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

// What is left of an error that is too large to be sent.
const (
	maxCutText = 4 << 10
	maxCutCode = 256
)

// cut returns an error without most of its words: what became of the call, and its code, are not lost for them.
func cut(err error) error {
	lost := fmt.Sprintf(" [it has %d bytes, which cannot be sent: this is its beginning]", AnswerBytes(&core.Result{}, err))
	switch e, r := core.Verdict(err); {
	case r != nil:
		return &core.Rejection{Code: core.Code(beginning(string(r.Code), maxCutCode)), Message: beginning(r.Message, maxCutText) + lost}
	case e != nil:
		out := *e
		out.Message, out.Cause = beginning(e.Message, maxCutText)+lost, nil
		if e.Cause != nil {
			out.Message += ": " + beginning(e.Cause.Error(), maxCutText)
		}
		out.Code, out.LeaderAddress = core.Code(beginning(string(e.Code), maxCutCode)), beginning(e.LeaderAddress, maxCutCode)
		return &out
	}
	return &core.Error{Kind: core.ErrUnknown, Message: beginning(err.Error(), maxCutText) + lost}
}

// beginning returns as much of a text as fits into n bytes, but no part of a character.
func beginning(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// maxTrailer bounds what the error of a unary call has: gRPC for Go takes 16 MiB of trailers, and whoever gets more is told of nothing but that.
const maxTrailer = 15 << 20

// Status is the gRPC error of a unary call, with the Error among its details.
func Status(err error) error {
	st, e := statusOf(err)
	if e == nil {
		if p := st.Proto(); 4*(proto.Size(p)/3)+3*len(p.GetMessage()) > maxTrailer { // in base64, and what is no ASCII in three characters
			st, e = statusOf(cut(err))
		}
	}
	if e != nil {
		return status.Error(codes.Internal, e.Error())
	}
	return st.Err()
}

func statusOf(err error) (*status.Status, error) {
	d := ErrorOf(err)
	return status.New(grpcCode(d, err), strings.ToValidUTF8(err.Error(), "\uFFFD")).WithDetails(d)
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
		switch {
		case code.Ended():
			return codes.FailedPrecondition // asking again does not help
		case code == core.CodeAnswerTooLarge:
			return codes.InvalidArgument // nor here, without asking for less
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
