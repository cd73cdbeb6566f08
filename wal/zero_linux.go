package wal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// zeroRange makes the first size bytes of a file zeros, without giving back its blocks. Not every file system can.
func zeroRange(f *os.File, size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 0, size); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
			return errors.ErrUnsupported
		case err != nil:
			return fmt.Errorf("wal: zero %s: %w", f.Name(), err)
		default:
			return nil
		}
	}
}
