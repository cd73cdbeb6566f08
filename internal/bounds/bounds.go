// Package bounds refuses numbers of configurations that make no sense: mostly a unit was mistaken, or a difference came out negative.
package bounds

import (
	"cmp"
	"fmt"
)

// Check returns nil if v is within least and most, or the error that says so of the field called name, whose zero value stands for its default.
func Check[N cmp.Ordered](name string, v, least, most N) error {
	if v >= least && v <= most { // so that NaN is refused
		return nil
	}
	return fmt.Errorf("%s is %v: from %v to %v are allowed, 0 for the default", name, v, least, most)
}
