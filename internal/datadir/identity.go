package datadir

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/decree-raft/decree/internal/core"
)

// dataFormat is the version of the data directory as a whole. Log and state have their own versions below it.
const dataFormat = formatRestored

// A directory is of format 1, and of format 2 if it was restored: what leaders of a restored shard write into the log, programs that know
// format 1 only do not know.
const (
	formatFirst    = 1
	formatRestored = 2
)

// Identity is node.json: whose data this is, and by what name the peers' data is known. It is written last when a
// directory is made, so that a directory with it was once complete.
type Identity struct {
	Format  int         `json:"format"`
	Cluster string      `json:"cluster"`
	Node    core.NodeID `json:"node"`
	// Data is drawn when the directory is made. A node that comes back with another one has
	// lost what it had promised, and its peers refuse it.
	Data string `json:"data"`
	// Shards has the voters that each shard was made with.
	Shards map[core.ShardID][]core.NodeID `json:"shards"`
	// Peers has the Data of every peer that was ever met.
	Peers map[core.NodeID]string `json:"peers"`
	// Sum is the CRC-32C of all the other fields, as they are encoded here. Another name in Data would be taken for the word
	// of a node that has lost its data, and another voter for a change of the configuration.
	Sum string `json:"sum"`
}

// sum returns what Sum must be.
func (id Identity) sum() (string, error) {
	id.Sum = ""
	data, err := json.Marshal(&id)
	return fmt.Sprintf("%08x", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))), err
}

func identityFile(d Disk, dir string) string { return d.PathJoin(dir, nodeFile) }

// UnfinishedFile is what node.json is called until a restore has made the rest of the directory.
func UnfinishedFile(d Disk, dir string) string { return identityFile(d, dir) + ".restoring" }

// Read returns the identity of a directory, nil if it has none, and an error if it is not this node's.
func Read(d Disk, dir, cluster string, node core.NodeID) (*Identity, error) {
	id, err := Load(d, dir)
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

// Load returns the identity of a directory, whosever it is, or nil if it has none.
func Load(d Disk, dir string) (*Identity, error) {
	if _, err := d.Stat(UnfinishedFile(d, dir)); !errors.Is(err, fs.ErrNotExist) {
		return nil, cmp.Or(err, fmt.Errorf("%s was being restored, and that did not come to its end (%s is there): restore it again, or remove it", dir, UnfinishedFile(d, dir)))
	}
	data, err := readFile(d, identityFile(d, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", identityFile(d, dir), err)
	}
	sum, err := id.sum()
	switch {
	case err != nil:
		return nil, err
	case id.Format > dataFormat:
		return nil, fmt.Errorf("%s says that this is data of format %d, this program knows up to %d: use the newer program", identityFile(d, dir), id.Format, dataFormat)
	case id.Sum != sum:
		return nil, fmt.Errorf("%s is damaged: its checksum is %q, and should be %q: restore the file", identityFile(d, dir), id.Sum, sum)
	}
	return &id, nil
}

// New returns the identity of a directory that is being made.
func New(cluster string, node core.NodeID) *Identity {
	return &Identity{Format: formatFirst, Cluster: cluster, Node: node, Data: rand.Text(), Peers: map[core.NodeID]string{}}
}

// Write makes node.json, durably and all at once.
func (id *Identity) Write(d Disk, dir string) error { return id.writeAs(d, dir, identityFile(d, dir)) }

func (id *Identity) writeAs(d Disk, dir, name string) error {
	var err error
	if id.Sum, err = id.sum(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	tmp := identityFile(d, dir) + ".tmp"
	_, before := d.Stat(name)
	if err := d.WriteFile(tmp, append(data, '\n')); err != nil {
		return err
	}
	if err := d.Rename(tmp, name); err != nil {
		return err
	}
	if err = syncDir(d, dir); err != nil && errors.Is(before, fs.ErrNotExist) {
		err = errors.Join(err, d.Rename(name, tmp)) // see MakeDir; the next start would believe it
	}
	return err
}

// Origin is the part of a data's name that all nodes have in common which were restored together, empty for a node that was not restored: see Restore.
func Origin(data string) string {
	_, of, _ := strings.Cut(data, "-")
	return of
}

// Restored reports whether the directory was restored, by a program that gives sessions other ids then.
func (id *Identity) Restored() bool { return id.Format >= formatRestored }

// MadeWith reports whether the peer is one of the nodes that the data of this one was made for.
func (id *Identity) MadeWith(peer core.NodeID) bool {
	for _, voters := range id.Shards {
		if slices.Contains(voters, peer) {
			return true
		}
	}
	return false
}

func readFile(d Disk, name string) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}
