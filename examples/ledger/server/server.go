// Package server serves the ledger over gRPC and HTTP/JSON: on a node of the cluster, or in a proxy that has none.
//
// It holds no state of its own: it turns messages into commands and queries, which it has answered wherever the leader is,
// and outcomes back into messages. Any number of calls run at the same time.
package server

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// Shard is what the server needs to have the ledger read and written, wherever its leader is; *proxy.Shard is one.
type Shard interface {
	Do(ctx context.Context, r rsm.Request) (rsm.Result, error)
	Read(ctx context.Context, level rsm.Level, query []byte) (answer []byte, err error)
	OpenSession(ctx context.Context) (rsm.SessionID, error)
}

// Replica is a node's own part of the shard that runs book.Machine; *rsm.Shard is one.
type Replica interface {
	Do(ctx context.Context, r rsm.Request) (rsm.Result, error)
	Read(ctx context.Context, level rsm.Level, query []byte) (answer []byte, err error)
	Audit(f func(rsm.View) error) (at rsm.Index, hash uint64, err error)
	Status() (rsm.ShardStatus, error)
	Leader() rsm.NodeID
}

// Submitter has commands decided exactly once, in a session of its own; *client.Shard of proxy/client is one.
type Submitter interface {
	Do(ctx context.Context, r rsm.Request) (rsm.Result, error)
}

var (
	_ Shard     = (*proxy.Shard)(nil)
	_ Replica   = (*rsm.Shard)(nil)
	_ Submitter = (*client.Shard)(nil)
)

// Config configures a Server.
type Config struct {
	// Shard answers all calls but those about one replica. Required, unless only those are made.
	Shard Shard
	// Once, if set, gets the commands of requests without a session. Without it, one whose fate nobody knows, as when the leader
	// dies with it, is the client's to send again.
	Once Submitter
	// Node is this node, and Replica its own. In a proxy there is none, and calls about it are refused.
	Node    rsm.NodeID
	Replica Replica
	// API are the addresses at which each node serves gRPC, this one included: GetStatus names the leader's. It may be nil.
	API    map[rsm.NodeID]string
	Logger *slog.Logger // default: none
	// MaxSubmits is how many requests that write may be at work at once; more are refused as overloaded. A client gets no more of them than it leaves to others:
	// half if it is alone. Requests of posts and voids alone, which make room, have an eighth besides, shared likewise. Default 1024.
	MaxSubmits int
}

// Server implements the public service.
type Server struct {
	ledgerv1.UnimplementedLedgerServiceServer
	cfg    Config
	slots  *slots        // one for each request that writes
	audit  chan struct{} // one for an audit, which reads everything and keeps hundreds of bytes for each account
	parse  chan struct{} // one for each body that is parsed: JSON takes many times its size
	bodies bodies
}

// New returns a server.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxSubmits <= 0 {
		cfg.MaxSubmits = 1024
	}
	return &Server{cfg: cfg, slots: newSlots(cfg.MaxSubmits), audit: make(chan struct{}, 1), parse: make(chan struct{}, maxParsing), bodies: bodies{bytes: newPool(maxBodies)}}
}

// Register offers the service on a gRPC server whose port is for other services as well: requests over MaxBodyBytes are refused before they are taken apart,
// which may need a hundred times their size.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	desc := ledgerv1.LedgerService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i, m := range desc.Methods {
		desc.Methods[i].Handler = func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			return m.Handler(srv, ctx, func(v any) error { return s.decode(decode, v.(proto.Message)) }, interceptor)
		}
	}
	r.RegisterService(&desc, s)
}

// RoleOf returns the role that a method of the service takes.
func RoleOf(method string) access.Role {
	switch method {
	case ledgerv1.LedgerService_GetAccounts_FullMethodName, ledgerv1.LedgerService_ListAccounts_FullMethodName, ledgerv1.LedgerService_GetEntries_FullMethodName,
		ledgerv1.LedgerService_GetStatement_FullMethodName, ledgerv1.LedgerService_Audit_FullMethodName, ledgerv1.LedgerService_GetStatus_FullMethodName:
		return access.Read
	case ledgerv1.LedgerService_OpenSession_FullMethodName, ledgerv1.LedgerService_CreateAccounts_FullMethodName, ledgerv1.LedgerService_PostEntries_FullMethodName:
		return access.Write
	}
	return access.Admin
}

// decode reads a message if it is not too large.
func (s *Server) decode(decode func(any) error, m proto.Message) error {
	whole := new(emptypb.Empty) // all fields are unknown to it, and it keeps them as they are
	if err := decode(whole); err != nil {
		return err
	}
	data := whole.ProtoReflect().GetUnknown()
	if len(data) > MaxBodyBytes {
		return s.status(&rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeCommandTooLarge, Message: fmt.Sprintf("the request has %d bytes: at most %d", len(data), MaxBodyBytes)})
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return s.status(badRequest("the request does not parse: %v", err))
	}
	return nil
}

// OpenSession opens an exactly-once window.
func (s *Server) OpenSession(ctx context.Context, _ *ledgerv1.OpenSessionRequest) (*ledgerv1.OpenSessionResponse, error) {
	id, err := s.cfg.Shard.OpenSession(ctx)
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.OpenSessionResponse{Id: uint64(id)}, nil
}

// CreateAccounts submits the accounts as one command.
func (s *Server) CreateAccounts(ctx context.Context, m *ledgerv1.CreateAccountsRequest) (*ledgerv1.CreateAccountsResponse, error) {
	done, err := s.admit(ctx, len(m.GetItems()), nil)
	if err != nil {
		return nil, s.status(err)
	}
	defer done()
	accounts := make([]book.Account, len(m.GetItems()))
	for i, item := range m.GetItems() {
		a, err := book.AccountFromProto(item.GetAccount())
		if err != nil {
			return nil, s.status(badRequest("item %d: %v", i, err))
		}
		a.Linked = item.GetLinked()
		accounts[i] = a
	}
	command, err := book.AppendCreateAccounts(nil, accounts...)
	if err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	reply, err := s.submit(ctx, rsm.Request{Commands: [][]byte{command}}, m.GetSession())
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.CreateAccountsResponse{Results: reply.ResultsProto(), Time: int64(reply.Time)}, nil
}

// PostEntries submits the entries as one command.
func (s *Server) PostEntries(ctx context.Context, m *ledgerv1.PostEntriesRequest) (*ledgerv1.PostEntriesResponse, error) {
	done, err := s.admit(ctx, len(m.GetEntries()), m.GetEntries())
	if err != nil {
		return nil, s.status(err)
	}
	defer done()
	entries := make([]book.Entry, len(m.GetEntries()))
	for i, item := range m.GetEntries() {
		e, err := book.EntryFromProto(item)
		if err != nil {
			return nil, s.status(badRequest("entry %d: %v", i, err))
		}
		entries[i] = e
	}
	command, err := book.AppendPostEntries(nil, entries...)
	if err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	reply, err := s.submit(ctx, rsm.Request{Commands: [][]byte{command}, MakesRoom: book.MakesRoom(entries...)}, m.GetSession())
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.PostEntriesResponse{Results: reply.ResultsProto(), Time: int64(reply.Time)}, nil
}

// admit takes a request of some items in, if that many may be and there is a slot for its client. Of the items only entries may make room, and get
// a slot that is kept for such. It is asked before anything is made of the items: an empty one takes 2 bytes of a message, and a hundred times that as an entry.
func (s *Server) admit(ctx context.Context, items int, entries []*ledgerv1.Entry) (done func(), err error) {
	if items < 1 || items > book.MaxBatch {
		return nil, badRequest("%d items; a request holds 1 to %d", items, book.MaxBatch)
	}
	return s.slots.take(clientOf(ctx), len(entries) > 0 && makesRoom(entries))
}

func (s *Server) submit(ctx context.Context, r rsm.Request, session *ledgerv1.Session) (book.Reply, error) {
	do := s.cfg.Shard.Do
	if session == nil && s.cfg.Once != nil {
		do = s.cfg.Once.Do
	}
	r.Session, r.Sequence, r.Acknowledged = rsm.SessionID(session.GetId()), session.GetSequence(), session.GetAcknowledged()
	result, err := do(ctx, r)
	if err != nil {
		return book.Reply{}, err
	}
	return book.ParseReply(result.Replies[0])
}

// GetAccounts looks up accounts.
func (s *Server) GetAccounts(ctx context.Context, m *ledgerv1.GetAccountsRequest) (*ledgerv1.GetAccountsResponse, error) {
	a, err := s.query(ctx, m.GetConsistency(), &ledgerv1.Query{Query: &ledgerv1.Query_GetAccounts{GetAccounts: m}})
	return a.GetGetAccounts(), err
}

// ListAccounts pages through accounts by name.
func (s *Server) ListAccounts(ctx context.Context, m *ledgerv1.ListAccountsRequest) (*ledgerv1.ListAccountsResponse, error) {
	a, err := s.query(ctx, m.GetConsistency(), &ledgerv1.Query{Query: &ledgerv1.Query_ListAccounts{ListAccounts: m}})
	return a.GetListAccounts(), err
}

// GetEntries looks up entries.
func (s *Server) GetEntries(ctx context.Context, m *ledgerv1.GetEntriesRequest) (*ledgerv1.GetEntriesResponse, error) {
	a, err := s.query(ctx, m.GetConsistency(), &ledgerv1.Query{Query: &ledgerv1.Query_GetEntries{GetEntries: m}})
	return a.GetGetEntries(), err
}

// GetStatement pages through an account's statement.
func (s *Server) GetStatement(ctx context.Context, m *ledgerv1.GetStatementRequest) (*ledgerv1.GetStatementResponse, error) {
	a, err := s.query(ctx, m.GetConsistency(), &ledgerv1.Query{Query: &ledgerv1.Query_GetStatement{GetStatement: m}})
	return a.GetGetStatement(), err
}

// query asks the machine: whoever leads, or, for a stale answer, this node, if there is one.
func (s *Server) query(ctx context.Context, c ledgerv1.Consistency, q *ledgerv1.Query) (*ledgerv1.Answer, error) {
	level, read := rsm.Linearizable, s.cfg.Shard.Read
	switch {
	case c == ledgerv1.Consistency_CONSISTENCY_STALE:
		level = rsm.Stale
		if s.cfg.Replica != nil {
			read = s.cfg.Replica.Read
		}
	case c > ledgerv1.Consistency_CONSISTENCY_STALE || c < 0:
		return nil, s.status(badRequest("unknown consistency %d", c))
	}
	data, err := proto.Marshal(q)
	if err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	if data, err = read(ctx, level, data); err != nil {
		return nil, s.status(err)
	}
	a := new(ledgerv1.Answer)
	if err := proto.Unmarshal(data, a); err != nil {
		return nil, s.status(fmt.Errorf("the machine's answer does not parse: %w", err))
	}
	return a, nil
}

// Audit checks every invariant of this node's replica, for one caller at a time, and until ctx ends.
func (s *Server) Audit(ctx context.Context, _ *ledgerv1.AuditRequest) (*ledgerv1.AuditResponse, error) {
	if s.cfg.Replica == nil {
		return nil, s.status(errNoReplica)
	}
	select {
	case s.audit <- struct{}{}:
		defer func() { <-s.audit }()
	default:
		return nil, s.status(&rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeOverloaded, RetryAfter: time.Second, Message: "an audit of this node is under way already"})
	}
	var report *book.Report
	at, hash, err := s.cfg.Replica.Audit(func(v rsm.View) (err error) {
		report, err = book.Audit(ctx, v)
		return err
	})
	if err != nil {
		return nil, s.status(err)
	}
	st, err := s.cfg.Replica.Status() // the version only rises: what was in the view was allowed by one up to this
	if err != nil {
		return nil, s.status(err)
	}
	report.UnderVersion(st.Version)
	m := report.Proto()
	m.Node, m.Applied, m.StateHash = uint64(s.cfg.Node), uint64(at), FormatHash(hash)
	return m, nil
}

// FormatHash writes a state hash as all of the ledger's output shows it.
func FormatHash(hash uint64) string { return fmt.Sprintf("%016x", hash) }

// GetStatus says how this node stands.
func (s *Server) GetStatus(context.Context, *ledgerv1.GetStatusRequest) (*ledgerv1.GetStatusResponse, error) {
	if s.cfg.Replica == nil {
		return nil, s.status(errNoReplica)
	}
	st, err := s.cfg.Replica.Status()
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.GetStatusResponse{
		Node: uint64(s.cfg.Node), Leader: uint64(st.Leader), LeaderApi: s.cfg.API[st.Leader], Role: st.Role,
		Term: uint64(st.Term), Applied: uint64(st.Applied), StateHash: FormatHash(st.Hash), MachineVersion: st.Version,
	}, nil
}
