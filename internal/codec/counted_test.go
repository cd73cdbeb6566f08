package codec

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// What is counted is told when gRPC gives its bytes back, and when it forgets them. Once.
func TestCounted(t *testing.T) {
	large := make([]byte, 1<<20)
	var told atomic.Int32
	for _, c := range []struct {
		name    string
		message any
	}{{"a frame", &Frame{Data: large}}, {"a message", wrapperspb.Bytes(large)}} {
		told.Store(0)
		data, err := Codec{}.Marshal(&Counted{Message: c.message, Sent: func() { told.Add(1) }})
		if err != nil || data.Len() < len(large) {
			t.Fatalf("%s: %d bytes; %v", c.name, data.Len(), err)
		}
		data.Ref()
		data.Free()
		if told.Load() != 0 {
			t.Errorf("%s: it is told while somebody has it", c.name)
		}
		data.Free()
		if told.Load() != 1 {
			t.Errorf("%s: it is not told", c.name)
		}
		data, err = Codec{}.Marshal(&Counted{Message: c.message, Sent: func() { told.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		runtime.KeepAlive(data)
		for end := time.Now().Add(20 * time.Second); told.Load() != 2; time.Sleep(time.Millisecond) {
			if runtime.GC(); time.Now().After(end) {
				t.Fatalf("%s: it is told %d times in all", c.name, told.Load())
			}
		}
	}
	if _, err := (Codec{}).Marshal(&Counted{Message: 1, Sent: func() { told.Add(1) }}); err == nil || told.Load() != 3 {
		t.Errorf("what cannot be encoded: %v, told %d times", err, told.Load())
	}
}
