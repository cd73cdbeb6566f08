package proxy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// bulky answers a query with as many bytes as it says.
type bulky struct{ counters }

func (bulky) Query(_ rsm.View, q []byte) ([]byte, error) {
	return make([]byte, binary.BigEndian.Uint32(q)), nil
}

// An answer that is too large for a connection, or for what else is on it, is an error of its call: what is on the connections between client, proxy and node
// goes on.
func TestLargeAnswers(t *testing.T) {
	n := startOne(t, "", bulky{})
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	nodes := []string{n.Addr()}
	_, s := startProxy(t, proxy.Config{Nodes: nodes, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for name, addresses := range map[string][]string{"proxy": {s.Addr()}, "node": nodes} {
		cl, err := client.Dial(addresses, client.Options{Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		shard := cl.Shard(1)
		if _, err := shard.Submit(within(t), []byte("a")); err != nil {
			t.Fatal(err)
		}
		read := func(n uint32) ([]byte, error) {
			return shard.Read(within(t), rsm.Linearizable, binary.BigEndian.AppendUint32(nil, n))
		}
		ctx, cancel := context.WithCancel(within(t))
		var others sync.WaitGroup
		done := 0
		others.Go(func() {
			for ; ctx.Err() == nil; done++ {
				if _, err := shard.Submit(within(t), []byte("a")); err != nil {
					t.Errorf("%s: a command beside it: %v", name, err)
					return
				}
			}
		})
		for _, n := range []uint32{wire.MaxAnswerBytes, 70 << 20} {
			began := time.Now()
			_, err := read(n)
			if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeAnswerTooLarge || !errors.Is(err, rsm.ErrNotProposed) {
				t.Errorf("%s: an answer of %d bytes, after %v: %v", name, n, time.Since(began), err)
			}
		}
		var large sync.WaitGroup
		for range 4 {
			large.Go(func() {
				if b, err := read(20 << 20); err != nil || len(b) != 20<<20 {
					t.Errorf("%s: one of several large answers: %d bytes, %v", name, len(b), err)
				}
			})
		}
		large.Wait()
		cancel()
		others.Wait()
		if done == 0 {
			t.Errorf("%s: nothing went on", name)
		}
	}
	if text := log.String(); strings.Contains(text, "disconnected") || strings.Contains(text, "cannot be reached") {
		t.Errorf("a connection was lost:\n%s", text)
	}
}
