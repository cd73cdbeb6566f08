package link

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds for how long the other side may not acknowledge what it was sent.
func setUserTimeout(c *net.TCPConn, d time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	}); err != nil {
		return err
	}
	return failed
}

// unacknowledged returns how many bytes the other side has not acknowledged, 0 if that cannot be told.
func unacknowledged(c *net.TCPConn) (n int64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // fails on a connection that is closed
		if q, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = int64(q)
		}
	})
	return n
}
