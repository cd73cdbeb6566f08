package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	manifestName = "MANIFEST"
	// syncEvery is how much of a cut is handed to the disk at a time. The log's fsync waits for what is there before it: with steps of 1 MiB
	// it came four times as rarely as without a cut, with these two thirds as often (docs/performance.md).
	syncEvery = 128 << 10
	// fetchedSyncEvery is how much is fetched between two syncs: what is durable is not fetched again.
	fetchedSyncEvery = 1 << 20
)

// A directory that could not be synced is not believed to have become durable with its next sync: the kernel may call clean what it could not write. So who meets the error takes
// back what was to be made durable; whoever tries again changes the directory anew, and has that written.

// makeDir makes dir and its parents where they are missing, each durable in its own parent.
func makeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	parent := fs.PathDir(dir)
	if parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil { // what is in snapshots and backups is not for everybody
		return err
	}
	if err := syncDir(fs, parent); err != nil {
		return errors.Join(err, fs.Remove(dir))
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeFile(fs vfs.FS, name string, b []byte) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Clone(b)) // Write may change what it is given
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readManifest reads the manifest in dir.
func readManifest(fs vfs.FS, dir string) (_ *Manifest, _ ID, err error) {
	path := fs.PathJoin(dir, manifestName)
	f, err := fs.Open(path)
	if err != nil {
		return nil, ID{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxManifestBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, ID{}, err
	}
	m, id, err := Decode(b)
	if err != nil {
		return nil, ID{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, id, nil
}

// space fails if n more bytes would leave less than reserve free. A file system that does not know, as one in memory, has room.
func space(fs vfs.FS, dir string, n int64, reserve uint64) error {
	u, err := fs.GetDiskUsage(dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	if u.AvailBytes < reserve || u.AvailBytes-reserve < uint64(n) {
		return fmt.Errorf("%w: %d bytes are free, %d are wanted and %d have to stay free", ErrNoSpace, u.AvailBytes, n, reserve)
	}
	return nil
}

// summer computes a File from bytes that come in order.
type summer struct {
	chunkBytes int
	whole      hash.Hash
	file       File
	crc        uint32 // of the present chunk so far
	n          int    // bytes of it
}

func newSummer(chunkBytes int) *summer { return &summer{chunkBytes: chunkBytes, whole: sha256.New()} }

func (s *summer) write(p []byte) {
	s.whole.Write(p)
	s.file.Bytes += int64(len(p))
	for len(p) > 0 {
		n := min(len(p), s.chunkBytes-s.n)
		s.crc = crc32.Update(s.crc, castagnoli, p[:n])
		s.n += n
		p = p[n:]
		if s.n == s.chunkBytes {
			s.endChunk()
		}
	}
}

func (s *summer) endChunk() {
	s.file.Chunks = append(s.file.Chunks, s.crc)
	s.crc, s.n = 0, 0
}

func (s *summer) sum() File {
	if s.n > 0 {
		s.endChunk()
	}
	s.whole.Sum(s.file.SHA256[:0])
	return s.file
}

// readChunk reads the chunk at offset into buf and compares it with its checksum. Damage is a *DamageError.
func readChunk(f io.ReaderAt, name string, offset int64, buf []byte, crc uint32) error {
	if n, err := f.ReadAt(buf, offset); n < len(buf) {
		if err == nil || errors.Is(err, io.EOF) {
			return &DamageError{File: name, Offset: offset, Reason: fmt.Sprintf("the file ends after %d bytes of a chunk of %d", n, len(buf))}
		}
		return fmt.Errorf("snapshot: %s, offset %d: %w", name, offset, err)
	}
	if got := crc32.Checksum(buf, castagnoli); got != crc {
		return &DamageError{File: name, Offset: offset, Reason: fmt.Sprintf("a chunk of %d bytes has checksum %08x, the manifest says %08x", len(buf), got, crc)}
	}
	return nil
}

// checkFile reads the file number i of a manifest from path, every byte, and compares it with the manifest.
func checkFile(ctx context.Context, fs vfs.FS, path string, m *Manifest, i int, buf []byte) (err error) {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	file := &m.Files[i]
	if info.Size() != file.Bytes {
		return &DamageError{File: path, Offset: -1, Reason: fmt.Sprintf("it has %d bytes, the manifest says %d", info.Size(), file.Bytes)}
	}
	whole := sha256.New()
	for c, crc := range file.Chunks {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		offset, n := m.chunk(i, c)
		if err := readChunk(f, path, offset, buf[:n], crc); err != nil {
			return err
		}
		whole.Write(buf[:n])
	}
	if got := [sha256.Size]byte(whole.Sum(nil)); got != file.SHA256 {
		return &DamageError{File: path, Offset: -1, Reason: fmt.Sprintf("its SHA-256 is %x, the manifest says %x", got, file.SHA256)}
	}
	return nil
}
