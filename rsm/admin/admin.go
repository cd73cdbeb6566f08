package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	adminv1 "github.com/decree-raft/decree/api/decree/admin/v1"
	"github.com/decree-raft/decree/internal/guard"
	"github.com/decree-raft/decree/internal/limitlog"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/rsm"
)

// Register offers the admin service of a node on a gRPC server, before that is started.
func Register(n *rsm.Node, r grpc.ServiceRegistrar) {
	adminv1.RegisterAdminServiceServer(r, &service{node: n, hashing: make(chan struct{}, maxHashes)})
}

// Server serves the admin service of one node on a port of its own.
type Server struct {
	guard *guard.Guard
	grpc  *grpc.Server
}

// Limits of a Server: operators are few.
const (
	maxRequestBytes = 64 << 10
	maxStreams      = 64
	maxHeaderBytes  = 16 << 10
	maxConns        = 256
	maxConnsPerHost = 128
	portName        = "the admin port"
	window          = maxRequestBytes // of what is not read yet
	// MinKeepalive is how often clients may ask whether a Server is there: a follower of the journal wants to know.
	MinKeepalive = 10 * time.Second
)

// maxIdle is how long a connection may have no call on it: who wants to call again connects again. Tests have less.
var maxIdle = time.Minute

// Listen is Serve with mutual TLS: only clients with a certificate of the same authorities get in, and may do everything. Without
// certs it listens on this machine's loopback addresses only.
func Listen(n *rsm.Node, address string, certs *rsm.TLS) (*Server, error) {
	var port access.Port
	if certs != nil {
		c, err := serverTLS(certs)
		if err != nil {
			return nil, err
		}
		c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return serverTLS(certs) }
		port.TLS = c
	}
	return Serve(n, address, port)
}

// Serve serves the admin service of n on address (host:port; port 0: any) until Close. port says who gets in, and RoleOf which
// role a call takes; access.Listen says what it refuses to listen on. The port's policy logs what is refused.
func Serve(n *rsm.Node, address string, port access.Port) (*Server, error) {
	l, err := access.Listen(address, port)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	log := limitlog.New(nil)
	if port.Policy != nil {
		log = limitlog.New(port.Policy.Log)
	}
	var config func() (*tls.Config, error)
	if port.TLS != nil {
		config = func() (*tls.Config, error) { return port.TLS, nil }
	}
	door := guard.New(l, guard.Config{
		Port: portName, Clients: "its clients", Answer: "this is a Decree admin port: it speaks gRPC with the command decree\n",
		TLS: port.TLS != nil, MaxConns: maxConns, MaxPerHost: maxConnsPerHost, Strangers: port.Strangers(), Log: log,
	})
	s := &Server{guard: door, grpc: grpc.NewServer(grpc.Creds(guard.Credentials(config, portName, log)), grpc.ConnectionTimeout(guard.DefaultTimeout),
		grpc.MaxRecvMsgSize(maxRequestBytes), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(4*window),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: time.Minute, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: MinKeepalive / 2, PermitWithoutStream: true}))}
	Register(n, door.Registrar(port.Policy.Registrar(s.grpc, RoleOf)))
	go func() { _ = s.grpc.Serve(s.guard) }() // ends with Close
	return s, nil
}

// serverTLS is asked for every connection: certificates may be replaced meanwhile.
func serverTLS(certs *rsm.TLS) (*tls.Config, error) {
	c, err := certs.Server()
	if err != nil {
		return nil, fmt.Errorf("admin: TLS: %w", err)
	}
	if c == nil || c.ClientAuth != tls.RequireAndVerifyClientCert || c.ClientCAs == nil {
		return nil, errors.New("admin: TLS: the server's configuration must require and verify the client's certificate, against authorities of its own")
	}
	c = c.Clone()
	c.NextProtos = []string{"h2"}
	return c, nil
}

// Addr returns the host:port that is listened on.
func (s *Server) Addr() string { return s.guard.Addr().String() }

// Close ends all calls and returns when they have ended.
func (s *Server) Close() {
	_ = s.guard.Close() // first: Stop waits for handshakes
	s.grpc.Stop()
}

// service is the admin service of one node.
type service struct {
	adminv1.UnimplementedAdminServiceServer
	node    *rsm.Node
	hashing chan struct{} // has one for each Hash that is under way
}

// fail makes err the error of a call. It adds where the leader is found, if it is known.
func (s *service) fail(shard *rsm.Shard, err error) error {
	d := detailOf(err)
	if shard != nil && d.GetLeader() != 0 {
		if m, e := shard.Members(); e == nil {
			for _, m := range m.List {
				if uint64(m.Node) == d.GetLeader() {
					d.LeaderAddress = utf8(m.Address)
				}
			}
		}
	}
	return statusOf(d, err)
}

// shard returns the replica that a request is about.
func (s *service) shard(id uint64) (*rsm.Shard, error) {
	if id == 0 {
		return nil, s.fail(nil, notProposed(rsm.CodeBadRequest, "the request names no shard: ids start at 1"))
	}
	sh := s.node.Shard(rsm.ShardID(id))
	if sh == nil {
		return nil, s.fail(nil, notProposed(rsm.CodeNoShard, "node %d hosts no shard %d", s.node.ID(), id))
	}
	return sh, nil
}

// change runs a change that names a shard and nodes.
func (s *service) change(shard uint64, nodes []uint64, f func(*rsm.Shard) error) error {
	sh, err := s.shard(shard)
	if err != nil {
		return err
	}
	for _, id := range nodes {
		if id == 0 {
			return s.fail(nil, notProposed(rsm.CodeBadRequest, "the request does not name every node that it needs: ids start at 1"))
		}
	}
	if err := f(sh); err != nil {
		return s.fail(sh, err)
	}
	return nil
}

func (s *service) AddLearner(ctx context.Context, r *adminv1.AddLearnerRequest) (*adminv1.AddLearnerResponse, error) {
	return &adminv1.AddLearnerResponse{}, s.change(r.GetShard(), []uint64{r.GetNode()}, func(sh *rsm.Shard) error {
		if err := checkAddress(r.GetAddress()); err != nil {
			return err
		}
		return sh.AddLearner(ctx, rsm.NodeID(r.GetNode()), r.GetAddress())
	})
}

func (s *service) Promote(ctx context.Context, r *adminv1.PromoteRequest) (*adminv1.PromoteResponse, error) {
	return &adminv1.PromoteResponse{}, s.change(r.GetShard(), []uint64{r.GetNode()}, func(sh *rsm.Shard) error {
		return sh.Promote(ctx, rsm.NodeID(r.GetNode()))
	})
}

func (s *service) Remove(ctx context.Context, r *adminv1.RemoveRequest) (*adminv1.RemoveResponse, error) {
	return &adminv1.RemoveResponse{}, s.change(r.GetShard(), []uint64{r.GetNode()}, func(sh *rsm.Shard) error {
		return sh.Remove(ctx, rsm.NodeID(r.GetNode()))
	})
}

func (s *service) Replace(ctx context.Context, r *adminv1.ReplaceRequest) (*adminv1.ReplaceResponse, error) {
	return &adminv1.ReplaceResponse{}, s.change(r.GetShard(), []uint64{r.GetOld(), r.GetLearner()}, func(sh *rsm.Shard) error {
		return sh.Replace(ctx, rsm.NodeID(r.GetOld()), rsm.NodeID(r.GetLearner()))
	})
}

func (s *service) SetAddress(ctx context.Context, r *adminv1.SetAddressRequest) (*adminv1.SetAddressResponse, error) {
	return &adminv1.SetAddressResponse{}, s.change(r.GetShard(), []uint64{r.GetNode()}, func(sh *rsm.Shard) error {
		if err := checkAddress(r.GetAddress()); err != nil {
			return err
		}
		return sh.SetAddress(ctx, rsm.NodeID(r.GetNode()), r.GetAddress())
	})
}

// checkAddress refuses what no node could be reached at: it would be replicated, and believed.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" {
		return notProposed(rsm.CodeBadRequest, "the address is %q: it has the form host:port", address)
	}
	return nil
}

func (s *service) Transfer(ctx context.Context, r *adminv1.TransferRequest) (*adminv1.TransferResponse, error) {
	return &adminv1.TransferResponse{}, s.change(r.GetShard(), []uint64{r.GetTo()}, func(sh *rsm.Shard) error {
		return sh.TransferLeadership(ctx, rsm.NodeID(r.GetTo()))
	})
}

// drainLook is how often Drain looks at what is left.
const drainLook = 50 * time.Millisecond

func (s *service) Drain(_ *adminv1.DrainRequest, stream grpc.ServerStreamingServer[adminv1.DrainResponse]) error {
	st, err := s.node.StatusContext(stream.Context())
	if err != nil {
		return s.fail(nil, err)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.node.Drain(ctx) }()
	look := time.NewTicker(drainLook)
	defer look.Stop()
	told := -1
	for {
		left := 0
		for _, sh := range st.Shards {
			if s.node.Shard(sh.Shard).Leader() == s.node.ID() {
				left++
			}
		}
		if left != told && left > 0 {
			told = left
			if err := stream.Send(&adminv1.DrainResponse{Leading: uint64(left)}); err != nil {
				return err
			}
		}
		select {
		case err := <-done:
			if err != nil {
				return s.fail(nil, err)
			}
			return stream.Send(&adminv1.DrainResponse{})
		case <-look.C:
		}
	}
}

func (s *service) CutSnapshot(ctx context.Context, r *adminv1.CutSnapshotRequest) (*adminv1.CutSnapshotResponse, error) {
	sh, err := s.shard(r.GetShard())
	if err != nil {
		return nil, err
	}
	info, err := sh.CutSnapshot(ctx, r.GetFresh())
	if err != nil {
		return nil, s.fail(sh, err)
	}
	return &adminv1.CutSnapshotResponse{Snapshot: snapshotOf(info)}, nil
}

// backupPiece is how much of a backup one message carries.
const backupPiece = 256 << 10

func (s *service) Backup(r *adminv1.BackupRequest, stream grpc.ServerStreamingServer[adminv1.BackupResponse]) error {
	o := rsm.BackupOptions{History: r.GetHistory(), BytesPerSecond: r.GetBytesPerSecond(), AtLeast: map[rsm.ShardID]rsm.Index{}}
	for _, id := range r.GetShards() {
		if _, err := s.shard(id); err != nil {
			return err
		}
		o.Shards = append(o.Shards, rsm.ShardID(id))
	}
	for id, index := range r.GetAtLeast() {
		o.AtLeast[rsm.ShardID(id)] = rsm.Index(index)
	}
	w := bufio.NewWriterSize(backupStream{stream}, backupPiece)
	_, err := s.node.Backup(stream.Context(), w, o)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return s.fail(nil, err)
	}
	return nil
}

// backupStream sends what is written to it.
type backupStream struct {
	stream grpc.ServerStreamingServer[adminv1.BackupResponse]
}

func (b backupStream) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), backupPiece)]
		if err := b.stream.Send(&adminv1.BackupResponse{Data: piece}); err != nil {
			return n, err
		}
		n += len(piece)
		p = p[len(piece):]
	}
	return n, nil
}

func (s *service) Repair(ctx context.Context, r *adminv1.RepairRequest) (*adminv1.RepairResponse, error) {
	return &adminv1.RepairResponse{}, s.change(r.GetShard(), nil, func(sh *rsm.Shard) error { return sh.Repair(ctx) })
}
