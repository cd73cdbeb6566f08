package rsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// dataFormat is the version of the data directory as a whole. Log and state have their own versions below it.
const dataFormat = 1

// identity is node.json: whose data this is. It is written last when a
// directory is made, so that a directory with it was once complete.
type identity struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Node    NodeID `json:"node"`
}

func identityFile(dir string) string { return filepath.Join(dir, "node.json") }

// checkIdentity refuses a directory that is not this node's. found says whether there was an identity.
func checkIdentity(dir, cluster string, node NodeID) (found bool, err error) {
	data, err := os.ReadFile(identityFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var id identity
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&id); err != nil {
		return false, fmt.Errorf("%s is damaged: %w", identityFile(dir), err)
	}
	switch {
	case id.Format > dataFormat:
		return false, fmt.Errorf("%s has data of format %d, this program knows up to %d: use the newer program", dir, id.Format, dataFormat)
	case id.Cluster != cluster:
		return false, fmt.Errorf("%s belongs to cluster %q, this node is configured for %q", dir, id.Cluster, cluster)
	case id.Node != node:
		return false, fmt.Errorf("%s belongs to node %d, this is node %d", dir, id.Node, node)
	}
	return true, nil
}

// writeIdentity makes node.json, durably and all at once.
func writeIdentity(dir, cluster string, node NodeID) error {
	data, err := json.MarshalIndent(identity{Format: dataFormat, Cluster: cluster, Node: node}, "", "  ")
	if err != nil {
		return err
	}
	tmp := identityFile(dir) + ".tmp"
	if err := writeSynced(tmp, append(data, '\n')); err != nil {
		return err
	}
	if err := os.Rename(tmp, identityFile(dir)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeSynced(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
