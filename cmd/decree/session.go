package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/proxy/access"
	"github.com/decree-raft/decree/proxy/flags"
)

// nodesVariable of the environment has the addresses if -node does not.
const nodesVariable = "DECREE_NODES"

// defaultTimeout is for commands that are done at once or not at all.
const defaultTimeout = 30 * time.Second

// options are the flags that commands have in common.
type options struct {
	nodes   addressList
	shard   uint64
	output  string
	timeout time.Duration
	client  flags.Client
}

// addressList is a flag that may be repeated, and takes lists.
type addressList []string

func (a *addressList) String() string { return strings.Join(*a, ",") }

func (a *addressList) Set(s string) error {
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*a = append(*a, part)
		}
	}
	return nil
}

// session is one run of a command.
type session struct {
	console
	cmd      *command
	opts     options
	progress *progress
	cluster  *cluster // of commands that are not offline
}

// flags returns the flags of the command, and what it does when they are parsed.
func (s *session) flags() (*flag.FlagSet, action) {
	f := flag.NewFlagSet(s.cmd.name, flag.ContinueOnError)
	f.SetOutput(s.err)
	s.opts.output = "table"
	if !s.cmd.own {
		f.StringVar(&s.opts.output, "o", s.opts.output, "output `format`: table or json")
	}
	if s.cmd.shard != "" {
		f.Uint64Var(&s.opts.shard, "shard", 0, s.cmd.shard)
	}
	if !s.cmd.offline {
		f.Var(&s.opts.nodes, "node", "`addresses` (host:port) of nodes' admin services: repeated, or separated by commas (default $"+nodesVariable+")")
		limit := "0: as long as it takes"
		var def time.Duration
		if s.cmd.limit {
			limit, def = "for all of it; 0: none", defaultTimeout
		}
		f.DurationVar(&s.opts.timeout, "timeout", def, "time `limit`, "+limit)
		s.opts.client.Bind(f)
	}
	do := s.cmd.bind(f)
	f.Usage = func() {
		fmt.Fprintf(s.err, "usage: decree %s [flags]", s.cmd.name)
		if s.cmd.args != "" {
			fmt.Fprintf(s.err, " %s", s.cmd.args)
		}
		fmt.Fprintf(s.err, "\n\n%s\nFlags:\n", s.cmd.help)
		f.PrintDefaults()
		fmt.Fprintf(s.err, "\n%s", exitCodes)
	}
	return f, do
}

func (s *session) run(ctx context.Context, args []string) error {
	f, do := s.flags()
	args, err := s.parse(f, args)
	if err != nil {
		return err
	}
	s.progress = newProgress(s.err)
	defer s.progress.clear()
	if s.cmd.offline {
		return do(ctx, s, args)
	}
	if s.opts.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.opts.timeout)
		defer cancel()
	}
	creds, err := s.credentials()
	if err != nil {
		return err
	}
	s.cluster = newCluster(s.opts.nodes, creds, s.progress.say)
	defer s.cluster.close()
	if err := s.cluster.connect(ctx); err != nil {
		return err
	}
	return do(ctx, s, args)
}

// parse takes flags before, between and behind the arguments, and returns the arguments.
func (s *session) parse(f *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, &usageError{errSaid} // flag has said it
		}
		if args = f.Args(); len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	switch {
	case len(rest) < s.cmd.min, len(rest) > s.cmd.max:
		want := s.cmd.args
		if want == "" {
			want = "no arguments"
		}
		return nil, badUsage("it takes %s, and %d arguments were given; see decree %s -help", want, len(rest), s.cmd.name)
	case s.opts.output != "table" && s.opts.output != "json":
		return nil, badUsage("-o is %q: table or json", s.opts.output)
	case s.opts.timeout < 0:
		return nil, badUsage("-timeout is %v: 0 or more", s.opts.timeout)
	case s.cmd.offline:
		return rest, nil
	}
	if len(s.opts.nodes) == 0 {
		_ = s.opts.nodes.Set(os.Getenv(nodesVariable))
	}
	if len(s.opts.nodes) == 0 {
		return nil, badUsage("no node is named: give -node host:port,... or set %s", nodesVariable)
	}
	return rest, nil
}

// credentials say how to connect, and with which token.
func (s *session) credentials() ([]grpc.DialOption, error) {
	creds, token, err := s.opts.client.Credentials()
	if err != nil {
		return nil, &usageError{err}
	}
	return access.DialOptions(creds, token), nil
}

func (s *session) json() bool { return s.opts.output == "json" }

// print writes an answer: as JSON, or as the table that t writes.
func (s *session) print(v any, table func(w *tabwriter.Writer)) error {
	s.progress.clear()
	if s.json() {
		e := json.NewEncoder(s.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// row writes a line of a table.
func row(w *tabwriter.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}

// nodeArgument parses an id.
func nodeArgument(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil || id == 0 {
		return 0, badUsage("%q is no node's id: a number from 1", s)
	}
	return id, nil
}

// wait pauses, and says whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
