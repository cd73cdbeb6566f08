package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// hash writes a running hash as all of Decree does: a JSON number would lose its last digits.
func hash(h uint64) string { return fmt.Sprintf("%016x", h) }

// size writes bytes for people.
func size[T int64 | uint64](n T) string {
	f, unit := float64(n), 0
	for f >= 1024 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, [...]string{"", "KiB", "MiB", "GiB", "TiB"}[unit])
}

// ago writes how long something was, for people.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms ago", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s ago", d.Seconds())
	}
	return fmt.Sprintf("%v ago", d.Round(time.Second))
}

// instant writes a leader's time; there is none for 0.
func instant(nanos int64) string {
	if nanos == 0 {
		return ""
	}
	return time.Unix(0, nanos).UTC().Format("2006-01-02T15:04:05.000Z")
}

// dash stands for nothing in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// number writes a number that may be missing.
func number(n uint64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// plural is "1 shard", "2 shards".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// plainEvery is how often a progress line is written where there is no terminal, and how long work takes that has any.
const plainEvery = 2 * time.Second

// progress tells how long work comes along: on a terminal in one line that changes, elsewhere in a line now and then.
type progress struct {
	w        io.Writer
	terminal bool
	now      func() time.Time

	mu    sync.Mutex
	width int // of the line that stands on the terminal
	last  string
	at    time.Time
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, now: time.Now, at: time.Now()}
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			p.terminal = info.Mode()&os.ModeCharDevice != 0
		}
	}
	return p
}

// show says how things stand.
func (p *progress) show(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Fprintf(p.w, "\r%-*s", p.width, text)
		p.width = len(text)
		return
	}
	if now := p.now(); text != p.last && now.Sub(p.at) >= plainEvery {
		fmt.Fprintln(p.w, text)
		p.last, p.at = text, now
	}
}

// say writes a line that stays.
func (p *progress) say(format string, args ...any) {
	p.clear()
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// clear takes the changing line away from a terminal.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.width > 0 {
		fmt.Fprintf(p.w, "\r%*s\r", p.width, "")
		p.width = 0
	}
}
