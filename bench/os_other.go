//go:build !linux

package main

import (
	"os"
	"os/exec"
	"time"
)

// Elsewhere than on Linux the benchmark runs without these: nothing is preallocated (as in tan itself), the file
// system is not checked, children are not killed with their parent, and the processor time of others is not known.

func preallocate(*os.File, int64) error { return nil }
func inMemory(string) (bool, error)     { return false, nil }
func endWithParent(*exec.Cmd)           {}
func childCPU(int) time.Duration        { return 0 }
func machineCPU() time.Duration         { return 0 }
