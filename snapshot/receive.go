package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ReceiveOptions say what is accepted.
type ReceiveOptions struct {
	// Cluster and Shard are those that the snapshot must be of. Required.
	Cluster string
	Shard   uint64
	// MinIndex refuses older ones.
	MinIndex uint64
	// MaxBytes bounds the files together; 0: only by the disk, see Options.Reserve.
	MaxBytes int64
	// BytesPerSecond bounds the fetching; 0: no bound.
	BytesPerSecond int64
	// Progress is called on the same goroutine after every chunk; nil: not called.
	Progress func(Progress)
}

// chunkAttempts is how often a chunk is fetched that arrives damaged. An error of Fetch itself is for the caller to
// judge, who can call Receive again at any time.
const chunkAttempts = 3

// Receive fetches a snapshot and returns when it is complete and durable. What is there already, of an earlier call or from before a
// restart, is checked and not fetched again. After an error what has arrived stays, but for a file that the disk could not write or read, until Receive is called for the same
// manifest, or for another of the shard, or RemovePartial. ErrBusy: the shard has a Receive under way.
//
// The manifest comes from a peer and is believed only so far: ErrForeign, ErrStale, ErrTooLarge, ErrNoSpace, ErrNewerFormat and ErrCorrupt
// say why not, before anything is written. Whatever it says, nothing is written outside of the snapshot's directory,
// and no more than was checked against the free space.
func (d *Dir) Receive(ctx context.Context, manifest []byte, from Fetcher, o ReceiveOptions) (*Snapshot, error) {
	m, id, err := Decode(manifest)
	if err != nil {
		return nil, err
	}
	if err := o.accept(m); err != nil {
		return nil, err
	}
	d.mu.Lock()
	if s := d.complete[id]; s != nil {
		d.mu.Unlock()
		return s, nil
	}
	if d.receiving[m.Shard] {
		d.mu.Unlock()
		return nil, fmt.Errorf("%w: a snapshot of shard %d is being received already", ErrBusy, m.Shard)
	}
	d.receiving[m.Shard] = true
	others := map[ID]partial{}
	for other, p := range d.partial { // any order: into a map again
		if p.shard == m.Shard && other != id {
			others[other] = p
		}
	}
	d.mu.Unlock()
	defer d.endReceive(m.Shard)
	for other, p := range others { // any order: there is one per shard at most, whatever peers send
		if err := d.dropPartial(other, p); err != nil {
			return nil, err
		}
	}
	r := receiver{d: d, m: m, id: id, from: from, o: o, limit: newLimiter(o.BytesPerSecond, nil), buf: make([]byte, m.ChunkBytes)}
	r.dir = d.path(nameOf(m, id) + suffixPart)
	s, err := r.run(ctx, manifest)
	if err != nil {
		return nil, fmt.Errorf("snapshot: receive shard %d at %d: %w", m.Shard, m.Index, err)
	}
	d.log.Info("snapshot: received", "dir", s.Dir, "shard", m.Shard, "index", m.Index, "files", len(m.Files), "bytes", m.Bytes(), "fetched", r.fetched)
	return s, nil
}

func (d *Dir) endReceive(shard uint64) {
	d.mu.Lock()
	delete(d.receiving, shard)
	d.mu.Unlock()
}

// accept compares a manifest with what was asked for.
func (o *ReceiveOptions) accept(m *Manifest) error {
	switch {
	case m.Cluster != o.Cluster || m.Shard != o.Shard:
		return fmt.Errorf("%w: shard %d of cluster %q, expected shard %d of %q", ErrForeign, m.Shard, m.Cluster, o.Shard, o.Cluster)
	case m.Index < o.MinIndex:
		return fmt.Errorf("%w: it is of index %d, wanted is %d or later", ErrStale, m.Index, o.MinIndex)
	case o.MaxBytes > 0 && m.Bytes() > o.MaxBytes:
		return fmt.Errorf("%w: the files have %d bytes, allowed are %d", ErrTooLarge, m.Bytes(), o.MaxBytes)
	}
	return nil
}

// receiver is a Receive under way.
type receiver struct {
	d       *Dir
	m       *Manifest
	id      ID
	from    Fetcher
	o       ReceiveOptions
	limit   *limiter
	dir     string
	buf     []byte // of a chunk
	bytes   int64  // in place
	fetched int64  // of those, in this call
}

func (r *receiver) run(ctx context.Context, manifest []byte) (*Snapshot, error) {
	if err := r.begin(manifest); err != nil {
		return nil, err
	}
	if err := r.room(); err != nil {
		return nil, err
	}
	for i := range r.m.Files {
		if err := r.file(ctx, i); err != nil {
			return nil, err
		}
	}
	s, err := r.d.publish(r.dir, r.m, r.id)
	if err != nil {
		return nil, err
	}
	r.d.mu.Lock()
	delete(r.d.partial, r.id)
	r.d.mu.Unlock()
	return s, nil
}

// begin makes the directory, manifest first: what is in it without one is a leftover.
func (r *receiver) begin(manifest []byte) error {
	r.d.mu.Lock()
	_, known := r.d.partial[r.id]
	r.d.mu.Unlock()
	if known {
		// Somebody may have made room meanwhile.
		if _, err := r.d.fs.Stat(r.d.fs.PathJoin(r.dir, manifestName)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := makeDir(r.d.fs, r.d.o.Path); err != nil {
		return err
	}
	// Another program may have left something under the name.
	if err := r.d.fs.RemoveAll(r.dir); err != nil {
		return err
	}
	if err := space(r.d.fs, r.d.o.Path, r.m.Bytes()+int64(len(manifest)), r.d.o.Reserve); err != nil {
		return err
	}
	if err := r.d.makeDir(r.dir); err != nil {
		return err
	}
	if err := writeFile(r.d.fs, r.d.fs.PathJoin(r.dir, manifestName), manifest); err != nil {
		return errors.Join(err, r.d.fs.RemoveAll(r.dir))
	}
	if err := syncDir(r.d.fs, r.dir); err != nil {
		return errors.Join(err, r.d.fs.RemoveAll(r.dir))
	}
	r.d.mu.Lock()
	r.d.partial[r.id] = partial{r.m.Shard, r.m.Index, r.dir}
	r.d.mu.Unlock()
	return nil
}

// room checks that what is missing fits, before hours are spent on fetching a part of it.
func (r *receiver) room() error {
	missing := r.m.Bytes()
	for i := range r.m.Files {
		have, err := r.size(r.d.fs.PathJoin(r.dir, fileName(i)), r.m.Files[i].Bytes)
		if err != nil {
			return err
		}
		missing -= have
	}
	return space(r.d.fs, r.dir, missing, r.d.o.Reserve)
}

// file completes a file and makes it durable.
func (r *receiver) file(ctx context.Context, i int) (err error) {
	path := r.d.fs.PathJoin(r.dir, fileName(i))
	file := &r.m.Files[i]
	have, err := r.size(path, file.Bytes)
	if err != nil {
		return err
	}
	if err := space(r.d.fs, r.dir, file.Bytes-have, r.d.o.Reserve); err != nil {
		return err
	}
	f, err := r.d.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	whole := sha256.New()
	for c := range file.Chunks {
		if err := r.chunk(ctx, f, path, i, c, have, whole); err != nil {
			return err
		}
		if r.o.Progress != nil {
			done := i
			if c == len(file.Chunks)-1 {
				done++
			}
			r.o.Progress(Progress{Files: done, Bytes: r.bytes, Total: r.m.Bytes()})
		}
	}
	if got := [sha256.Size]byte(whole.Sum(nil)); got != file.SHA256 {
		// Somebody has made up chunks to fit their checksums, or the manifest.
		return r.anew(path, &DamageError{File: path, Offset: -1, Reason: fmt.Sprintf("its SHA-256 is %x, the manifest says %x, although it agrees with every chunk", got, file.SHA256)})
	}
	if err := f.Sync(); err != nil {
		return r.anew(path, err)
	}
	return nil
}

// anew has the next call begin a file anew. After an error of the disk that has to be another file: of this one the kernel may show what it could not write,
// and call it written; and what it cannot read, it cannot read again.
func (r *receiver) anew(path string, err error) error { return errors.Join(err, r.d.fs.Remove(path)) }

// size is how long the file is already; nothing, if it is not there. One that is too long was not written by us, or the disk has lost its mind.
func (r *receiver) size(path string, limit int64) (int64, error) {
	info, err := r.d.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if info.Size() > limit {
		return 0, r.d.fs.Remove(path)
	}
	return info.Size(), nil
}

// chunk leaves the right bytes in their place: those that are there, if they are right, or else those of the peer.
func (r *receiver) chunk(ctx context.Context, f vfs.File, path string, i, c int, have int64, whole hash.Hash) error {
	offset, n := r.m.chunk(i, c)
	crc := r.m.Files[i].Chunks[c]
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if offset+int64(n) <= have {
		err := readChunk(f, path, offset, r.buf[:n], crc)
		if err == nil {
			r.bytes += int64(n)
			whole.Write(r.buf[:n])
			return nil
		}
		if !errors.Is(err, ErrCorrupt) {
			return r.anew(path, err)
		}
	}
	if err := r.limit.wait(ctx, n); err != nil {
		return err
	}
	data, err := r.fetch(ctx, i, c, offset, n, crc)
	if err != nil {
		return err
	}
	whole.Write(data) // before WriteAt, which may change it
	if _, err := f.WriteAt(data, offset); err != nil {
		return r.anew(path, err)
	}
	// What was fetched is not fetched again after a crash, and no sync takes long.
	if r.fetched/fetchedSyncEvery != (r.fetched+int64(n))/fetchedSyncEvery {
		if err := f.SyncData(); err != nil {
			return r.anew(path, err)
		}
	}
	r.bytes += int64(n)
	r.fetched += int64(n)
	return nil
}

// fetch gets a chunk that is as the manifest says.
func (r *receiver) fetch(ctx context.Context, i, c int, offset int64, n int, crc uint32) ([]byte, error) {
	var damage error
	for range chunkAttempts {
		data, err := r.from.Fetch(ctx, r.id, i, c)
		if err != nil {
			return nil, fmt.Errorf("fetch %s at offset %d: %w", fileName(i), offset, err)
		}
		got := crc32.Checksum(data, castagnoli)
		if len(data) == n && got == crc {
			return data, nil
		}
		damage = &DamageError{File: fileName(i), Offset: offset,
			Reason: fmt.Sprintf("a chunk arrived with %d bytes and checksum %08x, the manifest says %d and %08x", len(data), got, n, crc)}
		r.d.log.Warn("snapshot: a chunk arrived damaged", "err", damage)
	}
	return nil, damage
}
