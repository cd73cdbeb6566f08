package main

import (
	"fmt"
	"strconv"
	"strings"
)

// mode is the mix of a cell's requests.
type mode string

const (
	write mode = "write"
	read  mode = "read"  // linearizable
	mixed mode = "mixed" // nine linearizable reads to one write
)

// cell is one shape of load.
type cell struct {
	Machine  machine `json:"machine"`
	Shards   int     `json:"shards"`
	Clients  int     `json:"clients"`
	InFlight int     `json:"in_flight"` // requests that each client keeps in flight; 1: it waits for each
	Payload  int     `json:"payload"`   // bytes of a command
	Mode     mode    `json:"mode"`
}

// callers writes clients the way that the filter reads them: 16, or 64x64.
func (c cell) callers() string {
	if c.InFlight == 1 {
		return strconv.Itoa(c.Clients)
	}
	return fmt.Sprintf("%dx%d", c.Clients, c.InFlight)
}

func (c cell) String() string {
	return fmt.Sprintf("%s %s shards=%d clients=%s payload=%d", c.Machine, c.Mode, c.Shards, c.callers(), c.Payload)
}

// ledgerPayload stands in the ledger's cells: its commands have the size that they have, and are measured beside
// dragonboat's no-op commands of this one.
const ledgerPayload = 128

var (
	allShards  = []int{1, 8, 64}
	allClients = []string{"1", "16", "256", "2048", "64x64"}
	payloads   = []int{16, 128, 1024}
	modes      = []mode{write, read, mixed}
)

// fullCells is every shape for the no-op machine, and every shape at 128 bytes for the other two.
func fullCells() []cell {
	var cells []cell
	for _, m := range []machine{noop, kv, ledger} {
		for _, payload := range payloads {
			if m != noop && payload != ledgerPayload {
				continue
			}
			for _, shards := range allShards {
				for _, clients := range allClients {
					for _, mode := range modes {
						cells = append(cells, newCell(m, shards, clients, payload, mode))
					}
				}
			}
		}
	}
	return cells
}

// quickCells is the smallest selection with each target and each dimension in it.
func quickCells() []cell {
	var cells []cell
	for _, clients := range allClients {
		cells = append(cells, newCell(noop, 1, clients, 128, write))
	}
	for _, clients := range []string{"16", "256", "2048", "64x64"} {
		cells = append(cells, newCell(noop, 64, clients, 128, write))
	}
	return append(cells,
		newCell(noop, 1, "256", 16, write),
		newCell(noop, 1, "256", 1024, write),
		newCell(noop, 8, "256", 128, write),
		newCell(noop, 1, "256", 128, read),
		newCell(noop, 1, "256", 128, mixed),
		newCell(noop, 64, "256", 128, mixed),
		newCell(kv, 1, "256", 128, mixed),
		newCell(ledger, 1, "2048", 128, write),
		newCell(ledger, 1, "64x64", 128, write),
	)
}

func newCell(m machine, shards int, callers string, payload int, mode mode) cell {
	c := cell{Machine: m, Shards: shards, InFlight: 1, Payload: payload, Mode: mode}
	clients, inFlight, pipelined := strings.Cut(callers, "x")
	c.Clients = mustAtoi(clients)
	if pipelined {
		c.InFlight = mustAtoi(inFlight)
	}
	return c
}

func mustAtoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err) // only ever called on the constants above
	}
	return n
}

// selectCells reads the -cells flag: quick, full, or a filter on full such as "machine=noop,shards=1|64,mode=write".
func selectCells(flag string) ([]cell, error) {
	switch flag {
	case "quick":
		return quickCells(), nil
	case "full":
		return fullCells(), nil
	}
	cells := fullCells()
	for _, term := range strings.Split(flag, ",") {
		field, values, ok := strings.Cut(term, "=")
		if !ok {
			return nil, fmt.Errorf("-cells: %q is not field=value", term)
		}
		var kept []cell
		for _, c := range cells {
			has, err := c.field(field)
			if err != nil {
				return nil, err
			}
			for _, value := range strings.Split(values, "|") {
				if value == has {
					kept = append(kept, c)
					break
				}
			}
		}
		cells = kept
	}
	if len(cells) == 0 {
		return nil, fmt.Errorf("-cells %s selects nothing", flag)
	}
	return cells, nil
}

func (c cell) field(name string) (string, error) {
	switch name {
	case "machine":
		return string(c.Machine), nil
	case "shards":
		return strconv.Itoa(c.Shards), nil
	case "clients":
		return c.callers(), nil
	case "payload":
		return strconv.Itoa(c.Payload), nil
	case "mode":
		return string(c.Mode), nil
	}
	return "", fmt.Errorf("-cells: a cell has machine, shards, clients, payload and mode, and no %q", name)
}
