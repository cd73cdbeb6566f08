package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// VerifyBackup reads a backup, every byte of it, and says what it is: the manifests and all files pass their checksums, the tables are what Verify
// demands, every journal entry is there, in order, right after the snapshot, and no file is missing or too many. The error has the first damage
// of every snapshot and of every journal file; each names the file, and the offset where that is known. The manifest is returned with such an error too, if it
// could be read. fsys may be nil for vfs.Default, and progress nil.
func VerifyBackup(ctx context.Context, fsys vfs.FS, dir string, progress func(Progress)) (*Backup, error) {
	if fsys == nil {
		fsys = vfs.Default
	}
	b, err := ReadBackup(fsys, dir)
	if err != nil {
		return nil, err
	}
	v := &backupVerifier{ctx: ctx, fs: fsys, dir: dir, done: Progress{Total: b.Size()}, progress: progress}
	errs := v.names(b)
	for i := range b.Shards {
		if ctx.Err() != nil {
			return b, context.Cause(ctx)
		}
		errs = append(errs, v.shard(&b.Shards[i])...)
	}
	if err := errors.Join(errs...); err != nil {
		return b, fmt.Errorf("snapshot: verify the backup %s: %w", dir, err)
	}
	return b, nil
}

type backupVerifier struct {
	ctx      context.Context // of the one call that this lives for
	fs       vfs.FS
	dir      string
	done     Progress
	progress func(Progress)
}

func (v *backupVerifier) passed(files int, bytes int64) {
	v.done.Files += files
	v.done.Bytes += bytes
	if v.progress != nil {
		v.progress(v.done)
	}
}

// names finds directories that are missing or too many. What is in those of snapshots is for Verify to see.
func (v *backupVerifier) names(b *Backup) (errs []error) {
	want := map[string]bool{backupName: true}
	for i := range b.Shards {
		s := &b.Shards[i]
		if s.HasSnapshot() {
			want[shardDir(s.Shard)] = true
		}
		if len(s.Journal) > 0 {
			want[journalDir(s.Shard)] = true
		}
	}
	return v.compare(v.dir, want)
}

// compare says which names of a directory are missing or too many.
func (v *backupVerifier) compare(dir string, want map[string]bool) (errs []error) {
	names, err := v.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // is missed one level above
	}
	if err != nil {
		return []error{err}
	}
	for _, name := range names {
		if !want[name] {
			errs = append(errs, &DamageError{File: v.fs.PathJoin(dir, name), Offset: -1, Reason: "the backup does not know this file"})
		}
		delete(want, name)
	}
	for name := range want {
		errs = append(errs, &DamageError{File: v.fs.PathJoin(dir, name), Offset: -1, Reason: "it is missing"})
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

func (v *backupVerifier) shard(s *BackupShard) (errs []error) {
	if s.HasSnapshot() {
		if err := v.snapshot(s); err != nil && !errors.Is(err, fs.ErrNotExist) { // a file that is missing has its own words
			errs = append(errs, err)
		} else if err != nil {
			errs = append(errs, &DamageError{File: v.fs.PathJoin(v.dir, shardDir(s.Shard)), Offset: -1, Reason: fmt.Sprintf("something is missing: %v", err)})
		}
	}
	if len(s.Journal) == 0 {
		return errs
	}
	want := map[string]bool{}
	for i := range s.Journal {
		want[journalName(i)] = true
	}
	sub := v.fs.PathJoin(v.dir, journalDir(s.Shard))
	errs = append(errs, v.compare(sub, want)...)
	term := s.Term
	for i := range s.Journal {
		path := v.fs.PathJoin(sub, journalName(i))
		var err error
		if term, err = v.journal(s, path, i, term); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		v.passed(1, s.Journal[i].Bytes)
	}
	return errs
}

func (v *backupVerifier) snapshot(s *BackupShard) error {
	known, err := s.Open(v.fs, v.dir)
	if err != nil {
		return err
	}
	m, err := Verify(v.ctx, v.fs, known.Dir)
	if err != nil {
		return err
	}
	if m.Term != s.Term || m.Time != s.Time || m.Hash != s.Hash || m.MachineVersion != s.MachineVersion || m.Bytes() != s.Bytes {
		return &DamageError{File: v.fs.PathJoin(v.dir, backupName), Offset: -1, Reason: fmt.Sprintf("what it says of the snapshot of shard %d is not what that says", s.Shard)}
	}
	v.passed(len(m.Files), m.Bytes())
	return nil
}

// journal reads a journal file and returns the term of its last entry.
func (v *backupVerifier) journal(s *BackupShard, path string, i int, term uint64) (_ uint64, err error) {
	f, err := v.fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return term, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	whole := sha256.New()
	j, err := s.journalReader(teeFile{f, io.TeeReader(f, whole)}, path, i)
	if err != nil {
		return term, err
	}
	j.term = term
	for {
		if v.ctx.Err() != nil {
			return term, context.Cause(v.ctx)
		}
		if _, err := j.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return term, err
		}
	}
	want := &s.Journal[i]
	if j.next != want.Last+1 {
		return term, j.damage(j.offset, "it ends with entry %d, the manifest says %d", j.next-1, want.Last)
	}
	if got := [sha256.Size]byte(whole.Sum(nil)); got != want.SHA256 {
		return term, j.damage(-1, "its SHA-256 is %x, the manifest says %x", got, want.SHA256)
	}
	return cmp.Or(j.term, term), nil
}

// teeFile shows what is read of a file to somebody else.
type teeFile struct {
	vfs.File
	tee io.Reader
}

func (f teeFile) Read(p []byte) (int, error) { return f.tee.Read(p) }
