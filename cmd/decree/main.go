// Decree is the operator's command line. These are its commands that need no node: they work on files.
package main

import (
	"fmt"
	"io"
	"os"
)

// The exit codes, which scripts may rely on.
const (
	exitOK      = 0
	exitNo      = 1 // the answer is no: a backup is damaged
	exitUsage   = 2
	exitRefused = 4 // it certainly did not happen
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		for _, c := range fileCommands() {
			if c.name == args[0] {
				return c.run(args[1:], stdout, stderr)
			}
		}
	}
	fmt.Fprintln(stderr, "Usage: decree COMMAND [flags] [arguments]; `decree COMMAND -help` teaches the command.")
	for _, c := range fileCommands() {
		fmt.Fprintf(stderr, "  %-8s %s\n", c.name, c.summary)
	}
	return exitUsage
}
