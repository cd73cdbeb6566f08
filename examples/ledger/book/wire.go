package book

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrEncoding is what all bytes match that are no command, event, record or reply of this package.
var ErrEncoding = errors.New("book: bad encoding")

// formatVersion is the second byte of every command, event, record and reply, but for an entry with a reference.
const formatVersion = 1

// reader takes an encoding apart. The first error sticks and empties it, so that callers check once.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w at byte %d: %s", ErrEncoding, r.at, fmt.Sprintf(format, args...))
	}
	r.at = len(r.b)
}

// take returns the next n bytes without copying them, or nil.
func (r *reader) take(n int) []byte {
	if len(r.b)-r.at < n {
		r.fail("%d more bytes are missing", n-(len(r.b)-r.at))
		return nil
	}
	b := r.b[r.at : r.at+n]
	r.at += n
	return b
}

func (r *reader) u8() uint8 {
	if r.at < len(r.b) {
		v := r.b[r.at]
		r.at++
		return v
	}
	r.fail("a byte is missing")
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) id() (id ID) {
	copy(id[:], r.take(len(id)))
	return id
}

// amount reads n bytes without leading zeros: each number has exactly one encoding.
func (r *reader) amount(n int) Uint128 {
	if n > 16 {
		r.fail("an amount of %d bytes", n)
		return Uint128{}
	}
	b := r.take(n)
	if len(b) > 0 && b[0] == 0 {
		r.fail("an amount with leading zeros")
	}
	return readAmount(b)
}

// header checks the first two bytes: what it is, and its version.
func (r *reader) header(kind byte) { r.headerUpTo(kind, formatVersion) }

// headerUpTo is header for what has more than one version: which it is.
func (r *reader) headerUpTo(kind, newest byte) (version byte) {
	if k := r.u8(); r.err == nil && k != kind {
		r.fail("kind %d, want %d", k, kind)
	}
	if version = r.u8(); r.err == nil && (version < formatVersion || version > newest) {
		r.fail("format version %d, this program knows up to %d", version, newest)
	}
	return version
}

// end checks that nothing is left.
func (r *reader) end() error {
	if r.err == nil && r.at != len(r.b) {
		r.fail("%d bytes too many", len(r.b)-r.at)
	}
	return r.err
}

func appendU16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func appendU32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func appendU64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
