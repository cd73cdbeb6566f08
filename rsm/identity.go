package rsm

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dataFormat is the version of the data directory as a whole. Log and state have their own versions below it.
const dataFormat = 1

// identity is node.json: whose data this is, and by what name the peers' data is known. It is written last when a
// directory is made, so that a directory with it was once complete.
type identity struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Node    NodeID `json:"node"`
	// Data is drawn when the directory is made. A node that comes back with another one has
	// lost what it had promised, and its peers refuse it.
	Data string `json:"data"`
	// Shards has the voters that each shard was made with.
	Shards map[ShardID][]NodeID `json:"shards"`
	// Peers has the Data of every peer that was ever met.
	Peers map[NodeID]string `json:"peers"`
	// Sum is the CRC-32C of all the other fields, as they are encoded here. Another name in Data would be taken for the word
	// of a node that has lost its data, and another voter for a change of the configuration.
	Sum string `json:"sum"`
}

// sum returns what Sum must be.
func (id identity) sum() (string, error) {
	id.Sum = ""
	data, err := json.Marshal(&id)
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), err
}

func identityFile(dir string) string { return filepath.Join(dir, "node.json") }

// unfinishedFile is what node.json is called until a restore has made the rest of the directory.
func unfinishedFile(dir string) string { return identityFile(dir) + ".restoring" }

// readIdentity returns the identity of a directory, nil if it has none, and an error if it is not this node's.
func readIdentity(dir, cluster string, node NodeID) (*identity, error) {
	id, err := loadIdentity(dir)
	switch {
	case err != nil || id == nil:
		return nil, err
	case id.Cluster != cluster:
		return nil, fmt.Errorf("%s belongs to cluster %q, this node is configured for %q", dir, id.Cluster, cluster)
	case id.Node != node:
		return nil, fmt.Errorf("%s belongs to node %d, this is node %d", dir, id.Node, node)
	}
	return id, nil
}

// loadIdentity returns the identity of a directory, whosever it is, or nil if it has none.
func loadIdentity(dir string) (*identity, error) {
	if _, err := os.Stat(unfinishedFile(dir)); !errors.Is(err, fs.ErrNotExist) {
		return nil, cmp.Or(err, fmt.Errorf("%s was being restored, and that did not come to its end (%s is there): restore it again, or remove it", dir, unfinishedFile(dir)))
	}
	data, err := os.ReadFile(identityFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", identityFile(dir), err)
	}
	sum, err := id.sum()
	switch {
	case err != nil:
		return nil, err
	case id.Format > dataFormat:
		return nil, fmt.Errorf("%s says that this is data of format %d, this program knows up to %d: use the newer program", identityFile(dir), id.Format, dataFormat)
	case id.Sum != sum:
		return nil, fmt.Errorf("%s is damaged: its checksum is %q, and should be %q: restore the file", identityFile(dir), id.Sum, sum)
	}
	return &id, nil
}

func newIdentity(cluster string, node NodeID) *identity {
	return &identity{Format: dataFormat, Cluster: cluster, Node: node, Data: rand.Text(), Peers: map[NodeID]string{}}
}

// write makes node.json, durably and all at once.
func (id *identity) write(dir string) error { return id.writeAs(dir, identityFile(dir)) }

func (id *identity) writeAs(dir, name string) error {
	var err error
	if id.Sum, err = id.sum(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	tmp := identityFile(dir) + ".tmp"
	if err := writeSynced(tmp, append(data, '\n')); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

// origin is the part of a data's name that all nodes have in common which were restored together, empty for a node that was not restored: see Restore.
func origin(data string) string {
	_, of, _ := strings.Cut(data, "-")
	return of
}

// madeWith reports whether the peer is one of the nodes that the data of this one was made for.
func (id *identity) madeWith(peer NodeID) bool {
	for _, voters := range id.Shards {
		if slices.Contains(voters, peer) {
			return true
		}
	}
	return false
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncAbove makes the name of a new data directory durable, and those of the directories above it: otherwise a power cut could take
// the directory away with all that is durable in it, and the node would come back as a new one, under
// its old id. What may not be opened, or cannot be synced, was there before this program.
func syncAbove(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for parent := filepath.Dir(dir); parent != dir; dir, parent = parent, filepath.Dir(parent) {
		switch err := syncDir(parent); {
		case err == nil:
		case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOTSUP):
			return nil
		default:
			return err
		}
	}
	return nil
}

// admit is asked by the transport before anything is exchanged with a peer. The first time
// its data's name is noted down; from then on, a peer with other data is refused: it could vote a second
// time in a term, or deny what it had acknowledged.
func (n *Node) admit(peer uint64, data string) error {
	n.idMu.Lock()
	defer n.idMu.Unlock()
	known, met := n.identity.Peers[NodeID(peer)]
	switch {
	case met && known == data:
		return nil
	case met:
		return fmt.Errorf("node %d has come back with other data (%s) than it had (%s): a node that lost its data may not return under its old id; add it as a new node", peer, data, known)
	}
	if of := origin(n.identity.Data); of != "" && of != origin(data) && n.identity.madeWith(NodeID(peer)) {
		return fmt.Errorf("node %d has data (%s) that was not restored from the same backup, to the same position and for the same members as this node's (%s): "+
			"restore all nodes of the cluster in the same way", peer, data, n.identity.Data)
	}
	if n.identity.Peers == nil {
		n.identity.Peers = map[NodeID]string{}
	}
	n.identity.Peers[NodeID(peer)] = data
	if err := n.identity.write(n.cfg.Dir); err != nil {
		delete(n.identity.Peers, NodeID(peer))
		return fmt.Errorf("node %d cannot note down who its peer is: %w", n.cfg.Node, err)
	}
	return nil
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
