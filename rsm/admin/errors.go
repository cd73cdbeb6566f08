package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
)

var kinds = map[adminv1.ErrorKind]error{
	adminv1.ErrorKind_ERROR_KIND_REJECTED:     rsm.ErrRejected,
	adminv1.ErrorKind_ERROR_KIND_NOT_PROPOSED: rsm.ErrNotProposed,
	adminv1.ErrorKind_ERROR_KIND_UNKNOWN:      rsm.ErrUnknown,
	adminv1.ErrorKind_ERROR_KIND_BROKEN:       rsm.ErrBroken,
}

// kindOf answers whether it happened. Whatever does not say so may have.
func kindOf(err error) adminv1.ErrorKind {
	for kind, is := range kinds { // an error matches one of them
		if errors.Is(err, is) {
			return kind
		}
	}
	return adminv1.ErrorKind_ERROR_KIND_UNKNOWN
}

func notProposed(code rsm.Code, format string, args ...any) error {
	return &rsm.Error{Kind: rsm.ErrNotProposed, Code: code, Message: fmt.Sprintf(format, args...)}
}

// utf8 makes text of what may be none: a message of protobuf with other bytes in a string does not leave, and takes the rest of the answer with it.
func utf8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// detailOf takes an error apart. The leader's address is filled in by who knows it.
func detailOf(err error) *adminv1.ErrorDetail {
	d := apart(err)
	d.Code, d.Message, d.Cause = utf8(d.Code), utf8(d.Message), utf8(d.Cause)
	return d
}

func apart(err error) *adminv1.ErrorDetail {
	var r *rsm.Rejection
	if errors.As(err, &r) {
		return &adminv1.ErrorDetail{Kind: adminv1.ErrorKind_ERROR_KIND_REJECTED, Code: string(r.Code), Message: r.Message, Data: r.Detail}
	}
	var e *rsm.Error
	if !errors.As(err, &e) {
		d := &adminv1.ErrorDetail{Kind: adminv1.ErrorKind_ERROR_KIND_UNKNOWN, Message: err.Error()}
		if isContext(err) {
			d.Code = string(rsm.CodeCancelled)
		}
		return d
	}
	d := &adminv1.ErrorDetail{
		Kind: kindOf(e), Code: string(e.Code), Message: e.Message,
		Leader: uint64(e.Leader), RetryAfter: int64(e.RetryAfter),
	}
	if e.Cause != nil {
		d.Cause = e.Cause.Error()
	}
	return d
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// statusOf is the gRPC error of a call, with its detail.
func statusOf(d *adminv1.ErrorDetail, err error) error {
	st, e := status.New(grpcCode(d, err), FromDetail(d).Error()).WithDetails(d)
	if e != nil {
		return status.Error(codes.Internal, e.Error())
	}
	return st.Err()
}

// grpcCode is for clients that look no further. Where it is Unavailable, asking again, or asking elsewhere, may help.
func grpcCode(d *adminv1.ErrorDetail, err error) codes.Code {
	switch d.GetKind() {
	case adminv1.ErrorKind_ERROR_KIND_REJECTED:
		return codes.FailedPrecondition
	case adminv1.ErrorKind_ERROR_KIND_NOT_PROPOSED:
		switch rsm.Code(d.GetCode()) {
		case rsm.CodeBadRequest:
			return codes.InvalidArgument
		case rsm.CodeNoShard:
			return codes.NotFound
		case rsm.CodeCompacted:
			return codes.OutOfRange
		}
		return codes.Unavailable
	case adminv1.ErrorKind_ERROR_KIND_BROKEN:
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

// Detail returns what a node said of an error, or nil if the error of a call is not a node's: then the
// connection failed, or nothing offers this service there.
func Detail(err error) *adminv1.ErrorDetail {
	st, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, d := range st.Details() {
		if d, ok := d.(*adminv1.ErrorDetail); ok {
			return d
		}
	}
	// The port has refused the call before the node heard of it.
	refused := &adminv1.ErrorDetail{Kind: adminv1.ErrorKind_ERROR_KIND_NOT_PROPOSED, Message: st.Message()}
	switch st.Code() {
	case codes.Unauthenticated:
		refused.Code = string(rsm.CodeUnauthenticated)
	case codes.PermissionDenied:
		refused.Code = string(rsm.CodeForbidden)
	default:
		return nil
	}
	return refused
}

// FromDetail makes the node's error again: a *rsm.Rejection, or a *rsm.Error, with the same kind, code and hints.
func FromDetail(d *adminv1.ErrorDetail) error {
	if d.GetKind() == adminv1.ErrorKind_ERROR_KIND_REJECTED {
		return &rsm.Rejection{Code: rsm.Code(d.GetCode()), Message: d.GetMessage(), Detail: d.GetData()}
	}
	kind, ok := kinds[d.GetKind()]
	if !ok {
		kind = rsm.ErrUnknown // of a newer version
	}
	e := &rsm.Error{
		Kind: kind, Code: rsm.Code(d.GetCode()), Message: d.GetMessage(), Leader: rsm.NodeID(d.GetLeader()),
		RetryAfter: time.Duration(d.GetRetryAfter()),
	}
	if d.GetCause() != "" {
		e.Cause = errors.New(d.GetCause())
	}
	return e
}
