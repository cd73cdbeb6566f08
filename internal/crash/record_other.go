//go:build !linux

package crash

import (
	"os/exec"
	"time"
)

// Record is there on Linux only.
func Record(cmd *exec.Cmd, root string, limit time.Duration) ([]Op, error) {
	return nil, ErrUnsupported
}
