package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
)

// change has whoever leads change the members, as the command decree does, until node 1 knows them as they shall be.
func (c *testCluster) change(want string, do func(ctx context.Context, leader adminv1.AdminServiceClient) error) {
	c.t.Helper()
	awaitThat(c.t, "the members are "+want, func() bool {
		m, err := c.nodes[1].node.Shard(shardID).Members()
		if err != nil {
			c.t.Fatal(err)
		}
		var is []string
		for _, m := range m.List {
			is = append(is, fmt.Sprintf("%d:%s", m.Node, m.Role))
		}
		if strings.Join(is, " ") == want {
			return true
		}
		address, known := c.config.Peers[m.Leader]
		if !known {
			return false
		}
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			c.t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
		defer cancel()
		if err := do(ctx, adminv1.NewAdminServiceClient(conn)); err != nil {
			c.t.Logf("node %d: %v", m.Leader, err) // it may not lead any more, nor the newcomer have caught up
		}
		return false
	})
}

// A node is lost and another takes its place, under load: what the README shows of replace. The nodes that were there are then restarted with the
// newcomer among their peers, and every entry is in the books of all three, once.
func TestReplaceNode(t *testing.T) {
	c := newTestCluster(t)
	var nodes []string
	for _, address := range c.config.Peers {
		nodes = append(nodes, address)
	}
	p := runTestProxy(t, proxyConfig{nodes: nodes})
	l := startAPILoad(t, p.server.Addr(), p.listener.Addr().String())
	l.goesOn("on the first three nodes")

	old, further := c.config, freePorts(t)
	c.config.Peers, c.config.API, c.config.HTTP = maps.Clone(old.Peers), maps.Clone(old.API), maps.Clone(old.HTTP)
	c.config.Peers[4], c.config.API[4], c.config.HTTP[4] = further[1], further[2], further[3]
	c.start(4)
	c.kill(3)
	c.change("1:voter 2:voter 3:voter 4:learner", func(ctx context.Context, leader adminv1.AdminServiceClient) error {
		_, err := leader.AddLearner(ctx, &adminv1.AddLearnerRequest{Shard: uint64(shardID), Node: 4, Address: c.config.Peers[4]})
		return err
	})
	c.change("1:voter 2:voter 4:voter", func(ctx context.Context, leader adminv1.AdminServiceClient) error {
		_, err := leader.Replace(ctx, &adminv1.ReplaceRequest{Shard: uint64(shardID), Old: 3, Learner: 4})
		return err
	})
	l.goesOn("with node 4")

	for _, id := range []rsm.NodeID{1, 2, 4} {
		c.stop(id)
		if id != 4 {
			// What the members are is not told by flags: with one node more it would be another cluster.
			n, err := startNode(c.configOf(id), slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatalf("node %d has other voters than before, and starts: %v", id, n.cfg.Peers)
			}
			if !strings.Contains(err.Error(), "[1 2 3 4]") || !strings.Contains(err.Error(), "-voters") {
				t.Errorf("node %d: %v", id, err)
			}
		}
		c.config.Voters = nodeIDs{1, 2, 3}
		c.start(id)
		c.config.Voters = nil
		l.goesOn("after the restart")
	}
	// As it was started first, it goes on as well: the others are in its log.
	c.stop(1)
	with := c.config
	c.config = old
	c.start(1)
	c.config = with
	l.goesOn("on a node that was not told")

	l.audit(c)
	api := "-api=" + c.config.API[1] + "," + c.config.API[2] + "," + c.config.API[4]
	if code, out, errs := ledgerCommand(t, "", "verify", api); code != 0 || !strings.Contains(out, "Every invariant holds") {
		t.Errorf("verify: %d %s%s", code, out, errs)
	}
}
