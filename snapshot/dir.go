package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

// Options of a directory of snapshots.
type Options struct {
	// Path of the directory, which is created if missing. Required. One Dir per path: the caller sees to that.
	Path string
	// FS is vfs.Default if nil. To be installed, snapshots must lie in the file system of the state store.
	FS vfs.FS
	// Reserve is how many bytes of the disk stay free, whatever is cut or received.
	Reserve uint64
	// Logger is slog.Default if nil.
	Logger *slog.Logger
}

// Dir is a directory of snapshots, complete ones and one per shard that is being received. Its methods may be
// called on any goroutine.
type Dir struct {
	fs  vfs.FS
	o   Options
	log *slog.Logger

	names sync.Mutex // held from a change of names until it is durable: a sync that fails must not have been for somebody else's too

	mu        sync.Mutex
	complete  map[ID]*Snapshot
	refs      map[ID]int // of sources; a snapshot with one is not removed
	partial   map[ID]partial
	receiving map[uint64]bool
	cuts      int // names of directories
	damaged   []string
}

// partial is a snapshot that is not complete.
type partial struct {
	shard uint64
	index uint64
	dir   string
}

// Snapshot is a complete one.
type Snapshot struct {
	ID       ID
	Manifest *Manifest // not to be changed
	Dir      string
	fs       vfs.FS
}

// Tables returns the paths of the files, in the order that state.Install wants.
func (s *Snapshot) Tables() []string {
	paths := make([]string, len(s.Manifest.Files))
	for i := range paths {
		paths[i] = s.fs.PathJoin(s.Dir, fileName(i))
	}
	return paths
}

// Install says what a shard is to be replaced with.
func (s *Snapshot) Install() state.Install {
	return state.Install{Index: s.Manifest.Index, Tables: s.Tables()}
}

// EncodedManifest returns what a peer needs to fetch the snapshot.
func (s *Snapshot) EncodedManifest() ([]byte, error) {
	b, _, err := s.Manifest.Encode()
	return b, err
}

// What stands in names of directories, see doc.go.
const (
	namePrefix   = "snap-"
	suffixCut    = ".cut"  // being cut
	suffixPart   = ".part" // being received
	suffixDelete = ".del"  // being removed
)

func nameOf(m *Manifest, id ID) string {
	return fmt.Sprintf("%s%016x-%016x-%s", namePrefix, m.Shard, m.Index, id.Short())
}

func (d *Dir) path(name string) string { return d.fs.PathJoin(d.o.Path, name) }

// Open opens the directory and clears up what a crash has left: what was being cut or removed is removed; what was being
// received stays, to be gone on with by Receive, if its manifest is whole. Names that are not ours are left alone.
func Open(o Options) (*Dir, error) {
	if o.Path == "" {
		return nil, errors.New("snapshot: Options.Path is empty")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	d := &Dir{fs: o.FS, o: o, log: o.Logger, complete: map[ID]*Snapshot{}, refs: map[ID]int{}, partial: map[ID]partial{}, receiving: map[uint64]bool{}}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("snapshot: open %s: %w", o.Path, err)
	}
	return d, nil
}

func (d *Dir) open() error {
	if err := makeDir(d.fs, d.o.Path); err != nil {
		return err
	}
	names, err := d.fs.List(d.o.Path)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasPrefix(name, namePrefix) {
			continue
		}
		switch {
		case strings.HasSuffix(name, suffixCut), strings.HasSuffix(name, suffixDelete):
			d.removeLeftover(name)
		case strings.HasSuffix(name, suffixPart):
			d.adoptPartial(name)
		default:
			d.adopt(name)
		}
	}
	return nil
}

// removeLeftover must not keep the directory from being opened: a node does not start without it.
func (d *Dir) removeLeftover(name string) {
	d.log.Info("snapshot: a leftover is removed", "dir", d.path(name))
	if err := d.fs.RemoveAll(d.path(name)); err != nil {
		d.log.Warn("snapshot: a leftover could not be removed, and takes space", "dir", d.path(name), "err", err)
	}
}

// adoptPartial takes up what is to be gone on with. What cannot be is fetched anew.
func (d *Dir) adoptPartial(name string) {
	m, id, err := readManifest(d.fs, d.path(name))
	if err == nil && nameOf(m, id)+suffixPart == name {
		d.partial[id] = partial{m.Shard, m.Index, d.path(name)}
		return
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("snapshot: what was received cannot be gone on with", "dir", d.path(name), "err", err)
	}
	d.removeLeftover(name)
}

// adopt takes up a complete snapshot. One that is damaged was complete once: it is not a leftover, and an operator may want to see it.
func (d *Dir) adopt(name string) {
	m, id, err := readManifest(d.fs, d.path(name))
	if err == nil && nameOf(m, id) != name {
		err = fmt.Errorf("%w: it is called %s, its manifest is that of %s", ErrCorrupt, name, nameOf(m, id))
	}
	if err != nil {
		d.log.Warn("snapshot: left alone, it cannot be used", "dir", d.path(name), "err", err)
		d.damaged = append(d.damaged, d.path(name))
		return
	}
	d.complete[id] = &Snapshot{ID: id, Manifest: m, Dir: d.path(name), fs: d.fs}
}

// List returns the complete snapshots, by shard and index. That their files are whole is for Verify to say.
func (d *Dir) List() (list []*Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.complete {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *Snapshot) int {
		return cmp.Or(cmp.Compare(a.Manifest.Shard, b.Manifest.Shard), cmp.Compare(a.Manifest.Index, b.Manifest.Index),
			strings.Compare(a.Dir, b.Dir))
	})
	return list
}

// Damaged returns directories that Open found to be unusable and left alone.
func (d *Dir) Damaged() []string { return d.damaged }

// Partial returns what is there of snapshots that were not received to their ends, with their shards.
func (d *Dir) Partial() map[ID]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[ID]uint64, len(d.partial))
	for id, p := range d.partial {
		out[id] = p.shard
	}
	return out
}

// Remove removes a complete snapshot. ErrBusy: a source reads from it. A crash leaves it there, or a leftover for Open.
func (d *Dir) Remove(id ID) error { return d.removeComplete(id, false) }

// Discard is Remove for one that must not be used any more, whoever reads from it: they find it gone. It is not offered any more even if the disk fails.
func (d *Dir) Discard(id ID) error { return d.removeComplete(id, true) }

func (d *Dir) removeComplete(id ID, whoeverReads bool) error {
	gone, err := d.hideComplete(id, whoeverReads)
	if err == nil {
		d.empty(gone)
	}
	return err
}

// hideComplete does under the lock what decides: who publishes the same snapshot meanwhile must not find its own directory taken away.
func (d *Dir) hideComplete(id ID, whoeverReads bool) (gone string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.complete[id]
	switch {
	case s == nil:
		return "", fmt.Errorf("%w: %s", ErrNotFound, id.Short())
	case d.refs[id] > 0 && !whoeverReads:
		return "", fmt.Errorf("%w: %s is being read by %d", ErrBusy, id.Short(), d.refs[id])
	}
	gone, err = d.hide(s.Dir)
	if err == nil || whoeverReads {
		delete(d.complete, id)
	}
	if err != nil && whoeverReads { // the next Open shall not find it whole
		err = errors.Join(err, d.fs.Remove(d.fs.PathJoin(s.Dir, manifestName)), syncDir(d.fs, s.Dir))
	}
	return gone, err
}

// RemovePartial removes what was received of a snapshot that will not be gone on with. ErrBusy: it is being received.
func (d *Dir) RemovePartial(id ID) error {
	d.mu.Lock()
	p, ok := d.partial[id]
	switch {
	case !ok:
		d.mu.Unlock()
		return fmt.Errorf("%w: %s", ErrNotFound, id.Short())
	case d.receiving[p.shard]:
		d.mu.Unlock()
		return fmt.Errorf("%w: a snapshot of shard %d is being received", ErrBusy, p.shard)
	}
	d.receiving[p.shard] = true
	d.mu.Unlock()
	defer d.endReceive(p.shard)
	return d.dropPartial(id, p)
}

// RemovePartials removes what was received of a shard's snapshots up to an index, because it is needed no more. What is being received stays.
func (d *Dir) RemovePartials(shard, upTo uint64) error {
	d.mu.Lock()
	var ids []ID
	for id, p := range d.partial { // any order: all of them go
		if p.shard == shard && p.index <= upTo && !d.receiving[shard] {
			ids = append(ids, id)
		}
	}
	d.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if err := d.RemovePartial(id); !errors.Is(err, ErrBusy) && !errors.Is(err, ErrNotFound) { // it was begun, or removed, meanwhile
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dropPartial removes a partial snapshot of a shard that the caller holds in receiving.
func (d *Dir) dropPartial(id ID, p partial) error {
	if err := d.remove(p.dir); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.partial, id)
	d.mu.Unlock()
	return nil
}

// remove gives the directory a name by which it is nothing but a leftover, and empties it then: what is half gone must not look whole.
func (d *Dir) remove(dir string) error {
	gone, err := d.hide(dir)
	if err == nil {
		d.empty(gone)
	}
	return err
}

// hide gives the directory the name of a leftover. One that somebody else has removed is gone already.
func (d *Dir) hide(dir string) (gone string, err error) {
	gone = dir + suffixDelete
	if err := d.rename(dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("snapshot: remove: %w", err)
	}
	return gone, nil
}

func (d *Dir) empty(gone string) {
	if err := d.fs.RemoveAll(gone); err != nil {
		d.log.Warn("snapshot: what was removed still takes space, until the next start", "dir", gone, "err", err)
	}
}

// makeDir makes one of our directories.
func (d *Dir) makeDir(dir string) error {
	d.names.Lock()
	defer d.names.Unlock()
	return makeDir(d.fs, dir)
}

// rename gives a directory of ours another name, durably, or leaves it under the old one.
func (d *Dir) rename(from, to string) error {
	d.names.Lock()
	defer d.names.Unlock()
	if err := d.fs.Rename(from, to); err != nil {
		return err
	}
	if err := syncDir(d.fs, d.o.Path); err != nil {
		return errors.Join(err, d.fs.Rename(to, from))
	}
	return nil
}

// publish gives a directory, all of whose files are synced, its final name.
func (d *Dir) publish(dir string, m *Manifest, id ID) (*Snapshot, error) {
	s := &Snapshot{ID: id, Manifest: m, Dir: d.path(nameOf(m, id)), fs: d.fs}
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.complete[id]; known != nil {
		return known, d.fs.RemoveAll(dir) // the same bytes
	}
	if _, err := d.fs.Stat(s.Dir); err == nil {
		// Open has left it alone. Without this there would be no snapshot of this index here any more.
		d.log.Warn("snapshot: a damaged one makes room for a whole one", "dir", s.Dir)
		if err := d.remove(s.Dir); err != nil {
			return nil, err
		}
	}
	if err := syncDir(d.fs, dir); err != nil {
		return nil, errors.Join(err, d.fs.RemoveAll(dir)) // what was received is received anew
	}
	if err := d.rename(dir, s.Dir); err != nil {
		return nil, err
	}
	d.complete[id] = s
	return s, nil
}
