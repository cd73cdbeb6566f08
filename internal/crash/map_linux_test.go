package crash

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func mapFile(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := f.Truncate(4096); err != nil {
		return err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	b[0] = 1
	return errors.Join(unix.Munmap(b), f.Close())
}
