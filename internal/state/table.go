package state

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	tableBytes = 64 << 20 // a table is finished at about this size
	// bytesPerSync is how much of a table, of a flush or a compaction, is handed to the disk at a time. The log's fsync waits for what
	// is there before it: beside three compactions it came two and a half times as often with this as with 512 KiB, and they were a seventh slower.
	bytesPerSync = 128 << 10
)

// tableBuilder writes keys, which come in order, into tables that do not overlap.
type tableBuilder struct {
	store *Store
	shard uint64
	paths []string // of all tables begun
	w     *sstable.Writer

	journal  bool // the present part is journal only
	key, val []byte
}

func (b *tableBuilder) set(key, value []byte) error {
	if err := b.room(); err != nil {
		return err
	}
	b.key = key
	return b.w.Set(key, value)
}

func (b *tableBuilder) delete(key []byte) error {
	if err := b.room(); err != nil {
		return err
	}
	b.key = key
	return b.w.Delete(key)
}

func (b *tableBuilder) deleteRange(from, to []byte) error {
	if err := b.room(); err != nil {
		return err
	}
	return b.w.DeleteRange(from, to)
}

// room sees to it that there is a table with room in it.
func (b *tableBuilder) room() error {
	if b.w != nil && b.w.Raw().EstimatedSize() >= tableBytes {
		if err := b.finish(); err != nil {
			return err
		}
	}
	if b.w != nil {
		return nil
	}
	name := fmt.Sprintf("%d-%d.sst", b.shard, b.store.tableSeq.Add(1))
	path := b.store.opts.FS.PathJoin(b.store.path(ingestDir), name)
	f, err := b.store.opts.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("state: flush: %w", err)
	}
	b.paths = append(b.paths, path)
	f = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: bytesPerSync})
	b.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), b.options())
	return nil
}

// options leave what is flushed uncompressed: at the rate of the log, 3 ns per byte on every
// replica are a good part of a core. Compactions compress the state; the journal stays as it is, about a
// fifth larger.
func (b *tableBuilder) options() sstable.WriterOptions {
	o := b.store.dbOpts.MakeWriterOptions(0, b.store.db.TableFormat())
	o.Compression = sstable.NoCompression
	if b.journal {
		o.FilterPolicy = pebble.NoFilterPolicy // is only ever scanned
	}
	return o
}

// finish ends the present table, if there is one, and syncs it.
func (b *tableBuilder) finish() error {
	if b.w == nil {
		return nil
	}
	err := b.w.Close()
	b.w = nil
	if err != nil {
		return fmt.Errorf("state: flush: %w", err)
	}
	return nil
}

// discard removes what was written, after a failure. Tables that pebble took over are linked
// under another name and stay.
func (b *tableBuilder) discard() error {
	err := b.finish()
	for _, p := range b.paths {
		if rerr := b.store.opts.FS.Remove(p); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
