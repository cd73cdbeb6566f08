package bind

import (
	"errors"
	"net"
	"testing"
)

func TestTCP(t *testing.T) {
	for _, tt := range []struct {
		address, missing string
		open, insecure   bool
	}{
		{"127.0.0.1:0", "it has no TLS", true, false},
		{"localhost:0", "it has no TLS", true, false},
		{"0.0.0.0:0", "it has no TLS", false, true},
		{":0", "it has no TLS", false, true},
		{"[::]:0", "it has no TLS", false, true},
		{"192.0.2.1:0", "it has no TLS", false, true}, // nobody's: judged before it is tried
		{":0", "", true, false},
		{"127.0.0.1", "", false, false},
		{"nonsense:-1", "it has no TLS", false, false},
	} {
		l, err := TCP(tt.address, tt.missing)
		if (err == nil) != tt.open || errors.Is(err, ErrInsecure) != tt.insecure {
			t.Errorf("%q, missing %q: %v", tt.address, tt.missing, err)
		}
		if err == nil {
			_ = l.Close() // it is done with
		}
	}
}

func TestLocal(t *testing.T) {
	for address, want := range map[net.Addr]bool{
		&net.TCPAddr{IP: net.ParseIP("127.1.2.3")}:        true,
		&net.TCPAddr{IP: net.ParseIP("::1")}:              true,
		&net.TCPAddr{IP: net.ParseIP("::ffff:127.0.0.1")}: true,
		&net.UnixAddr{Name: "/tmp/x"}:                     true,
		&net.TCPAddr{}:                                    false,
		&net.TCPAddr{IP: net.ParseIP("10.0.0.1")}:         false,
		&net.UDPAddr{IP: net.ParseIP("127.0.0.1")}:        false,
	} {
		if got := Local(address); got != want {
			t.Errorf("%v: %v", address, got)
		}
	}
}
