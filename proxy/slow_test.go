package proxy_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/decree-raft/decree/proxy"
	"github.com/decree-raft/decree/proxy/client"
	"github.com/decree-raft/decree/rsm"
)

// swallower is bulky, and answers a command with its length.
type swallower struct{ bulky }

func (swallower) Decide(_ rsm.View, c rsm.Command) ([][]byte, []byte, error) {
	return nil, binary.BigEndian.AppendUint64(nil, uint64(len(c.Data))), nil
}

// slowly returns an address that leads to another, with so many bytes a second in each direction, and little room in between.
func slowly(t *testing.T, to string, rate int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
	})
	carry := func(onto, from net.Conn) {
		defer onto.Close()
		defer from.Close()
		const piece = 16 << 10
		began, carried := time.Now(), 0
		for buf := make([]byte, piece); ; {
			n, err := from.Read(buf)
			if _, werr := onto.Write(buf[:n]); err != nil || werr != nil {
				return
			}
			due := time.Duration(carried) * time.Second / time.Duration(rate)
			if late := time.Since(began) - due; late > 100*time.Millisecond { // what was not used is lost
				began = began.Add(late)
			} else {
				time.Sleep(-late)
			}
			carried += n
		}
	}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			onto, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close()
				continue
			}
			context.AfterFunc(ctx, func() {
				_ = from.Close()
				_ = onto.Close()
			})
			for _, c := range []net.Conn{from, onto} { // or the kernel takes in what is on its way for seconds
				_ = c.(*net.TCPConn).SetReadBuffer(64 << 10)
				_ = c.(*net.TCPConn).SetWriteBuffer(64 << 10)
			}
			go carry(onto, from)
			go carry(from, onto)
		}
	}()
	return l.Addr().String()
}

// What takes longer on its way than a connection may be silent arrives all the same, in either direction, and the connection stays for what else is on it.
//
// Mutations with which it was seen to fail: only whole answers count as a sign of life; what is sent does not count.
func TestLargeOnASlowConnection(t *testing.T) {
	n := startOne(t, "", swallower{})
	_, s := startProxy(t, proxy.Config{Node: n})
	var log lockedBuffer
	cl, err := client.Dial([]string{slowly(t, s.Addr(), 2<<20)}, client.Options{Silence: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	shard := cl.Shard(1)
	if _, err := shard.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	commands := slices.Repeat([][]byte{make([]byte, 1<<20)}, 7)
	began := time.Now()
	if answer, err := shard.Read(within(t), rsm.Linearizable, binary.BigEndian.AppendUint32(nil, 8<<20)); err != nil || len(answer) != 8<<20 {
		t.Errorf("a large answer: %d bytes, %v", len(answer), err)
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("the connection is not slow: %v", took)
	}
	if replies, err := shard.SubmitAll(within(t), commands...); err != nil || len(replies) != len(commands) {
		t.Errorf("large commands: %x, %v", replies, err)
	}
	if n := strings.Count(log.String(), "msg=connected"); n != 1 {
		t.Errorf("it was connected %d times:\n%s", n, log.String())
	}
}
