// Package codec lets frames that are encoded by hand pass through gRPC beside ordinary messages.
package codec

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Frame is a message that is its own bytes: those of a ConnectRequest or a ConnectResponse.
type Frame struct{ Data []byte }

// Codec hands frames through as they are, and leaves all other messages to protobuf. On the wire it is protobuf.
type Codec struct{}

var protobuf = encoding.GetCodecV2(proto.Name)

// Marshal implements encoding.CodecV2. After it, nobody may change the frame's bytes.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Frame:
		return mem.BufferSlice{mem.SliceBuffer(m.Data)}, nil
	case *Counted:
		return m.marshal()
	}
	return protobuf.Marshal(v)
}

// Unmarshal implements encoding.CodecV2. The frame's bytes are the caller's own.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*Frame); ok {
		f.Data = data.Materialize()
		return nil
	}
	return protobuf.Unmarshal(data, v)
}

// Name implements encoding.CodecV2.
func (Codec) Name() string { return proto.Name }
