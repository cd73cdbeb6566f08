package proxy

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/bounds"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/internal/admit"
	"github.com/decree-raft/decree/rsm"
)

// Limits bound what clients can ask for at the same time; zero fields take their defaults. Numbers that make no sense are refused by Proxy.Serve.
type Limits struct {
	// StreamCalls under way on one stream, and StreamBytes that they hold. A client that sends more waits: whatever it says then, calls of other shards and those that make
	// room among it, is not read. So StreamBytes should be more than Admission.ClientBytes and a call's, so that what is too much is read and refused with a reason; it may
	// be less, for clients that are to wait instead. Defaults 8192 and 96 MiB.
	StreamCalls int
	StreamBytes int64
	// FrameBytes of one message, of a stream or of a unary call. Default 16 MiB; at least 9 MiB, as a frame with the largest call has more than 8 MiB.
	FrameBytes int
	// Timeout of a call that names none. Default 10 s, or MaxTimeout if that is less. MaxTimeout bounds what a call may name. Default 10 min, at most a week.
	Timeout, MaxTimeout time.Duration
}

func (l Limits) withDefaults() Limits {
	l.StreamCalls = cmp.Or(l.StreamCalls, 8192)
	l.StreamBytes = cmp.Or(l.StreamBytes, 96<<20)
	l.FrameBytes = cmp.Or(l.FrameBytes, 16<<20)
	l.MaxTimeout = cmp.Or(l.MaxTimeout, 10*time.Minute)
	l.Timeout = cmp.Or(l.Timeout, min(10*time.Second, l.MaxTimeout))
	return l
}

// check says which of the limits makes no sense. They have their defaults.
func (l Limits) check() error {
	return cmp.Or(
		bounds.Check("Limits.StreamCalls", l.StreamCalls, 1, 1<<24),
		bounds.Check("Limits.StreamBytes", l.StreamBytes, 4<<10, 1<<40),
		bounds.Check("Limits.FrameBytes", l.FrameBytes, wire.MaxCallBytes+1<<20, 1<<30),
		bounds.Check("Limits.MaxTimeout", l.MaxTimeout, time.Millisecond, 7*24*time.Hour),
		bounds.Check("Limits.Timeout", l.Timeout, time.Millisecond, l.MaxTimeout),
	)
}

// service offers a backend.
type service struct {
	decreev1.UnimplementedDecreeServiceServer
	backend backend
	limits  Limits
	meter   *meter       // nil: nothing is counted
	log     *slog.Logger // nil: nothing is logged
	tracer  trace.Tracer // nil: nothing is traced
	names   *names
	holds   *holds
	// patience is sendPatience, receivePatience that, and meeting meetPatience; tests have others.
	patience, receivePatience, meeting time.Duration
	// What callers have to show, nil for nothing; and what they may have at work, nil for no bound but those of limits.
	policy    *access.Policy
	admission *admit.Controller

	flushers chan *stream // takes streams that have something to say as long as a goroutine waits for one

	mu      sync.Mutex
	streams map[*stream]bool
	quiet   chan struct{} // closed when there is no stream any more; nil if there is none
	closes  atomic.Bool
	open    atomic.Int64 // calls that a server which drains waits for, besides those on streams of calls
}

func newService(b backend, limits Limits) *service {
	return &service{backend: b, limits: limits, names: newNames(), holds: newHolds(), patience: sendPatience, receivePatience: receivePatience, meeting: meetPatience, streams: map[*stream]bool{},
		flushers: make(chan *stream)}
}

// margin is how long before its deadline a unary call is answered at the latest, so that the answer arrives.
const margin = 20 * time.Millisecond

// call runs one unary call, and sees to it that it is seen.
func (s *service) call(ctx context.Context, c *route.Call) (rsm.Result, error) {
	request := requestID(ctx)
	if request == "" {
		request = s.names.next()
	}
	var span trace.Span
	c.Trace = parentOf(ctx)
	if s.tracer != nil {
		span = s.begin(ctx, c, request)
	}
	began := monotonic()
	res, taken, err := s.run(ctx, c)
	took := time.Duration(monotonic() - began)
	s.meter.ended(c.Kind, c.Shard, took, err, taken)
	if span != nil {
		if deadline, has := ctx.Deadline(); has { // the answer is to arrive
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline.Add(-margin))
			defer cancel()
		}
		traced.EndWithin(ctx, span, err)
	}
	if s.debugs() {
		s.logCall(request, c, took, err)
	}
	if err != nil {
		return rsm.Result{}, failed(ctx, err, request)
	}
	return res, nil
}

// run has a call answered, and says whether it was taken to be worked on.
func (s *service) run(ctx context.Context, c *route.Call) (res rsm.Result, taken bool, err error) {
	if err := wire.CheckCall(c); err != nil {
		return rsm.Result{}, false, err
	}
	if s.closes.Load() {
		return rsm.Result{}, false, errClosing
	}
	wait := s.limits.Timeout
	if deadline, has := ctx.Deadline(); has {
		wait = time.Until(deadline)
		wait = min(wait-min(margin, wait/4), s.limits.MaxTimeout)
	}
	who, release := s.caller(ctx)
	defer release()
	now := monotonic()
	ticket, err := s.admit(who, c, now)
	if err != nil {
		return rsm.Result{}, false, err
	}
	c.Deadline = now + int64(wait)
	done := make(chan struct{})
	c.Done = func(c *route.Call) {
		ticket.Done(unix(monotonic()), loadOf(c))
		c.Result.Replies = slices.Clone(c.Result.Replies)
		close(done)
	}
	s.backend.start(now, c)
	timeout := time.NewTimer(wait + margin/2) // a backend that is a node's knows no deadlines
	defer timeout.Stop()
	var why error = context.DeadlineExceeded
	select {
	case <-done:
		if c.Err != nil {
			return rsm.Result{}, true, c.Err
		}
		return c.Result, true, nil
	case <-ctx.Done():
		why = ctx.Err()
	case <-timeout.C:
	}
	return rsm.Result{}, true, c.Abandoned("no answer before the deadline of the call", why)
}

func (s *service) Submit(ctx context.Context, m *decreev1.SubmitRequest) (*decreev1.SubmitResponse, error) {
	res, err := s.call(ctx, &route.Call{Kind: route.Submit, Shard: core.ShardID(m.GetShard()), Commands: m.GetCommands(), MakesRoom: m.GetMakesRoom(),
		Session: core.SessionID(m.GetSession()), Sequence: m.GetSequence(), Acknowledged: m.GetAcknowledged()})
	if err != nil {
		return nil, err
	}
	return &decreev1.SubmitResponse{Replies: res.Replies, Index: uint64(res.Index)}, nil
}

func (s *service) Read(ctx context.Context, m *decreev1.ReadRequest) (*decreev1.ReadResponse, error) {
	res, err := s.call(ctx, &route.Call{Kind: route.Read, Shard: core.ShardID(m.GetShard()), Query: m.GetQuery(),
		Level: wire.ParseLevel(uint64(uint32(m.GetLevel()))), Token: core.Index(m.GetToken())})
	if err != nil {
		return nil, err
	}
	return &decreev1.ReadResponse{Answer: res.Answer, Index: uint64(res.Index), Age: int64(res.Age)}, nil
}

func (s *service) OpenSession(ctx context.Context, m *decreev1.OpenSessionRequest) (*decreev1.OpenSessionResponse, error) {
	res, err := s.call(ctx, &route.Call{Kind: route.OpenSession, Shard: core.ShardID(m.GetShard())})
	if err != nil {
		return nil, err
	}
	return &decreev1.OpenSessionResponse{Session: uint64(res.Session)}, nil
}

func (s *service) CloseSession(ctx context.Context, m *decreev1.CloseSessionRequest) (*decreev1.CloseSessionResponse, error) {
	if _, err := s.call(ctx, &route.Call{Kind: route.CloseSession, Shard: core.ShardID(m.GetShard()), Session: core.SessionID(m.GetSession())}); err != nil {
		return nil, err
	}
	return &decreev1.CloseSessionResponse{}, nil
}

func (s *service) GetTopology(context.Context, *decreev1.GetTopologyRequest) (*decreev1.GetTopologyResponse, error) {
	return s.backend.topology(), nil
}

// Connect serves one stream.
func (s *service) Connect(g grpc.BidiStreamingServer[decreev1.ConnectRequest, decreev1.ConnectResponse]) error {
	return s.serveStream(g)
}
