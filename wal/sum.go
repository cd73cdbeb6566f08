package wal

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chain is etcd's running checksum over the data of all records.
func chain(crc uint32, data []byte) uint32 { return crc32.Update(crc, castagnoli, data) }

// indexSum begins the checksum of a payload.
func indexSum(index uint64) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], index)
	return crc32.Checksum(b[:], castagnoli)
}

// payloadSum binds a payload's bytes to the physical index that it is stored under.
func payloadSum(index uint64, body []byte) uint32 {
	return crc32.Update(indexSum(index), castagnoli, body)
}

// continueSum returns the checksum that has come to crc, behind n more bytes of which it is known that they take another
// checksum from one value to another. It does not look at the bytes: a checksum is linear, so what they do
// to the difference of the two depends on their number only. (See zlib's crc32_combine.)
func continueSum(crc, from, to uint32, n int) uint32 {
	diff := crc ^ from
	for k := 3; n > 0; n >>= 1 { // eight bits a byte
		if n&1 != 0 {
			diff = multiply(powers[k], diff)
		}
		k++
	}
	return diff ^ to
}

// powers[k] is x to the power of 2^k, modulo the polynomial. The highest bit is that of x^0.
var powers = func() (p [64]uint32) {
	p[0] = 1 << 30
	for k := 1; k < len(p); k++ {
		p[k] = multiply(p[k-1], p[k-1])
	}
	return p
}()

// multiply multiplies two polynomials modulo Castagnoli's.
func multiply(a, b uint32) (product uint32) {
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		low := b & 1
		b >>= 1
		if low != 0 {
			b ^= crc32.Castagnoli
		}
	}
	return product
}
