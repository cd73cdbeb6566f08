//go:build linux && !amd64

package crash

import "golang.org/x/sys/unix"

// legacyCall reports whether a call takes a path first and is not recorded: newer architectures have one of them.
func legacyCall(nr uint64) bool { return nr == unix.SYS_TRUNCATE }
