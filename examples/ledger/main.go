// Ledger is a double-entry ledger on Decree: one binary that serves a node of
// a cluster, loads it, imports books into it, and audits it. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/decree-raft/decree/examples/ledger/book"
	"github.com/decree-raft/decree/examples/ledger/client"
	proxyclient "github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/proxy/flags"
)

// shardID is the one shard that the ledger runs on.
const shardID = client.ShardID

// ledger is what the commands need of a cluster: client.Remote and client.Local are two.
type ledger interface {
	CreateAccounts(ctx context.Context, accounts ...book.Account) ([]book.Outcome, error)
	PostEntries(ctx context.Context, entries ...book.Entry) ([]book.Outcome, error)
	Accounts(ctx context.Context, prefix string) ([]book.AccountState, error)
}

// console is where a command reads and writes.
type console struct {
	in       io.Reader
	out, err io.Writer
}

// command is one subcommand. Its run gets the arguments after the name.
type command struct {
	name, summary string
	run           func(ctx context.Context, c console, args []string) error
}

var commands = []command{
	{"demo", "start three nodes and two proxies, run transfers, kill the leader and a proxy, audit every replica", runDemo},
	{"serve", "run one node of a cluster", runServe},
	{"proxy", "stand between clients and the nodes, with the same API", runProxy},
	{"load", "post random entries to a cluster, and show latencies", runLoad},
	{"import", "book what `hledger print -O csv` writes", runImport},
	{"balances", "show the balances, or write them as hledger does", runBalances},
	{"verify", "audit every invariant on every node, and compare their state", runVerify},
}

// errUsage ends a command whose arguments are wrong, after the reason was printed.
var errUsage = errors.New("usage")

// usageError is a wrong call that run has yet to write.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, console{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}

// run returns the exit code: 0 is done, 1 is not done or not all of it, 2 is a wrong call.
func run(ctx context.Context, c console, args []string) int {
	if len(args) == 0 {
		usage(c.err)
		return 2
	}
	for _, cmd := range commands {
		if cmd.name != args[0] {
			continue
		}
		switch err := cmd.run(ctx, c, args[1:]); {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return 0
		case errors.Is(err, errUsage):
			return 2
		case errors.As(err, new(usageError)):
			fmt.Fprintf(c.err, "ledger %s: %v\n", cmd.name, err)
			return 2
		default:
			fmt.Fprintf(c.err, "ledger %s: %v\n", cmd.name, err)
			return 1
		}
	}
	if h := strings.TrimLeft(args[0], "-"); h == "help" || h == "h" {
		usage(c.out)
		return 0
	}
	fmt.Fprintf(c.err, "ledger: there is no command %q\n", args[0])
	usage(c.err)
	return 2
}

func usage(w io.Writer) {
	fmt.Fprint(w, "ledger is a replicated double-entry ledger.\n\n")
	for _, cmd := range commands {
		fmt.Fprintf(w, "  ledger %-10s %s\n", cmd.name, cmd.summary)
	}
	fmt.Fprint(w, "\nEach takes -help.\n")
}

// newFlags returns the flags of a command. After is what stands behind them in a call.
func newFlags(c console, name, after string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(c.err)
	f.Usage = func() {
		fmt.Fprintf(c.err, "usage: ledger %s [flags]%s\n\n", name, after)
		f.PrintDefaults()
	}
	return f
}

// parse parses the arguments, and checks how many there are behind the flags.
func parse(f *flag.FlagSet, args []string, want int) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage // flag has printed it
	}
	if f.NArg() != want {
		fmt.Fprintf(f.Output(), "ledger %s takes %d arguments behind its flags, not %d\n", f.Name(), want, f.NArg())
		f.Usage()
		return errUsage
	}
	return nil
}

// defaultAPI is where the nodes of the README serve gRPC, and defaultPeers where they listen to each other, and to proxies.
const (
	defaultAPI   = "127.0.0.1:7201,127.0.0.1:7202,127.0.0.1:7203"
	defaultPeers = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"
)

// servers are where a client's command connects, and how.
type servers struct {
	api string
	flags.Client
}

func bindServers(f *flag.FlagSet) *servers {
	s := &servers{}
	f.StringVar(&s.api, "api", defaultAPI, "`addresses` for gRPC of nodes or proxies, separated by commas: any of them")
	s.Bind(f)
	return s
}

func (s *servers) options() (o proxyclient.Options, err error) {
	o.TLS, o.Credentials, err = s.Credentials()
	return o, err
}

func (s *servers) dial() (*client.Remote, error) {
	addresses := splitAddresses(s.api)
	if len(addresses) == 0 {
		return nil, usageError{errors.New("no addresses: -api names nodes or proxies")}
	}
	o, err := s.options()
	if err != nil {
		return nil, err
	}
	return client.DialWith(o, addresses...)
}

func splitAddresses(s string) []string {
	var out []string
	for _, a := range strings.Split(s, ",") {
		if a = strings.TrimSpace(a); a != "" {
			out = append(out, a)
		}
	}
	return out
}
