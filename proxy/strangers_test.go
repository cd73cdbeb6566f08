package proxy_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
)

// prefix is how a message of n bytes begins.
func prefix(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0}, n) }

// A call without a token is refused by its header: its message, which is announced and does not come, is not waited for. gRPC used to read it first, and may again.
func TestRefusedBeforeItsMessage(t *testing.T) {
	_, s, _, _ := guarded(t, proxy.Limits{})
	r := dialRaw(t, s.Addr())
	_ = r.SetDeadline(time.Now().Add(time.Minute))
	for i, method := range []string{decreev1.DecreeService_Submit_FullMethodName, decreev1.DecreeService_Connect_FullMethodName, "/no.Such/Method"} {
		id := uint32(2*i + 1)
		r.begin(id, method)
		if err := r.WriteData(id, false, prefix(16<<20)); err != nil {
			t.Fatal(err)
		}
		if got, h := r.headers(); got != id || h["grpc-status"] != "16" && h["grpc-status"] != "12" {
			t.Errorf("%s is answered, on stream %d, with %v", method, got, h)
		}
	}
}

// A call that needs no token says in time what it asks, and one host has not too many of them. Who is known is not held up by others behind the same address.
func TestPublicCallsAreBounded(t *testing.T) {
	_, s, token, _ := guarded(t, proxy.Limits{})
	s.PublicPatience(200 * time.Millisecond)
	r := dialRaw(t, s.Addr())
	_ = r.SetDeadline(time.Now().Add(time.Minute))
	for i, method := range []string{healthv1.Health_Check_FullMethodName, healthv1.Health_Watch_FullMethodName} {
		id := uint32(2*i + 1)
		r.begin(id, method)
		if err := r.WriteData(id, false, prefix(1<<20)); err != nil {
			t.Fatal(err)
		}
		if got, h := r.headers(); got != id || h["grpc-status"] != "4" || !strings.Contains(h["grpc-message"], "has not said") {
			t.Errorf("half a message of %s is answered, on stream %d, with %v", method, got, h)
		}
	}
	s.PublicPatience(time.Hour)
	// One connection has few streams; others have theirs.
	for range 2 {
		r := dialRaw(t, s.Addr())
		_ = r.SetDeadline(time.Now().Add(time.Minute))
		const most = 4
		taken := 0
		for i := range uint32(most + 1) {
			id := 1 + 2*i
			r.begin(id, healthv1.Health_Watch_FullMethodName)
			if err := r.WriteData(id, true, prefix(0)); err != nil {
				t.Fatal(err)
			}
			if _, h := r.headers(); h["grpc-status"] == "" {
				taken++
			} else if h["grpc-status"] != "8" {
				t.Errorf("a watcher ends with %v", h)
			}
		}
		if taken != most {
			t.Errorf("%d watchers are taken", taken)
		}
	}
	// The calls of all connections that have shown nothing count together.
	conns := make([]*raw, 3)
	const most = 256
	for i := range uint32(most + 1) {
		r := conns[i%3]
		if r == nil {
			r = dialRaw(t, s.Addr())
			_ = r.SetDeadline(time.Now().Add(time.Minute))
			conns[i] = r
		}
		id := 1 + 2*(i/3)
		r.begin(id, healthv1.Health_Check_FullMethodName)
		if err := r.WriteData(id, false, prefix(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan string, 2*most)
	for _, r := range conns {
		go func() {
			for {
				f, err := r.ReadFrame()
				if err != nil {
					return
				}
				if f, is := f.(*http2.HeadersFrame); is {
					fields, _ := r.dec.DecodeFull(f.HeaderBlockFragment())
					for _, f := range fields {
						if f.Name == "grpc-status" {
							ended <- f.Value
						}
					}
				}
			}
		}()
	}
	if code := <-ended; code != "8" {
		t.Errorf("one call more than %d ends with %s", most, code)
	}
	check := func(conn *grpc.ClientConn) error {
		_, err := healthv1.NewHealthClient(conn).Check(within(t), &healthv1.HealthCheckRequest{})
		return err
	}
	other := plain(t, s.Addr())
	if err := check(other); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("another stranger of the host: %v", err)
	}
	known, err := grpc.NewClient(s.Addr(), token, grpc.WithTransportCredentials(access.Plain()))
	if err != nil {
		t.Fatal(err)
	}
	defer known.Close()
	if _, err := decreev1.NewDecreeServiceClient(known).GetTopology(within(t), &decreev1.GetTopologyRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := check(known); err != nil {
		t.Errorf("who is known: %v", err)
	}
	for _, r := range conns {
		r.Close()
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // what is gone makes room
		if err := check(other); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// Little is read from who has shown no token, and as much as they send from who has.
func TestStrangersSendLittle(t *testing.T) {
	_, s, token, _ := guarded(t, proxy.Limits{})
	s.PublicPatience(time.Second)
	large := &healthv1.HealthCheckRequest{Service: strings.Repeat("a", 1<<20)}
	_, err := healthv1.NewHealthClient(plain(t, s.Addr())).Check(within(t), large)
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a large message of a stranger: %v", err)
	}
	s.PublicPatience(time.Minute) // a stranger's would take longer
	conn, err := grpc.NewClient(s.Addr(), token, grpc.WithTransportCredentials(access.Plain()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	service := decreev1.NewDecreeServiceClient(conn)
	if _, err := service.GetTopology(within(t), &decreev1.GetTopologyRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err = healthv1.NewHealthClient(conn).Check(within(t), large); status.Code(err) != codes.NotFound {
		t.Errorf("a large message of somebody known: %v", err)
	}
}
