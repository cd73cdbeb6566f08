package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/limitlog"
)

var errNoServe = status.Error(codes.FailedPrecondition, "this node answers no calls")

// answerCall serves one call (gRPC's goroutine).
func (t *Transport) answerCall(_ any, stream grpc.ServerStream) error {
	err := t.serveCall(stream)
	if code := status.Code(err); err == nil || isQuiet(code) || code == codes.DeadlineExceeded {
		return err
	}
	text := status.Convert(err).Message()
	t.log.Warn(limitlog.Key{Reason: text}, "refused a call on the peer port", "remote", remoteAddr(stream.Context()), "reason", text)
	return err
}

// serveCall reads the request only when everything else is in order, and there is
// room for it. The error is a status.
func (t *Transport) serveCall(stream grpc.ServerStream) error {
	h, err := t.introduce(stream.Context())
	if err != nil {
		return err
	}
	if t.cfg.Serve == nil {
		return errNoServe
	}
	if t.isBlocked(h.from) {
		return errBlocked
	}
	ctx, done, err := t.served.begin(stream.Context(), h.from)
	if err != nil {
		return err
	}
	defer done()
	// Again, as who was removed meanwhile has been looked for among the calls already.
	if err := t.allowed(h.from); err != nil {
		return err
	}
	if err := stream.SendHeader(t.accepted()); err != nil {
		return err
	}
	var msg incoming
	if err := stream.RecvMsg(&msg); errors.Is(err, io.EOF) {
		return status.Errorf(codes.InvalidArgument, "call refused: %v: there is no request", errBadCall)
	} else if status.Code(err) == codes.ResourceExhausted {
		return status.Errorf(codes.InvalidArgument, "call refused: %s", status.Convert(err).Message())
	} else if err != nil {
		return err
	}
	request, err := openCall(msg.data, MaxCallRequestBytes)
	if err == nil && request.kind != callRequest {
		err = fmt.Errorf("%w: kind %d is no request", errBadCall, request.kind)
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "call refused: %v", err)
	}
	reply, err := t.cfg.serve(ctx, h.from, request.method, request.payload)
	switch {
	case ctx.Err() != nil: // nobody waits any more, or may be told
		return endOf(ctx)
	case t.isBlocked(h.from):
		return errBlocked
	case err != nil:
		return stream.SendMsg(&outgoingCall{callMessage{callFault, request.method, []byte(faultText(err))}})
	}
	return stream.SendMsg(&outgoingCall{callMessage{callReply, request.method, reply}})
}

// endOf returns why the context of a call ended, as a status.
func endOf(ctx context.Context) error {
	cause := context.Cause(ctx)
	if _, ok := status.FromError(cause); ok {
		return cause
	}
	return status.FromContextError(cause).Err()
}

// serve asks Serve, and holds it to the limit.
func (c Config) serve(ctx context.Context, from uint64, method uint8, request []byte) ([]byte, error) {
	reply, err := c.Serve(ctx, from, method, request)
	if err == nil && len(reply) > MaxCallReplyBytes {
		err = fmt.Errorf("the reply of method %d has %d bytes, at most %d are allowed", method, len(reply), MaxCallReplyBytes)
	}
	return reply, err
}

// faultText is what the other side learns of an error.
func faultText(err error) string {
	text := err.Error()
	if len(text) > maxCallFault {
		text = text[:maxCallFault]
	}
	return strings.ToValidUTF8(text, "?")
}

// servedCalls are the calls that a node serves. The zero value is ready. Safe for
// concurrent use.
type servedCalls struct {
	mu sync.Mutex
	// by holds, per caller, what ends its calls. Invariant: at most MaxCallsPerPeer
	// of one caller and MaxCalls in all, and no caller without any.
	by    map[uint64]map[*context.CancelCauseFunc]struct{}
	total int
}

// begin takes a place for a call. Its context ends with ctx, with done, or when
// the caller is removed, and then has the status that says so as its cause. The
// error is a status.
func (s *servedCalls) begin(ctx context.Context, from uint64) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.by[from]); n >= MaxCallsPerPeer {
		return nil, nil, status.Errorf(codes.ResourceExhausted,
			"busy: this node serves %d calls of node %d, as many as one node may have; try again later", n, from)
	}
	if s.total >= MaxCalls {
		return nil, nil, status.Errorf(codes.ResourceExhausted,
			"busy: this node serves %d calls, as many as it serves at once; try again later", s.total)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if s.by == nil {
		s.by = map[uint64]map[*context.CancelCauseFunc]struct{}{}
	}
	if s.by[from] == nil {
		s.by[from] = map[*context.CancelCauseFunc]struct{}{}
	}
	s.by[from][&cancel] = struct{}{}
	s.total++
	return ctx, func() {
		cancel(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.total--
		if delete(s.by[from], &cancel); len(s.by[from]) == 0 {
			delete(s.by, from)
		}
	}, nil
}

// end ends the calls of one caller.
func (s *servedCalls) end(from uint64, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for cancel := range s.by[from] {
		(*cancel)(reason)
	}
}
