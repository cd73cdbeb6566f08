//go:build !mutants

package core

// mutated reports whether the program is to have a certain fault: never, but in builds that test
// the simulator (internal/sim, TestMutants). The compiler removes what depends on it.
func mutated(string) bool { return false }
