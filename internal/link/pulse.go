package link

import (
	"context"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// pulse counts what passes over the connections of a link: a large answer or command is a sign of life before it has arrived as a whole.
type pulse struct {
	read, written atomic.Int64
	// What unary calls may have had of both: that others are answered says nothing about the stream.
	readAside, writtenAside atomic.Int64
	conn                    atomic.Pointer[pulsing] // that was written to last
}

// leastProgress is how many bytes in a quarter of the silence are a sign of life: more than what goes to and fro on a connection whose other side is dead to the stream.
const leastProgress = 8 << 10

// overhead of a unary call, at most about.
const overhead = 1 << 10

// dial is net.Dial, with a connection whose bytes are counted. gRPC gives up connections whose other side does not acknowledge for a while, but not such as these.
func (p *pulse) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tcp, is := c.(*net.TCPConn)
	if !is {
		return c, nil
	}
	if err := setUserTimeout(tcp, keepaliveTimeout); err != nil {
		_ = c.Close() // what it lacks is the error
		return nil, err
	}
	return &pulsing{TCPConn: tcp, pulse: p}, nil
}

// unary is what unary calls on the connection pass through.
func (p *pulse) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if m, is := req.(proto.Message); is {
		p.writtenAside.Add(int64(proto.Size(m)) + overhead)
	}
	err := invoke(ctx, method, req, reply, cc, options...)
	if m, is := reply.(proto.Message); is && err == nil {
		p.readAside.Add(int64(proto.Size(m)))
	}
	p.readAside.Add(overhead)
	return err
}

// delivered returns how much of what was written has left this machine, and was acknowledged, as far as that is known.
func (p *pulse) delivered() int64 {
	n := p.written.Load()
	if c := p.conn.Load(); c != nil {
		n -= unacknowledged(c.TCPConn)
	}
	return n
}

// pulsing is a connection whose bytes are counted.
type pulsing struct {
	*net.TCPConn
	pulse *pulse
}

// Read implements net.Conn.
func (c *pulsing) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.pulse.read.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *pulsing) Write(b []byte) (int, error) {
	if c.pulse.conn.Load() != c {
		c.pulse.conn.Store(c)
	}
	n, err := c.TCPConn.Write(b)
	c.pulse.written.Add(int64(n))
	return n, err
}
