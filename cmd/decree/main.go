// Decree is the operator's command line for the nodes of any program that embeds package rsm and offers its admin service
// (package rsm/admin). `decree help` lists the commands; docs/operations.md has the procedures.
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

	"github.com/decree-raft/decree/rsm"
)

// The exit codes, which scripts may rely on.
const (
	exitOK          = 0
	exitNo          = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
	exitUnknown     = 5
)

const exitCodes = `Exit codes:
  0  done, or the answer is yes
  1  the answer is no: something differs, is damaged or needs attention; or the node decided against it
  2  wrong usage
  3  no node could be reached, or not all that were needed
  4  refused: it certainly did not happen
  5  unknown: it may have happened, or only a part of it; look (decree members, decree status), then run it again
`

// console is where a command writes.
type console struct{ out, err io.Writer }

// action is what a command does, with the arguments that are no flags.
type action func(ctx context.Context, s *session, args []string) error

// command is one subcommand.
type command struct {
	name    string
	args    string // in words, as in "OLD NEW ADDRESS"
	min     int    // how many of them, at least and at most
	max     int
	summary string
	help    string // what it does, when to use it, an example
	offline bool   // speaks to no node, or not by itself
	own     bool   // has no answer to format: no -o
	shard   string // what -shard means; empty: there is none
	limit   bool   // has a -timeout of 30 s unless told otherwise; else it takes as long as it takes
	// bind declares the command's own flags, and returns what it does once they are parsed.
	bind func(f *flag.FlagSet) action
}

func commands() []*command {
	return []*command{
		statusCommand(), membersCommand(),
		addCommand(), promoteCommand(), removeCommand(), replaceCommand(), setAddressCommand(),
		transferCommand(), drainCommand(),
		snapshotCommand(), eventsCommand(), hashCommand(), walCommand(),
		proxyCommand(),
		backupCommand(), verifyCommand(), packCommand(), unpackCommand(), restoreCommand(), recoverCommand(), repairCommand(),
		tokenCommand(), completionCommand(), helpCommand(), versionCommand(),
	}
}

func find(name string) *command {
	for _, c := range commands() {
		if c.name == name {
			return c
		}
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, console{os.Stdout, os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}

// run returns the exit code.
func run(ctx context.Context, c console, args []string) int {
	if len(args) == 0 {
		overview(c.err)
		return exitUsage
	}
	name := args[0]
	if h := strings.TrimLeft(name, "-"); h == "help" || h == "h" {
		name = "help"
	}
	cmd := find(name)
	if cmd == nil {
		fmt.Fprintf(c.err, "decree: there is no command %q; `decree help` lists them\n", name)
		return exitUsage
	}
	s := &session{console: c, cmd: cmd}
	err := s.run(ctx, args[1:])
	code := exitCode(err)
	if ctx.Err() != nil && code == exitUnreachable {
		code = exitUnknown // an interrupt says nothing about the nodes
	}
	if code != exitOK && !errors.Is(err, errSaid) {
		fmt.Fprintf(c.err, "decree %s: %v\n", cmd.name, err)
	}
	return code
}

var (
	// errSaid ends a command that has written what is wrong itself.
	errSaid = errors.New("said")
	// errNo: the answer is no.
	errNo = fmt.Errorf("no (%w)", errSaid)
)

// usageError is a call that cannot be meant.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func badUsage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// unreachableError: a node that was needed gave no answer, and nothing was asked of it but to answer.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

func unreachable(format string, args ...any) error {
	return &unreachableError{fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	var usage *usageError
	var away *unreachableError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, new(*partError)):
		return exitUnknown
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &away):
		return exitUnreachable
	case errors.Is(err, rsm.ErrNotProposed), errors.As(err, new(*refusedError)):
		return exitRefused
	case errors.Is(err, rsm.ErrUnknown), errors.Is(err, rsm.ErrBroken),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return exitUnknown
	}
	return exitNo
}

func overview(w io.Writer) {
	fmt.Fprint(w, "decree operates the nodes of a program that replicates its state with Decree.\n\nusage: decree COMMAND [flags] [arguments]\n\n")
	for _, cmd := range commands() {
		fmt.Fprintf(w, "  %-12s %s\n", cmd.name, cmd.summary)
	}
	fmt.Fprintf(w, "\nWhere the nodes are: -node host:port,... or the environment's DECREE_NODES. One node is enough to begin with: it\n"+
		"knows the others. `decree COMMAND -help` says what a command is for, with an example.\n\n%s", exitCodes)
}

func helpCommand() *command {
	return &command{
		name: "help", args: "[COMMAND]", max: 1, offline: true,
		summary: "explain a command, or list them",
		help:    "Explains a command, like COMMAND -help, or lists all of them.\n\nExample:\n  decree help replace\n",
		bind: func(*flag.FlagSet) action {
			return func(_ context.Context, s *session, args []string) error {
				if len(args) == 0 {
					overview(s.out)
					return nil
				}
				cmd := find(args[0])
				if cmd == nil {
					return badUsage("there is no command %q; `decree help` lists them", args[0])
				}
				o := &session{console: console{s.out, s.out}, cmd: cmd}
				f, _ := o.flags()
				f.Usage()
				return nil
			}
		},
	}
}
