//go:build !linux

package link

import (
	"net"
	"time"
)

func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }

func unacknowledged(*net.TCPConn) int64 { return 0 }
