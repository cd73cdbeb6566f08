//go:build race

package testkit

// Race says whether the race detector watches: everything is several times as slow.
const Race = true
