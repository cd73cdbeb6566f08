package proxy

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
)

// RequestIDKey is the metadata that names a unary call in logs, errors and traces. A call without one is given a name. A call on a stream is named after
// its stream and its own id; one within the proxy's process, see Shard, is given a name.
const RequestIDKey = "decree-request-id"

// maxRequestID bounds what is taken for a name.
const maxRequestID = 128

// names gives out names that nobody else gives out.
type names struct {
	prefix string
	last   atomic.Uint64
}

func newNames() *names { return &names{prefix: rand.Text()[:8]} }

func (n *names) next() string { return n.prefix + "-" + strconv.FormatUint(n.last.Add(1), 10) }

// requestID returns the name that the client gave to a unary call, or "".
func requestID(ctx context.Context) string {
	v := metadata.ValueFromIncomingContext(ctx, RequestIDKey)
	if len(v) != 1 || v[0] == "" || len(v[0]) > maxRequestID {
		return ""
	}
	for _, c := range []byte(v[0]) {
		if c <= ' ' || c > '~' { // it would be another thing in a log
			return ""
		}
	}
	return v[0]
}

// callName names a call on a stream.
func (st *stream) callName(id uint64) string { return st.name + "/" + strconv.FormatUint(id, 10) }

// named returns an error that says which request it belongs to. A rejection is the machine's, and left as it is.
func named(err error, request string) error {
	e, is := err.(*core.Error)
	if !is {
		return err
	}
	out := *e
	out.Message += " [request " + request + "]"
	return &out
}

// failed returns the gRPC error of a unary call, and tells the client the call's name.
func failed(ctx context.Context, err error, request string) error {
	_ = grpc.SetTrailer(ctx, metadata.Pairs(RequestIDKey, request)) // fails outside of a call only, where nobody listens
	p := status.Convert(wire.Status(err)).Proto()
	p.Message += " [request " + request + "]"
	return status.ErrorProto(p)
}

// debugs reports whether every call is to be logged.
func (s *service) debugs() bool { return s.log != nil && debugs(s.log) }

func debugs(log *slog.Logger) bool { return log.Enabled(context.Background(), slog.LevelDebug) }

// logCall logs a call's outcome.
func (s *service) logCall(request string, c *route.Call, took time.Duration, err error) {
	logCall(s.log, request, c, took, err)
}

func logCall(log *slog.Logger, request string, c *route.Call, took time.Duration, err error) {
	outcome, code := outcomeOf(err)
	attrs := []any{"request", request, "kind", c.Kind.String(), "shard", uint64(c.Shard), "took", took, "outcome", outcome}
	if err != nil {
		attrs = append(attrs, "code", code, "reason", err.Error())
	}
	log.Debug("call ended", attrs...)
}
