// Package bind opens ports, beyond this machine's loopback addresses only for who says that it is safe. The ports of nodes, of proxies, of
// admin services and side ports all are opened here.
package bind

import (
	"errors"
	"fmt"
	"net"
)

// ErrInsecure is wrapped by the error of a port that would be open to everybody.
var ErrInsecure = errors.New("the port would not be safe")

// TCP listens on address (host:port; port 0: any; no host: all of the machine's). missing says what the port lacks to be reached by other machines, and
// what to do about it, as in "it has no TLS: give it a certificate and a key"; empty: nothing. If something is, only loopback addresses
// are listened on, and the error for others wraps ErrInsecure.
func TCP(address, missing string) (net.Listener, error) {
	// The name is looked up once: what is judged is what is listened on.
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", clip(address), err)
	}
	if err := Check(a, missing); err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp", a)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", clip(address), err)
	}
	return l, nil
}

// Check is TCP's judgement of an address.
func Check(a net.Addr, missing string) error {
	if missing == "" || Local(a) {
		return nil
	}
	return fmt.Errorf("%w: %s can be reached from other machines, and %s; or listen on 127.0.0.1", ErrInsecure, a, missing)
}

// Local reports whether what is sent to an address does not leave the machine.
func Local(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// clip shortens what comes from outside, for errors.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
