// Package client calls a ledger: Local by way of anything that has commands decided, and Remote by way of proxies, wherever the leader is. Both have
// the same methods.
package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	ledgerv1 "github.com/decree-raft/decree/api/ledger/v1"
	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// ShardID is the one shard that the ledger runs on.
const ShardID rsm.ShardID = 1

// closePatience bounds giving the session back: without that, it expires.
const closePatience = time.Second

// Remote calls a ledger through its proxies: those within its nodes, at their addresses for the ledger, or others. It keeps one connection, and goes on
// with another address when that breaks. Each command is booked once, however often it was sent: see package proxy/client. Any number of goroutines may use one Remote.
//
// A call ends at its context's deadline, or after a minute without one. An error that is rsm.ErrNotProposed says that nothing was booked. After an
// rsm.ErrUnknown, send the same ids again.
type Remote struct {
	Local
	client *client.Client
	shard  *client.Shard
}

// Dial returns a Remote over the addresses (host:port) of proxies, all or some. It does not wait for a connection: calls do.
func Dial(addresses ...string) (*Remote, error) { return DialWith(client.Options{}, addresses...) }

// DialWith is Dial over TLS, or with a token, as the options say.
func DialWith(o client.Options, addresses ...string) (*Remote, error) {
	c, err := client.Dial(addresses, o)
	if err != nil {
		return nil, err
	}
	s := c.Shard(ShardID)
	return &Remote{Local{s}, c, s}, nil
}

// Close gives the session back, and closes the connection. Calls under way end.
func (c *Remote) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	_ = c.shard.Close(ctx) // nobody may be there any more, and then it expires
	c.client.Close()
	return nil
}

// Audit audits the replica of the node at an address: its own for the ledger, as a proxy has none. Of the options it takes TLS and Credentials.
func Audit(ctx context.Context, address string, o client.Options) (_ *ledgerv1.AuditResponse, err error) {
	conn, err := grpc.NewClient(address, append(access.DialOptions(o.TLS, o.Credentials), grpc.WithNoProxy())...)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return ledgerv1.NewLedgerServiceClient(conn).Audit(ctx, new(ledgerv1.AuditRequest))
}

func checkCount(outcomes, items int) error {
	if outcomes != items {
		return &rsm.Error{Kind: rsm.ErrUnknown, Code: "bad_answer", Message: fmt.Sprintf("%d outcomes for %d items", outcomes, items)}
	}
	return nil
}

func allAccounts(prefix string, list func(*ledgerv1.ListAccountsRequest) (*ledgerv1.ListAccountsResponse, error)) ([]book.AccountState, error) {
	m := &ledgerv1.ListAccountsRequest{NamePrefix: prefix, PageSize: book.MaxPage}
	var accounts []book.AccountState
	for {
		page, err := list(m)
		if err != nil {
			return nil, err
		}
		for _, a := range page.GetAccounts() {
			state, err := book.AccountStateFromProto(a)
			if err != nil {
				return nil, fmt.Errorf("the answer does not parse: %w", err)
			}
			accounts = append(accounts, state)
		}
		if m.PageToken = page.GetNextPageToken(); len(m.PageToken) == 0 {
			return accounts, nil
		}
	}
}
