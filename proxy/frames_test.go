package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/proxy/access"
)

// FuzzConnection throws frames of HTTP/2 at a proxy's server, or what should be such, after a right preface, and ends its side: the connection is ended in bounded
// time, no stream is left, and the server goes on serving a client.
func FuzzConnection(f *testing.F) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", decreev1.DecreeService_Connect_FullMethodName}, {":authority", "a"},
		{"te", "trailers"}, {"content-type", "application/grpc"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			f.Fatal(err)
		}
	}
	half := block.Bytes()[:block.Len()/2]
	begin := func(w *http2.Framer, id uint32) error {
		return w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	}
	message := append(append([]byte{0, 0, 0, 0}, byte(len(submitFrame(1, 10)))), submitFrame(1, 10)...)
	for _, write := range []func(w *http2.Framer, n int) error{ // each n times, after the greeting
		func(w *http2.Framer, _ int) error { return w.WriteSettings() }, // a flood
		func(w *http2.Framer, _ int) error {
			return w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		},
		func(w *http2.Framer, n int) error { return w.WritePing(false, [8]byte{byte(n)}) },
		func(w *http2.Framer, n int) error { // streams that are reset at once
			return errors.Join(begin(w, uint32(2*n+1)), w.WriteRSTStream(uint32(2*n+1), http2.ErrCodeCancel))
		},
		func(w *http2.Framer, n int) error { // a header that goes on and on
			if n == 0 {
				return w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: half})
			}
			return w.WriteContinuation(1, false, half)
		},
		func(w *http2.Framer, n int) error {
			return errors.Join(begin(w, uint32(2*n+1)), w.WriteData(uint32(2*n+1), false, message))
		},
		func(w *http2.Framer, n int) error { return w.WriteWindowUpdate(0, 1<<31-1) },
	} {
		for _, times := range []int{1, 2, 100} {
			var b bytes.Buffer
			w := http2.NewFramer(&b, nil)
			w.AllowIllegalWrites = true
			for n := range times {
				if err := write(w, n); err != nil {
					f.Fatal(err)
				}
			}
			f.Add(true, b.Bytes())
		}
	}
	for _, frame := range []string{
		"", "\x00", "\xff\xff\xff\x00\x00\x00\x00\x00\x01a", "\xff\xff\xff\x04\x00\x00\x00\x00\x00", "\xff\xff\xff\x01\x04\x00\x00\x00\x01\x83", // longer than may be
		"\x00\x00\x02\x01\x00\x00\x00\x00\x01\x83\x86", "\x00\x00\x64\x01\x04\x00\x00\x00\x01\x83\x86", // half a block of headers
		"\x00\x00\x05\x01\x04\x00\x00\x00\x01\x3f\xff\xff\xff\x7f", "\x00\x00\x00\xee\xff\xff\xff\xff\xff",
	} {
		f.Add(true, []byte(frame))
		f.Add(false, []byte(frame))
	}
	_, s := lonely(f)
	conn, err := grpc.NewClient(s.Addr(), access.DialOptions(access.Plain(), nil)...)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close() })
	f.Fuzz(func(t *testing.T, greets bool, frames []byte) {
		raw, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(20 * time.Second)) // it is open
		say := []byte(http2.ClientPreface)
		if greets {
			say = append(say, "\x00\x00\x00\x04\x00\x00\x00\x00\x00"...)
		}
		_, _ = raw.Write(append(say, frames...)) // it may have been ended already
		_ = raw.(*net.TCPConn).CloseWrite()      // likewise
		if n, err := io.Copy(io.Discard, raw); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection is still there; %d bytes came", n)
		}
		if err := onStream(t, conn, &decreev1.Call{Id: 1}); codeOf(err) != core.CodeBadRequest { // it asks for nothing: answered at once
			t.Errorf("a client is not served any more: %v", err)
		}
		soon(t, "ending the streams", func() {
			for s.Streams() > 0 {
				time.Sleep(time.Millisecond)
			}
		})
	})
}
