package rsm

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// diskMonitor compares the free space of the data directory's file system with the watermark [G11].
type diskMonitor struct {
	dir       string // "": in memory, never low
	watermark uint64
	free      atomic.Uint64
	low       atomic.Bool
	stat      func(dir string) (free uint64, err error)
}

// look reports whether space is low, and whether that has changed. It takes an eighth
// more than the watermark to heal, so that the state does not flap.
func (d *diskMonitor) look() (low, changed bool) {
	if d.dir == "" || d.watermark == 0 {
		return false, false
	}
	free, err := d.stat(d.dir)
	if err != nil {
		return d.low.Load(), false // the log will notice soon enough if the disk is gone
	}
	d.free.Store(free)
	was := d.low.Load()
	low = free < d.watermark || was && free < d.watermark+d.watermark/8
	d.low.Store(low)
	return low, low != was
}

// openFiles is how many tables of the state store are kept open, given the limit of the process: eight for a shard, but no more than leaves half of the files to connections and the like.
// What does not fit is opened, and its index read, again and again.
func openFiles(shards int, limit uint64) int {
	return int(min(uint64(max(1000, 8*shards)), max(64, limit/2)))
}

// fileLimit is how many files this process may have open.
func fileLimit() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 2000 // enough for what is always asked for
	}
	return l.Cur
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}
