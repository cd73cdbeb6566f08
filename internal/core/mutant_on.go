//go:build mutants

package core

import "strings"

// Mutant names the faults that this build has, separated by spaces.
var Mutant string

func mutated(fault string) bool {
	return Mutant != "" && (Mutant == fault || strings.Contains(" "+Mutant+" ", " "+fault+" "))
}

// Mutated is for the packages around the core.
func Mutated(fault string) bool { return mutated(fault) }
