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
	// HTTP. They are the same on all nodes.
	Peers addresses `json:"peers"`
	API   addresses `json:"api"`
	HTTP  addresses `json:"http"`
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

// defaultServeConfig is a cluster of three on this machine, reachable from this machine alone.
func defaultServeConfig() serveConfig {
	return serveConfig{
		Cluster:         "ledger",
		Peers:           local(7101),
		API:             local(7201),
		HTTP:            local(7301),
		ElectionTimeout: duration(800 * time.Millisecond),
	}
}

func local(port int) addresses {
	a := make(addresses)
	for n := range 3 {
		a[rsm.NodeID(n+1)] = fmt.Sprintf("127.0.0.1:%d", port+n)
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
	f.Var(&c.Peers, "peers", "`addresses` of the nodes for each other, as id=host:port,...")
	f.Var(&c.API, "api", "`addresses` of the nodes for gRPC")
	f.Var(&c.HTTP, "http", "`addresses` of the nodes for HTTP/JSON")
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
	return cfg, cfg.validate()
}

func parseServeFlags(c console, cfg *serveConfig, args []string) (file string, err error) {
	f := newFlags(c, "serve", "\n\nRuns one node until it is interrupted. The same -peers, -api and -http go to all nodes.\n"+
		"Any node answers everything: what its replica cannot, a proxy within it sends to the leader, and holds through an election.")
	f.StringVar(&file, "config", "", "JSON `file` with the same settings, under the same names")
	cfg.bind(f)
	return file, parse(f, args, 0)
}

func (c *serveConfig) read(name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	// JSON would add to the default addresses where it shall replace them.
	defaults := *c
	c.Peers, c.API, c.HTTP = nil, nil, nil
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, a := range []struct{ got, otherwise *addresses }{
		{&c.Peers, &defaults.Peers}, {&c.API, &defaults.API}, {&c.HTTP, &defaults.HTTP},
	} {
		if *a.got == nil {
			*a.got = *a.otherwise
		}
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
	if c.Tokens != "" && c.Token == "" {
		return errors.New("-tokens needs -node-token-file: the nodes' own ports ask for tokens as well, and the proxies in the other nodes show that one")
	}
	return errors.Join(c.Port.Validate(), c.Nodes.Validate())
}
