package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/decree-raft/decree/proxy/access"
)

// tokenReport is what `token -o json` writes.
type tokenReport struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	Expires string `json:"expires"` // RFC 3339; empty: never
	Token   string `json:"token"`
	Line    string `json:"line"`
}

func tokenCommand() *command {
	return &command{
		name: "token", args: "new NAME ROLE", min: 3, max: 3, offline: true,
		summary: "make a token with a role, for who calls a port",
		help: `Makes a token for NAME with ROLE (read, write or admin; each contains the ones before it). The token is for the caller,
and is shown once: nothing else has it. The line is for the port's file of tokens, which has the token's hash only; with
-file it is added there, and standard output has nothing but the token. Ports read their files again when they change. To
take a token away, take its line out.

Examples:
  (umask 077 && decree token new -file tokens alice admin > alice.token)
  decree token new -expires 720h ci read
  decree status -ca ca.crt -token-file alice.token
`,
		bind: func(f *flag.FlagSet) action {
			file := f.String("file", "", "port's `file` of tokens to which the line is added; it is made if it is not there")
			expires := f.Duration("expires", 0, "`time` for which the token is good, as in 720h; 0: for ever")
			return func(_ context.Context, s *session, args []string) error {
				return s.newToken(args, *file, *expires)
			}
		},
	}
}

func (s *session) newToken(args []string, file string, expires time.Duration) error {
	if args[0] != "new" {
		return badUsage("%q is nothing that can be done with tokens: new", args[0])
	}
	role, err := access.ParseRole(args[2])
	if err != nil {
		return &usageError{err}
	}
	if expires < 0 {
		return badUsage("-expires is %v: 0 or more", expires)
	}
	var end time.Time
	r := tokenReport{Name: args[1], Role: role.String()}
	if expires > 0 {
		end = time.Now().Add(expires).UTC().Truncate(time.Second)
		r.Expires = end.Format(time.RFC3339)
	}
	if r.Token, r.Line, err = access.NewToken(args[1], role, end); err != nil {
		return &usageError{err}
	}
	if file != "" {
		if err := addLine(file, r.Line); err != nil {
			return &refusedError{err}
		}
	}
	return s.print(r, func(w *tabwriter.Writer) {
		if file != "" {
			fmt.Fprintln(w, r.Token)
			return
		}
		row(w, "token", r.Token)
		row(w, "line", r.Line)
	})
}

// addLine adds a token's line to a file that is as it should be, with one write: a port may read it at any time.
func addLine(file, line string) error {
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(data) > 0 && !bytes.HasSuffix(data, []byte("\n")) {
		line = "\n" + line
	}
	line += "\n"
	if err := access.CheckTokens(file, append(data, line...)); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Sync(), f.Close())
}
