package snapshot

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/decree-raft/decree/internal/state"
)

// Limits of what is written, and of what is believed when it is read.
const (
	MaxManifestBytes = 32 << 20
	MaxFiles         = 1 << 16
	MaxFileBytes     = 2 << 30 // a table, and the one value that made it too long
	MinChunkBytes    = 4 << 10
	MaxChunkBytes    = 16 << 20

	maxClusterBytes = 256
	maxMembers      = 1 << 10 // of one list
)

// ID names a snapshot by its content: the SHA-256 of its manifest, which has those of the files.
type ID [32]byte

// String returns it in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns its beginning, for names of directories and for logs.
func (id ID) Short() string { return hex.EncodeToString(id[:8]) }

// Manifest says what a snapshot is and what belongs to it. The log continues at Index+1; the journal is not in it.
type Manifest struct {
	Info
	Shard uint64
	Index uint64 // last entry that is applied in it
	// TablesVersion is what the files look like, see state.TablesVersion.
	TablesVersion uint32
	// Sections count the keys of each kind, ascending by kind. See internal/state for the kinds.
	Sections []Section
	// ChunkBytes is the size of a chunk, but for the last one of a file.
	ChunkBytes int
	// Files in the order of their keys. They have no names: where they lie is for the reader to say.
	Files []File
}

// Section counts the keys of one kind.
type Section = state.Section

// Info is what the shard knows of the state at Index and the state store does not.
type Info struct {
	Cluster        string
	Term           uint64 // of the entry at Index
	Config         Config // at Index
	MachineVersion uint64
	Time           int64  // of the entry at Index or of the last one before that has one, ns
	Hash           uint64 // the running hash of all state changes up to Index
}

// Config is who takes part in the shard: raft's configuration. Every list ascends.
type Config struct {
	Voters   []uint64
	Outgoing []uint64 // voters of the configuration that is being left; empty unless in between
	Learners []uint64
	// LearnersNext are in Outgoing, and become learners when that is left.
	LearnersNext []uint64
	// AutoLeave: the one in between is left without being told to.
	AutoLeave bool
}

// File is a table.
type File struct {
	Bytes  int64
	SHA256 [32]byte
	// Chunks has a CRC-32C of every chunk. SHA256 makes sure of the whole; these say, early, which part is wrong.
	Chunks []uint32
}

// Bytes is the size of all files together.
func (m *Manifest) Bytes() (n int64) {
	for i := range m.Files {
		n += m.Files[i].Bytes
	}
	return n
}

// fileName is the name of the file number i, counted from 0, in a snapshot's directory.
func fileName(i int) string { return fmt.Sprintf("%06d.sst", i+1) }

// chunk returns where a chunk of a file begins and how long it is.
func (m *Manifest) chunk(file, chunk int) (offset int64, n int) {
	offset = int64(chunk) * int64(m.ChunkBytes)
	return offset, int(min(int64(m.ChunkBytes), m.Files[file].Bytes-offset))
}

// chunks is how many chunks a file of that many bytes has.
func chunks(bytes int64, chunkBytes int) int {
	return int((bytes + int64(chunkBytes) - 1) / int64(chunkBytes))
}

// validate checks everything about a manifest that it shows by itself, on the way out and on the way in.
func (m *Manifest) validate() error {
	switch {
	case m.TablesVersion > state.TablesVersion:
		return fmt.Errorf("%w: tables of version %d, this program knows up to %d; use the newer program",
			ErrNewerFormat, m.TablesVersion, state.TablesVersion)
	case m.TablesVersion == 0:
		return fmt.Errorf("%w: tables of version 0", ErrCorrupt)
	case len(m.Cluster) > maxClusterBytes:
		return fmt.Errorf("%w: a cluster name of %d bytes, allowed are %d", ErrTooLarge, len(m.Cluster), maxClusterBytes)
	case m.Shard == 0 || m.Index == 0 || m.Term == 0 || m.Index == 1<<64-1:
		return fmt.Errorf("%w: shard %d at index %d of term %d", ErrCorrupt, m.Shard, m.Index, m.Term)
	case m.Time < 0:
		return fmt.Errorf("%w: time %d is negative", ErrCorrupt, m.Time)
	case m.ChunkBytes < MinChunkBytes || m.ChunkBytes > MaxChunkBytes || m.ChunkBytes%MinChunkBytes != 0:
		return fmt.Errorf("%w: chunks of %d bytes, allowed are multiples of %d up to %d", ErrCorrupt, m.ChunkBytes, MinChunkBytes, MaxChunkBytes)
	case len(m.Files) == 0 || len(m.Files) > MaxFiles:
		return fmt.Errorf("%w: %d files, allowed are 1 to %d", ErrTooLarge, len(m.Files), MaxFiles)
	}
	for i := range m.Sections {
		if i > 0 && m.Sections[i].Kind <= m.Sections[i-1].Kind || m.Sections[i].Keys == 0 {
			return fmt.Errorf("%w: section %d is out of order or empty", ErrCorrupt, i)
		}
	}
	for i := range m.Files {
		f := &m.Files[i]
		if f.Bytes <= 0 || f.Bytes > MaxFileBytes {
			return fmt.Errorf("%w: file %d of %d bytes, allowed are 1 to %d", ErrTooLarge, i, f.Bytes, int64(MaxFileBytes))
		}
		if len(f.Chunks) != chunks(f.Bytes, m.ChunkBytes) {
			return fmt.Errorf("%w: file %d of %d bytes has %d chunks", ErrCorrupt, i, f.Bytes, len(f.Chunks))
		}
	}
	return m.Config.validate()
}

// validate checks what raft requires of a configuration.
func (c *Config) validate() error {
	for _, ids := range [][]uint64{c.Voters, c.Outgoing, c.Learners, c.LearnersNext} {
		if len(ids) > maxMembers {
			return fmt.Errorf("%w: %d members, allowed are %d", ErrTooLarge, len(ids), maxMembers)
		}
		for i, id := range ids {
			if id == 0 || i > 0 && id <= ids[i-1] {
				return fmt.Errorf("%w: members %v are not ascending ids", ErrCorrupt, ids)
			}
		}
	}
	for _, id := range c.Learners {
		if contains(c.Voters, id) || contains(c.Outgoing, id) {
			return fmt.Errorf("%w: node %d is voter and learner", ErrCorrupt, id)
		}
	}
	for _, id := range c.LearnersNext {
		if !contains(c.Outgoing, id) {
			return fmt.Errorf("%w: node %d is to become a learner and is no outgoing voter", ErrCorrupt, id)
		}
	}
	switch {
	case len(c.Voters) == 0:
		return fmt.Errorf("%w: there is no voter", ErrCorrupt)
	case c.AutoLeave && len(c.Outgoing) == 0:
		return fmt.Errorf("%w: there is no configuration to leave", ErrCorrupt)
	}
	return nil
}

func contains(ascending []uint64, id uint64) bool {
	_, ok := slices.BinarySearch(ascending, id)
	return ok
}
