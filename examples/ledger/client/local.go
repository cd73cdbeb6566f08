package client

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/rsm"
)

// Local calls a ledger by way of what has its commands decided and its queries answered: an *rsm.Client, a *client.Shard of proxy/client, or an
// *rsm.Shard that leads.
type Local struct{ To rsm.Submitter }

// CreateAccounts opens accounts in one command. See book.Machine for the outcomes.
func (c Local) CreateAccounts(ctx context.Context, accounts ...book.Account) ([]book.Outcome, error) {
	command, err := book.AppendCreateAccounts(nil, accounts...)
	if err != nil {
		return nil, err
	}
	return c.submit(ctx, rsm.Request{Commands: [][]byte{command}}, len(accounts))
}

// PostEntries records entries in one command. See book.Machine for the outcomes. A command of posts and voids alone is taken even when disks are low.
func (c Local) PostEntries(ctx context.Context, entries ...book.Entry) ([]book.Outcome, error) {
	command, err := book.AppendPostEntries(nil, entries...)
	if err != nil {
		return nil, err
	}
	return c.submit(ctx, rsm.Request{Commands: [][]byte{command}, MakesRoom: book.MakesRoom(entries...)}, len(entries))
}

func (c Local) submit(ctx context.Context, r rsm.Request, items int) ([]book.Outcome, error) {
	result, err := c.To.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	reply, err := book.ParseReply(result.Replies[0])
	if err == nil {
		err = checkCount(len(reply.Outcomes), items)
	}
	return reply.Outcomes, err
}

// Accounts returns all accounts whose name begins with prefix.
func (c Local) Accounts(ctx context.Context, prefix string) ([]book.AccountState, error) {
	return allAccounts(prefix, func(m *ledgerv1.ListAccountsRequest) (*ledgerv1.ListAccountsResponse, error) {
		q, err := proto.Marshal(&ledgerv1.Query{Query: &ledgerv1.Query_ListAccounts{ListAccounts: m}})
		if err != nil {
			return nil, err
		}
		data, err := c.To.Read(ctx, rsm.Linearizable, q)
		if err != nil {
			return nil, err
		}
		a := new(ledgerv1.Answer)
		if err := proto.Unmarshal(data, a); err != nil {
			return nil, fmt.Errorf("the answer does not parse: %w", err)
		}
		return a.GetListAccounts(), nil
	})
}
