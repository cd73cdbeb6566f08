package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	streamMagic    = "DECBKSTR"
	streamVersion  = 1
	frameFile      = 'F'
	frameData      = 'D'
	frameEnd       = 'E'
	frameLast      = 'Z'
	maxStreamName  = 64
	MaxStreamFrame = 1 << 20 // bytes of data in one
)

// StreamSink writes a backup as one stream, for a pipe or a connection. It is flushed by Finish.
type StreamSink struct {
	out   *bufio.Writer
	whole hash.Hash
	files uint32
	err   error
}

// NewStreamSink writes the stream's header.
func NewStreamSink(w io.Writer) *StreamSink {
	s := &StreamSink{out: bufio.NewWriterSize(w, 256<<10), whole: sha256.New()}
	s.write(binary.BigEndian.AppendUint32([]byte(streamMagic), streamVersion))
	return s
}

func (s *StreamSink) write(b []byte) {
	s.whole.Write(b)
	if s.err == nil {
		_, s.err = s.out.Write(b)
	}
}

// Create implements Sink.
func (s *StreamSink) Create(name string) (SinkFile, error) {
	if !validName(name) {
		return nil, fmt.Errorf("%w: %q is not the name of a file of a backup", ErrCorrupt, name)
	}
	s.files++
	b := binary.BigEndian.AppendUint16([]byte{frameFile}, uint16(len(name)))
	s.write(append(b, name...))
	return &streamFile{s: s, whole: sha256.New()}, s.err
}

// Finish implements Sink.
func (s *StreamSink) Finish() error {
	s.write(binary.BigEndian.AppendUint32([]byte{frameLast}, s.files))
	s.write(s.whole.Sum(nil))
	if s.err != nil {
		return s.err
	}
	return s.out.Flush()
}

type streamFile struct {
	s     *StreamSink
	whole hash.Hash
	n     uint64
	ended bool
}

func (f *streamFile) Write(p []byte) (int, error) {
	for at := 0; at < len(p) && f.s.err == nil; {
		part := p[at:min(len(p), at+MaxStreamFrame)]
		h := binary.BigEndian.AppendUint32([]byte{frameData}, uint32(len(part)))
		f.s.write(binary.BigEndian.AppendUint32(h, crc32.Checksum(part, castagnoli)))
		f.s.write(part)
		f.whole.Write(part)
		f.n += uint64(len(part))
		at += len(part)
	}
	if f.s.err != nil {
		return 0, f.s.err
	}
	return len(p), nil
}

// Sync ends the file. What reaches the other side durably is for the other side to say.
func (f *streamFile) Sync() error {
	if !f.ended {
		f.ended = true
		f.s.write(f.whole.Sum(binary.BigEndian.AppendUint64([]byte{frameEnd}, f.n)))
	}
	return f.s.err
}

func (f *streamFile) Close() error { return f.s.err }

// PackBackup writes the backup in dir as a stream. It checks no more than that the files are there: see VerifyBackup. fsys may be nil for vfs.Default.
func PackBackup(ctx context.Context, fsys vfs.FS, dir string, w io.Writer, progress func(Progress)) error {
	if fsys == nil {
		fsys = vfs.Default
	}
	b, err := ReadBackup(fsys, dir)
	if err != nil {
		return err
	}
	names, err := b.files(fsys, dir)
	if err != nil {
		return err
	}
	sink := NewStreamSink(w)
	p := Progress{Total: b.Size()}
	for _, name := range append(names, backupName) {
		err := copyFile(ctx, fsys, fsys.PathJoin(dir, name), sink, name, func(n int) {
			if p.Bytes += int64(n); progress != nil {
				progress(p)
			}
		})
		if err != nil {
			return fmt.Errorf("snapshot: pack %s: %w", name, err)
		}
		p.Files++
	}
	return sink.Finish()
}

// UnpackOptions say what is accepted from a stream.
type UnpackOptions struct {
	// Reserve bytes of the disk stay free.
	Reserve uint64
	// Progress is called now and then; nil: not called.
	Progress func(Progress)
}

// UnpackBackup reads a stream to its end, which is the end of r too, and writes it as a backup into dir, which must be empty or missing. Nothing
// of the stream is believed: it is checked frame by frame, names can lead nowhere else, and its last file must be the manifest.
// Without that, and after any error, there is no backup in dir, and what was written is removed. That the files are those of the manifest is for VerifyBackup to say.
func UnpackBackup(ctx context.Context, r io.Reader, fsys vfs.FS, dir string, o UnpackOptions) (*Backup, error) {
	if fsys == nil {
		fsys = vfs.Default
	}
	sink, err := NewDirSink(fsys, dir, o.Reserve)
	if err != nil {
		return nil, err
	}
	u := &unpacker{ctx: ctx, sink: sink, progress: o.Progress, in: bufio.NewReaderSize(r, 256<<10), whole: sha256.New(), seen: map[string]bool{}}
	if err := u.run(); err != nil {
		return nil, fmt.Errorf("snapshot: unpack, at byte %d of the stream: %w", u.offset, errors.Join(err, sink.Abort()))
	}
	return u.backup, nil
}

// unpacker is an UnpackBackup under way.
type unpacker struct {
	ctx      context.Context // of the one call that this lives for
	sink     *DirSink
	progress func(Progress)
	in       *bufio.Reader
	whole    hash.Hash
	offset   int64
	seen     map[string]bool
	done     Progress
	buf      []byte
	backup   *Backup
}

func (u *unpacker) read(b []byte) error {
	n, err := io.ReadFull(u.in, b)
	u.offset += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the stream ends before its end", ErrCorrupt)
	}
	u.whole.Write(b[:n])
	return err
}

func (u *unpacker) run() error {
	h := make([]byte, len(streamMagic)+4)
	if err := u.read(h); err != nil {
		return err
	}
	if string(h[:len(streamMagic)]) != streamMagic {
		return fmt.Errorf("%w: this is not the stream of a backup", ErrCorrupt)
	}
	switch v := binary.BigEndian.Uint32(h[len(streamMagic):]); {
	case v > streamVersion:
		return fmt.Errorf("%w: a stream of version %d, this program knows up to %d; use the newer program", ErrNewerFormat, v, streamVersion)
	case v == 0:
		return fmt.Errorf("%w: a stream of version 0", ErrCorrupt)
	}
	for {
		kind, err := u.kind()
		if err != nil {
			return err
		}
		switch {
		case kind == frameFile && u.backup == nil:
			err = u.file()
		case kind == frameLast:
			return u.end()
		default:
			err = fmt.Errorf("%w: a frame of kind %q", ErrCorrupt, kind)
		}
		if err != nil {
			return err
		}
	}
}

func (u *unpacker) kind() (byte, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	var b [1]byte
	err := u.read(b[:])
	return b[0], err
}

func (u *unpacker) file() error {
	var h [2]byte
	if err := u.read(h[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(h[:]))
	if n > maxStreamName {
		return fmt.Errorf("%w: a name of %d bytes, allowed are %d", ErrCorrupt, n, maxStreamName)
	}
	b := make([]byte, n)
	if err := u.read(b); err != nil {
		return err
	}
	name := string(b)
	if !validName(name) || u.seen[name] {
		return fmt.Errorf("%w: %q is not the name of a file of a backup, or comes twice", ErrCorrupt, name)
	}
	u.seen[name] = true
	f, err := u.sink.Create(name)
	if err != nil {
		return err
	}
	var manifest *bytes.Buffer
	if name == backupName {
		manifest = &bytes.Buffer{}
	}
	if err := u.data(f, name, manifest); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	u.done.Files++
	if manifest != nil {
		if u.backup, err = DecodeBackup(manifest.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// data takes over the frames of a file.
func (u *unpacker) data(f SinkFile, name string, manifest *bytes.Buffer) error {
	whole, size := sha256.New(), uint64(0)
	for {
		kind, err := u.kind()
		if err != nil {
			return err
		}
		switch kind {
		case frameData:
			b, err := u.frame(name)
			if err != nil {
				return err
			}
			if size += uint64(len(b)); manifest != nil && size > MaxBackupBytes {
				return fmt.Errorf("%w: the backup's manifest has more than %d bytes", ErrTooLarge, MaxBackupBytes)
			} else if manifest != nil {
				manifest.Write(b)
			}
			whole.Write(b)
			if _, err := f.Write(b); err != nil {
				return err
			}
			if u.done.Bytes += int64(len(b)); u.progress != nil {
				u.progress(u.done)
			}
		case frameEnd:
			var b [8 + sha256.Size]byte
			if err := u.read(b[:]); err != nil {
				return err
			}
			if n := binary.BigEndian.Uint64(b[:]); n != size || !bytes.Equal(whole.Sum(nil), b[8:]) {
				return fmt.Errorf("%w: %s arrived with %d bytes, it should have %d, or another checksum", ErrCorrupt, name, size, n)
			}
			return nil
		default:
			return fmt.Errorf("%w: a frame of kind %q within %s", ErrCorrupt, kind, name)
		}
	}
}

func (u *unpacker) frame(name string) ([]byte, error) {
	var h [8]byte
	if err := u.read(h[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(h[:]))
	if n == 0 || n > MaxStreamFrame {
		return nil, fmt.Errorf("%w: a frame of %d bytes within %s, allowed are 1 to %d", ErrCorrupt, n, name, MaxStreamFrame)
	}
	if cap(u.buf) < n {
		u.buf = make([]byte, n)
	}
	b := u.buf[:n]
	if err := u.read(b); err != nil {
		return nil, err
	}
	if got, want := crc32.Checksum(b, castagnoli), binary.BigEndian.Uint32(h[4:]); got != want {
		return nil, fmt.Errorf("%w: a frame of %s has checksum %08x, it says %08x", ErrCorrupt, name, got, want)
	}
	return b, nil
}

func (u *unpacker) end() error {
	if u.backup == nil {
		return fmt.Errorf("%w: the stream has no manifest", ErrCorrupt)
	}
	var n [4]byte
	if err := u.read(n[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint32(n[:]); int(got) != len(u.seen) {
		return fmt.Errorf("%w: the stream has %d files, it says %d", ErrCorrupt, len(u.seen), got)
	}
	want := u.whole.Sum(nil)
	got := make([]byte, len(want))
	if err := u.read(got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: the stream fails its checksum", ErrCorrupt)
	}
	if _, err := u.in.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fmt.Errorf("%w: bytes after the end of the stream", ErrCorrupt)
		}
		return err
	}
	return u.sink.Finish()
}
