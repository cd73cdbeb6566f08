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

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/traced"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/proxy/internal/admit"
	"github.com/decree-raft/decree/rsm"
)

const (
	// beat is how often a stream on which calls wait says something at least, so that its client knows that it lives.
	beat = time.Second
	// maxUnread bounds the answers that wait on a stream: one for which there is no room is refused, and what is on the stream goes on.
	maxUnread = 64 << 20
	// leastRefused is the size from which on an answer is refused: the refusal of a smaller one would be as large. Such wait in any case, until all that waits
	// has twice maxUnread: then the client loses its stream.
	leastRefused = 512
	// sendPatience is how long a client may read nothing while there is something for it.
	sendPatience = 15 * time.Second
	// maxPiece is how much is sent as one message, unless one answer has more: who reads slowly learns by the first of them that there are some.
	maxPiece = 256 << 10
	// leastRate in bytes a second is what a client is supposed to read at least: it has the longer for what is much.
	leastRate = 1 << 20
	// beginUnread is where a client that does not read its answers is not listened to any more.
	beginUnread = 4 << 20
	// meetPatience is how long a stream waits until it is known of which cluster the server is: less than links wait for a stream to be taken, so that they are told why
	// it is not.
	meetPatience = time.Second
)

// stream is one client's stream of calls. What it has to say is sent by a goroutine that it has only as long as there is something, so
// that an idle stream is cheap.
type stream struct {
	grpc.ServerStream
	service *service
	name    string     // in logs and errors
	kicked  chan error // why it is ended; has room for one
	who     caller     // the reader's
	held    *held      // what its caller makes the server hold
	checked time.Time  // when it was looked up

	mu      sync.Mutex
	room    sync.Cond
	out     []piece // answers that are not sent yet
	waits   int     // bytes of them
	counted int64   // bytes of them that the caller's record knows of
	giving  int64   // bytes that gRPC is being given
	usual   int     // room that a piece is given in advance
	sending bool
	calls   int
	bytes   int64 // that the calls hold
	said    int64 // when something was begun to be sent last
	large   int64 // what was sent before that has so many bytes more than a piece
	ended   bool
}

// piece is answers that go as one message.
type piece struct {
	data []byte
	due  int64 // when it has not been read for too long
}

// newStream returns the stream of a client. Its caller's record is to be left.
func (s *service) newStream(g grpc.ServerStream) *stream {
	st := &stream{ServerStream: g, service: s, name: s.names.next(), kicked: make(chan error, 1), held: s.holds.caller(g.Context())}
	st.room.L = &st.mu
	return st
}

func (s *service) serveStream(g grpc.ServerStream) error {
	end, err := s.holds.begin(g.Context())
	if err != nil {
		return wire.Status(err)
	}
	defer end()
	st := s.newStream(g)
	defer st.held.leave()
	if err := s.enter(st); err != nil {
		return wire.Status(err)
	}
	defer s.leave(st)
	if err := st.greet(); err != nil {
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

// greet takes the stream, as soon as it can be said of which cluster the server is. Before that nothing that comes on it may wait here: a client whose address led into
// another cluster would have its calls asked in this one, under a session that is somebody else's here. They wait with the client.
func (st *stream) greet() error {
	s := st.service
	t := time.NewTimer(s.meeting)
	defer t.Stop()
	select {
	case <-s.backend.met():
	case err := <-st.kicked:
		return err
	case <-st.Context().Done():
		return st.Context().Err()
	case <-t.C:
		return wire.Status(errNameless)
	}
	return st.SendHeader(link.Greeting(s.backend.cluster()))
}

var errNameless = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnreachable,
	Message: "this proxy does not know yet of which cluster it is, as none of its nodes has answered: ask another, or again"}

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
	st.held.wait(-st.counted, true)
	st.out, st.waits, st.counted = nil, 0, 0
	st.room.Broadcast()
	st.mu.Unlock()
}

// beats lets streams say that they live, and ends those that nobody reads, as long as there are any.
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
			switch {
			case st.ended:
			case st.overdue(now):
				st.kick(wire.Status(&core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded, Message: "the answers have not been read for too long"}))
			case st.calls > 0 && !st.sending && now-st.said > int64(beat/2):
				st.send()
			}
			st.mu.Unlock()
		}
	}
}

// overdue reports whether what is being sent, or what waits for that, has not been read for too long. The latter is for those who read a little now and then.
// st.mu is held.
func (st *stream) overdue(now int64) bool {
	return st.sending && (now > st.said+st.service.timeFor(st.large) || len(st.out) > 0 && now > st.out[0].due)
}

// timeFor returns for how long so many bytes may be on their way to a client, in nanoseconds.
func (s *service) timeFor(bytes int64) int64 {
	return int64(s.patience) + bytes*int64(time.Second)/leastRate
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
		var calls callSlab
		var refused error
		err := wire.ParseCalls(f.Data, func() *route.Call { return &calls.next().Call }, func(r wire.ReceivedCall) error {
			bad := wire.CheckCall(r.Call)
			if r.Call == nil {
				r.Call = &calls.next().Call
			}
			if len(f.Data) > maxPinned && r.Call.Size() < len(f.Data)/2 { // else it is at most twice what it counts for
				r.Call.Own()
			}
			// Again for each: a frame may have very many, which wait for room.
			if refused = st.service.recheck(st.Context(), &st.who, &st.checked); refused != nil || !st.begin(r, bad) {
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

// streamCall is a call on a stream. It owns itself.
type streamCall struct {
	route.Call
	stream *stream
	id     uint64
	size   int64
	began  int64
	ticket admit.Ticket
	span   trace.Span // nil: there is none
}

// callSlab makes the calls of one frame, several at a time. They are freed together, so that they are few.
type callSlab struct {
	free []streamCall
	made int
}

const slabCalls = 8

// maxPinned is the largest frame that a small call on it may keep in memory.
const maxPinned = 64 << 10

func (s *callSlab) next() *streamCall {
	if len(s.free) == 0 {
		s.made = min(max(1, 2*s.made), slabCalls)
		s.free = make([]streamCall, s.made)
	}
	c := &s.free[0]
	s.free = s.free[1:]
	c.Owner = c
	return c
}

// begin starts a call, or refuses it, when there is room for it. It reports whether the stream goes on.
func (st *stream) begin(r wire.ReceivedCall, refused error) bool {
	c := r.Call.Owner.(*streamCall)
	limits := &st.service.limits
	size := int64(c.Size())
	now := monotonic()
	st.mu.Lock()
	waited := false
	for !st.ended && (st.waits > beginUnread || st.calls > 0 && (st.calls >= limits.StreamCalls || st.bytes+size > limits.StreamBytes)) {
		st.room.Wait()
		now, waited = monotonic(), true
	}
	if st.ended {
		st.mu.Unlock()
		return false
	}
	if st.calls == 0 && !st.sending {
		st.said = now
	}
	st.calls++
	st.bytes += size
	st.mu.Unlock()
	wait := limits.Timeout
	if r.Timeout > 0 {
		wait = min(r.Timeout, limits.MaxTimeout)
	}
	if st.service.tracer != nil {
		c.span = st.service.begin(st.Context(), &c.Call, st.callName(r.ID))
	}
	c.stream, c.id, c.size, c.began = st, r.ID, size, now
	c.Deadline, c.Notice, c.Done = now+int64(wait), route.NoticeOf(int64(wait)), answered
	if refused == nil && waited { // its caller may be another by now
		if err := st.service.recheck(st.Context(), &st.who, &st.checked); err != nil {
			refused = wire.FromStatus(err)
		}
	}
	if refused == nil && st.service.closes.Load() {
		refused = errClosing
	}
	if refused == nil {
		c.ticket, refused = st.service.admit(st.who, &c.Call, now)
	}
	if refused != nil {
		c.Err = refused
		c.answered()
		return true
	}
	st.service.backend.start(now, &c.Call)
	return true
}

func answered(c *route.Call) { c.Owner.(*streamCall).answered() }

// answered gives a call's outcome to its stream.
func (c *streamCall) answered() {
	now, s := monotonic(), c.stream.service
	c.ticket.Done(unix(now), loadOf(&c.Call))
	if err := wire.TooLarge(c.Kind, &c.Result, c.Err); err != nil { // it would end the stream, for all that is on it
		c.Result, c.Err = rsm.Result{}, err
	}
	took := time.Duration(now - c.began)
	s.meter.ended(c.Kind, c.Shard, took, c.Err, c.ticket.Taken())
	if s.debugs() {
		s.logCall(c.stream.callName(c.id), &c.Call, took, c.Err)
	}
	if c.Err != nil && s.log != nil { // of a proxy: what it asks nodes for, it names itself
		c.Err = named(c.Err, c.stream.callName(c.id))
	}
	if c.span != nil {
		traced.EndSoon(c.span, c.Err)
	}
	c.stream.done(c.id, c.size, &c.Call)
	// Answers point into the frame that they came in, and calls of one slab are freed together: one that takes long must not keep what others were told.
	c.Result, c.Err = rsm.Result{}, nil
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
	n := wire.AnswerBytes(&c.Result, c.Err)
	if n >= leastRefused && !st.fits(n) {
		c.Result, c.Err = rsm.Result{}, noRoom(n, c.Kind == route.Read)
		n = wire.AnswerBytes(&c.Result, c.Err)
	}
	last := len(st.out) - 1
	if last < 0 || len(st.out[last].data)+n > maxPiece {
		st.out = append(st.out, piece{make([]byte, 0, max(n, st.usual)), monotonic() + st.service.timeFor(st.large+st.giving+int64(st.waits+n))})
		last++
	}
	p := &st.out[last]
	st.waits -= len(p.data)
	p.data = wire.AppendAnswer(p.data, id, c.Kind, &c.Result, c.Err)
	st.waits += len(p.data)
	st.count(st.waits, true)
	if st.waits > 2*maxUnread {
		st.kick(wire.Status(&core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded, Message: fmt.Sprintf("%d bytes of answers have not been read", st.waits)}))
	}
	if !st.sending {
		st.send()
	}
	if full || st.calls == 0 {
		st.room.Broadcast()
	}
}

// fits reports whether there is room for an answer of n bytes, which counts then. st.mu is held.
func (st *stream) fits(n int) bool {
	return (st.waits == 0 || st.waits+n <= maxUnread) && st.count(st.waits+n, false)
}

// count tells the caller's record how many bytes wait, as soon as it does not know of very few more than codec.SmallBytes: small answers are many, and everybody's
// records have one lock. It reports whether there is room for them, or anyway. A stream has room for one piece whatever others of its caller hold, so that one that is
// not read does not stop them. st.mu is held.
func (st *stream) count(bytes int, anyway bool) bool {
	more := int64(bytes) - st.counted
	if more <= codec.SmallBytes {
		return true
	}
	if !st.held.wait(more, anyway || bytes <= maxPiece) {
		return false
	}
	st.counted += more
	return true
}

// noRoom is the error of a call whose answer, of n bytes, would have to wait behind others that are not read.
func noRoom(n int, read bool) error {
	e := &core.Error{Kind: core.ErrUnknown, Code: core.CodeOverloaded, RetryAfter: 100 * time.Millisecond,
		Message: fmt.Sprintf("the answer has %d bytes, and others of this caller have not been read: ask again when they have", n)}
	if read {
		e.Kind = core.ErrNotProposed
	}
	return e
}

// send starts sending what there is, or nothing, which is a sign of life. st.mu is held.
func (st *stream) send() {
	st.sending, st.said = true, monotonic()
	select {
	case st.service.flushers <- st:
	default:
		go st.service.flush(st)
	}
}

// flushLinger is how long a goroutine that has sent what a stream had to say waits for another stream.
const flushLinger = 100 * time.Millisecond

// flush sends what a stream has to say, and then what others have: the stack of a goroutine has to grow into what gRPC takes of it, which costs as much as the rest.
func (s *service) flush(st *stream) {
	t := time.NewTimer(flushLinger)
	defer t.Stop()
	for {
		st.flush()
		t.Reset(flushLinger)
		select {
		case st = <-s.flushers:
		case <-t.C:
			return
		}
	}
}

func (st *stream) flush() {
	for left := 0; ; {
		if left <= 1 {
			runtime.Gosched() // what else is answered now may travel in the same frame
		}
		st.mu.Lock()
		var p piece // an empty one is a sign of life
		if len(st.out) > 0 {
			p = st.out[0]
			st.out = slices.Delete(st.out, 0, 1)
			st.usual = min(cap(p.data), 64<<10)
		}
		st.waits -= len(p.data)
		st.giving = int64(len(p.data))
		counted := max(0, st.counted-int64(st.waits)) // it counts as a frame from here on
		st.counted -= counted
		frame := st.held.frame(p.data, counted)
		st.said = monotonic()
		st.mu.Unlock()
		err := st.SendMsg(frame)
		if c, is := frame.(*codec.Counted); is && err != nil {
			c.Sent() // gRPC may never have been given it
		}
		st.mu.Lock()
		st.giving, st.large = 0, max(0, int64(len(p.data))-maxPiece)
		if err != nil { // who may not go on, it is said: what was to be sent is lost
			st.kick(err)
		}
		left = len(st.out)
		if st.room.Broadcast(); err != nil || left == 0 || st.ended {
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

// close refuses further streams and calls, waits for those under way, until ctx ends, and ends the streams. It reports whether one was ended before its last answer.
func (s *service) close(ctx context.Context) (cut bool) {
	s.closes.Store(true)
	s.mu.Lock()
	all := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		all = append(all, st)
	}
	s.mu.Unlock()
	// Each ends as soon as nothing is under way on it: its client goes on elsewhere, whatever others wait for.
	for len(all) > 0 {
		late := ctx.Err() != nil
		all = slices.DeleteFunc(all, func(st *stream) bool {
			st.mu.Lock()
			defer st.mu.Unlock()
			idle := st.ended || st.calls == 0 && !st.sending
			if !idle && !late {
				return false
			}
			cut = cut || !idle
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
	return cut
}
