package testkit

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

var givenPorts sync.Map // what FreePort has returned

// FreePort returns an address of this machine at which nobody listens, and which it has not returned before. Its port is below those that the system gives out by itself: one of these could
// become a connection's, or another test's, before who is to have it listens.
func FreePort(t testing.TB) string {
	t.Helper()
	for tries := 0; ; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000)))
		if err != nil && tries > 100 {
			t.Fatal(err)
		}
		if err != nil {
			continue
		}
		_ = l.Close() // whoever is to have it takes it
		if _, given := givenPorts.LoadOrStore(l.Addr().String(), true); !given {
			return l.Addr().String()
		}
	}
}
