package rsm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
)

// stuck hangs in Decide when it is told so, as a read of a dead disk would.
type stuck struct {
	counters
	in, out chan struct{}
}

func (m stuck) Decide(v View, c Command) ([][]byte, []byte, error) {
	if string(c.Data) == "hang" {
		m.in <- struct{}{}
		<-m.out
	}
	return m.counters.Decide(v, c)
}

// A pass that does not return keeps nobody waiting when the node stops, and when it returns late it still ends what was inside, once.
func TestCallsOfAPassThatHangs(t *testing.T) {
	m := stuck{in: make(chan struct{}), out: make(chan struct{})}
	c := startCluster(t, "", m, patient10s, func(cfg *Config) { cfg.Workers = 1 })
	n := leaderOf(t, c, 1)
	s := n.Shard(1)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}

	hung := s.Go(Request{Commands: [][]byte{[]byte("hang")}})
	<-m.in
	behind, read := s.Go(Request{Commands: [][]byte{[]byte("a")}}), s.GoRead(Linearizable, 0, []byte("a"))
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	for _, call := range []struct {
		name string
		call *Call
		want error
	}{{"inside", hung, ErrUnknown}, {"behind", behind, ErrBroken}, {"read", read, ErrBroken}} {
		if _, err := call.call.Wait(within(t)); !errors.Is(err, call.want) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: ended with %v, want %v", call.name, err, call.want)
		}
	}
	<-n.Done()
	close(m.out)
}

// Callbacks of what is inside such a pass come when it returns.
func TestCallbacksOfAPassThatHung(t *testing.T) {
	m := stuck{in: make(chan struct{}), out: make(chan struct{})}
	c := startCluster(t, "", m, patient10s, func(cfg *Config) { cfg.Workers = 1 })
	n := leaderOf(t, c, 1)
	told := make(chan error, 2)
	if err := n.Shard(1).GoFunc(Request{Commands: [][]byte{[]byte("hang")}}, func(_ Result, err error) { told <- err }); err != nil {
		t.Fatal(err)
	}
	<-m.in
	n.fail(&Error{Kind: ErrBroken, Code: core.CodeStorage, Message: "the disk is gone"})
	<-n.Done()
	close(m.out)
	select {
	case err := <-told:
		if err == nil {
			t.Error("it was told that it happened")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the callback did not come")
	}
	if len(told) > 0 {
		t.Error("it came twice")
	}
}

// A node that closes waits for an audit that somebody has begun, as the files that it reads would stay open otherwise, and the same process could not start the node again.
//
// Mutation with which it was seen to fail: Audit holds up nobody.
func TestCloseBesideAudit(t *testing.T) {
	c := single(t, t.TempDir())
	in, out, audited := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, _, err := c.Node(1).Shard(1).Audit(func(View) error { close(in); <-out; return nil })
		audited <- err
	}()
	<-in
	closed := make(chan error, 1)
	go func() { closed <- c.Node(1).Close() }()
	select {
	case <-closed:
		t.Error("it was not waited for")
	case <-time.After(100 * time.Millisecond):
	}
	close(out)
	if err := <-audited; err != nil {
		t.Error(err)
	}
	c.Kill(1) // which is over when Close is
	if err := c.Restart(1); err != nil {
		t.Errorf("the files are still open: %v", err)
	}
}
