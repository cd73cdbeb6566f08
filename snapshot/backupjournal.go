package snapshot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"iter"
	"math"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	journalMagic   = "DECJOURN"
	journalVersion = 1
	journalHeader  = len(journalMagic) + 4 + 8 + 8
	recordHeader   = 8
	journalBuffer  = 256 << 10
)

// journalBuffers are kept: a backup has a journal for each shard, and most are smaller than a buffer.
var journalBuffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, journalBuffer) }}

// journalWriter writes one journal file.
type journalWriter struct {
	out   *bufio.Writer
	whole hash.Hash
	file  JournalFile
	buf   []byte
}

func newJournalWriter(w io.Writer, shard, first uint64) (*journalWriter, error) {
	j := &journalWriter{whole: sha256.New(), file: JournalFile{First: first, Last: first - 1}}
	j.out = journalBuffers.Get().(*bufio.Writer)
	j.out.Reset(w)
	b := append(j.buf, journalMagic...)
	b = binary.BigEndian.AppendUint32(b, journalVersion)
	b = binary.BigEndian.AppendUint64(b, shard)
	b = binary.BigEndian.AppendUint64(b, first)
	return j, j.write(b)
}

func (j *journalWriter) write(b []byte) error {
	j.whole.Write(b)
	j.file.Bytes += int64(len(b))
	_, err := j.out.Write(b)
	return err
}

func (j *journalWriter) add(e *Entry) error {
	if e.Index != j.file.Last+1 {
		return fmt.Errorf("snapshot: journal entry %d comes after %d: %w", e.Index, j.file.Last, ErrCorrupt)
	}
	if len(e.Data) > MaxEntryBytes {
		return fmt.Errorf("%w: journal entry %d has %d bytes, allowed are %d", ErrTooLarge, e.Index, len(e.Data), MaxEntryBytes)
	}
	b := append(j.buf[:0], make([]byte, recordHeader)...)
	b = binary.AppendUvarint(b, e.Index)
	b = binary.AppendUvarint(b, e.Term)
	b = append(b, e.Type)
	b = append(b, e.Data...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-recordHeader))
	binary.BigEndian.PutUint32(b[4:], recordSum(b[:4], b[recordHeader:]))
	if j.buf = b; cap(b) > 1<<20 {
		j.buf = nil
	}
	j.file.Last = e.Index
	return j.write(b)
}

// finish ends the file. Nothing may be added after it.
func (j *journalWriter) finish() (JournalFile, error) {
	j.whole.Sum(j.file.SHA256[:0])
	err := j.out.Flush()
	j.out.Reset(nil)
	journalBuffers.Put(j.out)
	j.out = nil
	return j.file, err
}

// recordSum covers the length too, so that a wrong one is not taken for the end.
func recordSum(length, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, body)
}

// JournalReader reads a file of journal entries, of which nothing is believed.
type JournalReader struct {
	in     *bufio.Reader
	name   string
	shard  uint64
	next   uint64 // index
	term   uint64 // of the last one
	offset int64
	left   int64 // bytes of the file
}

// NewJournalReader reads the header of a file of that many bytes. name is for errors.
func NewJournalReader(r io.Reader, name string, bytes int64) (*JournalReader, error) {
	j := &JournalReader{in: bufio.NewReaderSize(r, int(min(bytes, journalBuffer))), name: name, left: bytes}
	var h [journalHeader]byte
	if err := j.read(h[:], "its header"); err != nil {
		return nil, err
	}
	if string(h[:len(journalMagic)]) != journalMagic {
		return nil, j.damage(0, "not a journal file")
	}
	switch v := binary.BigEndian.Uint32(h[len(journalMagic):]); {
	case v > journalVersion:
		return nil, fmt.Errorf("%w: %s is a journal of version %d, this program knows up to %d; use the newer program", ErrNewerFormat, name, v, journalVersion)
	case v == 0:
		return nil, j.damage(0, "a journal of version 0")
	}
	j.shard = binary.BigEndian.Uint64(h[12:])
	j.next = binary.BigEndian.Uint64(h[20:])
	if j.shard == 0 || j.next == 0 || j.next == math.MaxUint64 {
		return nil, j.damage(0, "shard %d from entry %d on", j.shard, j.next)
	}
	return j, nil
}

func (j *JournalReader) damage(at int64, format string, args ...any) error {
	return &DamageError{File: j.name, Offset: at, Reason: fmt.Sprintf(format, args...)}
}

func (j *JournalReader) read(b []byte, what string) error {
	if int64(len(b)) > j.left {
		return j.damage(j.offset, "the file ends within %s", what)
	}
	n, err := io.ReadFull(j.in, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return j.damage(j.offset+int64(n), "the file ends within %s", what)
	}
	if err != nil {
		return fmt.Errorf("snapshot: %s, offset %d: %w", j.name, j.offset, err)
	}
	j.offset += int64(n)
	j.left -= int64(n)
	return nil
}

// Next returns the next entry, whose memory is the caller's, or io.EOF at the end of the file.
func (j *JournalReader) Next() (Entry, error) {
	if j.left == 0 {
		return Entry{}, io.EOF
	}
	at := j.offset
	var h [recordHeader]byte
	if err := j.read(h[:], "the head of a record"); err != nil {
		return Entry{}, err
	}
	n := int64(binary.BigEndian.Uint32(h[:]))
	if n > j.left || n > maxRecordBytes || n < 3 {
		return Entry{}, j.damage(at, "a record of %d bytes, with %d left in the file", n, j.left)
	}
	body := make([]byte, n)
	if err := j.read(body, "a record"); err != nil {
		return Entry{}, err
	}
	if got, want := recordSum(h[:4], body), binary.BigEndian.Uint32(h[4:]); got != want {
		return Entry{}, j.damage(at, "the record of entry %d has checksum %08x, it says %08x", j.next, got, want)
	}
	r := reader{b: body}
	e := Entry{Index: r.uvarint("index", math.MaxUint64), Term: r.uvarint("term", math.MaxUint64), Type: r.take("type", 1)[0]}
	e.Data = r.b
	switch {
	case r.err != nil || len(e.Data) > MaxEntryBytes:
		return Entry{}, j.damage(at, "the record of entry %d is malformed", j.next)
	case e.Index != j.next:
		return Entry{}, j.damage(at, "entry %d where entry %d should be", e.Index, j.next)
	case e.Term == 0 || e.Term < j.term:
		return Entry{}, j.damage(at, "entry %d has term %d, the one before has %d", e.Index, e.Term, j.term)
	}
	j.next, j.term = e.Index+1, e.Term
	return e, nil
}

// Entries yields the entries of a shard in the backup in dir from one index on up to another, both included, which must be within its journal.
// An error ends it. Every record is checked; that the files are those of the manifest is for VerifyBackup to say.
func (s *BackupShard) Entries(ctx context.Context, fsys vfs.FS, dir string, from, to uint64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for i := range s.Journal {
			if f := &s.Journal[i]; f.Last < from || f.First > to {
				continue
			}
			if !s.entriesOf(ctx, fsys, fsys.PathJoin(dir, journalDir(s.Shard), journalName(i)), i, from, to, yield) {
				return
			}
		}
	}
}

func (s *BackupShard) entriesOf(ctx context.Context, fsys vfs.FS, path string, i int, from, to uint64, yield func(Entry, error) bool) bool {
	f, err := fsys.Open(path)
	if err != nil {
		yield(Entry{}, fmt.Errorf("snapshot: journal of shard %d: %w", s.Shard, err))
		return false
	}
	defer f.Close() // was only read
	j, err := s.journalReader(f, path, i)
	for err == nil {
		var e Entry
		if e, err = j.Next(); err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		switch {
		case errors.Is(err, io.EOF):
			if j.next != s.Journal[i].Last+1 {
				yield(Entry{}, j.damage(j.offset, "the file ends with entry %d, the manifest says %d", j.next-1, s.Journal[i].Last))
				return false
			}
			return true
		case err == nil && e.Index > to:
			return true
		case err == nil && e.Index >= from && !yield(e, nil):
			return false
		}
	}
	yield(Entry{}, err)
	return false
}

// journalReader opens the file number i, whose size must be that of the manifest.
func (s *BackupShard) journalReader(f vfs.File, path string, i int) (*JournalReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	want := &s.Journal[i]
	if info.Size() != want.Bytes {
		return nil, &DamageError{File: path, Offset: -1, Reason: fmt.Sprintf("it has %d bytes, the manifest says %d", info.Size(), want.Bytes)}
	}
	j, err := NewJournalReader(f, path, info.Size())
	if err != nil {
		return nil, err
	}
	if j.shard != s.Shard || j.next != want.First {
		return nil, j.damage(0, "it is of shard %d from entry %d on, the manifest says shard %d from %d on", j.shard, j.next, s.Shard, want.First)
	}
	return j, nil
}
