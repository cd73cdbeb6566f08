package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The byte table of a frame stands in doc.go.
const (
	frameMagic      = "DPF"
	frameVersion    = 1
	frameHeaderSize = 12
)

// Why a frame was not taken. errFrameVersion is apart from errBadFrame as the
// cure differs: another program version, not another cable.
var (
	errBadFrame     = errors.New("bad frame")
	errFrameVersion = errors.New("unsupported frame version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealFrame fills in the header that was left free at the front of frame.
func sealFrame(frame []byte) {
	if len(frame) <= frameHeaderSize {
		panic("transport: a frame without a payload")
	}
	copy(frame, frameMagic)
	frame[3] = frameVersion
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(frame)-frameHeaderSize))
	binary.LittleEndian.PutUint32(frame[8:], frameSum(frame))
}

// frameSum covers the header too, so that no bit of a frame can flip unnoticed.
func frameSum(frame []byte) uint32 {
	return crc32.Update(crc32.Checksum(frame[:8], castagnoli), castagnoli, frame[frameHeaderSize:])
}

// openFrame returns the payload of frame, which it shares, or says what is wrong.
func openFrame(frame []byte, maxPayload int) ([]byte, error) {
	if len(frame) < frameHeaderSize {
		return nil, fmt.Errorf("%w: %d bytes are less than the header of %d", errBadFrame, len(frame), frameHeaderSize)
	}
	if string(frame[:3]) != frameMagic {
		return nil, fmt.Errorf("%w: it begins with %q, not with %q", errBadFrame, frame[:3], frameMagic)
	}
	if frame[3] != frameVersion {
		return nil, fmt.Errorf("%w: %d, this node reads %d", errFrameVersion, frame[3], frameVersion)
	}
	payload := frame[frameHeaderSize:]
	if n := binary.LittleEndian.Uint32(frame[4:]); uint64(n) != uint64(len(payload)) {
		return nil, fmt.Errorf("%w: the header announces %d bytes, %d came", errBadFrame, n, len(payload))
	}
	if len(payload) == 0 || len(payload) > maxPayload {
		return nil, fmt.Errorf("%w: %d bytes, 1 to %d are allowed", errBadFrame, len(payload), maxPayload)
	}
	if want, got := binary.LittleEndian.Uint32(frame[8:]), frameSum(frame); want != got {
		return nil, fmt.Errorf("%w: checksum %08x, the header says %08x", errBadFrame, got, want)
	}
	return payload, nil
}
