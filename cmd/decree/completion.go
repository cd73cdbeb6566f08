package main

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
)

func completionCommand() *command {
	return &command{
		name: "completion", args: "bash|zsh|fish", min: 1, max: 1, offline: true,
		summary: "write a script with which a shell completes commands and flags",
		help: `Writes a script for a shell that completes the commands of decree and their flags.

Examples:
  source <(decree completion bash)                                       # in ~/.bashrc
  source <(decree completion zsh)                                        # in ~/.zshrc
  decree completion fish > ~/.config/fish/completions/decree.fish
`,
		bind: func(*flag.FlagSet) action {
			return func(_ context.Context, s *session, args []string) error {
				scripts := map[string]func() string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
				script := scripts[args[0]]
				if script == nil {
					return badUsage("there is no completion for %q: bash, zsh or fish", args[0])
				}
				_, err := fmt.Fprint(s.out, script())
				return err
			}
		},
	}
}

// completedFlag is a flag as a completion needs it.
type completedFlag struct {
	name, usage string
	value       bool // takes one
}

// flagsOf returns a command's flags by name.
func flagsOf(cmd *command) (flags []completedFlag) {
	f, _ := (&session{cmd: cmd}).flags()
	f.VisitAll(func(fl *flag.Flag) {
		b, is := fl.Value.(interface{ IsBoolFlag() bool })
		_, usage := flag.UnquoteUsage(fl)
		flags = append(flags, completedFlag{fl.Name, usage, !is || !b.IsBoolFlag()})
	})
	return flags
}

// wordsOf returns what may stand as an argument of a command, as far as it is known.
func wordsOf(cmd *command) (words []string) {
	switch cmd.name {
	case "completion":
		return []string{"bash", "zsh", "fish"}
	case "help":
		for _, c := range commands() {
			words = append(words, c.name)
		}
	}
	return words
}

// fileFlags take the name of a file.
const fileFlags = "-cert|-key|-ca|-token-file|-file|-node-cert|-node-key|-node-ca|-tls-cert|-tls-key|-client-ca|-config"

func takesFile(f completedFlag) bool {
	return f.value && slices.Contains(strings.Split(fileFlags, "|"), "-"+f.name)
}

func bashCompletion() string {
	var b strings.Builder
	var names []string
	for _, cmd := range commands() {
		names = append(names, cmd.name)
	}
	fmt.Fprintf(&b, `# bash completion for decree
_decree() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W %q -- "$cur"))
    return
  fi
  case $prev in
    %s) COMPREPLY=($(compgen -f -- "$cur")); return ;;
    -o) COMPREPLY=($(compgen -W "table json" -- "$cur")); return ;;
  esac
  case ${COMP_WORDS[1]} in
`, strings.Join(names, " "), fileFlags)
	for _, cmd := range commands() {
		var words []string
		for _, f := range flagsOf(cmd) {
			words = append(words, "-"+f.name)
		}
		words = append(words, wordsOf(cmd)...)
		fmt.Fprintf(&b, "    %s) words=%q ;;\n", cmd.name, strings.Join(words, " "))
	}
	b.WriteString(`  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [ "${COMP_WORDS[1]}" = wal ] && [ "${cur#-}" = "$cur" ]; then
    COMPREPLY=($(compgen -d -- "$cur"))
  fi
}
complete -F _decree decree
`)
	return b.String()
}

// shellQuote puts text between single quotes.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// zshText takes out what means something to zsh's _arguments and _describe.
func zshText(s string) string {
	return strings.NewReplacer(":", `\:`, "[", "(", "]", ")", "\n", " ").Replace(s)
}

func zshCompletion() string {
	var b strings.Builder
	b.WriteString("#compdef decree\n# zsh completion for decree\n_decree() {\n  local -a commands\n  commands=(\n")
	for _, cmd := range commands() {
		fmt.Fprintf(&b, "    %s\n", shellQuote(cmd.name+":"+zshText(cmd.summary)))
	}
	b.WriteString("  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n  case $words[2] in\n")
	for _, cmd := range commands() {
		fmt.Fprintf(&b, "    %s)\n      _arguments", cmd.name)
		for _, f := range flagsOf(cmd) {
			spec := "-" + f.name + "[" + zshText(f.usage) + "]"
			switch {
			case f.name == "o":
				spec += ":format:(table json)"
			case takesFile(f):
				spec += ":file:_files"
			case f.value:
				spec += ":value: "
			}
			fmt.Fprintf(&b, " \\\n        %s", shellQuote(spec))
		}
		switch words := wordsOf(cmd); {
		case len(words) > 0:
			fmt.Fprintf(&b, " \\\n        %s", shellQuote("2:argument:("+strings.Join(words, " ")+")"))
		case cmd.name == "wal":
			b.WriteString(" \\\n        '*:directory:_files -/'")
		default:
			b.WriteString(" \\\n        '*:argument: '")
		}
		b.WriteString("\n      ;;\n")
	}
	b.WriteString("  esac\n}\ncompdef _decree decree\n")
	return b.String()
}

func fishCompletion() string {
	var b strings.Builder
	b.WriteString("# fish completion for decree\ncomplete -c decree -f\n")
	for _, cmd := range commands() {
		fmt.Fprintf(&b, "complete -c decree -n __fish_use_subcommand -a %s -d %s\n", cmd.name, fishQuote(cmd.summary))
	}
	for _, cmd := range commands() {
		in := fmt.Sprintf("complete -c decree -n '__fish_seen_subcommand_from %s'", cmd.name)
		for _, f := range flagsOf(cmd) {
			value := ""
			switch {
			case f.name == "o":
				value = " -x -a 'table json'"
			case takesFile(f):
				value = " -r -F"
			case f.value:
				value = " -x"
			}
			fmt.Fprintf(&b, "%s -o %s -d %s%s\n", in, f.name, fishQuote(f.usage), value)
		}
		if words := wordsOf(cmd); len(words) > 0 {
			fmt.Fprintf(&b, "%s -a '%s'\n", in, strings.Join(words, " "))
		}
		if cmd.name == "wal" {
			fmt.Fprintf(&b, "%s -F\n", in)
		}
	}
	return b.String()
}

// fishQuote puts text between single quotes, as fish has them.
func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", " ").Replace(s) + "'"
}

// versionReport is what `version -o json` writes.
type versionReport struct {
	Module   string `json:"module"`
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
}

func versionCommand() *command {
	return &command{
		name: "version", offline: true,
		summary: "show the version of this program",
		help:    "Shows the version of this program, and what it was built from.\n\nExample:\n  decree version -o json\n",
		bind: func(*flag.FlagSet) action {
			return func(_ context.Context, s *session, _ []string) error {
				r := versionReport{Version: "unknown", Go: runtime.Version()}
				if info, ok := debug.ReadBuildInfo(); ok {
					r.Module, r.Version = info.Main.Path, info.Main.Version
					for _, setting := range info.Settings {
						switch setting.Key {
						case "vcs.revision":
							r.Revision = setting.Value
						case "vcs.modified":
							r.Modified = setting.Value == "true"
						}
					}
				}
				return s.print(r, func(w *tabwriter.Writer) {
					fmt.Fprintf(w, "decree %s %s, %s\n", r.Version, r.Revision, r.Go)
				})
			}
		},
	}
}
