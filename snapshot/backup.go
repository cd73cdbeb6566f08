package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
)

// Limits of a backup. What a shard's snapshot may be is said above.
const (
	MaxBackupBytes   = 64 << 20 // of the manifest
	MaxBackupShards  = 1 << 16
	MaxJournalFiles  = 1 << 16 // of one shard
	MaxJournalBytes  = 1 << 40 // of one file
	MaxEntryBytes    = 256 << 20
	maxLibraryBytes  = 128
	maxNoteBytes     = 4 << 10
	backupMagic      = "DECBACKP"
	backupVersion    = 1
	backupName       = "BACKUP"
	backupTmp        = backupName + ".tmp"
	flagSnapshot     = 1
	backupHeader     = len(backupMagic) + 4 + 4
	maxRecordBytes   = MaxEntryBytes + 2*binary.MaxVarintLen64 + 1
	defaultFileBytes = 256 << 20 // at which a journal file ends
)

// Entry is a committed entry of a shard's log.
type Entry = state.JournalEntry

// Backup is what stands in the manifest of a backup: of some shards, a snapshot each and the log after it.
type Backup struct {
	// Cluster that it is of.
	Cluster string
	// Node that it was made on; 0: on several.
	Node uint64
	// Library is the version of the library that made it, for people.
	Library string
	// Note says what is special about it, for people.
	Note string
	// Made is when it was finished, ns since 1970.
	Made int64
	// Shards ascend by id.
	Shards []BackupShard
}

// BackupShard is one shard in a backup. It can be restored to any position from First to Last.
type BackupShard struct {
	Shard uint64
	// Snapshot that the shard begins with. The zero ID: there is none, and the journal begins with entry 1.
	Snapshot ID
	// Index is that of the snapshot, 0 if there is none. So are the next four, which only repeat what its manifest says.
	Index          uint64
	Term           uint64
	Time           int64
	Hash           uint64
	MachineVersion uint64
	Bytes          int64 // of the snapshot's tables
	// Journal holds the committed entries from Index+1 on, without a gap. Empty: the snapshot is all there is.
	Journal []JournalFile
}

// JournalFile is a file of committed entries.
type JournalFile struct {
	First, Last uint64
	Bytes       int64
	SHA256      [32]byte
}

// HasSnapshot reports whether the shard begins with one.
func (s *BackupShard) HasSnapshot() bool { return s.Snapshot != ID{} }

// First is the earliest position that can be restored.
func (s *BackupShard) First() uint64 { return max(1, s.Index) }

// Last is the latest position that can be restored.
func (s *BackupShard) Last() uint64 {
	if n := len(s.Journal); n > 0 {
		return s.Journal[n-1].Last
	}
	return s.Index
}

// JournalBytes is the size of all journal files.
func (s *BackupShard) JournalBytes() (n int64) {
	for i := range s.Journal {
		n += s.Journal[i].Bytes
	}
	return n
}

// Size is the size of everything but the manifests.
func (b *Backup) Size() (n int64) {
	for i := range b.Shards {
		n += b.Shards[i].Bytes + b.Shards[i].JournalBytes()
	}
	return n
}

// Find returns a shard, or nil.
func (b *Backup) Find(shard uint64) *BackupShard {
	for i := range b.Shards {
		if b.Shards[i].Shard == shard {
			return &b.Shards[i]
		}
	}
	return nil
}

// Where things are in a backup, see doc.go.
func shardDir(shard uint64) string   { return fmt.Sprintf("shard-%016x", shard) }
func journalDir(shard uint64) string { return fmt.Sprintf("journal-%016x", shard) }

// journalName is the name of the file number i, counted from 0.
func journalName(i int) string { return fmt.Sprintf("%06d.jnl", i+1) }

// validate checks everything about a backup's manifest that it shows by itself, on the way out and on the way in.
func (b *Backup) validate() error {
	switch {
	case len(b.Cluster) > maxClusterBytes:
		return fmt.Errorf("%w: a cluster name of %d bytes, allowed are %d", ErrTooLarge, len(b.Cluster), maxClusterBytes)
	case len(b.Library) > maxLibraryBytes:
		return fmt.Errorf("%w: a library version of %d bytes, allowed are %d", ErrTooLarge, len(b.Library), maxLibraryBytes)
	case len(b.Note) > maxNoteBytes:
		return fmt.Errorf("%w: a note of %d bytes, allowed are %d", ErrTooLarge, len(b.Note), maxNoteBytes)
	case b.Made < 0:
		return fmt.Errorf("%w: the backup was made at %d, which is negative", ErrCorrupt, b.Made)
	case len(b.Shards) == 0 || len(b.Shards) > MaxBackupShards:
		return fmt.Errorf("%w: a backup of %d shards, allowed are 1 to %d", ErrTooLarge, len(b.Shards), MaxBackupShards)
	}
	for i := range b.Shards {
		s := &b.Shards[i]
		if s.Shard == 0 || i > 0 && s.Shard <= b.Shards[i-1].Shard {
			return fmt.Errorf("%w: shard %d is out of order", ErrCorrupt, s.Shard)
		}
		if err := s.validate(); err != nil {
			return fmt.Errorf("shard %d: %w", s.Shard, err)
		}
	}
	return nil
}

func (s *BackupShard) validate() error {
	switch {
	case s.HasSnapshot() && (s.Index == 0 || s.Index == math.MaxUint64 || s.Term == 0 || s.Time < 0 || s.Bytes <= 0):
		return fmt.Errorf("%w: a snapshot of %d bytes at index %d of term %d", ErrCorrupt, s.Bytes, s.Index, s.Term)
	case !s.HasSnapshot() && (s.Index != 0 || s.Term != 0 || s.Time != 0 || s.Hash != 0 || s.MachineVersion != 0 || s.Bytes != 0):
		return fmt.Errorf("%w: index %d without a snapshot", ErrCorrupt, s.Index)
	case !s.HasSnapshot() && len(s.Journal) == 0:
		return fmt.Errorf("%w: neither a snapshot nor a journal", ErrCorrupt)
	case len(s.Journal) > MaxJournalFiles:
		return fmt.Errorf("%w: %d journal files, allowed are %d", ErrTooLarge, len(s.Journal), MaxJournalFiles)
	}
	next := s.Index + 1
	for i := range s.Journal {
		f := &s.Journal[i]
		if f.First != next || f.Last < f.First || f.Last == math.MaxUint64 {
			return fmt.Errorf("%w: journal file %d has the entries %d to %d, and entry %d comes next", ErrCorrupt, i+1, f.First, f.Last, next)
		}
		if f.Bytes <= int64(journalHeader) || f.Bytes > MaxJournalBytes {
			return fmt.Errorf("%w: journal file %d has %d bytes, allowed are %d", ErrTooLarge, i+1, f.Bytes, int64(MaxJournalBytes))
		}
		next = f.Last + 1
	}
	return nil
}

// Encode returns the manifest's bytes. A backup has one encoding only.
func (b *Backup) Encode() ([]byte, error) {
	if err := b.validate(); err != nil {
		return nil, err
	}
	out := append(make([]byte, 0, 1<<10), backupMagic...)
	out = binary.BigEndian.AppendUint32(out, backupVersion)
	out = binary.BigEndian.AppendUint32(out, 0) // the length, below
	for _, s := range []string{b.Cluster, b.Library, b.Note} {
		out = binary.AppendUvarint(out, uint64(len(s)))
		out = append(out, s...)
	}
	for _, v := range []uint64{b.Node, uint64(b.Made), uint64(len(b.Shards))} {
		out = binary.AppendUvarint(out, v)
	}
	for i := range b.Shards {
		out = b.Shards[i].append(out)
	}
	if len(out)+sha256.Size > MaxBackupBytes {
		return nil, fmt.Errorf("%w: the manifest would have %d bytes, allowed are %d", ErrTooLarge, len(out), MaxBackupBytes)
	}
	binary.BigEndian.PutUint32(out[backupHeader-4:], uint32(len(out)-backupHeader))
	sum := sha256.Sum256(out)
	return append(out, sum[:]...), nil
}

func (s *BackupShard) append(out []byte) []byte {
	out = binary.AppendUvarint(out, s.Shard)
	if s.HasSnapshot() {
		out = append(out, flagSnapshot)
		out = append(out, s.Snapshot[:]...)
		for _, v := range []uint64{s.Index, s.Term, uint64(s.Time)} {
			out = binary.AppendUvarint(out, v)
		}
		out = binary.BigEndian.AppendUint64(out, s.Hash)
		out = binary.AppendUvarint(out, s.MachineVersion)
		out = binary.AppendUvarint(out, uint64(s.Bytes))
	} else {
		out = append(out, 0)
	}
	out = binary.AppendUvarint(out, uint64(len(s.Journal)))
	for i := range s.Journal {
		f := &s.Journal[i]
		for _, v := range []uint64{f.First, f.Last, uint64(f.Bytes)} {
			out = binary.AppendUvarint(out, v)
		}
		out = append(out, f.SHA256[:]...)
	}
	return out
}

// DecodeBackup reads a backup's manifest, of which nothing is believed. ErrNewerFormat, ErrTooLarge and ErrCorrupt say why not.
func DecodeBackup(b []byte) (*Backup, error) {
	if len(b) > MaxBackupBytes {
		return nil, fmt.Errorf("%w: a backup's manifest of %d bytes, allowed are %d", ErrTooLarge, len(b), MaxBackupBytes)
	}
	if len(b) < backupHeader || string(b[:len(backupMagic)]) != backupMagic {
		return nil, fmt.Errorf("%w: not a backup's manifest (%d bytes)", ErrCorrupt, len(b))
	}
	switch v := binary.BigEndian.Uint32(b[len(backupMagic):]); {
	case v > backupVersion:
		return nil, fmt.Errorf("%w: a backup of version %d, this program knows up to %d; use the newer program", ErrNewerFormat, v, backupVersion)
	case v == 0:
		return nil, fmt.Errorf("%w: a backup of version 0", ErrCorrupt)
	}
	body := uint64(binary.BigEndian.Uint32(b[backupHeader-4:]))
	if uint64(len(b)) != uint64(backupHeader)+body+sha256.Size {
		return nil, fmt.Errorf("%w: a backup's manifest of %d bytes whose body should have %d", ErrCorrupt, len(b), body)
	}
	covered := b[:len(b)-sha256.Size]
	if sum := sha256.Sum256(covered); !bytes.Equal(sum[:], b[len(covered):]) {
		return nil, fmt.Errorf("%w: the backup's manifest fails its checksum", ErrCorrupt)
	}
	r := reader{b: covered[backupHeader:]}
	out := r.backup()
	if r.err == nil && len(r.b) > 0 {
		r.fail("bytes after its end")
	}
	if r.err != nil {
		return nil, r.err
	}
	if err := out.validate(); err != nil {
		return nil, err
	}
	return out, nil
}

func (r *reader) backup() *Backup {
	b := &Backup{}
	b.Cluster = string(r.take("cluster", r.count("cluster", maxClusterBytes, 1)))
	b.Library = string(r.take("library", r.count("library", maxLibraryBytes, 1)))
	b.Note = string(r.take("note", r.count("note", maxNoteBytes, 1)))
	b.Node = r.uvarint("node", math.MaxUint64)
	b.Made = int64(r.uvarint("time", math.MaxInt64))
	for n := r.count("shards", MaxBackupShards, 3); n > 0 && r.err == nil; n-- {
		b.Shards = append(b.Shards, r.backupShard())
	}
	return b
}

func (r *reader) backupShard() BackupShard {
	s := BackupShard{Shard: r.uvarint("shard", math.MaxUint64)}
	switch flags := r.take("flags", 1)[0]; flags {
	case 0:
	case flagSnapshot:
		copy(s.Snapshot[:], r.take("snapshot", len(s.Snapshot)))
		if !s.HasSnapshot() {
			r.fail("a snapshot without a name")
		}
		s.Index, s.Term = r.uvarint("index", math.MaxUint64), r.uvarint("term", math.MaxUint64)
		s.Time = int64(r.uvarint("time", math.MaxInt64))
		s.Hash = binary.BigEndian.Uint64(r.take("hash", 8))
		s.MachineVersion = r.uvarint("machine version", math.MaxUint64)
		s.Bytes = int64(r.uvarint("bytes", math.MaxInt64))
	default:
		r.fail("flags")
	}
	for n := r.count("journal files", MaxJournalFiles, 3+sha256.Size); n > 0 && r.err == nil; n-- {
		f := JournalFile{First: r.uvarint("first", math.MaxUint64), Last: r.uvarint("last", math.MaxUint64)}
		f.Bytes = int64(r.uvarint("journal bytes", MaxJournalBytes))
		copy(f.SHA256[:], r.take("journal checksum", sha256.Size))
		s.Journal = append(s.Journal, f)
	}
	return s
}

// ReadBackup reads a backup's manifest. ErrNoBackup: the directory has none, so it is no backup, or not a complete one. That
// the files are whole is for VerifyBackup to say. fsys may be nil for vfs.Default.
func ReadBackup(fsys vfs.FS, dir string) (*Backup, error) {
	if fsys == nil {
		fsys = vfs.Default
	}
	path := fsys.PathJoin(dir, backupName)
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s does not exist; a backup's is written last, so what is there is not complete", ErrNoBackup, path)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot: read a backup: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, MaxBackupBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("snapshot: read a backup: %w", err)
	}
	b, err := DecodeBackup(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// Open returns the snapshot that a shard of the backup in dir begins with, which must be the one that the backup names. ErrNotFound: it
// begins with none.
func (s *BackupShard) Open(fsys vfs.FS, dir string) (*Snapshot, error) {
	if !s.HasSnapshot() {
		return nil, fmt.Errorf("%w: the backup has no snapshot of shard %d", ErrNotFound, s.Shard)
	}
	sub := fsys.PathJoin(dir, shardDir(s.Shard))
	m, id, err := readManifest(fsys, sub)
	if err != nil {
		return nil, fmt.Errorf("snapshot: shard %d of a backup: %w", s.Shard, err)
	}
	if id != s.Snapshot || m.Shard != s.Shard || m.Index != s.Index {
		return nil, &DamageError{File: fsys.PathJoin(sub, manifestName), Offset: -1,
			Reason: fmt.Sprintf("it is that of snapshot %s of shard %d at %d, the backup has %s of shard %d at %d", id.Short(), m.Shard, m.Index, s.Snapshot.Short(), s.Shard, s.Index)}
	}
	return &Snapshot{ID: id, Manifest: m, Dir: sub, fs: fsys}, nil
}

// files are the names of all files of the backup in dir but its manifest, in the order in which they are written.
func (b *Backup) files(fsys vfs.FS, dir string) (names []string, err error) {
	for i := range b.Shards {
		s := &b.Shards[i]
		if s.HasSnapshot() {
			m, err := s.Open(fsys, dir)
			if err != nil {
				return nil, err
			}
			for n := range m.Manifest.Files {
				names = append(names, shardDir(s.Shard)+"/"+fileName(n))
			}
			names = append(names, shardDir(s.Shard)+"/"+manifestName)
		}
		for n := range s.Journal {
			names = append(names, journalDir(s.Shard)+"/"+journalName(n))
		}
	}
	return names, nil
}

// validName reports whether a file of that name can be part of a backup. There is no other name, and so no path that leads elsewhere.
func validName(name string) bool {
	if name == backupName {
		return true
	}
	dir, file, _ := strings.Cut(name, "/")
	var shard uint64
	var n int
	for _, format := range []string{"shard-%016x", "journal-%016x"} {
		if _, err := fmt.Sscanf(dir, format, &shard); err != nil || fmt.Sprintf(format, shard) != dir || shard == 0 {
			continue
		}
		if format[0] == 's' && file == manifestName {
			return true
		}
		suffix := ".sst"
		if format[0] == 'j' {
			suffix = ".jnl"
		}
		if _, err := fmt.Sscanf(file, "%06d"+suffix, &n); err == nil && n > 0 && n <= MaxFiles && file == fmt.Sprintf("%06d%s", n, suffix) {
			return true
		}
	}
	return false
}
