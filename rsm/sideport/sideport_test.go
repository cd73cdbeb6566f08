package sideport_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/sideport"
)

type nothing struct{}

func (nothing) Decide(rsm.View, rsm.Command) ([][]byte, []byte, error) { return nil, nil, nil }
func (nothing) Apply(rsm.State, rsm.Event)                             {}
func (nothing) Query(rsm.View, []byte) ([]byte, error)                 { return nil, nil }

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// A node's port says what is missing, has its metrics, and profiles only if they are asked for.
func TestSideport(t *testing.T) {
	registry := sideport.NewRegistry()
	n, err := rsm.Start(rsm.Config{Cluster: "c", Node: 1, Dir: t.TempDir(), Peers: map[rsm.NodeID]string{1: "127.0.0.1:0"}, DiskWatermark: -1,
		Shards: []rsm.ShardConfig{{ID: 1, Machine: nothing{}}}, Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var more atomic.Pointer[string]
	s, err := sideport.Listen("127.0.0.1:0", sideport.Config{Metrics: registry, Ready: func() []string {
		if m := more.Load(); m != nil {
			return append(n.Ready(), *m)
		}
		return n.Ready()
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	url := "http://" + s.Addr()
	readiness := func() (int, sideport.Readiness) {
		code, body := get(t, url+"/readyz")
		var r sideport.Readiness
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return code, r
	}
	if code, r := readiness(); code != 200 || !r.Ready || len(r.Missing) != 0 {
		t.Errorf("%d, %v", code, r)
	}
	text := "this and that"
	more.Store(&text)
	if code, r := readiness(); code != 503 || r.Ready || !slices.Equal(r.Missing, []string{text}) {
		t.Errorf("%d, %v", code, r)
	}
	more.Store(nil)
	if code, body := get(t, url+"/metrics"); code != 200 || !strings.Contains(body, `decree_node_ready{node="1"} 1`) || !strings.Contains(body, "go_goroutines ") {
		t.Errorf("%d, %s", code, body)
	}
	if code, _ := get(t, url+"/debug/pprof/"); code != 404 {
		t.Errorf("profiles are there: %d", code)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if code, r := readiness(); code != 503 || r.Ready || len(r.Missing) != 1 || !strings.Contains(r.Missing[0], "closed") {
		t.Errorf("%d, %v", code, r)
	}
	if code, body := get(t, url+"/healthz"); code != 200 {
		t.Errorf("%d, %s", code, body)
	}
	if code, body := get(t, url+"/metrics"); code != 200 || strings.Contains(body, "decree_") {
		t.Errorf("of a node that is gone: %d, %s", code, body)
	}
	if r, err := http.Post(url+"/readyz", "", nil); err != nil || r.StatusCode != 405 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestListen(t *testing.T) {
	ready := func() []string { return nil }
	for _, address := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:0"} {
		if _, err := sideport.Listen(address, sideport.Config{Ready: ready}); !errors.Is(err, sideport.ErrOpen) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if _, err := sideport.Listen("127.0.0.1", sideport.Config{Ready: ready}); err == nil || !strings.Contains(err.Error(), "host:port") {
		t.Error(err)
	}
	s, err := sideport.Listen("localhost:0", sideport.Config{Ready: ready, Pprof: true})
	if err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, "http://"+s.Addr()+"/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("profiles: %d", code)
	}
	// A client that hangs holds up nobody.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr()+"/debug/pprof/profile?seconds=30", nil)
		if a, err := http.DefaultClient.Do(r); err == nil {
			a.Body.Close()
		}
	}()
	time.Sleep(50 * time.Millisecond)
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("closing takes %v", took)
	}
}

// Connections that say nothing take no files that the process needs, and keep nobody out.
func TestSilentConnections(t *testing.T) {
	s, err := sideport.Listen("127.0.0.1:0", sideport.Config{Ready: func() []string { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 300 {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if code, _ := get(t, "http://"+s.Addr()+"/healthz"); code != 200 {
		t.Errorf("%d", code)
	}
	if open := s.Open(); open > 256 {
		t.Errorf("%d connections are open", open)
	}
}

// Scrapes that nobody reads keep no others out.
func TestScrapesThatAreNotRead(t *testing.T) {
	r := prometheus.NewRegistry()
	long := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "long"}, []string{"text"})
	r.MustRegister(long)
	for i := range 1000 { // more than sockets keep
		long.WithLabelValues(strings.Repeat("a", 32<<10) + strconv.Itoa(i)).Set(1)
	}
	var asked atomic.Int32
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "asked"}, func() float64 { return float64(asked.Add(1)) }))
	s, err := sideport.Listen("127.0.0.1:0", sideport.Config{Metrics: r, Ready: func() []string { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range int32(4) { // each when the one before has begun
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); asked.Load() <= i && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	code := 0
	for end := time.Now().Add(time.Minute); code != 200 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		code, _ = get(t, "http://"+s.Addr()+"/metrics")
	}
	if code != 200 {
		t.Errorf("%d", code)
	}
}
