package crash

import "golang.org/x/sys/unix"

// legacyCall reports whether a call is one of the old ones that take a path first. Go does not use them; recorded they are not.
func legacyCall(nr uint64) bool {
	switch nr {
	case unix.SYS_CREAT, unix.SYS_RENAME, unix.SYS_UNLINK, unix.SYS_MKDIR, unix.SYS_RMDIR, unix.SYS_LINK, unix.SYS_TRUNCATE:
		return true
	}
	return false
}
