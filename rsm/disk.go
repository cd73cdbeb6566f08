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

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}
