//go:build !linux

package wal

import (
	"errors"
	"os"
)

func zeroRange(*os.File, int64) error { return errors.ErrUnsupported }
