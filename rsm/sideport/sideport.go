// Package sideport offers what operators and schedulers ask a process, over HTTP: metrics, whether it lives, whether it is ready, and profiles.
//
//	GET /metrics   what Prometheus scrapes
//	GET /healthz   200 as long as the process answers
//	GET /readyz    200, or 503 with a JSON body that says what is missing
//	GET /debug/pprof/...   profiles, with Config.Pprof only
//
// It serves nodes and proxies alike: rsm.Node.Ready and proxy.Server.Ready are what Config.Ready takes.
package sideport

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/decree-raft/decree/internal/bind"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/limitlog"
)

// Config configures a side port.
type Config struct {
	// Ready says, in words, what keeps the process from serving; nothing if it is ready. It is called for each request. Required.
	Ready func() (missing []string)
	// Metrics is what /metrics shows. Default: nothing.
	Metrics prometheus.Gatherer
	// Pprof also offers profiles, which tell what is in memory and cost time.
	Pprof bool
	// Open allows Listen an address that other machines reach. There is neither TLS nor a password.
	Open bool
	// Logger gets what goes wrong. Default: none.
	Logger *slog.Logger
}

// NewRegistry returns a registry that has the Go runtime's metrics and the process's.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Handler returns the endpoints, for a program that has an HTTP server already. Config.Open is not looked at.
func Handler(cfg Config) http.Handler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	if cfg.Metrics != nil {
		mux.Handle("GET /metrics", scraped(promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{
			ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError})))
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, map[string]any{"alive": true}) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		missing := cfg.Ready()
		if len(missing) == 0 {
			answer(w, http.StatusOK, Readiness{Ready: true, Missing: []string{}})
			return
		}
		answer(w, http.StatusServiceUnavailable, Readiness{Missing: missing})
	})
	if cfg.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// scraped makes some answers at once, and writes them when they are made: who does not read keeps nobody else from it.
func scraped(h http.Handler) http.Handler {
	making := make(chan struct{}, maxScrapes)
	render := func(w http.ResponseWriter, r *http.Request) *page {
		select {
		case making <- struct{}{}:
		default:
			http.Error(w, fmt.Sprintf("%d scrapes are under way, which is the limit: try again later", maxScrapes), http.StatusServiceUnavailable)
			return nil
		}
		defer func() { <-making }()
		p := &page{header: w.Header(), code: http.StatusOK}
		h.ServeHTTP(p, r)
		return p
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := render(w, r)
		if p == nil {
			return
		}
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(scrapePatience)) // a server that knows none has its own
		w.WriteHeader(p.code)
		_, _ = w.Write(p.body.Bytes()) // the client has gone
	})
}

// page is an answer in memory.
type page struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (p *page) Header() http.Header         { return p.header }
func (p *page) WriteHeader(code int)        { p.code = code }
func (p *page) Write(b []byte) (int, error) { return p.body.Write(b) }

const (
	// maxScrapes are made at once: each asks every shard. scrapePatience is how long a client may take to read one, which is in memory for as long.
	maxScrapes     = 4
	scrapePatience = 15 * time.Second
	// maxConns open, in all and of one host: a file each, which the process needs for other things.
	maxConns        = 256
	maxConnsPerHost = 128
	// maxSilent have asked nothing yet: the oldest makes room.
	maxSilent = 64
)

// Readiness is the body of /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing"` // in words
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client has gone
}

// Server is a side port that is served.
type Server struct {
	listener net.Listener
	http     *http.Server
	served   chan struct{}
}

// Listen serves the endpoints at host:port until Close.
func Listen(address string, cfg Config) (*Server, error) {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, fmt.Errorf("sideport: the address is %q: host:port is needed", address)
	}
	missing := "it has neither TLS nor a password: set Open if that is meant"
	if cfg.Open {
		missing = ""
	}
	l, err := bind.TCP(address, missing)
	if err != nil {
		return nil, fmt.Errorf("sideport: %w", err)
	}
	door := guard.New(l, guard.Config{Port: "the side port", Clients: "its clients", Answer: "this is a Decree side port: it speaks HTTP\n", HTTP1: true,
		MaxConns: maxConns, MaxPerHost: maxConnsPerHost, MaxUnshaken: maxSilent, Log: limitlog.New(cfg.Logger)})
	s := &Server{listener: door, served: make(chan struct{}), http: &http.Server{Handler: Handler(cfg), ConnState: guard.ConnState, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}} // a profile takes its time
	go func() {
		defer close(s.served)
		_ = s.http.Serve(door) // ends with Close
	}()
	return s, nil
}

// ErrOpen: the address needs Config.Open.
var ErrOpen = bind.ErrInsecure

// Addr returns the host:port that is listened on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close waits a moment for answers under way, and ends the server.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	<-s.served
}
