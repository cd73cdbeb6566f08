package hledger

import (
	"bufio"
	"cmp"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/decree-raft/decree/examples/ledger/book"
)

// Balance is what an account holds of a commodity.
type Balance struct {
	Account   string
	Commodity string
	Net       book.Net // positive is a debit balance
	Scale     uint8
}

// String is the amount, with all decimals of its commodity.
func (b Balance) String() string { return book.FormatScaled(b.Net, b.Scale) }

// topAccounts are the five kinds of account in the order of a balance report, told by their
// names as hledger does.
var topAccounts = []*regexp.Regexp{
	regexp.MustCompile(`(?i)^assets?(:|$)`),
	regexp.MustCompile(`(?i)^(debts?|liabilit(y|ies))(:|$)`),
	regexp.MustCompile(`(?i)^equity(:|$)`),
	regexp.MustCompile(`(?i)^(income|revenue)s?(:|$)`),
	regexp.MustCompile(`(?i)^expenses?(:|$)`),
}

func kindOf(account string) int {
	for i, r := range topAccounts {
		if r.MatchString(account) {
			return i
		}
	}
	return len(topAccounts)
}

// SortBalances puts balances in the order of a report: assets, liabilities, equity, income, expenses, others;
// then by the parts of the name; then by commodity.
func SortBalances(balances []Balance) { slices.SortFunc(balances, CompareBalances) }

// CompareBalances says which of two balances stands first in a report.
func CompareBalances(a, b Balance) int {
	return cmp.Or(
		cmp.Compare(kindOf(a.Account), kindOf(b.Account)),
		slices.Compare(strings.Split(a.Account, ":"), strings.Split(b.Account, ":")),
		cmp.Compare(a.Commodity, b.Commodity))
}

// WriteBalances writes what `hledger balance --flat -N --layout=bare -O csv`
// would: balances other than zero, sorted, every field in quotes.
func WriteBalances(w io.Writer, balances []Balance) error {
	balances = slices.Clone(balances)
	SortBalances(balances)
	b := bufio.NewWriter(w)
	writeRow(b, "account", "commodity", "balance")
	for _, x := range balances {
		if !x.Net.Magnitude.IsZero() {
			commodity := x.Commodity
			if commodity == NoCommodity {
				commodity = ""
			}
			writeRow(b, x.Account, commodity, x.String())
		}
	}
	return b.Flush()
}

// writeRow quotes every field, as hledger does and encoding/csv does not. Errors stay in b until it is flushed.
func writeRow(b *bufio.Writer, fields ...string) {
	for i, f := range fields {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		b.WriteString(strings.ReplaceAll(f, `"`, `""`))
		b.WriteByte('"')
	}
	b.WriteByte('\n')
}
