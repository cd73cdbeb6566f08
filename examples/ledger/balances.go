package main

import (
	"context"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/hledger"
)

func runBalances(ctx context.Context, c console, args []string) error {
	f := newFlags(c, "balances", "\n\nShows each account as it stands. Accounts are read a thousand at a time: above that, each thousand is as of its own moment,\nso that while entries are booked the sums may not be those of any one.")
	servers := bindServers(f)
	prefix := f.String("prefix", "", "only accounts whose name begins with this")
	format := f.String("O", "table", "`format`: table, or csv as `hledger balance --flat -N --layout=bare -O csv` writes it")
	all := f.Bool("all", false, "in the table, show accounts with nothing on them too")
	timeout := f.Duration("timeout", time.Minute, "for the whole command")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if *format != "table" && *format != "csv" {
		fmt.Fprintf(c.err, "-O is %q, not table or csv\n", *format)
		return errUsage
	}
	from, err := servers.dial()
	if err != nil {
		return err
	}
	defer from.Close()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	accounts, err := from.Accounts(ctx, *prefix)
	if err != nil {
		return err
	}
	if *format == "csv" {
		return hledger.WriteBalances(c.out, balancesOf(accounts))
	}
	return writeTable(c, accounts, *all)
}

func balancesOf(accounts []book.AccountState) []hledger.Balance {
	balances := make([]hledger.Balance, len(accounts))
	for i, a := range accounts {
		balances[i] = hledger.Balance{Account: displayName(a), Commodity: a.Asset, Net: a.Net(), Scale: a.Scale}
	}
	return balances
}

// displayName is what an account without a name is called.
func displayName(a book.AccountState) string {
	if a.Name == "" {
		return a.ID.String()
	}
	return a.Name
}

// writeTable shows what is posted, and what is pending on either side.
func writeTable(c console, accounts []book.AccountState, all bool) error {
	// By account, not by name: two accounts may have the same.
	type line struct {
		hledger.Balance
		debits, credits book.Net // pending
	}
	var lines []line
	for i, b := range balancesOf(accounts) {
		lines = append(lines, line{b, book.Net{Magnitude: accounts[i].DebitsPending}, book.Net{Magnitude: accounts[i].CreditsPending}})
	}
	slices.SortStableFunc(lines, func(a, b line) int { return hledger.CompareBalances(a.Balance, b.Balance) })
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "account\tcommodity\tbalance\tpending debits\tpending credits")
	for _, l := range lines {
		if !all && l.Net.Magnitude.IsZero() && l.debits.Magnitude.IsZero() && l.credits.Magnitude.IsZero() {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Account, l.Commodity, l.Balance, orBlank(l.debits, l.Scale), orBlank(l.credits, l.Scale))
	}
	return w.Flush()
}

func orBlank(n book.Net, scale uint8) string {
	if n.Magnitude.IsZero() {
		return ""
	}
	return book.FormatScaled(n, scale)
}
