package main

import (
	"os"
	"strings"
	"testing"
)

func Example() {
	main()
	// Output:
	// 5 -> 5 <nil>
	// -2 -> 3 <nil>
	// -4 ->  rejected (below_zero): the counter is 3, it cannot change by -4
	// value 3 <nil>
}

// The README shows this very program.
func TestReadmeQuotesThis(t *testing.T) {
	code, err := os.ReadFile("counter.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "<!-- counter:begin -->\n```go\n" + string(code) + "```\n<!-- counter:end -->"; !strings.Contains(string(readme), want) {
		t.Error("README.md quotes another counter.go: copy the file between the counter markers")
	}
}
