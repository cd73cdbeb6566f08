package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/hledger"
)

// importBatch is how many accounts or entries of an import go into one command.
const importBatch = 100

// imported counts what an import did.
type imported struct {
	Accounts        int `json:"accounts"`         // opened
	AccountsExisted int `json:"accounts_existed"` // opened before
	Entries         int `json:"entries"`          // booked
	EntriesExisted  int `json:"entries_existed"`  // booked before
	Refused         int `json:"refused"`          // transactions that were not booked
	Commands        int `json:"-"`
	problems        []string
}

func runImport(ctx context.Context, c console, args []string) error {
	f := newFlags(c, "import", " FILE\n\nFILE is what `hledger print -O csv` writes; - reads it from standard input.\n"+
		"Transactions with a malformed line are named and left out, all others are booked.\n"+
		"Importing a file again changes nothing.")
	servers := bindServers(f)
	mark := f.String("decimal-mark", "", "`mark` of all amounts, . or , (default: found out for each commodity)")
	scale := f.String("scale", "", "`decimals` of commodities that the ledger does not have yet, as EUR=2,BTC=8 (default: as many as the file has).\nThey stay as they are: a later file cannot have more")
	timeout := f.Duration("timeout", 5*time.Minute, "for the whole import")
	if err := parse(f, args, 1); err != nil {
		return err
	}
	var options hledger.Options
	switch *mark {
	case "":
	case ".", ",":
		options.DecimalMark = (*mark)[0]
	default:
		fmt.Fprintf(c.err, "-decimal-mark is %q, not . or ,\n", *mark)
		return errUsage
	}
	wanted, err := parseScales(*scale)
	if err != nil {
		fmt.Fprintln(c.err, err)
		return errUsage
	}
	in, err := openInput(c, f.Arg(0))
	if err != nil {
		return err
	}
	defer in.Close()
	to, err := servers.dial()
	if err != nil {
		return err
	}
	defer to.Close()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	result, err := importBook(ctx, to, in, options, wanted)
	if result == nil {
		return err
	}
	for _, p := range result.problems {
		fmt.Fprintf(c.err, "%s: %s\n", f.Arg(0), p)
	}
	fmt.Fprintln(c.out, result)
	if err != nil {
		return fmt.Errorf("the import broke off; import the file again to go on: %w", err)
	}
	if result.Refused > 0 || len(result.problems) > 0 {
		return fmt.Errorf("%d transactions were not booked", result.Refused)
	}
	return nil
}

// parseScales reads "EUR=2,BTC=8".
func parseScales(text string) (map[string]uint8, error) {
	scales := make(map[string]uint8)
	if text == "" {
		return scales, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		commodity, digits, ok := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.ParseUint(digits, 10, 8)
		if !ok || err != nil || commodity == "" || n > book.MaxScale {
			return nil, fmt.Errorf("-scale: %q is not a commodity with a number of decimals up to %d, as EUR=2", part, book.MaxScale)
		}
		scales[commodity] = uint8(n)
	}
	return scales, nil
}

func openInput(c console, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(c.in), nil
	}
	return os.Open(name)
}

func (i *imported) String() string {
	return fmt.Sprintf("%d accounts opened, %d were there; %d entries booked, %d were there; %d transactions refused",
		i.Accounts, i.AccountsExisted, i.Entries, i.EntriesExisted, i.Refused)
}

// importBook books a file. Wanted are the scales of assets that are not there yet. The error is for an import that could not be
// finished; what is wrong with single transactions stands in the result, which tells how far it came.
func importBook(ctx context.Context, to ledger, in io.Reader, options hledger.Options, wanted map[string]uint8) (*imported, error) {
	journal, err := hledger.Read(in, options)
	if err != nil {
		return nil, err
	}
	existing, err := scales(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("asking for the scales of the assets: %w", err)
	}
	for commodity, scale := range wanted {
		if has, ok := existing[commodity]; ok && has != scale {
			return nil, fmt.Errorf("%s has %d decimals in the ledger, which cannot be changed to %d", commodity, has, scale)
		}
		existing[commodity] = scale
	}
	booking := journal.Book(existing)
	result := &imported{Refused: journal.Malformed + booking.Refused}
	problems := append(journal.Problems, booking.Problems...)
	slices.SortStableFunc(problems, func(a, b hledger.Problem) int { return cmp.Compare(a.Line, b.Line) })
	for _, p := range problems {
		result.problems = append(result.problems, p.Error())
	}
	for accounts := booking.Accounts; len(accounts) > 0; {
		n := min(importBatch, len(accounts))
		if err := result.open(ctx, to, accounts[:n]); err != nil {
			return result, err
		}
		accounts = accounts[n:]
	}
	for entries := booking.Entries; len(entries) > 0; {
		n := min(importBatch, len(entries))
		if err := result.post(ctx, to, entries[:n]); err != nil {
			return result, err
		}
		entries = entries[n:]
	}
	return result, nil
}

// scales returns the scale of each asset that the ledger has.
func scales(ctx context.Context, to ledger) (map[string]uint8, error) {
	accounts, err := to.Accounts(ctx, "")
	if err != nil {
		return nil, err
	}
	scales := make(map[string]uint8)
	for _, a := range accounts {
		scales[a.Asset] = a.Scale
	}
	return scales, nil
}

func (i *imported) open(ctx context.Context, to ledger, accounts []book.Account) error {
	outcomes, err := to.CreateAccounts(ctx, accounts...)
	if err != nil {
		return fmt.Errorf("opening accounts: %w", err)
	}
	i.Commands++
	for k, o := range outcomes {
		switch o.Code {
		case book.Created:
			i.Accounts++
		case book.Exists:
			i.AccountsExisted++
		default:
			// No entry can be booked to it, and none has been yet.
			return fmt.Errorf("account %s in %s cannot be opened: %v", accounts[k].Name, accounts[k].Asset, o.Code)
		}
	}
	return nil
}

func (i *imported) post(ctx context.Context, to ledger, entries []book.Entry) error {
	for len(entries) > 0 {
		outcomes, err := to.PostEntries(ctx, entries...)
		if err != nil {
			return fmt.Errorf("booking entries: %w", err)
		}
		i.Commands++
		var again []book.Entry
		for k, o := range outcomes {
			switch o.Code {
			case book.Created:
				i.Entries++
			case book.Exists:
				i.EntriesExisted++
			case book.IDAlreadyFailed: // an import before met what may have passed: each such failure took one id
				again = append(again, entries[k])
				again[len(again)-1].ID = hledger.NextID(entries[k].ID)
			default:
				i.Refused++
				i.problems = append(i.problems, fmt.Sprintf("transaction of %v, %q: %v (leg %d)", entries[k].Date, entries[k].Memo, o.Code, o.Leg))
			}
		}
		entries = again
	}
	return nil
}
