package admin

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
)

// Every part of an error arrives.
func TestErrorsRoundTrip(t *testing.T) {
	for kind, code := range map[error]codes.Code{rsm.ErrNotProposed: codes.Unavailable, rsm.ErrUnknown: codes.Unknown, rsm.ErrBroken: codes.Internal} {
		sent := &rsm.Error{Kind: kind, Code: "some_code", Message: "a sentence", Leader: 7, RetryAfter: 1500 * time.Millisecond, Cause: errors.New("the cause")}
		got := statusOf(detailOf(fmt.Errorf("wrapped: %w", sent)), sent)
		if status.Code(got) != code {
			t.Errorf("%v became %v", kind, status.Code(got))
		}
		var e *rsm.Error
		if err := FromDetail(Detail(got)); !errors.As(err, &e) || e.Kind != kind || e.Code != sent.Code || e.Message != sent.Message ||
			e.Leader != 7 || e.RetryAfter != sent.RetryAfter || e.Error() != sent.Error() {
			t.Errorf("%v became %v", sent, err)
		}
	}
	var r *rsm.Rejection
	sent := &rsm.Rejection{Code: "mine", Message: "no", Detail: []byte{0, 1}}
	if err := FromDetail(Detail(statusOf(detailOf(sent), sent))); !errors.As(err, &r) || r.Code != "mine" || r.Message != "no" || string(r.Detail) != "\x00\x01" || !errors.Is(err, rsm.ErrRejected) {
		t.Errorf("%v became %v", sent, err)
	}
}

// What does not say whether it happened may have; and so may what a newer version says.
func TestErrorsInDoubt(t *testing.T) {
	for _, err := range []error{context.DeadlineExceeded, context.Canceled, errors.New("anything")} {
		if d := detailOf(err); d.GetKind() != adminv1.ErrorKind_ERROR_KIND_UNKNOWN || !errors.Is(FromDetail(d), rsm.ErrUnknown) {
			t.Errorf("%v became %v", err, d)
		}
	}
	if status.Code(statusOf(detailOf(context.DeadlineExceeded), context.DeadlineExceeded)) != codes.DeadlineExceeded {
		t.Error("the deadline was lost")
	}
	if err := FromDetail(&adminv1.ErrorDetail{Kind: 99}); !errors.Is(err, rsm.ErrUnknown) {
		t.Errorf("%v", err)
	}
}

// What is no text becomes one: it would not leave.
func TestErrorsThatAreNoText(t *testing.T) {
	const odd = "a\xffb"
	for _, err := range []error{errors.New(odd), &rsm.Rejection{Code: odd, Message: odd}, &rsm.Error{Kind: rsm.ErrBroken, Code: odd, Message: odd, Cause: errors.New(odd)}} {
		if d := Detail(statusOf(detailOf(err), err)); d.GetMessage() != "a\uFFFDb" {
			t.Errorf("%v became %v", err, d)
		}
	}
}

// Mutation with which it was seen to fail: shardOf without TimeAhead.
func TestTimeAhead(t *testing.T) {
	hour := rsm.Timestamp(time.Now().Add(time.Hour).UnixNano())
	if got := time.Duration(shardOf(&rsm.ShardStatus{Time: hour}).GetTimeAhead()); got > time.Hour || got < 50*time.Minute {
		t.Errorf("an hour ahead: %v", got)
	}
	if got := shardOf(&rsm.ShardStatus{Time: 1}).GetTimeAhead(); got != 0 {
		t.Errorf("long ago: %d", got)
	}
}
