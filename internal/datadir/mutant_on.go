//go:build mutants

package datadir

import "github.com/decree-raft/decree/internal/core"

func mutated(fault string) bool { return core.Mutated(fault) }
