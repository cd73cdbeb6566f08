//go:build !linux

package rsm

import (
	"errors"
	"testing"
	"time"
)

func pretendToSync() error { return errors.New("there are no such filters here") }

func monotonic() time.Duration { return 0 }

func TestPowerCut(t *testing.T) { t.Skip("the power can be cut on Linux only") }
