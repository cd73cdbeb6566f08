package link

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection of a link is given up when nothing is acknowledged for a while, as gRPC has it for those that it makes itself; and what is not acknowledged is not delivered.
func TestConnectionOfALink(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var p pulse
	c, err := p.dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*pulsing).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	timeout := 0
	if err := raw.Control(func(fd uintptr) { timeout, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); err != nil {
		t.Fatal(err)
	}
	if timeout != int(keepaliveTimeout.Milliseconds()) {
		t.Errorf("the user timeout is %d ms", timeout)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	if err := c.(*pulsing).SetWriteBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 900<<10)); err != nil {
		t.Fatal(err)
	}
	if n := p.delivered(); n >= 900<<10 {
		t.Errorf("%d bytes are delivered to who reads nothing", n)
	}
}
