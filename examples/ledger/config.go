package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/decree-raft/decree/proxy/flags"
	"github.com/decree-raft/decree/rsm"
)

// serveConfig is how one node is served. The JSON names are those of the
// configuration file; a flag of the same name wins over it.
type serveConfig struct {
	// Cluster names the cluster: a node refuses peers and data of another one.
	Cluster string `json:"cluster"`
	// Node is this node's id.
	Node rsm.NodeID `json:"node"`
	// Dir holds this node's data. Default: ledger-data/ and the node's id.
	Dir string `json:"dir"`
	// Peers, API and HTTP have an address for each node, under its id: where it listens to its peers, to gRPC and to
	// HTTP. They are the same on all nodes. Default: those of local.
	Peers addresses `json:"peers"`
	API   addresses `json:"api"`
	HTTP  addresses `json:"http"`
	// Join: the cluster exists without this node, and "decree add" or "decree replace" makes it a member. It stays set.
	Join bool `json:"join"`
	// Voters are the nodes that the cluster began with, the same for ever, whoever takes part by now. Default: all of Peers. A node that joins
	// has no use for them.
	Voters nodeIDs `json:"voters"`
	// ElectionTimeout: after this long to twice this long without a leader, a node campaigns.
	ElectionTimeout duration `json:"election_timeout"`
	// Pprof offers profiles at HTTP, under /debug/pprof/, to whoever reaches it.
	Pprof bool `json:"pprof"`
	// OldProgram keeps this node, and with it the cluster, at the first version of the ledger's rules: see book.Machine.
	OldProgram bool `json:"old_program"`
	// Port protects API and HTTP, and Nodes the nodes' own ports, between each other.
	flags.Port
	flags.Nodes
}

// defaultServeConfig is a node of a cluster on this machine, reachable from this machine alone. Addresses are the caller's, or local's.
func defaultServeConfig() serveConfig {
	return serveConfig{Cluster: "ledger", ElectionTimeout: duration(800 * time.Millisecond)}
}

// The first ports of nodes on one machine: node 1 has the next after each, and so on.
const (
	peerPort = 7100
	apiPort  = 7200
	httpPort = 7300
)

// local are the addresses of nodes 1 to 3 on this machine, and that of this node if it joins them.
func (c *serveConfig) local(port int) addresses {
	ids := []rsm.NodeID{1, 2, 3}
	if c.Join && c.Node < apiPort-peerPort {
		ids = append(ids, c.Node)
	}
	a := make(addresses)
	for _, id := range ids {
		a[id] = fmt.Sprintf("127.0.0.1:%d", port+int(id))
	}
	return a
}

// addresses is an address for each node. As a flag it is written "1=host:port,2=host:port".
type addresses map[rsm.NodeID]string

func (a addresses) String() string {
	var parts []string
	for _, id := range slices.Sorted(maps.Keys(a)) {
		parts = append(parts, fmt.Sprintf("%d=%s", id, a[id]))
	}
	return strings.Join(parts, ",")
}

// Set replaces all addresses.
func (a *addresses) Set(s string) error {
	*a = make(addresses)
	for _, part := range splitAddresses(s) {
		id, address, ok := strings.Cut(part, "=")
		n, err := strconv.ParseUint(id, 10, 64)
		if !ok || err != nil || n == 0 {
			return fmt.Errorf("%q is not of the form id=host:port", part)
		}
		if _, twice := (*a)[rsm.NodeID(n)]; twice {
			return fmt.Errorf("node %d stands twice", n)
		}
		(*a)[rsm.NodeID(n)] = address
	}
	return nil
}

// nodeIDs are ids of nodes. As a flag they are written "1,2,3".
type nodeIDs []rsm.NodeID

func (n nodeIDs) String() string {
	var parts []string
	for _, id := range n {
		parts = append(parts, fmt.Sprint(id))
	}
	return strings.Join(parts, ",")
}

// Set replaces all ids.
func (n *nodeIDs) Set(s string) error {
	*n = nil
	for _, part := range splitAddresses(s) {
		id, err := strconv.ParseUint(part, 10, 64)
		if err != nil || id == 0 {
			return fmt.Errorf("%q is no id of a node", part)
		}
		*n = append(*n, rsm.NodeID(id))
	}
	return nil
}

// duration is a time.Duration that JSON has as "800ms".
type duration time.Duration

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// bind makes flags of c's fields, with c's values as their defaults.
func (c *serveConfig) bind(f *flag.FlagSet) {
	f.StringVar(&c.Cluster, "cluster", c.Cluster, "`name` of the cluster")
	f.Uint64Var((*uint64)(&c.Node), "node", uint64(c.Node), "this node's `id`")
	f.StringVar(&c.Dir, "dir", c.Dir, "`directory` of this node's data (default ledger-data/ID)")
	f.Var(&c.Peers, "peers", "`addresses` of the nodes for each other, as id=host:port,... (default 1=127.0.0.1:7101 to 3=127.0.0.1:7103,\nand with -join this node's, after the same rule). Of nodes that join later it need not know")
	f.Var(&c.API, "api", "`addresses` of the nodes for gRPC (default 1=127.0.0.1:7201, and so on)")
	f.Var(&c.HTTP, "http", "`addresses` of the nodes for HTTP/JSON (default 1=127.0.0.1:7301, and so on)")
	f.BoolVar(&c.Join, "join", c.Join, "the cluster exists without this node, which waits until \"decree add\" or \"decree replace\" makes it a member, and starts with -join ever after.\nIts id must be one that no node ever had")
	f.Var(&c.Voters, "voters", "`ids` of the nodes that the cluster began with, as 1,2,3 (default all of -peers). They stay what they were, whoever takes part by now: write\nthem out when -peers is given more nodes, and leave the addresses of these in it, also of those that are gone")
	f.DurationVar((*time.Duration)(&c.ElectionTimeout), "election-timeout", time.Duration(c.ElectionTimeout), "without a leader for this long, a node campaigns")
	f.BoolVar(&c.Pprof, "pprof", c.Pprof, "offer profiles over HTTP, under /debug/pprof/, to whoever reaches it")
	c.Port.Bind(f)
	c.Nodes.Bind(f)
	f.BoolVar(&c.OldProgram, "old-program", c.OldProgram, "run the first version of the ledger's rules and no later one, as the program before did: entries\nhave no references while one node has this. Once a later version is active, the replica of a node with this is refused")
}

// parseServe reads the arguments. Defaults are overruled by the file, and the file by flags.
func parseServe(c console, args []string) (serveConfig, error) {
	cfg := defaultServeConfig()
	file, err := parseServeFlags(c, &cfg, args)
	if err == nil && file != "" {
		cfg = defaultServeConfig()
		if err := cfg.read(file); err != nil {
			return cfg, err
		}
		_, err = parseServeFlags(c, &cfg, args)
	}
	if err != nil {
		return cfg, err
	}
	if cfg.Dir == "" {
		cfg.Dir = fmt.Sprintf("ledger-data/%d", cfg.Node)
	}
	for port, a := range map[int]*addresses{peerPort: &cfg.Peers, apiPort: &cfg.API, httpPort: &cfg.HTTP} {
		if *a == nil {
			*a = cfg.local(port)
		}
	}
	if err := cfg.validate(); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func parseServeFlags(c console, cfg *serveConfig, args []string) (file string, err error) {
	f := newFlags(c, "serve", `

Runs one node until it is interrupted. The same -peers, -api and -http go to all nodes.
Any node answers everything: what its replica cannot, a proxy within it sends to the leader, and holds through an election.

A further node joins the cluster, or takes the place of another; the others go on as they are, and may be given its addresses, with -voters:

  ledger serve -node 4 -join
  decree replace -node 127.0.0.1:7101 3 4 127.0.0.1:7104
`)
	f.StringVar(&file, "config", "", "JSON `file` with the same settings, under the same names")
	cfg.bind(f)
	return file, parse(f, args, 0)
}

func (c *serveConfig) read(name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *serveConfig) validate() error {
	if c.Node == 0 {
		return errors.New("-node is missing: which of the nodes is this?")
	}
	for name, a := range map[string]addresses{"peers": c.Peers, "api": c.API, "http": c.HTTP} {
		if a[c.Node] == "" {
			return fmt.Errorf("-%s has no address for node %d", name, c.Node)
		}
		for id, address := range a {
			if _, _, err := net.SplitHostPort(address); err != nil {
				return fmt.Errorf("-%s: address of node %d: %w", name, id, err)
			}
		}
	}
	if len(c.Voters) > 0 && !c.Join {
		if !slices.Contains(c.Voters, c.Node) {
			return fmt.Errorf("-voters are %v, and do not name node %d: one that came later has -join", c.Voters, c.Node)
		}
		for _, id := range c.Voters {
			if c.Peers[id] == "" {
				return fmt.Errorf("-peers has no address for node %d, which -voters names: leave it there, though the node may be gone", id)
			}
		}
	}
	if c.Tokens != "" && c.Token == "" {
		return errors.New("-tokens needs -node-token-file: the nodes' own ports ask for tokens as well, and the proxies in the other nodes show that one")
	}
	return errors.Join(c.Port.Validate(), c.Nodes.Validate())
}
