//go:build mutants

package core

import "strings"

// Mutant names the faults that this build has, separated by spaces.
var Mutant string

func mutated(fault string) bool {
	for rest := Mutant; rest != ""; { // asked thousands of times in each simulated second
		var one string
		if one, rest, _ = strings.Cut(rest, " "); one == fault {
			return true
		}
	}
	return false
}

// Mutated is for the packages around the core.
func Mutated(fault string) bool { return mutated(fault) }
