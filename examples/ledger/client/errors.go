package client

import (
	"time"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/rsm"
)

const (
	codeCancelled rsm.Code = "cancelled"
	codeTooLarge  rsm.Code = "command_too_large"
	// codeUnsendable: the request, as it is, can reach no server.
	codeUnsendable rsm.Code = "unsendable"
)

// remoteError is an rsm.Error as a server described it.
type remoteError struct {
	err       *rsm.Error
	leaderAPI string
}

func (e *remoteError) Error() string { return e.err.Error() }
func (e *remoteError) Unwrap() error { return e.err }

// fromDetail is the inverse of what package server makes of an error.
func fromDetail(d *ledgerv1.ErrorDetail, cause error) error {
	kinds := map[string]error{"not_proposed": rsm.ErrNotProposed, "broken": rsm.ErrBroken}
	if d.GetKind() == "rejected" {
		return &rsm.Rejection{Code: rsm.Code(d.GetCode()), Message: d.GetMessage()}
	}
	kind, ok := kinds[d.GetKind()]
	if !ok {
		kind = rsm.ErrUnknown
	}
	return &remoteError{leaderAPI: d.GetLeaderApi(), err: &rsm.Error{
		Kind: kind, Code: rsm.Code(d.GetCode()), Message: d.GetMessage(), Leader: rsm.NodeID(d.GetLeader()),
		RetryAfter: time.Duration(d.GetRetryAfterMs()) * time.Millisecond, Cause: cause,
	}}
}
