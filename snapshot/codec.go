package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
)

// The byte table stands in doc.go.

const (
	manifestMagic   = "DECSNAPS"
	manifestVersion = 1
	headerBytes     = len(manifestMagic) + 4 + 4
)

// Encode returns the manifest's bytes and what it is called by. A manifest has one encoding only.
func (m *Manifest) Encode() ([]byte, ID, error) {
	if err := m.validate(); err != nil {
		return nil, ID{}, err
	}
	b := append(make([]byte, 0, 1<<10), manifestMagic...)
	b = binary.BigEndian.AppendUint32(b, manifestVersion)
	b = binary.BigEndian.AppendUint32(b, 0) // the length, below
	b = binary.AppendUvarint(b, uint64(len(m.Cluster)))
	b = append(b, m.Cluster...)
	for _, v := range []uint64{m.Shard, m.Index, m.Term, uint64(m.Time)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.BigEndian.AppendUint64(b, m.Hash)
	b = binary.AppendUvarint(b, m.MachineVersion)
	b = binary.AppendUvarint(b, uint64(m.TablesVersion))
	for _, ids := range [][]uint64{m.Config.Voters, m.Config.Outgoing, m.Config.Learners, m.Config.LearnersNext} {
		b = binary.AppendUvarint(b, uint64(len(ids)))
		for _, id := range ids {
			b = binary.AppendUvarint(b, id)
		}
	}
	b = append(b, boolByte(m.Config.AutoLeave))
	b = binary.AppendUvarint(b, uint64(len(m.Sections)))
	for _, s := range m.Sections {
		b = append(b, s.Kind)
		b = binary.AppendUvarint(b, s.Keys)
		b = binary.AppendUvarint(b, s.Bytes)
	}
	b = binary.AppendUvarint(b, uint64(m.ChunkBytes))
	b = binary.AppendUvarint(b, uint64(len(m.Files)))
	for i := range m.Files {
		f := &m.Files[i]
		b = binary.AppendUvarint(b, uint64(f.Bytes))
		b = append(b, f.SHA256[:]...)
		for _, c := range f.Chunks {
			b = binary.BigEndian.AppendUint32(b, c)
		}
	}
	if len(b)+sha256.Size > MaxManifestBytes {
		return nil, ID{}, fmt.Errorf("%w: the manifest would have %d bytes, allowed are %d; use larger chunks", ErrTooLarge, len(b), MaxManifestBytes)
	}
	binary.BigEndian.PutUint32(b[headerBytes-4:], uint32(len(b)-headerBytes))
	id := ID(sha256.Sum256(b))
	return append(b, id[:]...), id, nil
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Decode reads a manifest, of which nothing is believed. ErrNewerFormat, ErrTooLarge and ErrCorrupt say why not.
func Decode(b []byte) (*Manifest, ID, error) {
	if len(b) > MaxManifestBytes {
		return nil, ID{}, fmt.Errorf("%w: a manifest of %d bytes, allowed are %d", ErrTooLarge, len(b), MaxManifestBytes)
	}
	if len(b) < headerBytes || string(b[:len(manifestMagic)]) != manifestMagic {
		return nil, ID{}, fmt.Errorf("%w: not a manifest (%d bytes)", ErrCorrupt, len(b))
	}
	switch v := binary.BigEndian.Uint32(b[len(manifestMagic):]); {
	case v > manifestVersion:
		return nil, ID{}, fmt.Errorf("%w: a manifest of version %d, this program knows up to %d; use the newer program", ErrNewerFormat, v, manifestVersion)
	case v == 0:
		return nil, ID{}, fmt.Errorf("%w: a manifest of version 0", ErrCorrupt)
	}
	body := uint64(binary.BigEndian.Uint32(b[headerBytes-4:]))
	if uint64(len(b)) != uint64(headerBytes)+body+sha256.Size {
		return nil, ID{}, fmt.Errorf("%w: a manifest of %d bytes whose body should have %d", ErrCorrupt, len(b), body)
	}
	covered := b[:len(b)-sha256.Size]
	id := ID(sha256.Sum256(covered))
	if !bytes.Equal(id[:], b[len(covered):]) {
		return nil, ID{}, fmt.Errorf("%w: the manifest fails its checksum", ErrCorrupt)
	}
	r := reader{b: covered[headerBytes:]}
	m := r.manifest()
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after its end")
	}
	if r.err != nil {
		return nil, ID{}, r.err
	}
	if err := m.validate(); err != nil {
		return nil, ID{}, err
	}
	return m, id, nil
}

// reader takes bytes from the front; after the first error everything is zero. Nothing is allocated for what is not there.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: manifest: %s", ErrCorrupt, what)
	}
	r.b = nil
}

// uvarint accepts the shortest encoding only, so that one manifest has one name.
func (r *reader) uvarint(what string, limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 || v > limit {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads a number of things that take at least that many bytes each.
func (r *reader) count(what string, limit, each int) int {
	n := r.uvarint(what, uint64(limit))
	if n > uint64(len(r.b)/each) {
		r.fail(what)
		return 0
	}
	return int(n)
}

func (r *reader) take(what string, n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.fail(what)
		return make([]byte, min(n, sha256.Size)) // callers take up to that much of what was not there
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) manifest() *Manifest {
	m := &Manifest{}
	m.Cluster = string(r.take("cluster", r.count("cluster", maxClusterBytes, 1)))
	m.Shard = r.uvarint("shard", math.MaxUint64)
	m.Index = r.uvarint("index", math.MaxUint64)
	m.Term = r.uvarint("term", math.MaxUint64)
	m.Time = int64(r.uvarint("time", math.MaxInt64))
	m.Hash = binary.BigEndian.Uint64(r.take("hash", 8))
	m.MachineVersion = r.uvarint("machine version", math.MaxUint64)
	m.TablesVersion = uint32(r.uvarint("tables version", math.MaxUint32))
	for _, ids := range []*[]uint64{&m.Config.Voters, &m.Config.Outgoing, &m.Config.Learners, &m.Config.LearnersNext} {
		for n := r.count("members", maxMembers, 1); n > 0; n-- {
			*ids = append(*ids, r.uvarint("member", math.MaxUint64))
		}
	}
	switch auto := r.take("auto leave", 1)[0]; auto {
	case 0, 1:
		m.Config.AutoLeave = auto == 1
	default:
		r.fail("auto leave")
	}
	for n := r.count("sections", 256, 3); n > 0; n-- {
		s := Section{Kind: r.take("section", 1)[0]}
		s.Keys, s.Bytes = r.uvarint("section", math.MaxUint64), r.uvarint("section", math.MaxUint64)
		m.Sections = append(m.Sections, s)
	}
	m.ChunkBytes = int(r.uvarint("chunk bytes", MaxChunkBytes))
	if m.ChunkBytes < MinChunkBytes {
		r.fail("chunk bytes")
	}
	for n := r.count("files", MaxFiles, 1+sha256.Size+4); n > 0 && r.err == nil; n-- {
		m.Files = append(m.Files, r.file(m.ChunkBytes))
	}
	return m
}

func (r *reader) file(chunkBytes int) File {
	f := File{Bytes: int64(r.uvarint("file size", MaxFileBytes))}
	copy(f.SHA256[:], r.take("file checksum", sha256.Size))
	n := chunks(f.Bytes, chunkBytes)
	if r.err != nil || n > len(r.b)/4 {
		r.fail("chunk checksums")
		return f
	}
	f.Chunks = make([]uint32, n)
	for i := range f.Chunks {
		f.Chunks[i] = binary.BigEndian.Uint32(r.take("chunk checksum", 4))
	}
	return f
}
