package main

import (
	"fmt"
	"time"

	"github.com/decree-raft/decree/examples/ledger/book"
)

// milliseconds writes a duration for a table.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// thousands writes a count with separators, for people.
func thousands(n uint64) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	return s
}

// scaled writes minor units, as the API gives them, with the decimals of their asset.
func scaled(units string, scale uint32) string {
	u, err := book.ParseUint128(units)
	if err != nil {
		return units // over 128 bits, in words
	}
	return book.FormatScaled(book.Net{Magnitude: u}, uint8(scale))
}
