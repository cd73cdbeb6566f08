package codec

import (
	"fmt"
	"runtime"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// SmallBytes is the size up to which a message is not worth counting.
const SmallBytes = 64 << 10

// Counted is a Frame, or a message for protobuf, of more than SmallBytes, that tells when it is not in memory any more: gRPC takes a message and keeps it until
// the other side has taken it, which may be never.
type Counted struct {
	Message any
	Sent    func() // is called once, on any goroutine, and must not wait
}

// marshal gives the message to gRPC in a buffer that it frees when the bytes are sent. It frees none of a connection that is closed, so the garbage collector
// tells, too.
func (c *Counted) marshal() (mem.BufferSlice, error) {
	once := sync.OnceFunc(c.Sent)
	var data []byte
	var err error
	switch m := c.Message.(type) {
	case *Frame:
		data = m.Data
	case proto.Message:
		data, err = proto.Marshal(m)
	default:
		err = fmt.Errorf("a %T is neither a frame nor a message", m)
	}
	if err != nil || mem.IsBelowBufferPoolingThreshold(len(data)) {
		once()
		return mem.BufferSlice{mem.SliceBuffer(data)}, err
	}
	f := &freed{once}
	runtime.AddCleanup(f, func(tell func()) { tell() }, once)
	return mem.BufferSlice{mem.NewBuffer(&data, f)}, nil
}

// freed is a pool of which nothing is taken.
type freed struct{ tell func() }

// Get implements mem.BufferPool.
func (*freed) Get(n int) *[]byte { b := make([]byte, n); return &b }

// Put implements mem.BufferPool.
func (f *freed) Put(*[]byte) { f.tell() }
