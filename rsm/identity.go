package rsm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/datadir"
	"github.com/decree-raft/decree/wal"
)

// identity is node.json.
type identity = datadir.Identity

// machineDisk is the machine's file system, for data directories.
type machineDisk struct {
	vfs.FS
	log wal.Options // of logs, but for their directory
}

var _ datadir.Disk = (*machineDisk)(nil)

// theDisk is where the data directories of nodes are.
func theDisk() *machineDisk { return &machineDisk{FS: vfs.Default} }

// WriteFile implements datadir.Disk.
func (*machineDisk) WriteFile(name string, data []byte) error {
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

// SyncAbove implements datadir.Disk.
func (*machineDisk) SyncAbove(dir string) error { return syncAbove(dir) }

// OpenLog implements datadir.Disk.
func (d *machineDisk) OpenLog(dir string) (datadir.Log, error) {
	o := d.log
	o.Dir = dir
	log, _, err := wal.Open(o)
	return log, err
}

func loadIdentity(dir string) (*identity, error) { return datadir.Load(theDisk(), dir) }

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
	if of := datadir.Origin(n.identity.Data); of != "" && of != datadir.Origin(data) && n.identity.MadeWith(NodeID(peer)) {
		return fmt.Errorf("node %d has data (%s) that was not restored from the same backup, to the same position and for the same members as this node's (%s): "+
			"restore all nodes of the cluster in the same way", peer, data, n.identity.Data)
	}
	if n.identity.Peers == nil {
		n.identity.Peers = map[NodeID]string{}
	}
	n.identity.Peers[NodeID(peer)] = data
	if err := n.identity.Write(theDisk(), n.cfg.Dir); err != nil {
		delete(n.identity.Peers, NodeID(peer))
		return fmt.Errorf("node %d cannot note down who its peer is: %w", n.cfg.Node, err)
	}
	return nil
}
