package sim

import (
	"fmt"
	"strings"
)

// Lines of a story that is longer are left out in its middle.
const (
	storyBegins = 20
	storyEnds   = 60
)

// Story tells a failing run to a person: what was asked and what broke, in the order of time; then what
// was expected, and what was seen. It ends without a line break.
func (sh *Shrunk) Story() string {
	r := sh.Result
	s, f := r.run, r.Failure
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d breaks the rule %q after %s of virtual time, on %s.\n", r.Seed, f.Rule, strings.TrimSpace(atTime(int64(f.At))), count(r.Stats.Nodes, "node"))
	if sh.Runs > 0 {
		network := ""
		if sh.Quiet {
			network = ", with a network that loses nothing"
		}
		fmt.Fprintf(&b, "It still does with %d of %d operations and %d of %d faults%s (%d runs):\n", sh.Operations, sh.OfOperations, sh.Faults, sh.OfFaults, network, sh.Runs)
	}
	b.WriteByte('\n')
	for i, t := range s.told {
		if len(s.told) > storyBegins+storyEnds && i >= storyBegins && i < len(s.told)-storyEnds {
			if i == storyBegins {
				fmt.Fprintf(&b, "  ... %d lines ...\n", len(s.told)-storyBegins-storyEnds)
			}
			continue
		}
		fmt.Fprintf(&b, "%s  %s\n", atTime(t.at), t.text)
	}
	if len(s.told) > 0 {
		b.WriteByte('\n')
	}
	if f.Expected == "" {
		fmt.Fprintf(&b, "broken:    %s", f.Message)
		return b.String()
	}
	fmt.Fprintf(&b, "where:     %s\nexpected:  %s\nseen:      %s", f.Message, f.Expected, f.Seen)
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
