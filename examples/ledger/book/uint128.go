package book

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
)

// Uint128 is an unsigned 128-bit integer: an amount in minor units, or a total of them.
// The zero value is 0. Values compare with ==.
type Uint128 struct{ Hi, Lo uint64 }

// MaxUint128 is 2^128 - 1.
var MaxUint128 = Uint128{^uint64(0), ^uint64(0)}

// ErrAmount is what every refused amount matches.
var ErrAmount = errors.New("not an amount")

// U64 returns v as a Uint128.
func U64(v uint64) Uint128 { return Uint128{Lo: v} }

// Add returns u + v modulo 2^128, and whether the true sum does not fit.
func (u Uint128) Add(v Uint128) (sum Uint128, overflow bool) {
	lo, carry := bits.Add64(u.Lo, v.Lo, 0)
	hi, carry := bits.Add64(u.Hi, v.Hi, carry)
	return Uint128{hi, lo}, carry != 0
}

// Sub returns u - v modulo 2^128, and whether the true difference is negative.
func (u Uint128) Sub(v Uint128) (difference Uint128, underflow bool) {
	lo, borrow := bits.Sub64(u.Lo, v.Lo, 0)
	hi, borrow := bits.Sub64(u.Hi, v.Hi, borrow)
	return Uint128{hi, lo}, borrow != 0
}

// Cmp returns -1, 0 or +1 as u is less than, equal to or greater than v.
func (u Uint128) Cmp(v Uint128) int {
	switch {
	case u == v:
		return 0
	case u.Hi < v.Hi || u.Hi == v.Hi && u.Lo < v.Lo:
		return -1
	}
	return 1
}

// IsZero reports whether u is 0.
func (u Uint128) IsZero() bool { return u.Hi|u.Lo == 0 }

// Net is a difference of two totals: a sign and a magnitude. Zero is not negative.
type Net struct {
	Negative  bool
	Magnitude Uint128
}

// NetOf returns debits - credits.
func NetOf(debits, credits Uint128) Net {
	if d, under := debits.Sub(credits); !under {
		return Net{Magnitude: d}
	}
	d, _ := credits.Sub(debits)
	return Net{Negative: true, Magnitude: d}
}

// String returns u in decimal digits.
func (u Uint128) String() string { return string(u.appendDecimal(nil)) }

// tenTo19 is the greatest power of ten in 64 bits: 39 digits are three of its digits.
const tenTo19 = 10_000_000_000_000_000_000

func (u Uint128) appendDecimal(dst []byte) []byte {
	var digits [40]byte
	at := len(digits)
	for {
		// Long division by 10^19, then 19 digits out of the 64-bit remainder.
		hi := u.Hi / tenTo19
		lo, rest := bits.Div64(u.Hi%tenTo19, u.Lo, tenTo19)
		u = Uint128{hi, lo}
		for i := 0; i < 19; i++ {
			if rest == 0 && u.IsZero() && (i > 0 || at < len(digits)) {
				break
			}
			at--
			digits[at] = byte('0' + rest%10)
			rest /= 10
		}
		if u.IsZero() {
			return append(dst, digits[at:]...)
		}
	}
}

// ParseUint128 reads decimal digits: nothing else, no sign, no space.
func ParseUint128(s string) (Uint128, error) {
	if s == "" {
		return Uint128{}, fmt.Errorf("%w: it is empty", ErrAmount)
	}
	var u Uint128
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < '0' || c > '9' {
			return Uint128{}, fmt.Errorf("%w: %q is not all digits", ErrAmount, s)
		}
		var fits bool
		if u, fits = u.timesTenPlus(c - '0'); !fits {
			return Uint128{}, fmt.Errorf("%w: %q is over 2^128 - 1", ErrAmount, s)
		}
	}
	return u, nil
}

// timesTenPlus returns 10*u + digit, and whether that fits.
func (u Uint128) timesTenPlus(digit byte) (Uint128, bool) {
	high, hi := bits.Mul64(u.Hi, 10)
	carry, lo := bits.Mul64(u.Lo, 10)
	lo, c := bits.Add64(lo, uint64(digit), 0)
	hi, c2 := bits.Add64(hi, carry, c)
	return Uint128{hi, lo}, high == 0 && c2 == 0
}

// FormatScaled writes n with the decimals of its asset: 1050 at scale 2 is "10.50".
func FormatScaled(n Net, scale uint8) string {
	digits := n.Magnitude.String()
	if pad := int(scale) + 1 - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	sign := ""
	if n.Negative {
		sign = "-"
	}
	if scale == 0 {
		return sign + digits
	}
	point := len(digits) - int(scale)
	return sign + digits[:point] + "." + digits[point:]
}

// ParseScaled reads an optional sign, digits and an optional decimal point, into
// minor units of the scale. It is exact: more decimals than the scale has are an error
// unless they are zeros.
func ParseScaled(s string, scale uint8) (Net, error) {
	digits, negative := s, false
	if digits != "" && (digits[0] == '-' || digits[0] == '+') {
		negative = digits[0] == '-'
		digits = digits[1:]
	}
	whole, fraction, point := strings.Cut(digits, ".")
	if point && fraction == "" || whole == "" {
		return Net{}, fmt.Errorf("%w: %q", ErrAmount, s)
	}
	for len(fraction) > int(scale) {
		if fraction[len(fraction)-1] != '0' {
			return Net{}, fmt.Errorf("%w: %q has more than %d decimals", ErrAmount, s, scale)
		}
		fraction = fraction[:len(fraction)-1]
	}
	u, err := ParseUint128(whole + fraction + strings.Repeat("0", int(scale)-len(fraction)))
	if err != nil {
		return Net{}, err
	}
	return Net{Negative: negative && !u.IsZero(), Magnitude: u}, nil
}

// sum192 is a total that cannot overflow in practice: 2^64 amounts of 128 bits fit.
type sum192 struct {
	Uint128
	carry uint64
}

func (s *sum192) add(v Uint128) {
	sum, overflow := s.Uint128.Add(v)
	s.Uint128 = sum
	if overflow {
		s.carry++
	}
}

func (s sum192) String() string {
	if s.carry == 0 {
		return s.Uint128.String()
	}
	return fmt.Sprintf("%d * 2^128 + %v", s.carry, s.Uint128)
}

// put128 writes u into the first 16 bytes of b, big endian.
func put128(b []byte, u Uint128) {
	binary.BigEndian.PutUint64(b, u.Hi)
	binary.BigEndian.PutUint64(b[8:], u.Lo)
}

func get128(b []byte) Uint128 {
	return Uint128{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// amountLen is the number of bytes of u without leading zeros, 0 to 16.
func amountLen(u Uint128) int {
	if u.Hi != 0 {
		return 8 + (bits.Len64(u.Hi)+7)/8
	}
	return (bits.Len64(u.Lo) + 7) / 8
}

// appendAmount appends u without leading zeros: amountLen(u) bytes, big endian.
func appendAmount(dst []byte, u Uint128) []byte {
	var b [16]byte
	put128(b[:], u)
	return append(dst, b[16-amountLen(u):]...)
}

// readAmount is the inverse of appendAmount; len(b) is at most 16.
func readAmount(b []byte) Uint128 {
	var u Uint128
	for _, c := range b {
		u.Hi = u.Hi<<8 | u.Lo>>56
		u.Lo = u.Lo<<8 | uint64(c)
	}
	return u
}
