package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// CheckTables reads tables, given in the order of their keys, from front to end, and makes sure that they are what
// Cut.Write writes of one shard: every block passes its checksum; keys ascend, also from table to
// table, are the shard's and of known kinds; nothing is deleted; there is one
// meta record, without a journal. Errors name the file; ErrCorrupt and ErrNewerFormat can be told apart.
func CheckTables(ctx context.Context, fs vfs.FS, paths []string, shard uint64) (Contents, error) {
	c := tableChecker{shard: shard, out: Contents{Shard: shard, Tables: len(paths)}}
	options := new(pebble.Options)
	options.EnsureDefaults()
	c.reader = options.MakeReaderOptions()
	for _, p := range paths {
		if ctx.Err() != nil {
			return Contents{}, context.Cause(ctx)
		}
		if err := c.table(ctx, fs, p); err != nil {
			return Contents{}, &tableError{p, err}
		}
	}
	if !c.found {
		return Contents{}, fmt.Errorf("state: check the %d tables of shard %d: %w: there is no meta record", len(paths), shard, ErrCorrupt)
	}
	return c.out, nil
}

// tableError is what is wrong with a table.
type tableError struct {
	path string
	err  error
}

func (e *tableError) Error() string { return fmt.Sprintf("state: check %s: %v", e.path, e.err) }
func (e *tableError) Unwrap() error { return e.err }

type tableChecker struct {
	shard  uint64
	reader sstable.ReaderOptions
	last   []byte // key; nil before the first
	found  bool   // the meta record
	out    Contents
}

// table checks one. Pebble trusts its own files, and may panic on one that somebody else made up.
func (c *tableChecker) table(ctx context.Context, fs vfs.FS, path string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: the table cannot be read: %v", ErrCorrupt, p)
		}
	}()
	r, err := openTable(ctx, fs, path, c.reader)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := checkShape(ctx, r); err != nil {
		return err
	}
	return c.keys(ctx, r)
}

func openTable(ctx context.Context, fs vfs.FS, path string, o sstable.ReaderOptions) (*sstable.Reader, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r, err := sstable.NewReader(ctx, readable, o)
	if err != nil {
		return nil, asCorrupt(errors.Join(err, readable.Close()))
	}
	return r, nil
}

// checkShape refuses tables with more than plain keys and values in them.
func checkShape(ctx context.Context, r *sstable.Reader) error {
	format, err := r.TableFormat()
	if err != nil {
		return asCorrupt(err)
	}
	if format > cutTableFormat {
		return fmt.Errorf("%w: the table has format %s, this program knows up to %s", ErrNewerFormat, format, cutTableFormat)
	}
	if r.Attributes.Has(sstable.AttributeBlobValues) {
		return fmt.Errorf("%w: the table has values in other files", ErrCorrupt)
	}
	dels, err := r.NewRawRangeDelIter(ctx, sstable.NoFragmentTransforms, sstable.NoReadEnv)
	if err != nil {
		return asCorrupt(err)
	}
	if dels != nil {
		dels.Close()
		return fmt.Errorf("%w: the table deletes ranges", ErrCorrupt)
	}
	ranges, err := r.NewRawRangeKeyIter(ctx, sstable.NoFragmentTransforms, sstable.NoReadEnv)
	if err != nil {
		return asCorrupt(err)
	}
	if ranges != nil {
		ranges.Close()
		return fmt.Errorf("%w: the table has range keys", ErrCorrupt)
	}
	return nil
}

func (c *tableChecker) keys(ctx context.Context, r *sstable.Reader) (err error) {
	it, err := r.NewIter(sstable.NoTransforms, nil, nil, sstable.AssertNoBlobHandles)
	if err != nil {
		return asCorrupt(err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	n := 0
	var buf []byte
	for kv := it.First(); kv != nil; kv = it.Next() {
		if n++; n%ctxEvery == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if kv.K.Kind() != pebble.InternalKeyKindSet || kv.K.SeqNum() != 0 {
			return fmt.Errorf("%w: key %s is not simply set (%s)", ErrCorrupt, shortKey(kv.K.UserKey), kv.K.Kind())
		}
		v, _, err := kv.Value(buf)
		if err != nil {
			return asCorrupt(err)
		}
		if err := c.key(kv.K.UserKey, v); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return asCorrupt(err)
	}
	if n == 0 {
		return fmt.Errorf("%w: the table is empty", ErrCorrupt)
	}
	return nil
}

func (c *tableChecker) key(key, value []byte) error {
	if c.last != nil && bytes.Compare(key, c.last) <= 0 {
		return fmt.Errorf("%w: key %s does not come after %s", ErrCorrupt, shortKey(key), shortKey(c.last))
	}
	c.last = append(c.last[:0], key...)
	if len(key) < prefixLen || binary.BigEndian.Uint64(key) != c.shard {
		return fmt.Errorf("%w: key %s is not one of shard %d", ErrCorrupt, shortKey(key), c.shard)
	}
	kind := key[prefixLen-1]
	switch kind {
	case kindData, kindSession:
	case kindMeta:
		m, err := decodeMeta(c.shard, value)
		if err != nil {
			return err
		}
		if len(key) != prefixLen || m.last != 0 {
			return fmt.Errorf("%w: meta record at %s with a journal up to %d", ErrCorrupt, shortKey(key), m.last)
		}
		c.found, c.out.Index, c.out.Meta = true, m.index, m.opaque
	default:
		return fmt.Errorf("%w: key %s is of kind %q, which does not belong into a snapshot", ErrCorrupt, shortKey(key), kind)
	}
	c.out.count(kind, len(key), len(value))
	return nil
}

// asCorrupt marks what pebble says of a table. What the disk says is no different to the caller: the tables are of no use.
func asCorrupt(err error) error { return fmt.Errorf("%w: %w", ErrCorrupt, err) }
