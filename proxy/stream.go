package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/internal/admit"
)

const (
	// beat is how often a stream on which calls wait says something at least, so that its client knows that it lives.
	beat = time.Second
	// maxUnread bounds the answers that a client does not read: it loses its stream then, and holds up nobody.
	maxUnread = 64 << 20
	// sendPatience is how long a client may read nothing while there is something for it.
	sendPatience = 15 * time.Second
	// beginUnread is where a client that does not read its answers is not listened to any more.
	beginUnread = 4 << 20
)

// stream is one client's stream of calls. What it has to say is sent by a goroutine that exists only as long as there is something, so
// that an idle stream is cheap.
type stream struct {
	grpc.ServerStream
	service *service
	name    string     // in logs and errors
	kicked  chan error // why it is ended; has room for one
	who     caller     // the reader's
	checked time.Time  // when it was looked up

	mu      sync.Mutex
	room    sync.Cond
	out     []byte // answers that are not sent yet
	sending bool
	calls   int
	bytes   int64 // that the calls hold
	said    int64 // when something was sent last
	ended   bool
}

func (s *service) serveStream(g grpc.ServerStream) error {
	st := &stream{ServerStream: g, service: s, name: s.names.next(), kicked: make(chan error, 1)}
	st.room.L = &st.mu
	if err := s.enter(st); err != nil {
		return wire.Status(err)
	}
	defer s.leave(st)
	if err := g.SendHeader(link.Greeting(s.backend.cluster())); err != nil { // it is taken
		return err
	}
	read := make(chan error, 1)
	go func() {
		// The reader's, and not this call's: it may be about to begin a call when the stream is ended.
		var release func()
		st.who, release = s.caller(g.Context())
		st.checked = time.Now()
		defer release()
		read <- st.read()
	}()
	select {
	case err := <-read:
		if errors.Is(err, io.EOF) {
			return st.drain()
		}
		return err
	case err := <-st.kicked:
		return err
	case <-g.Context().Done(): // the reader may wait for room, and not see it
		return g.Context().Err()
	}
}

var errClosing = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed, Message: "this server closes: go on with another, under the same session"}

// errCut ends a stream with calls whose outcome it has not said.
var errCut = &core.Error{Kind: core.ErrUnknown, Code: core.CodeClosed, Message: "this server closes, with calls under way: ask another, under the same session, what became of them"}

func (s *service) enter(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closes.Load() {
		return errClosing
	}
	s.streams[st] = true
	s.meter.stream(1)
	if s.quiet == nil {
		s.quiet = make(chan struct{})
		go s.beats(s.quiet)
	}
	return nil
}

func (s *service) leave(st *stream) {
	s.mu.Lock()
	delete(s.streams, st)
	if len(s.streams) == 0 {
		close(s.quiet)
		s.quiet = nil
	}
	s.mu.Unlock()
	s.meter.stream(-1)
	st.mu.Lock()
	st.ended = true
	st.out = nil
	st.room.Broadcast()
	st.mu.Unlock()
}

// beats lets streams say that they live, as long as there are any.
func (s *service) beats(quiet chan struct{}) {
	t := time.NewTicker(beat / 2)
	defer t.Stop()
	for {
		select {
		case <-quiet:
			return
		case <-t.C:
		}
		s.mu.Lock()
		all := make([]*stream, 0, len(s.streams))
		for st := range s.streams {
			all = append(all, st)
		}
		s.mu.Unlock()
		now := monotonic()
		for _, st := range all {
			st.mu.Lock()
			if st.calls > 0 && !st.sending && !st.ended && now-st.said > int64(beat/2) {
				st.send()
			}
			st.mu.Unlock()
		}
	}
}

// kick ends a stream with a gRPC error. st.mu is held.
func (st *stream) kick(why error) {
	select {
	case st.kicked <- why:
	default:
	}
	st.room.Broadcast() // drain looks
}

// read takes calls in until the client says no more.
func (st *stream) read() error {
	for {
		var f codec.Frame
		if err := st.RecvMsg(&f); err != nil {
			return err
		}
		// Each begins as soon as it is read: of a frame of very small ones no more are in memory than may be under way.
		var refused error
		err := wire.ParseCalls(f.Data, func(c wire.ReceivedCall) error {
			// Again for each: a frame may have very many, which wait for room.
			if refused = st.service.recheck(st.Context(), &st.who, &st.checked); refused != nil || !st.begin(c) {
				return errEnded
			}
			return nil
		})
		switch {
		case err == errEnded:
			return refused
		case err != nil:
			return wire.Status(&core.Error{Kind: core.ErrUnknown, Code: core.CodeBadRequest, Message: err.Error()})
		}
	}
}

var errEnded = errors.New("the stream has ended")

// begin starts a call, when there is room for it. It reports whether the stream goes on.
func (st *stream) begin(r wire.ReceivedCall) bool {
	c := r.Call
	limits := &st.service.limits
	size := int64(64)
	err := wire.CheckCall(c)
	if c != nil {
		size = int64(c.Size())
	} else {
		c = &route.Call{}
	}
	st.mu.Lock()
	for !st.ended && (len(st.out) > beginUnread || st.calls > 0 && (st.calls >= limits.StreamCalls || st.bytes+size > limits.StreamBytes)) {
		st.room.Wait()
	}
	if st.ended {
		st.mu.Unlock()
		return false
	}
	if st.calls == 0 {
		st.said = monotonic()
	}
	st.calls++
	st.bytes += size
	st.mu.Unlock()
	wait := limits.Timeout
	if r.Timeout > 0 {
		wait = min(r.Timeout, limits.MaxTimeout)
	}
	began := monotonic()
	c.Deadline = began + int64(wait)
	var ticket admit.Ticket
	if err == nil && st.service.closes.Load() {
		err = errClosing
	}
	if err == nil {
		ticket, err = st.service.admit(st.who, c)
	}
	c.Done = func(c *route.Call) {
		ticket.Done(unixNow(), loadOf(c))
		took := time.Duration(monotonic() - began)
		st.service.meter.ended(c.Kind, c.Shard, took, c.Err)
		if st.service.debugs() {
			st.service.logCall(st.callName(r.ID), c, took, c.Err)
		}
		if c.Err != nil && st.service.log != nil { // of a proxy: what it asks nodes for, it names itself
			c.Err = named(c.Err, st.callName(r.ID))
		}
		st.done(r.ID, size, c)
	}
	if err != nil {
		c.Err = err
		c.Done(c)
		return true
	}
	st.service.backend.start(c)
	return true
}

// done answers a call.
func (st *stream) done(id uint64, size int64, c *route.Call) {
	st.mu.Lock()
	defer st.mu.Unlock()
	full := st.calls >= st.service.limits.StreamCalls || st.bytes+size > st.service.limits.StreamBytes/2
	st.calls--
	st.bytes -= size
	if st.ended {
		return
	}
	st.out = wire.AppendAnswer(st.out, id, c.Kind, &c.Result, c.Err)
	if len(st.out) > maxUnread {
		st.kick(wire.Status(&core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded, Message: fmt.Sprintf("%d bytes of answers have not been read", len(st.out))}))
	}
	if !st.sending {
		st.send()
	}
	if full || st.calls == 0 {
		st.room.Broadcast()
	}
}

// send starts sending what there is, or nothing, which is a sign of life. st.mu is held.
func (st *stream) send() {
	st.sending = true
	go st.flush()
}

func (st *stream) flush() {
	for {
		runtime.Gosched() // what else is answered now may travel in the same frame
		st.mu.Lock()
		frame := st.out
		st.out = make([]byte, 0, min(cap(frame), 64<<10))
		st.said = monotonic()
		st.mu.Unlock()
		stuck := time.AfterFunc(st.service.patience, func() {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.kick(wire.Status(&core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded, Message: "the answers have not been read for too long"}))
		})
		err := st.SendMsg(&codec.Frame{Data: frame})
		stuck.Stop()
		st.mu.Lock()
		if err != nil { // who may not go on, it is said: what was to be sent is lost
			st.kick(err)
		}
		if st.room.Broadcast(); err != nil || len(st.out) == 0 || st.ended {
			st.sending = false
			st.mu.Unlock()
			return
		}
		st.mu.Unlock()
	}
}

// drain waits until all calls of a client that says no more are answered.
func (st *stream) drain() error {
	wake := func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.room.Broadcast()
	}
	defer context.AfterFunc(st.Context(), wake)()
	st.mu.Lock()
	defer st.mu.Unlock()
	for st.calls > 0 || st.sending {
		select {
		case <-st.Context().Done():
			return st.Context().Err()
		case err := <-st.kicked:
			return err
		default:
		}
		st.room.Wait()
	}
	return nil
}

// close refuses further streams and calls, waits a while for those under way, and ends the streams.
func (s *service) close(patience time.Duration) {
	s.closes.Store(true)
	s.mu.Lock()
	all := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		all = append(all, st)
	}
	s.mu.Unlock()
	// Each ends as soon as nothing is under way on it: its client goes on elsewhere, whatever others wait for.
	deadline := time.Now().Add(patience)
	for len(all) > 0 {
		late := !time.Now().Before(deadline)
		all = slices.DeleteFunc(all, func(st *stream) bool {
			st.mu.Lock()
			defer st.mu.Unlock()
			if idle := st.calls == 0 && !st.sending; !idle && !late {
				return false
			}
			if st.calls == 0 {
				st.kick(wire.Status(errClosing))
			} else {
				st.kick(wire.Status(errCut))
			}
			return true
		})
		if len(all) > 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
}
