package book

import (
	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/rsm"
)

// Pages of a listing or a statement.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// Query answers a ledgerv1.Query with the ledgerv1.Answer of the same kind.
// Queries are protobuf, unlike commands and events: they are not on the path where a microsecond counts.
func (Machine) Query(v rsm.View, query []byte) (answer []byte, err error) {
	q, a := new(ledgerv1.Query), new(ledgerv1.Answer)
	if err := proto.Unmarshal(query, q); err != nil {
		return nil, rsm.Reject(CodeBadQuery, "not a ledger.v1.Query: %v", err)
	}
	switch q := q.GetQuery().(type) {
	case *ledgerv1.Query_GetAccounts:
		m, err := getAccounts(v, q.GetAccounts)
		if err != nil {
			return nil, err
		}
		a.Answer = &ledgerv1.Answer_GetAccounts{GetAccounts: m}
	case *ledgerv1.Query_ListAccounts:
		m, err := listAccounts(v, q.ListAccounts)
		if err != nil {
			return nil, err
		}
		a.Answer = &ledgerv1.Answer_ListAccounts{ListAccounts: m}
	case *ledgerv1.Query_GetEntries:
		m, err := getEntries(v, q.GetEntries)
		if err != nil {
			return nil, err
		}
		a.Answer = &ledgerv1.Answer_GetEntries{GetEntries: m}
	case *ledgerv1.Query_GetStatement:
		m, err := getStatement(v, q.GetStatement)
		if err != nil {
			return nil, err
		}
		a.Answer = &ledgerv1.Answer_GetStatement{GetStatement: m}
	case *ledgerv1.Query_Due:
		at, _ := NextExpiry(v)
		a.Answer = &ledgerv1.Answer_Due{Due: &ledgerv1.DueResponse{NextExpiry: int64(at)}}
	default:
		return nil, rsm.Reject(CodeBadQuery, "the query asks for nothing that this version knows")
	}
	return proto.Marshal(a)
}

func getAccounts(v rsm.View, q *ledgerv1.GetAccountsRequest) (*ledgerv1.GetAccountsResponse, error) {
	ids, err := parseIDs(q.GetIds())
	if err != nil {
		return nil, err
	}
	m := new(ledgerv1.GetAccountsResponse)
	for _, id := range ids {
		if a, ok := LookupAccount(v, id); ok {
			m.Accounts = append(m.Accounts, a.Proto())
		}
	}
	return m, nil
}

func listAccounts(v rsm.View, q *ledgerv1.ListAccountsRequest) (*ledgerv1.ListAccountsResponse, error) {
	limit, err := pageSize(q.GetPageSize())
	if err != nil {
		return nil, err
	}
	accounts, next := ListAccounts(v, q.GetNamePrefix(), q.GetPageToken(), limit)
	m := &ledgerv1.ListAccountsResponse{NextPageToken: next}
	for i := range accounts {
		m.Accounts = append(m.Accounts, accounts[i].Proto())
	}
	return m, nil
}

func getEntries(v rsm.View, q *ledgerv1.GetEntriesRequest) (*ledgerv1.GetEntriesResponse, error) {
	ids, err := parseIDs(q.GetIds())
	if err != nil {
		return nil, err
	}
	m := new(ledgerv1.GetEntriesResponse)
	for _, id := range ids {
		if e, ok := LookupEntry(v, id); ok {
			m.Entries = append(m.Entries, e.Proto())
		}
	}
	return m, nil
}

func getStatement(v rsm.View, q *ledgerv1.GetStatementRequest) (*ledgerv1.GetStatementResponse, error) {
	limit, err := pageSize(q.GetPageSize())
	if err != nil {
		return nil, err
	}
	id, err := ParseID(q.GetAccount())
	if err != nil {
		return nil, rsm.Reject(CodeBadQuery, "%v", err)
	}
	account, ok := LookupAccount(v, id)
	if !ok {
		return nil, rsm.Reject(CodeAccountNotFound, "there is no account %v", id)
	}
	m := &ledgerv1.GetStatementResponse{Account: account.Proto()}
	rows := Statement(v, id, q.GetAfter(), limit)
	for i := range rows {
		m.Rows = append(m.Rows, rows[i].Proto())
	}
	if n := len(rows); n > 0 && rows[n-1].Number < account.Rows {
		m.NextAfter = rows[n-1].Number
	}
	return m, nil
}

func parseIDs(names []string) ([]ID, error) {
	if len(names) > MaxPage {
		return nil, rsm.Reject(CodeBadQuery, "%d ids; at most %d are looked up at once", len(names), MaxPage)
	}
	ids := make([]ID, len(names))
	for i, name := range names {
		var err error
		if ids[i], err = ParseID(name); err != nil {
			return nil, rsm.Reject(CodeBadQuery, "%v", err)
		}
	}
	return ids, nil
}

func pageSize(asked uint32) (int, error) {
	switch {
	case asked == 0:
		return DefaultPage, nil
	case asked > MaxPage:
		return 0, rsm.Reject(CodeBadQuery, "a page holds at most %d, not %d", MaxPage, asked)
	}
	return int(asked), nil
}
