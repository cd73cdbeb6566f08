package book

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestREADME: the README's tables name every code that the machine gives, and mark those that burn an id.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| (\\*\\*)?`([a-z0-9_]+)`(\\*\\*)? \\|")
	listed := func(table string) map[Code]bool {
		_, rest, found := strings.Cut(string(text), "<!-- "+table+":begin -->")
		body, _, ended := strings.Cut(rest, "<!-- "+table+":end -->")
		if !found || !ended {
			t.Fatalf("no table %s", table)
		}
		codes := make(map[Code]bool)
		for _, m := range row.FindAllStringSubmatch(body, -1) {
			code, ok := parseCode(m[2])
			if !ok || codes[code] {
				t.Errorf("table %s: %s is no code, or stands there twice", table, m[2])
			}
			if bold := m[1] != ""; bold != code.Passing() {
				t.Errorf("table %s: %v is bold: %v, passing: %v", table, code, bold, code.Passing())
			}
			codes[code] = true
		}
		return codes
	}
	entry, account := make(map[Code]bool), make(map[Code]bool)
	for _, c := range entryCases {
		entry[c.want] = true
	}
	for _, c := range accountCases {
		account[c.want] = true
	}
	for table, want := range map[string]map[Code]bool{"entry-codes": entry, "account-codes": account} {
		got := listed(table)
		for code := range want {
			if !got[code] {
				t.Errorf("table %s lacks %v", table, code)
			}
		}
		for code := range got {
			if !want[code] {
				t.Errorf("table %s has %v, which nothing produces", table, code)
			}
		}
	}
}
