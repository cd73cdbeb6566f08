package proxy

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/rsm"
)

// Limits bound what clients can ask for at the same time; zero fields take their defaults.
type Limits struct {
	// StreamCalls under way on one stream, and StreamBytes that they and their answers hold. A client that sends more waits. Defaults 8192 and 32 MiB.
	StreamCalls int
	StreamBytes int64
	// FrameBytes of one message, of a stream or of a unary call. Default 16 MiB.
	FrameBytes int
	// Timeout of a call that names none. Default 10 s. MaxTimeout bounds what a call may name. Default 10 min.
	Timeout, MaxTimeout time.Duration
}

func (l Limits) withDefaults() Limits {
	l.StreamCalls = cmp.Or(l.StreamCalls, 8192)
	l.StreamBytes = cmp.Or(l.StreamBytes, 32<<20)
	l.FrameBytes = cmp.Or(l.FrameBytes, 16<<20)
	l.Timeout = cmp.Or(l.Timeout, 10*time.Second)
	l.MaxTimeout = cmp.Or(l.MaxTimeout, 10*time.Minute)
	return l
}

// service offers a backend.
type service struct {
	decreev1.UnimplementedDecreeServiceServer
	backend backend
	limits  Limits

	mu      sync.Mutex
	streams map[*stream]bool
	quiet   chan struct{} // closed when there is no stream any more; nil if there is none
	closes  atomic.Bool
}

func newService(b backend, limits Limits) *service {
	return &service{backend: b, limits: limits, streams: map[*stream]bool{}}
}

// margin is how long before its deadline a unary call is answered at the latest, so that the answer arrives.
const margin = 20 * time.Millisecond

// call runs one unary call.
func (s *service) call(ctx context.Context, c *route.Call) (rsm.Result, error) {
	if err := wire.CheckCall(c); err != nil {
		return rsm.Result{}, wire.Status(err)
	}
	if s.closes.Load() {
		return rsm.Result{}, wire.Status(errClosing)
	}
	wait := s.limits.Timeout
	if deadline, has := ctx.Deadline(); has {
		wait = time.Until(deadline)
		wait = min(wait-min(margin, wait/4), s.limits.MaxTimeout)
	}
	c.Deadline = monotonic() + int64(wait)
	done := make(chan struct{})
	c.Done = func(*route.Call) { close(done) }
	s.backend.start(c)
	timeout := time.NewTimer(wait + margin/2) // a backend that is a node's knows no deadlines
	defer timeout.Stop()
	var why error = context.DeadlineExceeded
	select {
	case <-done:
		if c.Err != nil {
			return rsm.Result{}, wire.Status(c.Err)
		}
		return c.Result, nil
	case <-ctx.Done():
		why = ctx.Err()
	case <-timeout.C:
	}
	kind := core.ErrUnknown
	if c.Kind == route.Read {
		kind = core.ErrNotProposed
	}
	return rsm.Result{}, wire.Status(&core.Error{Kind: kind, Code: core.CodeCancelled, Message: "no answer before the deadline of the call", Cause: why})
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
