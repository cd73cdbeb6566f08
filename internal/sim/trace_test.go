package sim

import (
	"bytes"
	"regexp"
	"testing"
)

// TestTraceReads: the trace of a seed tells, under a header for each virtual millisecond, who said what to whom, what was
// synced, what was lost, and what was broken on purpose.
func TestTraceReads(t *testing.T) {
	var out bytes.Buffer
	if r := Run(8, Options{Trace: &out}); r.Failure != nil {
		t.Fatal(r.Failure)
	}
	// Another seed has snapshots and changes of members.
	if r := Run(26, Options{Trace: &out}); r.Failure != nil {
		t.Fatal(r.Failure)
	}
	for what, pattern := range map[string]string{
		"header":     `(?m)^---- \d+ ms$`,
		"send":       `(?m)^ *\d+  n\d -> n\d sends \d+ bytes, to arrive after \d+ us\n *\d+ +shard \d: MsgApp term \d+: append \d+\.\.\d+ \(terms \d+\.\.\d+\) after \d+ of term \d+, committed \d+$`,
		"receive":    `(?m)^ *\d+  n\d <- n\d receives \d+ bytes\n *\d+ +shard \d: MsgAppResp term \d+: has everything up to \d+$`,
		"vote":       `MsgVote term \d+: asks for the vote, its log ends at \d+ of term \d+`,
		"frame lost": `(?m)^ *\d+  n\d -> n\d LOST \d+ bytes on the way$`,
		"sync":       `(?m)^ *\d+  n\d log: \d+ records synced\n *\d+ +synced shard \d: entries \d+\.\.\d+ \(terms \d+\.\.\d+\), term \d+, vote for n\d, committed \d+$`,
		"write lost": `(?m)^ *\d+  n\d log: \d+ writes LOST, \d+ synced that nobody was told of\n *\d+ +lost shard \d: entries`,
		"crash":      `(?m)^ *\d+  n\d CRASHES, incarnation \d+$`,
		"start":      `(?m)^ *\d+  n\d STARTS, incarnation [2-9]$`,
		"fault":      `(?m)^ *\d+  n\d FAULT [a-z-]+\n *\d+ +\w+`,
		"heal":       `(?m)^ *\d+  n\d HEALED [a-z-]+$`,
		"cut":        `from n\d to n\d nothing arrives`,
		"question":   `(?m)^ *\d+  n\d shard 1 <- asked for op \d+, attempt \d+\n *\d+ +client \d+: op \d+: \[#\d+ \w+\(key \d+`,
		"answer":     `(?m)^ *\d+  n\d shard \d -> answers op \d+, attempt \d+\n *\d+ +client \d+: happened at index \d+`,
		"applied":    `n\d shard \d: applied up to \d+, hash [0-9a-f]{16}, term \d+`,
		"a cut":      `(?m)^ *\d+  n\d shard \d: cut begins, takes \d+ us$`,
		"chunks":     `(?m)^ *\d+  n\d shard \d: \d+ chunks from n\d, 1 if that was all: [01]$`,
		"installed":  `(?m)^ *\d+  n\d shard \d: snapshot at \d+ installed, 1 if well: 1$`,
		"snapshot":   `MsgSnap term \d+: a snapshot at \d+ of term \d+, voters \[`,
		"change":     `(?m)^ *\d+  n\d shard \d <- asked for change \d+ of the members, attempt \d+\n *\d+ +\w`,
		"members":    `(?m)^ *\d+  n\d shard \d: members as of \d+: \d voters\n *\d+ +voters \[`,
		"phase":      `(?m)PHASE 3:`,
	} {
		if !regexp.MustCompile(pattern).Match(out.Bytes()) {
			t.Errorf("the trace has no line for: %s (%s)", what, pattern)
		}
	}
}
