package transport

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

const (
	serviceName   = "decree.peer.v1.Peer"
	streamName    = "Frames"
	framesMethod  = "/" + serviceName + "/" + streamName
	callName      = "Call"
	callMethod    = "/" + serviceName + "/" + callName
	rawCodecName  = "decree-raw"
	codecMismatch = "transport: the raw codec cannot handle a %T"
)

// framesStream describes the stream of frames. It is declared as carrying messages
// both ways although the server never sends one: that way the client may wait
// for the status in RecvMsg while it sends.
var framesStream = grpc.StreamDesc{StreamName: streamName, ClientStreams: true, ServerStreams: true}

// serviceDesc is written by hand, as generated code would insist on protobuf messages.
func serviceDesc(frames, call grpc.StreamHandler) *grpc.ServiceDesc {
	s := framesStream
	s.Handler = frames
	return &grpc.ServiceDesc{ServiceName: serviceName, Streams: []grpc.StreamDesc{
		s, {StreamName: callName, Handler: call, ClientStreams: true, ServerStreams: true},
	}}
}

// rawCodec hands frames through as they are. It is given to the server and to
// every call, never registered: a registry is global.
type rawCodec struct{}

// outgoing is a sealed frame. gRPC returns its buffer to the pool when it no
// longer needs it; after SendMsg nobody else may touch it.
type outgoing struct {
	buf  *[]byte
	pool *bufferPool
}

// outgoingCall is a request or an answer, which is sent without being copied:
// after SendMsg nobody may change the payload.
type outgoingCall struct{ callMessage }

// incoming is a received frame or a message of a call. data belongs to whoever holds the incoming.
type incoming struct{ data []byte }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch out := v.(type) {
	case *outgoing:
		return mem.BufferSlice{mem.NewBuffer(out.buf, out.pool)}, nil
	case *outgoingCall:
		return mem.BufferSlice{mem.SliceBuffer(out.header()), mem.SliceBuffer(out.payload)}, nil
	}
	return nil, fmt.Errorf(codecMismatch, v)
}

// Unmarshal copies once: gRPC's buffers are pieces of 16 KiB that it takes back,
// whereas Receive gives the frame away in one piece.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return fmt.Errorf(codecMismatch, v)
	}
	in.data = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return rawCodecName }

// serverCodec is the raw one for this package's messages; the others are those of Config.Services.
type serverCodec struct {
	rawCodec
	others encoding.CodecV2
}

func (c serverCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch v.(type) {
	case *outgoing, *outgoingCall:
		return c.rawCodec.Marshal(v)
	}
	return c.others.Marshal(v)
}

// Unmarshal holds services to their own limit, as gRPC's is that of the largest message of any method.
func (c serverCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if _, ok := v.(*incoming); ok {
		return c.rawCodec.Unmarshal(data, v)
	}
	if n := data.Len(); n > MaxServiceBytes {
		return fmt.Errorf("the message has %d bytes, at most %d are allowed", n, MaxServiceBytes)
	}
	return c.others.Unmarshal(data, v)
}
