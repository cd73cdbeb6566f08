package state

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// Pebble takes the first record of its manifest that is not valid for the end: it cannot tell the edit that a crash has torn
// from damage in the midst of them, and opens a store as it was some flushes ago. Most often its tables are
// gone by then and it does not open; but nothing says so for sure, and the log has let go of what was
// flushed. So the manifest is read through before pebble sees it.
//
// It is a log of records in blocks of 32 KiB, each record one chunk or several:
//
//	4  little endian: masked CRC-32C of type and data
//	2  little endian: length of the data
//	1  type: 1 a whole record, 2 its first chunk, 3 one in the middle, 4 its last
//	n  data
//
// A block ends in zeros if there is no room for a chunk. Pebble syncs each record before it writes the next, and so a
// crash can have torn the last one and no other.
const (
	manifestBlock  = 32 << 10
	chunkHeader    = 7
	chunkWhole     = 1
	chunkFirst     = 2
	chunkLast      = 4
	manifestSector = 512
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkManifest returns an error if the manifest is damaged in a way that no crash explains.
func (s *Store) checkManifest() error {
	fs := s.opts.FS
	name, err := atomicfs.ReadMarker(fs, s.path(dbDir), "manifest")
	if err != nil || name == "" {
		return err // without a marker there is no store, as pebble will say
	}
	path := fs.PathJoin(s.path(dbDir), name)
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if at, why := judgeManifest(b); why != "" {
		return fmt.Errorf("%w: %s is damaged at byte %d: %s; restore the file if you can, else replace the node under a new id", ErrCorrupt, path, at, why)
	}
	return nil
}

// judgeManifest returns where a manifest is damaged, and why that is no torn end; why is empty if it is whole, or torn.
func judgeManifest(b []byte) (at int, why string) {
	at = 0
	for {
		n := skipPadding(b, at)
		if n >= len(b) {
			return 0, ""
		}
		size, _, ok := chunkAt(b, n)
		if !ok {
			at = n
			break
		}
		at = n + size
	}
	for next := at + 1; next < len(b); next++ {
		if _, typ, ok := chunkAt(b, next); ok && (typ == chunkWhole || typ == chunkFirst) {
			return at, fmt.Sprintf("a record is not valid, and another one follows at byte %d", next)
		}
	}
	rest := b[at:]
	if len(rest) < chunkHeader {
		return 0, ""
	}
	room := min(len(rest), manifestBlock-at%manifestBlock)
	// Were it not for its length, it would be whole: a file that ends early does not look like this.
	if sum(rest[6:room]) == binary.LittleEndian.Uint32(rest) {
		return at, "the length of the last record is wrong"
	}
	end := chunkHeader + int(binary.LittleEndian.Uint16(rest[4:]))
	if end > room || zeroSector(rest[:end], at) {
		return 0, "" // some of it is missing
	}
	return at, "the last record is not valid, and nothing is missing from it"
}

// skipPadding returns where the next chunk begins: behind the zeros at the end of a block, if there is no room before.
func skipPadding(b []byte, at int) int {
	if left := manifestBlock - at%manifestBlock; left < chunkHeader {
		return at + left
	}
	return at
}

// chunkAt reports whether there is a valid chunk at a place, its size with the header, and its type.
func chunkAt(b []byte, at int) (size int, typ byte, ok bool) {
	left := min(len(b)-at, manifestBlock-at%manifestBlock)
	if left < chunkHeader {
		return 0, 0, false
	}
	h := b[at:]
	size, typ = chunkHeader+int(binary.LittleEndian.Uint16(h[4:])), h[6]
	if typ < chunkWhole || typ > chunkLast || size > left {
		return 0, 0, false
	}
	return size, typ, sum(h[6:size]) == binary.LittleEndian.Uint32(h)
}

// sum is the checksum of a chunk, masked as LevelDB does it.
func sum(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

// zeroSector reports whether a whole sector of the file, or the part of one at the end of b, is zero. b stands at a place in it.
func zeroSector(b []byte, at int) bool {
	for from := 0; from < len(b); {
		to := min(from+manifestSector-(at+from)%manifestSector, len(b))
		zero := true
		for _, c := range b[from:to] {
			zero = zero && c == 0
		}
		if zero {
			return true
		}
		from = to
	}
	return false
}
