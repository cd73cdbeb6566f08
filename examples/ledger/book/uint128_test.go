package book

import (
	"math/big"
	"math/rand/v2"
	"testing"
)

func (u Uint128) big() *big.Int {
	b := new(big.Int).SetUint64(u.Hi)
	return b.Or(b.Lsh(b, 64), new(big.Int).SetUint64(u.Lo))
}

var two128 = new(big.Int).Lsh(big.NewInt(1), 128)

// random128 prefers the edges.
func random128(r *rand.Rand) Uint128 {
	edges := []uint64{0, 1, 9, 10, tenTo19 - 1, tenTo19, 1<<63 - 1, 1 << 63, ^uint64(0), 255, 256}
	part := func() uint64 {
		if r.IntN(3) == 0 {
			return r.Uint64() >> r.IntN(64)
		}
		return edges[r.IntN(len(edges))]
	}
	return Uint128{part(), part()}
}

func TestUint128AgainstBig(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200_000 {
		u, v := random128(r), random128(r)
		sum, overflow := u.Add(v)
		want := new(big.Int).Add(u.big(), v.big())
		if overflow != (want.Cmp(two128) >= 0) || sum.big().Cmp(want.Mod(want, two128)) != 0 {
			t.Fatalf("%v + %v = %v, %v", u.big(), v.big(), sum.big(), overflow)
		}
		difference, under := u.Sub(v)
		want = new(big.Int).Sub(u.big(), v.big())
		if under != (want.Sign() < 0) || difference.big().Cmp(want.Mod(want, two128)) != 0 {
			t.Fatalf("%v - %v = %v, %v", u.big(), v.big(), difference.big(), under)
		}
		if u.Cmp(v) != u.big().Cmp(v.big()) {
			t.Fatalf("%v cmp %v = %d", u, v, u.Cmp(v))
		}
		if u.String() != u.big().String() {
			t.Fatalf("String: %v, want %v", u, u.big())
		}
		if back, err := ParseUint128(u.String()); err != nil || back != u {
			t.Fatalf("ParseUint128(%v) = %v, %v", u, back, err)
		}
		if b := appendAmount(nil, u); len(b) != amountLen(u) || readAmount(b) != u || new(big.Int).SetBytes(b).Cmp(u.big()) != 0 {
			t.Fatalf("amount %v becomes %x", u, b)
		}
		net := NetOf(u, v)
		want = new(big.Int).Sub(u.big(), v.big())
		if net.Negative != (want.Sign() < 0) || net.Magnitude.big().Cmp(want.Abs(want)) != 0 {
			t.Fatalf("NetOf(%v, %v) = %v", u, v, net)
		}
		scale := uint8(r.IntN(MaxScale + 1))
		if back, err := ParseScaled(FormatScaled(net, scale), scale); err != nil || back != net {
			t.Fatalf("%v at scale %d becomes %q becomes %v, %v", net, scale, FormatScaled(net, scale), back, err)
		}
	}
}

func TestParseUint128Refuses(t *testing.T) {
	for _, s := range []string{"", "-1", "+1", "1.0", " 1", "1 ", "0x1", "１", "340282366920938463463374607431768211456", "9999999999999999999999999999999999999999"} {
		if u, err := ParseUint128(s); err == nil {
			t.Errorf("ParseUint128(%q) = %v", s, u)
		}
	}
	if u, err := ParseUint128("340282366920938463463374607431768211455"); err != nil || u != MaxUint128 {
		t.Errorf("2^128-1: %v, %v", u, err)
	}
	if u, err := ParseUint128("000000000000000000000000000000000000000000000000007"); err != nil || u != U64(7) {
		t.Errorf("leading zeros: %v, %v", u, err)
	}
}

func TestScaled(t *testing.T) {
	for _, c := range []struct {
		s     string
		scale uint8
		want  string // "" is an error
	}{
		{"10.50", 2, "10.50"}, {"-10.5", 2, "-10.50"}, {"+3", 0, "3"}, {"0.00", 2, "0.00"}, {"-0", 2, "0.00"},
		{"1.2300", 2, "1.23"}, {"0.001", 3, "0.001"}, {"489.957000000000", 12, "489.957000000000"},
		{"1.235", 2, ""}, {"", 2, ""}, {"-", 2, ""}, {".5", 2, ""}, {"5.", 2, ""}, {"1,000", 2, ""}, {"1e3", 2, ""}, {"--1", 2, ""}, {"1.-5", 2, ""},
	} {
		n, err := ParseScaled(c.s, c.scale)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("ParseScaled(%q, %d) = %v, want an error", c.s, c.scale, n)
		case c.want != "" && (err != nil || FormatScaled(n, c.scale) != c.want):
			t.Errorf("ParseScaled(%q, %d) = %q, %v, want %q", c.s, c.scale, FormatScaled(n, c.scale), err, c.want)
		}
	}
}

func TestSum192(t *testing.T) {
	var s sum192
	s.add(MaxUint128)
	s.add(U64(2))
	if s.carry != 1 || s.Uint128 != U64(1) {
		t.Errorf("got %v", s)
	}
	if s.String() != "1 * 2^128 + 1" {
		t.Errorf("got %q", s.String())
	}
}
