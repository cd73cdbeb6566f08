package yield

import "golang.org/x/sys/unix"

// processor gives the thread's processor away.
func processor() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) } // it always succeeds
