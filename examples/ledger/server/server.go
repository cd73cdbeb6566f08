// Package server serves one replica of the ledger over gRPC and HTTP/JSON.
//
// It holds no state of its own: it turns messages into commands and queries,
// and outcomes back into messages. Any number of calls run at the same time.
package server

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// Replica is what the server needs of the shard that runs book.Machine; *rsm.Shard is one.
type Replica interface {
	Do(ctx context.Context, r rsm.Request) (rsm.Result, error)
	Read(ctx context.Context, level rsm.Level, query []byte) (answer []byte, err error)
	OpenSession(ctx context.Context) (rsm.SessionID, error)
	Audit(f func(rsm.View) error) (at rsm.Index, hash uint64, err error)
	Status() (rsm.ShardStatus, error)
	Leader() rsm.NodeID
}

var _ Replica = (*rsm.Shard)(nil)

// Config configures a Server.
type Config struct {
	Node    rsm.NodeID
	Replica Replica
	// API and HTTP are the addresses at which each node serves gRPC and HTTP, this one included.
	// They are hints for clients, to find the leader. Either may be nil.
	API, HTTP map[rsm.NodeID]string
	Logger    *slog.Logger // default: none
	// MaxSubmits is how many requests that write may be at work at once; more are refused as overloaded. Default 1024.
	MaxSubmits int
}

// Server implements the public service.
type Server struct {
	ledgerv1.UnimplementedLedgerServiceServer
	cfg   Config
	slots chan struct{} // one for each request that writes
	parse chan struct{} // one for each body that is parsed: JSON takes many times its size
}

// New returns a server of a replica.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxSubmits <= 0 {
		cfg.MaxSubmits = 1024
	}
	return &Server{cfg: cfg, slots: make(chan struct{}, cfg.MaxSubmits), parse: make(chan struct{}, maxParsing)}
}

// OpenSession opens an exactly-once window on the leader.
func (s *Server) OpenSession(ctx context.Context, _ *ledgerv1.OpenSessionRequest) (*ledgerv1.OpenSessionResponse, error) {
	id, err := s.cfg.Replica.OpenSession(ctx)
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.OpenSessionResponse{Id: uint64(id)}, nil
}

// CreateAccounts submits the accounts as one command.
func (s *Server) CreateAccounts(ctx context.Context, m *ledgerv1.CreateAccountsRequest) (*ledgerv1.CreateAccountsResponse, error) {
	done, err := s.admit(len(m.GetItems()))
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
	reply, err := s.submit(ctx, command, m.GetSession())
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.CreateAccountsResponse{Results: reply.ResultsProto(), Time: int64(reply.Time)}, nil
}

// PostEntries submits the entries as one command.
func (s *Server) PostEntries(ctx context.Context, m *ledgerv1.PostEntriesRequest) (*ledgerv1.PostEntriesResponse, error) {
	done, err := s.admit(len(m.GetEntries()))
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
	reply, err := s.submit(ctx, command, m.GetSession())
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.PostEntriesResponse{Results: reply.ResultsProto(), Time: int64(reply.Time)}, nil
}

// admit takes a request of some items in, if that many may be and there is room. It is asked before anything is
// made of the items: an empty one takes 2 bytes of a message, and a hundred times that as an entry.
func (s *Server) admit(items int) (done func(), err error) {
	if items < 1 || items > book.MaxBatch {
		return nil, badRequest("%d items; a request holds 1 to %d", items, book.MaxBatch)
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	default:
		return nil, &rsm.Error{Kind: rsm.ErrNotProposed, Code: codeOverloaded, RetryAfter: 50 * time.Millisecond,
			Message: fmt.Sprintf("%d requests are at work on this node already", cap(s.slots))}
	}
}

func (s *Server) submit(ctx context.Context, command []byte, session *ledgerv1.Session) (book.Reply, error) {
	result, err := s.cfg.Replica.Do(ctx, rsm.Request{
		Commands: [][]byte{command},
		Session:  rsm.SessionID(session.GetId()), Sequence: session.GetSequence(), Acknowledged: session.GetAcknowledged(),
	})
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

// query asks the machine. A follower answers linearizable queries as well, for one more round trip.
func (s *Server) query(ctx context.Context, c ledgerv1.Consistency, q *ledgerv1.Query) (*ledgerv1.Answer, error) {
	level := rsm.Linearizable
	switch {
	case c == ledgerv1.Consistency_CONSISTENCY_STALE:
		level = rsm.Stale
	case c > ledgerv1.Consistency_CONSISTENCY_STALE || c < 0:
		return nil, s.status(badRequest("unknown consistency %d", c))
	case s.cfg.Replica.Leader() != s.cfg.Node:
		level = rsm.ReadIndex
	}
	data, err := proto.Marshal(q)
	if err != nil {
		return nil, s.status(badRequest("%v", err))
	}
	if data, err = s.cfg.Replica.Read(ctx, level, data); err != nil {
		return nil, s.status(err)
	}
	a := new(ledgerv1.Answer)
	if err := proto.Unmarshal(data, a); err != nil {
		return nil, s.status(fmt.Errorf("the machine's answer does not parse: %w", err))
	}
	return a, nil
}

// Audit checks every invariant of this node's replica.
func (s *Server) Audit(_ context.Context, _ *ledgerv1.AuditRequest) (*ledgerv1.AuditResponse, error) {
	var report *book.Report
	at, hash, err := s.cfg.Replica.Audit(func(v rsm.View) error {
		report = book.Audit(v)
		return nil
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
	st, err := s.cfg.Replica.Status()
	if err != nil {
		return nil, s.status(err)
	}
	return &ledgerv1.GetStatusResponse{
		Node: uint64(s.cfg.Node), Leader: uint64(st.Leader), LeaderApi: s.cfg.API[st.Leader], Role: st.Role,
		Term: uint64(st.Term), Applied: uint64(st.Applied), StateHash: FormatHash(st.Hash), MachineVersion: st.Version,
	}, nil
}
