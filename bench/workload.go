package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// workload is what the callers of one cell send, made before the clock starts, so that making it costs nothing.
type workload struct {
	setup  [][]byte // written once to every shard before anything is measured
	writes [][]byte
	reads  [][]byte // keys
}

const (
	distinctCommands = 16384 // a cell's callers go through them in turn, each from its own start
	keySize          = 8     // of the key-value machine
)

// newWorkload makes the commands of the machines that every contender understands.
func newWorkload(m machine, payload int) (workload, error) {
	if m != noop && m != kv {
		return workload{}, fmt.Errorf("no common commands for machine %q", m)
	}
	if payload < keySize {
		return workload{}, fmt.Errorf("a command of %d bytes has no room for a key of %d", payload, keySize)
	}
	rng := rand.NewChaCha8([32]byte{1}) // the same bytes for every system and in every run
	w := workload{writes: make([][]byte, distinctCommands), reads: make([][]byte, distinctCommands)}
	for i := range w.writes {
		command := make([]byte, payload)
		rng.Read(command) // never fails
		binary.BigEndian.PutUint64(command, uint64(i))
		w.writes[i], w.reads[i] = command, command[:keySize]
	}
	return w, nil
}
