package testkit

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leakPatience is how long goroutines may take to end. goleak by itself waits for less than half a second, which a busy machine may take to let a closed connection's end.
const leakPatience = 20 * time.Second

func findLeaks(options ...goleak.Option) error {
	for end := time.Now().Add(leakPatience); ; {
		if err := goleak.Find(options...); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// NoLeaks fails the test if goroutines go on that options do not except, and do not end soon.
func NoLeaks(t testing.TB, options ...goleak.Option) {
	t.Helper()
	if err := findLeaks(options...); err != nil {
		t.Error(err)
	}
}

// MainWithoutLeaks runs the tests of a package, and fails if they leave goroutines behind.
func MainWithoutLeaks(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := findLeaks(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
