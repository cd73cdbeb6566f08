package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The byte table of a call's messages stands in doc.go.
const (
	callMagic      = "DPC"
	callVersion    = 1
	callHeaderSize = 16
)

// Kinds of a call's messages. They are part of the wire format.
const (
	callRequest = 1
	callReply   = 2
	callFault   = 3 // Config.Serve returned an error: the payload is its text
)

// errBadCall: the message is not what a Decree node of this version sends.
var errBadCall = errors.New("bad message of a call")

// callMessage is a request or an answer.
type callMessage struct {
	kind, method uint8
	payload      []byte
}

// header returns what goes before the payload.
func (m callMessage) header() []byte {
	h := make([]byte, callHeaderSize)
	copy(h, callMagic)
	h[3], h[4], h[5] = callVersion, m.kind, m.method
	binary.LittleEndian.PutUint32(h[8:], uint32(len(m.payload)))
	binary.LittleEndian.PutUint32(h[12:], callSum(h, m.payload))
	return h
}

// callSum covers the header too, as that of a frame does.
func callSum(header, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(header[:12], castagnoli), castagnoli, payload)
}

// openCall reads a message, whose payload shares data, or says what is wrong. It
// does not judge kind and method.
func openCall(data []byte, maxPayload int) (callMessage, error) {
	if len(data) < callHeaderSize {
		return callMessage{}, fmt.Errorf("%w: %d bytes are less than the header of %d", errBadCall, len(data), callHeaderSize)
	}
	if string(data[:3]) != callMagic {
		return callMessage{}, fmt.Errorf("%w: it begins with %q, not with %q", errBadCall, data[:3], callMagic)
	}
	if data[3] != callVersion {
		return callMessage{}, fmt.Errorf("%w: it has version %d, this node reads %d", errBadCall, data[3], callVersion)
	}
	m := callMessage{kind: data[4], method: data[5], payload: data[callHeaderSize:]}
	if n := binary.LittleEndian.Uint32(data[8:]); uint64(n) != uint64(len(m.payload)) {
		return m, fmt.Errorf("%w: the header announces %d bytes, %d came", errBadCall, n, len(m.payload))
	}
	if len(m.payload) > maxPayload {
		return m, fmt.Errorf("%w: %d bytes, at most %d are allowed", errBadCall, len(m.payload), maxPayload)
	}
	if want, got := binary.LittleEndian.Uint32(data[12:]), callSum(data, m.payload); want != got {
		return m, fmt.Errorf("%w: checksum %08x, the header says %08x", errBadCall, got, want)
	}
	if m.kind < callRequest || m.kind > callFault || data[6] != 0 || data[7] != 0 {
		return m, fmt.Errorf("%w: kind %d and the reserved bytes %d %d, known are kinds 1 to 3 with zeros", errBadCall, m.kind, data[6], data[7])
	}
	return m, nil
}
