package proxy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// When disks are low, a client's ordinary command is refused, and one that makes room is taken, exactly once over changes of leader, through a proxy or of the
// nodes. A client that has no session yet gets one for that [G11].
func TestMakesRoom(t *testing.T) {
	c := startCluster(t, func(cfg *rsm.Config) { cfg.DiskWatermark = 1 << 60 }) // no disk has as much
	leader := func() *rsm.Node {
		n, err := c.Leader(within(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	known := func() bool { // to all nodes, that their disks are low
		for _, n := range c.Nodes() {
			if st, err := n.Status(); err != nil || !st.DiskLow {
				return false
			}
		}
		_, err := leader().Shard(1).Submit(within(t), []byte("b"))
		return errors.Is(err, &rsm.Error{Code: core.CodeDiskLow})
	}
	_, s := startProxy(t, proxy.Config{Nodes: anyNode(c)})
	var nodes []string
	for _, n := range c.Nodes() {
		nodes = append(nodes, n.Addr())
	}
	n := uint64(0)
	room := add("a")
	room.MakesRoom = true
	for name, addresses := range map[string][]string{"proxy": {s.Addr()}, "nodes": nodes} {
		for ctx := within(t); !known(); {
			select {
			case <-ctx.Done():
				t.Fatal("a node does not know that its disk is low")
			case <-time.After(5 * time.Millisecond):
			}
		}
		sh := dial(t, addresses...).Shard(1)
		refused := &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeDiskLow}
		for patience := 300 * time.Millisecond; ; patience *= 2 { // nothing has come back by then: it is told that it was late
			ctx, cancel := context.WithTimeout(within(t), patience)
			_, err := sh.Submit(ctx, []byte("a"))
			cancel()
			if errors.Is(err, refused) {
				break
			}
			if err == nil || patience > 10*time.Second {
				t.Fatalf("%s: an ordinary command: %v", name, err)
			}
		}
		res, err := sh.Do(within(t), room)
		if n++; err != nil || len(res.Replies) != 1 || sum(t, res.Replies[0], nil) != n || res.Index == 0 {
			t.Errorf("%s: a command that makes room: %+v, %v, want %d", name, res, err, n)
		}
		var pending []*client.Pending
		for range 200 {
			pending = append(pending, sh.Go(within(t), room))
			n++
		}
		killed := leader().ID()
		c.Kill(killed)
		for _, p := range pending {
			if _, err := p.Wait(within(t)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := c.Restart(killed); err != nil {
			t.Fatal(err)
		}
		answer, err := sh.Read(within(t), rsm.Linearizable, []byte("a"))
		if got := sum(t, answer, err); got != n {
			t.Errorf("%s: %d commands were done %d times", name, n, got)
		}
		numbered := room
		numbered.Session, numbered.Sequence = 1, 1
		if _, err := sh.Do(within(t), numbered); !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeBadRequest}) {
			t.Errorf("%s: a number that is not the client's: %v", name, err)
		}
	}
}
