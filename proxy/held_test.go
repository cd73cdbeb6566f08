package proxy_test

import (
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/rsm"
)

// Unary calls whose messages do not come end in time, and of one caller only some are received at once; others are served meanwhile.
func TestHalfSentCalls(t *testing.T) {
	_, s := lonely(t)
	s.ReceivePatience(4 * time.Second) // by then, all of them have begun
	r := dialRaw(t, s.Addr())
	_ = r.SetDeadline(time.Now().Add(time.Minute))
	const calls, large = 100, 9 << 20
	for i := range uint32(calls) {
		r.begin(2*i+1, decreev1.DecreeService_Read_FullMethodName)
		if err := r.WriteData(2*i+1, false, append(prefix(large), 1)); err != nil {
			t.Fatal(err)
		}
	}
	other := plain(t, s.Addr())
	if _, err := decreev1.NewDecreeServiceClient(other).GetTopology(within(t), &decreev1.GetTopologyRequest{}); err != nil {
		t.Errorf("another caller: %v", err)
	}
	received := map[uint32]bool{} // those that were given a window for all of their message, before one was late
	for ended := 0; ended < calls; {
		f, err := r.ReadFrame()
		if err != nil {
			t.Fatalf("%d calls have ended; %v", ended, err)
		}
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			if f.StreamID > 0 && f.Increment >= large && ended == 0 {
				received[f.StreamID] = true
			}
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				ended++
			}
		}
	}
	if n := len(received); n != 16 {
		t.Errorf("%d messages were received at once", n)
	}
	r.Close()
	soon(t, "forgetting the caller", func() {
		for n, _ := s.Held(); n > 0; n, _ = s.Held() {
			time.Sleep(time.Millisecond)
		}
	})
}

// Answers that a client does not take count for it, and there is an end to them; those of a stream that was ended for it, too. Others are served, and all is forgotten with the connection.
func TestAnswersThatAreNotTaken(t *testing.T) {
	p, s := startProxy(t, proxy.Config{Nodes: []string{startOne(t, "", bulky{}).Addr()}})
	awaitReady(t, p)
	r := dialRaw(t, s.Addr())
	_ = r.SetDeadline(time.Now().Add(time.Minute))
	if err := r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	const calls, size = 80, 1 << 20
	read := func(n uint32) *decreev1.ReadRequest {
		return &decreev1.ReadRequest{Shard: 1, Level: decreev1.Level_LEVEL_STALE, Query: binary.BigEndian.AppendUint32(nil, n)}
	}
	message := marshal(read(size))
	taken, refused := 0, 0
	for i := range uint32(calls) {
		r.begin(2*i+1, decreev1.DecreeService_Read_FullMethodName)
		if err := r.WriteData(2*i+1, true, append(prefix(uint32(len(message))), message...)); err != nil {
			t.Fatal(err)
		}
		if _, h := r.headers(); h["grpc-status"] == "" {
			taken++
		} else if refused++; h["grpc-status"] != "8" && h["grpc-status"] != "14" {
			t.Errorf("a call is refused with %v", h)
		}
	}
	if taken != 63 { // each has some bytes more than a mebibyte
		t.Errorf("%d answers of a mebibyte are kept, %d calls are refused", taken, refused)
	}
	if _, unsent := s.Held(); unsent < 63*size || unsent > 64*size {
		t.Errorf("%d bytes count", unsent)
	}
	other := decreev1.NewDecreeServiceClient(plain(t, s.Addr()))
	if a, err := other.Read(within(t), read(size)); err != nil || len(a.Answer) != size {
		t.Errorf("another client has %d bytes, %v", len(a.GetAnswer()), err)
	}
	r.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC() // gRPC gives back nothing of a connection that is closed
		if n, unsent := s.Held(); n == 0 && unsent == 0 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d callers still hold %d bytes", n, unsent)
		}
	}
}

// One connection has not very many streams of calls: each may have a frame in memory.
func TestStreamsOfOneConnection(t *testing.T) {
	_, s := lonely(t)
	conn, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec.Codec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const most = 8
	var all []grpc.ClientStream
	for range most + 1 {
		st, err := conn.NewStream(within(t), &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, st)
		if _, err := st.Header(); err != nil { // it is taken, or refused
			t.Fatal(err)
		}
	}
	var got codec.Frame
	err = all[most].RecvMsg(&got)
	if e, _ := core.Verdict(wire.FromStatus(err)); e == nil || e.Code != core.CodeOverloaded || !errors.Is(e, rsm.ErrNotProposed) {
		t.Errorf("one more stream: %v", err)
	}
	_ = all[0].CloseSend() // it ends, and makes room
	if err := all[0].RecvMsg(&got); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	st, err := conn.NewStream(within(t), &decreev1.DecreeService_ServiceDesc.Streams[0], decreev1.DecreeService_Connect_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.SendMsg(&codec.Frame{Data: submitFrame(1, 50)}); err != nil {
		t.Fatal(err)
	}
	if err := st.RecvMsg(&got); err != nil {
		t.Errorf("a stream after one has ended: %v", err)
	}
}
