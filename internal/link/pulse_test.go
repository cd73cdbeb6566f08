package link

import (
	"bytes"
	"context"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
)

// Calls that go on being sent, and unary calls that are answered, are no sign of life of a stream whose other side has calls and says nothing.
//
// Mutations with which it was seen to fail: whatever is delivered counts; what is read for others counts.
func TestSilenceUnderTraffic(t *testing.T) {
	for name, do := range map[string]func(g grpc.ServerStream) error{
		"it reads":         func(g grpc.ServerStream) error { return swallow(g) },
		"it does not read": func(g grpc.ServerStream) error { <-g.Context().Done(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, func(_ *bench, g grpc.ServerStream) error { return do(g) }, silence(400*time.Millisecond))
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ended := make(chan struct{})
			first := &route.Call{Kind: route.Submit, Shard: 1, Commands: [][]byte{[]byte("c")}, Deadline: clock() + int64(10*time.Minute), Done: func(*route.Call) { close(ended) }}
			b.router.Submit(clock(), first)
			go func() {
				for command := make([]byte, 16<<10); ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
					b.router.Submit(clock(), &route.Call{Kind: route.Submit, Shard: 1, Commands: [][]byte{command}, Deadline: clock() + int64(time.Minute), Done: func(*route.Call) {}})
				}
			}()
			go func() {
				service := decreev1.NewDecreeServiceClient(b.link.Conn())
				for ctx.Err() == nil {
					_, _ = service.GetTopology(ctx, &decreev1.GetTopologyRequest{}) // it is there, or will be
				}
			}()
			select {
			case <-ended:
			case <-time.After(2 * patience):
				t.Fatal("the stream goes on")
			}
			wantUnknown(t, first)
		})
	}
}

// swallow reads calls and does not answer.
func swallow(g grpc.ServerStream) error {
	for {
		if _, err := receive(g); err != nil {
			return err
		}
	}
}

// GetTopology answers with a great deal.
func (l *liar) GetTopology(context.Context, *decreev1.GetTopologyRequest) (*decreev1.GetTopologyResponse, error) {
	return &decreev1.GetTopologyResponse{Cluster: string(bytes.Repeat([]byte("a"), 64<<10))}, nil
}

// A small answer that is kept does not keep the frame that it came in.
//
// Mutation with which it was seen to fail: answers point into their frames.
func TestSmallAnswersKeepLittle(t *testing.T) {
	const frames, padding = 40, 1 << 20
	b := start(t, func(_ *bench, g grpc.ServerStream) error {
		return each(g, func(c wire.ReceivedCall) error {
			f := wire.AppendAnswer(nil, c.ID, route.Submit, &core.Result{Index: 1, Replies: [][]byte{[]byte("reply")}}, nil)
			f = append(append(f, 0x7a, 0x80, 0x80, 0x40), bytes.Repeat([]byte{1}, padding)...) // a field that nobody knows
			return g.SendMsg(&codec.Frame{Data: f})
		})
	})
	b.link.cfg.Own = true // before anything is read
	var kept []*route.Call
	for range frames {
		c := b.submit(0, patience)
		if c.Err != nil || len(c.Result.Replies) != 1 || string(c.Result.Replies[0]) != "reply" {
			t.Fatal(c.Result, c.Err)
		}
		kept = append(kept, c)
	}
	var m runtime.MemStats
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		if runtime.ReadMemStats(&m); m.HeapAlloc < frames*padding/2 || time.Now().After(end) {
			break
		}
	}
	if m.HeapAlloc >= frames*padding/2 {
		t.Errorf("%d small answers keep %d MiB", frames, m.HeapAlloc>>20)
	}
	runtime.KeepAlive(kept)
}
