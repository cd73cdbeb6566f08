package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/admin"
)

// register keeps what it was last told.
type register struct{}

func (register) Decide(_ rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	if string(c.Data) == "no" {
		return nil, nil, rsm.Reject("no", "as told")
	}
	return [][]byte{c.Data}, nil, nil
}
func (register) Apply(s rsm.State, e rsm.Event) { s.Set([]byte("value"), e.Data) }
func (register) Query(v rsm.View, _ []byte) ([]byte, error) {
	b, _ := v.Get([]byte("value"))
	return b, nil
}
func within(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Minute)
}

// service is a cluster of three with the admin service of each node on a port of its own. Its leaders stay, unless they hand over: nobody waits here for another.
type service struct {
	*rsm.Cluster
	t       *testing.T
	client  *rsm.Client // of shard 1
	servers map[rsm.NodeID]*admin.Server
	clients map[rsm.NodeID]adminv1.AdminServiceClient
}

func start(t *testing.T, dir string) *service {
	t.Helper()
	return startMachine(t, dir, register{})
}

func startMachine(t *testing.T, dir string, m rsm.Machine, options ...func(*rsm.Config)) *service {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{
		Dir: dir, Shards: []rsm.ShardConfig{{ID: 1, Machine: m}, {ID: 2, Machine: register{}}},
		Configure: func(cfg *rsm.Config) {
			cfg.HeartbeatInterval, cfg.ElectionTimeout, cfg.DiskWatermark = 100*time.Millisecond, 10*time.Second, -1
			for _, o := range options {
				o(cfg)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{Cluster: c, t: t, servers: map[rsm.NodeID]*admin.Server{}, clients: map[rsm.NodeID]adminv1.AdminServiceClient{}}
	t.Cleanup(func() {
		for _, server := range s.servers {
			server.Close()
		}
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	for _, n := range c.Nodes() {
		server, err := admin.Listen(n, "127.0.0.1:0", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.servers[n.ID()] = server
		conn, err := grpc.NewClient(server.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		s.clients[n.ID()] = adminv1.NewAdminServiceClient(conn)
	}
	return s
}

// leader returns who leads a shard, once every replica knows.
func (s *service) leader(shard rsm.ShardID) rsm.NodeID {
	s.t.Helper()
	ctx, cancel := within(s.t)
	defer cancel()
	n, err := s.Leader(ctx, shard)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, other := range s.Nodes() {
		if err := other.Shard(shard).WaitReady(ctx); err != nil {
			s.t.Fatal(err)
		}
	}
	return n.ID()
}

func (s *service) submit(commands ...string) {
	s.t.Helper()
	ctx, cancel := within(s.t)
	defer cancel()
	if s.client == nil {
		s.client = s.Client(1)
	}
	for _, c := range commands {
		if _, err := s.client.Submit(ctx, []byte(c)); err != nil && !errors.Is(err, rsm.ErrRejected) {
			s.t.Fatal(err)
		}
	}
}

// refused fails unless err is a node's, of this kind and code.
func refused(t *testing.T, err error, kind error, code rsm.Code) *adminv1.ErrorDetail {
	t.Helper()
	d := admin.Detail(err)
	if d == nil {
		t.Fatalf("not a node's error: %v", err)
	}
	if e := admin.FromDetail(d); !errors.Is(e, kind) || rsm.Code(d.GetCode()) != code {
		t.Fatalf("got %v, want %v (%s)", e, kind, code)
	}
	return d
}

func TestStatus(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "disk": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			s := start(t, dir)
			s.submit("a", "b", "no")
			ctx, cancel := within(t)
			defer cancel()
			leader := s.leader(1)
			var r *adminv1.StatusResponse
			for {
				var err error
				if r, err = s.clients[leader].Status(ctx, &adminv1.StatusRequest{}); err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(r.GetPeers(), func(p *adminv1.PeerStatus) bool { return !p.GetConnected() || p.GetLastHeard() < 0 }) {
					break // until each has answered once
				}
				time.Sleep(5 * time.Millisecond)
			}
			if r.GetCluster() != "embedded" || r.GetNode() != uint64(leader) || len(r.GetShards()) != 2 || len(r.GetPeers()) != 2 {
				t.Fatalf("%v", r)
			}
			sh := r.GetShards()[0]
			want, err := s.Node(leader).Shard(1).Status()
			if err != nil {
				t.Fatal(err)
			}
			// A session was opened besides.
			if sh.GetShard() != 1 || sh.GetRole() != "leader" || sh.GetLeader() != uint64(leader) || !slices.Equal(sh.GetVoters(), []uint64{1, 2, 3}) ||
				sh.GetApplied() != uint64(want.Applied) || sh.GetHash() != want.Hash || sh.GetTerm() != uint64(want.Term) ||
				sh.GetCounters().GetCommands() != 4 || sh.GetCounters().GetRejections() != 1 || sh.GetError() != nil || sh.GetTime() == 0 {
				t.Errorf("got %v, want %+v", sh, want)
			}
			if p := r.GetPeers()[0]; p.GetNode() == uint64(leader) || !p.GetConnected() || p.GetLastHeard() < 0 {
				t.Errorf("%v", p)
			}
			if dir != "" && (r.GetDisk().GetStateBytes() == 0 || r.GetLog().GetFsyncs() == 0 || r.GetLog().GetSegments() == 0) {
				t.Errorf("%v %v", r.GetDisk(), r.GetLog())
			}
		})
	}
}

// versioned is register in a program that can run a third version.
type versioned struct{ register }

func (versioned) MaxVersion() uint64 { return 3 }

// Every replica shows the version that is active, and its own highest: of another machine's shard, none.
func TestMachineVersion(t *testing.T) {
	s := startMachine(t, "", versioned{})
	ctx, cancel := within(t)
	defer cancel()
	for id, c := range s.clients {
		for {
			r, err := c.Status(ctx, &adminv1.StatusRequest{})
			if err != nil {
				t.Fatalf("node %d does not come to show the third version: %v", id, err)
			}
			of, other := r.GetShards()[0], r.GetShards()[1]
			if of.GetMaxMachineVersion() != 3 || other.GetMaxMachineVersion() != 0 || other.GetMachineVersion() != 0 {
				t.Fatalf("node %d: %v and %v", id, of, other)
			}
			if of.GetMachineVersion() == 3 {
				break
			}
			if v := of.GetMachineVersion(); v != 0 {
				t.Fatalf("node %d has version %d active", id, v)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// What the node's error says arrives whole: kind, code, hint and when to ask again.
func TestErrors(t *testing.T) {
	s := start(t, "")
	ctx, cancel := within(t)
	defer cancel()
	leader := s.leader(1)
	follower := leader%3 + 1
	_, err := s.clients[follower].Transfer(ctx, &adminv1.TransferRequest{Shard: 1, To: uint64(follower)})
	if d := refused(t, err, rsm.ErrNotProposed, "not_leader"); d.GetLeader() != uint64(leader) || d.GetMessage() == "" {
		t.Errorf("%v", d)
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("%v", status.Code(err))
	}
	_, err = s.clients[1].Transfer(ctx, &adminv1.TransferRequest{Shard: 9, To: 1})
	refused(t, err, rsm.ErrNotProposed, "no_shard")
	if status.Code(err) != codes.NotFound {
		t.Errorf("%v", status.Code(err))
	}
	bad := map[string]func() error{
		"transfer without shard": func() error { _, err := s.clients[1].Transfer(ctx, &adminv1.TransferRequest{To: 1}); return err },
		"transfer to nobody":     func() error { _, err := s.clients[1].Transfer(ctx, &adminv1.TransferRequest{Shard: 1}); return err },
		"members of no shard":    func() error { _, err := s.clients[1].Members(ctx, &adminv1.MembersRequest{}); return err },
		"add nobody": func() error {
			_, err := s.clients[1].AddLearner(ctx, &adminv1.AddLearnerRequest{Shard: 1, Address: "a:1"})
			return err
		},
		"add without address": func() error {
			_, err := s.clients[1].AddLearner(ctx, &adminv1.AddLearnerRequest{Shard: 1, Node: 4})
			return err
		},
		"add without port": func() error {
			_, err := s.clients[1].AddLearner(ctx, &adminv1.AddLearnerRequest{Shard: 1, Node: 4, Address: "a"})
			return err
		},
		"promote nobody": func() error { _, err := s.clients[1].Promote(ctx, &adminv1.PromoteRequest{Shard: 1}); return err },
		"remove nobody":  func() error { _, err := s.clients[1].Remove(ctx, &adminv1.RemoveRequest{Shard: 1}); return err },
		"replace by none": func() error {
			_, err := s.clients[1].Replace(ctx, &adminv1.ReplaceRequest{Shard: 1, Old: 1})
			return err
		},
		"move to nowhere": func() error {
			_, err := s.clients[1].SetAddress(ctx, &adminv1.SetAddressRequest{Shard: 1, Node: 1})
			return err
		},
		"snapshot of no shard": func() error { _, err := s.clients[1].CutSnapshot(ctx, &adminv1.CutSnapshotRequest{}); return err },
		"hash of no shard":     func() error { _, err := s.clients[1].Hash(ctx, &adminv1.HashRequest{}); return err },
		"hash for too long": func() error {
			_, err := s.clients[1].Hash(ctx, &adminv1.HashRequest{Shard: 1, Window: int64(time.Hour)})
			return err
		},
		"journal of no shard": func() error {
			stream, err := s.clients[1].Journal(ctx, &adminv1.JournalRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	}
	for name, ask := range bad {
		err := ask()
		refused(t, err, rsm.ErrNotProposed, "bad_request")
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, status.Code(err))
		}
	}
	// A node that has stopped says so.
	s.Kill(follower)
	_, err = s.clients[follower].Status(ctx, &adminv1.StatusRequest{})
	refused(t, err, rsm.ErrNotProposed, "closed")
	if _, err := s.clients[follower].Hash(ctx, &adminv1.HashRequest{Shard: 1}); admin.Detail(err) == nil {
		t.Errorf("%v", err)
	}
	if admin.Detail(errors.New("x")) != nil || admin.Detail(status.Error(codes.Unavailable, "x")) != nil || admin.Detail(nil) != nil {
		t.Error("an error of somebody else was taken for a node's")
	}
}

func TestTransferAndDrain(t *testing.T) {
	s := start(t, "")
	ctx, cancel := within(t)
	defer cancel()
	leader := s.leader(1)
	to := leader%3 + 1
	if _, err := s.clients[leader].Transfer(ctx, &adminv1.TransferRequest{Shard: 1, To: uint64(to)}); err != nil {
		t.Fatal(err)
	}
	if got := s.Node(leader).Shard(1).Leader(); got == leader {
		t.Errorf("node %d still leads", leader)
	}
	leader = s.leader(1)
	stream, err := s.clients[leader].Drain(ctx, &adminv1.DrainRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var left []uint64
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, m.GetLeading())
	}
	if len(left) < 2 || left[0] == 0 || left[len(left)-1] != 0 {
		t.Errorf("drained by %v", left)
	}
	for shard := rsm.ShardID(1); shard <= 2; shard++ {
		if s.Node(leader).Shard(shard).Leader() == leader {
			t.Errorf("node %d still leads shard %d", leader, shard)
		}
	}
}

// Samples of all replicas have the same hash where they have the same index, and At is waited for.
func TestHash(t *testing.T) {
	s := start(t, "")
	s.submit("a")
	ctx, cancel := within(t)
	defer cancel()
	st, err := s.Node(1).Shard(1).Status()
	if err != nil {
		t.Fatal(err)
	}
	at := uint64(st.Applied) + 20
	type answer struct {
		r   *adminv1.HashResponse
		err error
	}
	answers := make(chan answer, 3)
	for _, c := range s.clients {
		go func() {
			r, err := c.Hash(ctx, &adminv1.HashRequest{Shard: 1, At: at, Window: int64(200 * time.Millisecond)})
			answers <- answer{r, err}
		}()
	}
	hashes, seen := map[uint64]uint64{}, 0
	for got := 0; got < 3; {
		s.submit(fmt.Sprint(seen))
		select {
		case a := <-answers:
			got++
			if a.err != nil {
				t.Fatal(a.err)
			}
			if a.r.GetCluster() != "embedded" || len(a.r.GetSamples()) == 0 {
				t.Fatalf("%v", a.r)
			}
			for _, sample := range a.r.GetSamples() {
				if sample.GetIndex() < at {
					t.Errorf("node %d was asked for %d and gave %d", a.r.GetNode(), at, sample.GetIndex())
				}
				if h, ok := hashes[sample.GetIndex()]; ok && h != sample.GetHash() {
					t.Errorf("two hashes at %d", sample.GetIndex())
				}
				hashes[sample.GetIndex()] = sample.GetHash()
			}
		default:
			seen++
		}
	}
	// What is not reached in time is no answer.
	short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
	defer stop()
	if r, err := s.clients[1].Hash(short, &adminv1.HashRequest{Shard: 1, At: 1 << 40}); err == nil {
		t.Errorf("%v", r)
	}
}

// A replica that has stopped because it differs says so.
func TestHashOfStoppedReplica(t *testing.T) {
	t.Run("diverged", func(t *testing.T) { stopped(t, forgetful{}, "divergence", "value") })
	t.Run("panicked", func(t *testing.T) { stopped(t, garbling{text: "a\xffb"}, "apply_panic", "a\uFFFDb") })
	t.Run("panicked at length", func(t *testing.T) {
		stopped(t, garbling{text: "\xff" + strings.Repeat("a", 1<<20)}, "apply_panic", "bytes)")
	})
}

func stopped(t *testing.T, m rsm.Machine, code rsm.Code, says string) {
	t.Helper()
	c, err := rsm.StartCluster(rsm.ClusterConfig{
		Nodes: 3, Shards: []rsm.ShardConfig{{ID: 1, Machine: register{}}},
		Configure: func(cfg *rsm.Config) {
			if cfg.Node == 3 {
				cfg.Shards = []rsm.ShardConfig{{ID: 1, Machine: m}}
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server, err := admin.Listen(c.Node(3), "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := grpc.NewClient(server.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := within(t)
	defer cancel()
	for c.Node(3).Shard(1).Leader() == 3 {
		_ = c.Node(3).Shard(1).TransferLeadership(ctx, 1) // leadership may have gone meanwhile
	}
	if _, err := c.Client(1).Submit(ctx, []byte("a")); err != nil {
		t.Fatal(err)
	}
	client := adminv1.NewAdminServiceClient(conn)
	for {
		_, err := client.Hash(ctx, &adminv1.HashRequest{Shard: 1, At: 3})
		if err != nil {
			refused(t, err, rsm.ErrBroken, code)
			break
		}
	}
	r, err := client.Status(ctx, &adminv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if e := r.GetShards()[0].GetError(); r.GetShards()[0].GetRole() != "stopped" || e.GetCode() != string(code) || !strings.Contains(e.GetMessage(), says) || len(e.GetMessage()) > 8<<10 {
		t.Errorf("%v", r.GetShards()[0])
	}
}

// garbling panics with what may be no text.
type garbling struct {
	register
	text string
}

func (g garbling) Apply(rsm.State, rsm.Event) { panic(g.text) }

// forgetful applies something else than it is told.
type forgetful struct{ register }

func (forgetful) Apply(s rsm.State, e rsm.Event) {
	s.Set([]byte("value"), append([]byte("not "), e.Data...))
}

func TestMembers(t *testing.T) {
	s := start(t, "")
	ctx, cancel := within(t)
	defer cancel()
	leader := s.leader(1)
	var m *adminv1.MembersResponse
	for {
		var err error
		if m, err = s.clients[leader].Members(ctx, &adminv1.MembersRequest{Shard: 1}); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(m.GetMembers(), func(m *adminv1.Member) bool { return m.GetSeen() < 0 && m.GetNode() != uint64(leader) }) {
			break // until each has answered once
		}
		time.Sleep(5 * time.Millisecond)
	}
	if m.GetShard() != 1 || m.GetLeader() != uint64(leader) || m.GetAsked() != uint64(leader) || len(m.GetMembers()) != 3 || len(m.GetRemoved()) != 0 {
		t.Fatalf("%v", m)
	}
	for i, member := range m.GetMembers() {
		if member.GetNode() != uint64(i+1) || member.GetRole() != "voter" || (member.GetSeen() < 0) != (member.GetNode() == uint64(leader)) {
			t.Errorf("%v", member)
		}
	}
	// A follower says who leads, and where that is.
	follower := leader%3 + 1
	_, err := s.clients[follower].Remove(ctx, &adminv1.RemoveRequest{Shard: 1, Node: uint64(follower)})
	if d := refused(t, err, rsm.ErrNotProposed, "not_leader"); d.GetLeader() != uint64(leader) || d.GetLeaderAddress() != fmt.Sprintf("memory-%d", leader) {
		t.Errorf("%v", d)
	}
	// An address is told to everybody.
	if _, err := s.clients[leader].SetAddress(ctx, &adminv1.SetAddressRequest{Shard: 1, Node: uint64(follower), Address: "elsewhere:7000"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.clients[leader].Remove(ctx, &adminv1.RemoveRequest{Shard: 1, Node: uint64(follower)}); err != nil {
		t.Fatal(err)
	}
	if m, err = s.clients[leader].Members(ctx, &adminv1.MembersRequest{Shard: 1}); err != nil {
		t.Fatal(err)
	}
	if len(m.GetMembers()) != 2 || !slices.Equal(m.GetRemoved(), []uint64{uint64(follower)}) || m.GetIndex() == 0 {
		t.Errorf("%v", m)
	}
	_, err = s.clients[leader].AddLearner(ctx, &adminv1.AddLearnerRequest{Shard: 1, Node: uint64(follower), Address: "a:1"})
	refused(t, err, rsm.ErrNotProposed, "change_refused")
}

func TestJournal(t *testing.T) {
	s := start(t, "")
	s.submit("a", "b", "c")
	ctx, cancel := within(t)
	defer cancel()
	node := s.leader(1)
	st, err := s.Node(node).Shard(1).Status()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := s.clients[node].Journal(ctx, &adminv1.JournalRequest{Shard: 1, From: uint64(st.Applied) - 2, Follow: true, Limit: 5})
	if err != nil {
		t.Fatal(err)
	}
	var events []string
	var last *adminv1.Entry
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e := m.GetEntry()
		if last != nil && e.GetIndex() != last.GetIndex()+1 {
			t.Errorf("%d after %d", e.GetIndex(), last.GetIndex())
		}
		last = e
		if e.GetKind() == "decision" {
			for _, ev := range e.GetEvents() {
				events = append(events, string(ev))
			}
			if e.GetHash() == 0 || e.GetTime() == 0 || e.GetSequence() == 0 {
				t.Errorf("%v", e)
			}
		}
		if len(events) == 3 {
			s.submit("d", "e") // what is followed comes later
		}
	}
	if strings.Join(events, "") != "abcde" {
		t.Errorf("%v", events)
	}
	if h, err := s.clients[node].Hash(ctx, &adminv1.HashRequest{Shard: 1, At: last.GetIndex()}); err != nil || h.GetSamples()[0].GetIndex() == last.GetIndex() && h.GetSamples()[0].GetHash() != last.GetHash() {
		t.Errorf("the journal has hash %x at %d, the replica %v, %v", last.GetHash(), last.GetIndex(), h, err)
	}
	// From 0: the oldest there is. A follower ends when its node does.
	stream, err = s.clients[node].Journal(ctx, &adminv1.JournalRequest{Shard: 1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetEntry().GetIndex() > uint64(st.Applied) {
		t.Errorf("%v, %v", m, err)
	}
	s.Kill(node)
	for err = nil; err == nil; _, err = stream.Recv() {
	}
	refused(t, err, rsm.ErrNotProposed, "closed")
}

func TestSnapshots(t *testing.T) {
	s := start(t, t.TempDir())
	s.submit("a")
	ctx, cancel := within(t)
	defer cancel()
	node := s.leader(1)
	cut, err := s.clients[node].CutSnapshot(ctx, &adminv1.CutSnapshotRequest{Shard: 1, Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	if sn := cut.GetSnapshot(); sn.GetShard() != 1 || sn.GetIndex() == 0 || sn.GetBytes() == 0 || sn.GetId() == "" || sn.GetHash() == 0 {
		t.Errorf("%v", sn)
	}
	for shard, want := range map[uint64]int{0: 1, 1: 1, 2: 0} {
		r, err := s.clients[node].ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{Shard: shard})
		if err != nil || len(r.GetSnapshots()) != want || r.GetNode() != uint64(node) {
			t.Errorf("shard %d: %v, %v", shard, r, err)
		}
	}
	_, err = s.clients[node].ListSnapshots(ctx, &adminv1.ListSnapshotsRequest{Shard: 9})
	refused(t, err, rsm.ErrNotProposed, "no_shard")
}

// A client that stands still in the midst of a backup is told, when it goes on, that it took too long.
//
// Mutation with which it was seen to fail: the backup waits for its receiver as long as it takes.
func TestBackupClientStandsStill(t *testing.T) {
	s := startMachine(t, "", register{}, func(cfg *rsm.Config) { cfg.BackupStall = 20 * time.Millisecond })
	for range 10 {
		s.submit(strings.Repeat("x", 1<<20)) // more than gRPC sends ahead
	}
	ctx, cancel := within(t)
	defer cancel()
	stream, err := s.clients[s.leader(1)].Backup(ctx, &adminv1.BackupRequest{Shards: []uint64{1}})
	for err == nil {
		_, err = stream.Recv()
		time.Sleep(300 * time.Millisecond) // it is this client that is slow
	}
	if err == nil || !strings.Contains(err.Error(), "has taken nothing for too long") {
		t.Errorf("the backup ended with %v", err)
	}
}

// Few compare hashes at the same time: each asks the workers very often.
func TestManyHashes(t *testing.T) {
	s := start(t, "")
	s.submit("a")
	ctx, cancel := within(t)
	defer cancel()
	waiting, leave := context.WithCancel(ctx)
	left := make(chan error, 4)
	for range 4 {
		go func() {
			for {
				_, err := s.clients[1].Hash(waiting, &adminv1.HashRequest{Shard: 1, At: 1 << 40})
				if admin.Detail(err).GetCode() != "overloaded" { // by what asks below
					left <- err
					return
				}
			}
		}()
	}
	more := func(until func(error) bool) {
		t.Helper()
		for {
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			_, err := s.clients[1].Hash(short, &adminv1.HashRequest{Shard: 1, At: 1 << 40})
			cancel()
			if until(err) {
				return
			} else if ctx.Err() != nil {
				t.Fatalf("the last ended with %v", err)
			}
		}
	}
	more(func(err error) bool { return admin.Detail(err).GetCode() == "overloaded" })
	leave()
	for range 4 {
		if err := <-left; status.Code(err) != codes.Canceled {
			t.Error(err)
		}
	}
	more(func(err error) bool { return admin.Detail(err).GetCode() != "overloaded" })
}
