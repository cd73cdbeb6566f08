package proxy_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// refuses checks that an error names a field with its value, and says what is allowed.
func refuses(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range append(words, "to", "allowed") {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("want an error with %q, got %v", w, err)
			return
		}
	}
}

// Numbers that make no sense are refused, by the name of the field; those at the edges are taken.
func TestConfigRefused(t *testing.T) {
	for field, cfg := range map[string]proxy.Config{
		"Refresh is -1s":            {Refresh: -time.Second},
		"Refresh is 1ms":            {Refresh: time.Millisecond},
		"Refresh is 1h0m0.0":        {Refresh: time.Hour + time.Millisecond},
		"MaxWaiting is -1":          {MaxWaiting: -1},
		"MaxWaiting is 92":          {MaxWaiting: math.MaxInt},
		"MaxWaitingBytes is -1":     {MaxWaitingBytes: -1},
		"MaxWaitingBytes is 100":    {MaxWaitingBytes: 100},
		"Silence is -3s":            {Silence: -3 * time.Second},
		"Silence is 1s":             {Silence: time.Second},
		"Silence is 2562047h47m16.": {Silence: math.MaxInt64},
	} {
		cfg.Nodes = []string{"127.0.0.1:1"}
		p, err := proxy.New(cfg)
		if refuses(t, err, field); err == nil {
			p.Close()
		}
	}
	p, _ := lonely(t)
	for field, cfg := range map[string]proxy.ServerConfig{
		"MaxConnections is -1":            {MaxConnections: -1},
		"Limits.StreamCalls is -1":        {Limits: proxy.Limits{StreamCalls: -1}},
		"Limits.StreamBytes is -1":        {Limits: proxy.Limits{StreamBytes: -1}},
		"Limits.StreamBytes is 9":         {Limits: proxy.Limits{StreamBytes: math.MaxInt64}},
		"Limits.FrameBytes is -1":         {Limits: proxy.Limits{FrameBytes: -1}},
		"Limits.FrameBytes is 4194304":    {Limits: proxy.Limits{FrameBytes: 4 << 20}},
		"Limits.Timeout is -1s":           {Limits: proxy.Limits{Timeout: -time.Second}},
		"Limits.Timeout is 2s":            {Limits: proxy.Limits{Timeout: 2 * time.Second, MaxTimeout: time.Second}},
		"Limits.MaxTimeout is -1s":        {Limits: proxy.Limits{MaxTimeout: -time.Second}},
		"Limits.MaxTimeout is 2562047h47": {Limits: proxy.Limits{MaxTimeout: math.MaxInt64}},
	} {
		cfg.Listen = "127.0.0.1:0"
		s, err := p.Serve(cfg)
		if refuses(t, err, field); err == nil {
			s.Close()
		}
	}
	for field, o := range map[string]client.Options{
		"Patience is -1s":      {Patience: -time.Second},
		"Patience is 2562047h": {Patience: math.MaxInt64},
		"Silence is -1s":       {Silence: -time.Second},
		"Silence is 400ms":     {Silence: 400 * time.Millisecond},
	} {
		c, err := client.Dial([]string{"127.0.0.1:1"}, o)
		if refuses(t, err, field); err == nil {
			c.Close()
		}
	}
	for name, policy := range map[string]*access.Policy{"CertRole is 9": {CertRole: 9}, `gives "a" the role 4`: {Certs: map[string]access.Role{"a": 4}}} {
		_, err := access.Listen("127.0.0.1:0", access.Port{Policy: policy})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
		}
	}
	for _, cfg := range []proxy.ServerConfig{{MaxConnections: 1, Limits: proxy.Limits{StreamCalls: 1, StreamBytes: 4096, FrameBytes: 9 << 20, Timeout: time.Millisecond, MaxTimeout: 7 * 24 * time.Hour}},
		{Limits: proxy.Limits{MaxTimeout: time.Second}}} {
		cfg.Listen = "127.0.0.1:0"
		s, err := p.Serve(cfg)
		if err != nil {
			t.Error(err)
			continue
		}
		s.Close()
	}
}

// A deadline that is as far away as a context's may be is none that has passed.
func TestFarDeadlines(t *testing.T) {
	c := startCalm(t)
	p, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	ctx, cancel := context.WithDeadline(context.Background(), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC))
	defer cancel()
	if _, err := dial(t, s.Addr()).Shard(1).Submit(ctx, []byte("a")); err != nil {
		t.Error(err)
	}
	if _, err := p.Shard(1).Do(ctx, rsm.Request{Commands: [][]byte{[]byte("a")}}); err != nil {
		t.Error(err)
	}
	nobody, _ := lonely(t)
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, err := nobody.Shard(1).Do(ctx, rsm.Request{Commands: [][]byte{[]byte("a")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that waits ends with %v", err)
	}
}
