package admin

import "time"

// SetMaxIdle replaces how long a connection may have no call on it, for the servers that are started from now on, and returns what undoes that.
func SetMaxIdle(d time.Duration) (undo func()) {
	was := maxIdle
	maxIdle = d
	return func() { maxIdle = was }
}
