package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/codec"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/link"
	"github.com/decree-raft/decree/internal/route"
	"github.com/decree-raft/decree/internal/session"
	"github.com/decree-raft/decree/internal/wire"
	"github.com/decree-raft/decree/rsm"
)

// liar is a server that says of which cluster it is, and answers calls as a test wants.
type liar struct {
	decreev1.UnimplementedDecreeServiceServer
	cluster string
	refuse  error                                                           // what streams are refused with, if not nil
	answer  func(c *route.Call, end func(error)) (core.Result, error, bool) // false: not now. end ends the stream
	streams atomic.Int64                                                    // that are open
	taken   atomic.Int64                                                    // that were ever

	mu    sync.Mutex
	calls []*route.Call
	send  func(id uint64, kind route.Kind, res core.Result, err error)
	ids   map[*route.Call]uint64
}

func (l *liar) Connect(g grpc.BidiStreamingServer[decreev1.ConnectRequest, decreev1.ConnectResponse]) error {
	if l.refuse != nil {
		return wire.Status(l.refuse)
	}
	if err := g.SendHeader(link.Greeting(l.cluster)); err != nil {
		return err
	}
	l.streams.Add(1)
	l.taken.Add(1)
	defer l.streams.Add(-1)
	var sending sync.Mutex
	l.mu.Lock()
	l.ids = map[*route.Call]uint64{}
	l.send = func(id uint64, kind route.Kind, res core.Result, err error) {
		sending.Lock()
		defer sending.Unlock()
		_ = g.SendMsg(&codec.Frame{Data: wire.AppendAnswer(nil, id, kind, &res, err)}) // the client may be gone
	}
	send := l.send
	l.mu.Unlock()
	ended := make(chan error, 2)
	end := func(err error) {
		select {
		case ended <- wire.Status(err):
		default:
		}
	}
	go func() {
		for {
			var f codec.Frame
			if err := g.RecvMsg(&f); err != nil {
				ended <- err
				return
			}
			_ = wire.ParseCalls(f.Data, func() *route.Call { return &route.Call{} }, func(c wire.ReceivedCall) error {
				l.mu.Lock()
				l.calls = append(l.calls, c.Call)
				l.ids[c.Call] = c.ID
				l.mu.Unlock()
				if res, err, now := l.answer(c.Call, end); now {
					send(c.ID, c.Call.Kind, res, err)
				}
				return nil
			})
		}
	}()
	return <-ended
}

// got returns the calls of a kind that have come.
func (l *liar) got(kind route.Kind) (calls []*route.Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		if c.Kind == kind {
			calls = append(calls, c)
		}
	}
	return calls
}

// late answers a call that was not answered when it came.
func (l *liar) late(c *route.Call, res core.Result) {
	l.mu.Lock()
	send, id := l.send, l.ids[c]
	l.mu.Unlock()
	send(id, c.Kind, res, nil)
}

// plainly answers a call as a server would.
func plainly(session core.SessionID) func(*route.Call, func(error)) (core.Result, error, bool) {
	return func(c *route.Call, _ func(error)) (core.Result, error, bool) { return outcome(c, session), nil, true }
}

func outcome(c *route.Call, session core.SessionID) core.Result {
	switch c.Kind {
	case route.Submit:
		return core.Result{Replies: c.Commands, Index: 7}
	case route.Read:
		return core.Result{Answer: c.Query, Index: 7}
	case route.OpenSession:
		return core.Result{Session: session}
	}
	return core.Result{}
}

// serve has a liar serve at an address, which somebody else may not have left yet.
func serve(t *testing.T, listen string, l *liar) (address string, stop func()) {
	t.Helper()
	var at net.Listener
	await(t, "the port", func() (free bool) {
		var err error
		at, err = net.Listen("tcp", listen)
		return err == nil
	})
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec.Codec{}))
	decreev1.RegisterDecreeServiceServer(s, l)
	go func() { _ = s.Serve(at) }()
	t.Cleanup(s.Stop)
	return at.Addr().String(), s.Stop
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dialAll(t *testing.T, addresses ...string) *Client {
	t.Helper()
	c, err := Dial(addresses, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// What a refusal holds up while another cluster takes the address goes there under a session of that cluster, and never under the former, which is somebody else's there, nor
// does its number mark one of the new session as known.
//
// Mutation with which it was seen to fail: what was held up goes to whoever is reached then.
func TestHeldUpCallsLeaveTheirSession(t *testing.T) {
	one := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if c.Kind == route.Submit && string(c.Commands[0]) == "late" {
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeOverloaded, RetryAfter: 2 * time.Second}, true
		}
		return outcome(c, 5), nil, true
	}}
	address, stop := serve(t, "127.0.0.1:0", one)
	s := dialAll(t, address).Shard(1)
	for range 36 {
		if _, err := s.Submit(within(t), []byte("soon")); err != nil {
			t.Fatal(err)
		}
	}
	late := s.Go(within(t), rsm.Request{Commands: [][]byte{[]byte("late")}})
	await(t, "the refusal", func() bool { return len(one.got(route.Submit)) == 37 })
	await(t, "its arrival", func() bool { return s.stay.Load().router.Stats().Calls == 0 })
	stop()
	two := &liar{cluster: "two", answer: plainly(5)}
	serve(t, address, two)
	await(t, "the other cluster", func() bool { return two.streams.Load() > 0 })
	if _, err := late.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Submit(within(t), []byte("more")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(two.got(route.OpenSession)); n != 1 {
		t.Errorf("%d sessions were opened", n)
	}
	for i, c := range two.got(route.Submit) {
		if c.Session != 5 || c.Sequence != uint64(i+1) || c.Acknowledged > uint64(i) {
			t.Errorf("%q comes as %d of session %d, with %d known", c.Commands[0], c.Sequence, c.Session, c.Acknowledged)
		}
	}
}

// Only the main link says which cluster is reached: an address that a hint names, and that another cluster has taken over, is not asked anything, and nothing is forgotten for it.
//
// Mutation with which it was seen to fail: a hinted link has the main one's Check.
func TestHintIntoAnotherCluster(t *testing.T) {
	other := &liar{cluster: "two", answer: plainly(5)}
	elsewhere, _ := serve(t, "127.0.0.1:0", other)
	hints := 0
	main := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if c.Kind == route.Submit && hints < 3 {
			hints++
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNotLeader, Leader: 2, LeaderAddress: elsewhere}, true
		}
		return outcome(c, 5), nil, true
	}}
	address, _ := serve(t, "127.0.0.1:0", main)
	c := dialAll(t, address)
	s := c.Shard(1)
	s.SetToken(1 << 40)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	await(t, "the hinted address to be judged", func() bool { return other.taken.Load() > 0 && other.streams.Load() == 0 })
	if _, err := s.Submit(within(t), []byte("b")); err != nil {
		t.Fatal(err)
	}
	if s.Token() != 1<<40 {
		t.Errorf("the token is %d", s.Token())
	}
	if n := len(main.got(route.OpenSession)); n != 1 {
		t.Errorf("%d sessions were opened", n)
	}
	if n := len(other.calls); n != 0 {
		t.Errorf("the other cluster was asked %d times", n)
	}
}

// What the former cluster answers late does not count: a read that waits there is asked in the other one, and the token is what that one says.
//
// Mutation with which it was seen to fail: the routers of the former cluster go on.
func TestLateAnswerOfAnotherCluster(t *testing.T) {
	one := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		switch {
		case c.Kind == route.Read && string(c.Query) == "slow":
			return core.Result{}, nil, false
		case c.Kind == route.Read && string(c.Query) == "leave":
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed}, true
		}
		return outcome(c, 5), nil, true
	}}
	two := &liar{cluster: "two", answer: plainly(9)}
	first, _ := serve(t, "127.0.0.1:0", one)
	second, _ := serve(t, "127.0.0.1:0", two)
	c := dialAll(t, first)
	s := c.Shard(1)
	s.SetToken(50) // the other cluster is not there yet
	slow := s.GoRead(within(t), rsm.AtToken, []byte("slow"))
	await(t, "the slow read", func() bool { return len(one.got(route.Read)) == 1 })
	leave(t, c, first, second)
	res, err := slow.Wait(within(t))
	if err != nil || res.Index != 7 {
		t.Errorf("the slow read ends with %v, %v", res, err)
	}
	for _, c := range one.got(route.Read) {
		if string(c.Query) == "slow" {
			one.late(c, core.Result{Index: 1 << 40})
		}
	}
	for range 20 { // time for it to arrive
		if _, err := s.Read(within(t), rsm.Linearizable, []byte("b")); err != nil {
			t.Fatal(err)
		}
	}
	if s.Token() != 7 {
		t.Errorf("the token is %d", s.Token())
	}
	for _, c := range two.got(route.Read) {
		if c.Token >= 50 {
			t.Errorf("a read comes with the token %d of the former cluster", c.Token)
		}
	}
}

// Who does not say of which cluster it is could be of any: nothing is sent to it.
//
// Mutation with which it was seen to fail: such a stream is taken for one of the cluster before.
func TestNamelessServer(t *testing.T) {
	nameless := &liar{answer: plainly(5)}
	address, _ := serve(t, "127.0.0.1:0", nameless)
	s := dialAll(t, address).Shard(1)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Read(ctx, rsm.Linearizable, []byte("a")); !errors.Is(err, rsm.ErrNotProposed) {
		t.Errorf("a read ends with %v", err)
	}
	if n := len(nameless.got(route.Read)); n != 0 {
		t.Errorf("%d reads were sent", n)
	}
}

// A token that is replaced costs nothing: the stream that it was shown for ends as refused, what was on it goes on another, for which the new one is shown.
//
// Mutation with which it was seen to fail: the end of a stream that was open counts as a refusal.
func TestTokenIsReplacedUnderCalls(t *testing.T) {
	const calls = 100
	var came atomic.Int64
	expired := make(chan struct{})
	l := &liar{cluster: "one"}
	l.answer = func(c *route.Call, end func(error)) (core.Result, error, bool) {
		if c.Kind != route.OpenSession {
			if n := came.Add(1); n < calls {
				return core.Result{}, nil, false
			} else if n == calls {
				end(&core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnauthenticated, Message: "the token is not known any more"})
				close(expired)
				return core.Result{}, nil, false
			}
		}
		return outcome(c, 5), nil, true
	}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	var commands []*Pending
	var reads []*PendingRead
	for i := range calls / 2 {
		commands = append(commands, s.Go(within(t), rsm.Request{Commands: [][]byte{[]byte(fmt.Sprint(i))}}))
		reads = append(reads, s.GoRead(within(t), rsm.Linearizable, []byte("q")))
	}
	<-expired
	for i := range commands {
		if _, err := commands[i].Wait(within(t)); err != nil {
			t.Errorf("command %d: %v", i, err)
		}
		if _, err := reads[i].Wait(within(t)); err != nil {
			t.Errorf("read %d: %v", i, err)
		}
	}
}

// One address that refuses the client ends nothing as long as another might not, and if all do, calls do not wait for their deadlines.
//
// Mutations with which it was seen to fail: the first refusal ends what waits; a second refusal of the same address counts as another's; none ever does.
func TestRefusedByOneAddress(t *testing.T) {
	no := &core.Error{Kind: core.ErrNotProposed, Code: core.CodeUnauthenticated, Message: "no such token"}
	refusing, _ := serve(t, "127.0.0.1:0", &liar{cluster: "one", refuse: no})
	also, _ := serve(t, "127.0.0.1:0", &liar{cluster: "one", refuse: no})
	good, _ := serve(t, "127.0.0.1:0", &liar{cluster: "one", answer: plainly(5)})
	for range 10 { // it begins at any
		c := dialAll(t, "127.0.0.1:1", refusing, good)
		if _, err := c.Shard(1).Submit(within(t), []byte("a")); err != nil {
			t.Errorf("with one that takes the token: %v", err)
		}
		c.Close()
	}
	_, err := dialAll(t, refusing, also).Shard(1).Read(within(t), rsm.Linearizable, []byte("a"))
	if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeUnauthenticated {
		t.Errorf("with none that takes the token: %v", err)
	}
	// Between two rounds the address is asked more than once.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = dialAll(t, "127.0.0.1:1", refusing).Shard(1).Read(ctx, rsm.Linearizable, []byte("a"))
	if e, _ := core.Verdict(err); e == nil || e.Code != core.CodeCancelled {
		t.Errorf("with one that might take the token when it is back: %v", err)
	}
}

// Hints at addresses where nobody is do not keep out those that come later, and are forgotten after a while.
//
// Mutations with which it was seen to fail: what was hinted stays for ever; nothing makes room.
func TestManyHints(t *testing.T) {
	last := &liar{cluster: "one", answer: plainly(5)}
	there, _ := serve(t, "127.0.0.1:0", last)
	hints := 0
	main := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if string(c.Query) == fmt.Sprint(hints) {
			hints++
			at := fmt.Sprintf("127.0.0.1:%d", hints)
			if hints == maxHinted+1 {
				at = there
			}
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNotLeader, Leader: 2, LeaderAddress: at}, true
		}
		return outcome(c, 5), nil, true
	}}
	address, _ := serve(t, "127.0.0.1:0", main)
	c := dialAll(t, address)
	for i := range maxHinted + 1 {
		if _, err := c.Shard(1).Read(within(t), rsm.Linearizable, []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the last address to be reached", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		h := c.hinted[there]
		return h != nil && h.since == 0 // it is seen to be up
	})
	c.mu.Lock()
	if n := len(c.hinted); n != maxHinted {
		t.Errorf("%d addresses are remembered", n)
	}
	for _, h := range c.hinted {
		if h.since != 0 {
			h.since -= int64(hintedFor) // as if so much time had passed
		}
	}
	c.mu.Unlock()
	await(t, "those at which nobody is to be forgotten", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.hinted) == 1
	})
	if last.streams.Load() != 1 {
		t.Error("the one at which somebody is was forgotten, too")
	}
}

var noDisk = &core.Error{Kind: core.ErrNotProposed, Code: core.CodeDiskLow, RetryAfter: 20 * time.Millisecond}

// A command that waits for a disk stops none of those that free it, however many they are, and is asked again under another number, each time it was refused [G11].
//
// Mutation with which it was seen to fail: it waits under its number.
func TestWaitingForADiskStopsNobody(t *testing.T) {
	var room atomic.Bool
	l := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if c.Kind == route.Submit && !c.MakesRoom && !room.Load() {
			return core.Result{}, noDisk, true
		}
		return outcome(c, 5), nil, true
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	ordinary := s.Go(context.Background(), rsm.Request{Commands: [][]byte{[]byte("ordinary")}})
	await(t, "the refusal", func() bool { return len(l.got(route.Submit)) > 0 })
	purge := rsm.Request{Commands: [][]byte{[]byte("purge")}, MakesRoom: true}
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second) // less than the other's patience
	defer cancel()
	var purges [100]*Pending
	for range 90 {
		for i := range purges {
			purges[i] = s.Go(ctx, purge)
		}
		for _, p := range purges {
			if _, err := p.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	room.Store(true)
	if _, err := ordinary.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	used, attempts := map[uint64]bool{}, 0
	for _, c := range l.got(route.Submit) {
		if used[c.Sequence] {
			t.Errorf("%d is the number of two attempts", c.Sequence)
		}
		used[c.Sequence] = true
		if !c.MakesRoom {
			attempts++
		}
	}
	if attempts < 2 {
		t.Error("the ordinary command was refused once only")
	}
}

// A command of which an attempt is in doubt keeps its number, whatever it is refused with later: under another it could be executed twice [G12].
//
// Mutation with which it was seen to fail: the router returns a refusal though an attempt is in doubt.
func TestInDoubtKeepsItsNumber(t *testing.T) {
	var attempts atomic.Int64
	l := &liar{cluster: "one", answer: func(c *route.Call, end func(error)) (core.Result, error, bool) {
		if c.Kind != route.Submit {
			return outcome(c, 5), nil, true
		}
		switch attempts.Add(1) {
		case 1, 4, 6:
			return core.Result{}, noDisk, true
		case 2: // it may have happened: the answer does not come
			end(errors.New("over"))
			return core.Result{}, nil, false
		case 3:
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed}, true
		case 5:
			return core.Result{}, &core.Error{Kind: core.ErrUnknown, Code: core.CodeLeadershipLost}, true
		}
		return outcome(c, 5), nil, true
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	var numbers []uint64
	for _, c := range l.got(route.Submit) {
		numbers = append(numbers, c.Sequence)
	}
	if len(numbers) != 7 || !slices.Equal(numbers, []uint64{1, 2, 2, 2, 2, 2, 2}) {
		t.Errorf("the attempts have the numbers %d", numbers)
	}
}

// More ordinary commands than a session has numbers, all of which wait for a disk, are as many as may be under way and no more, and leave numbers for those that free it.
//
// Mutations with which it was seen to fail: no numbers are kept for what makes room; what was put off has no place.
func TestManyWaitForADisk(t *testing.T) {
	l := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if c.Kind == route.Submit && !c.MakesRoom {
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeDiskLow, RetryAfter: time.Second}, true
		}
		return outcome(c, 5), nil, true
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	ctx, cancel := context.WithCancel(context.Background())
	var begun atomic.Int64
	ended := make(chan *Pending, 5000)
	go func() {
		for ctx.Err() == nil {
			ended <- s.Go(ctx, rsm.Request{Commands: [][]byte{[]byte("ordinary")}})
			begun.Add(1)
		}
		close(ended)
	}()
	const most = session.MaxUnacknowledged - 256
	await(t, "all numbers to be taken", func() bool { return begun.Load() == most })
	for range 2000 {
		if _, err := s.Do(within(t), rsm.Request{Commands: [][]byte{[]byte("purge")}, MakesRoom: true}); err != nil {
			t.Fatal(err)
		}
	}
	if n := begun.Load(); n != most {
		t.Errorf("%d commands are under way", n)
	}
	short, stop := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer stop()
	if _, err := s.Submit(short, []byte("ordinary")); !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: core.CodeOverloaded}) {
		t.Errorf("one more: %v", err)
	}
	cancel()
	s.client.Close()
	for p := range ended {
		if _, err := p.Wait(within(t)); !errors.Is(err, rsm.ErrNotProposed) && !errors.Is(err, rsm.ErrUnknown) { // one that was just being asked for
			t.Fatal(err)
		}
	}
}

// leave has a client go on to the second of two addresses, whose first tells who reads that it is closed.
func leave(t *testing.T, c *Client, first, second string) {
	t.Helper()
	c.mu.Lock()
	c.addresses, c.at = []string{first, second}, 0
	c.mu.Unlock()
	if _, err := c.Shard(1).Read(within(t), rsm.Linearizable, []byte("leave")); err != nil {
		t.Fatal(err)
	}
}

// A command that waits for a disk, and goes to another cluster meanwhile, leaves nothing in the session that it comes from.
//
// Mutation with which it was seen to fail: begin does not leave the window of before.
func TestPutOffGoesToAnotherCluster(t *testing.T) {
	one := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		switch {
		case c.Kind == route.Submit:
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeDiskLow, RetryAfter: 50 * time.Millisecond}, true
		case c.Kind == route.Read:
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed}, true
		}
		return outcome(c, 5), nil, true
	}}
	first, _ := serve(t, "127.0.0.1:0", one)
	second, _ := serve(t, "127.0.0.1:0", &liar{cluster: "two", answer: plainly(9)})
	c := dialAll(t, first)
	s := c.Shard(1)
	p := s.Go(within(t), rsm.Request{Commands: [][]byte{[]byte("ordinary")}})
	await(t, "it waits for the disk", func() bool { return len(one.got(route.Submit)) > 0 })
	was := s.stay.Load()
	leave(t, c, first, second)
	if _, err := p.Wait(within(t)); err != nil || s.stay.Load() == was {
		t.Fatalf("it ended with %v, in another cluster: %v", err, s.stay.Load() != was)
	}
	was.window.Open = func(context.Context) (core.SessionID, error) { return 5, nil }
	if _, err := was.window.Begin(within(t), session.Claim{}); err != nil { // there may be a session already
		t.Fatal(err)
	}
	n := 1
	for {
		if _, ok := was.window.TryBegin(session.Claim{}); !ok {
			break
		}
		n++
	}
	if n != session.MaxUnacknowledged-256 {
		t.Errorf("there is room for %d in the session that it has left", n)
	}
}

// Behind one address there may be another proxy than the one that leaves: it is looked for, while what the one that leaves has taken is waited for there. Who is found may be
// the same once more: that is no reason for haste.
//
// Mutations with which it was seen to fail: with one address nobody is left; who leaves is left at once.
func TestLeavingBehindOneAddress(t *testing.T) {
	l := &liar{cluster: "one"}
	var left atomic.Bool
	l.answer = func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		switch {
		case c.Kind == route.Read && string(c.Query) == "slow":
			return core.Result{}, nil, false
		case c.Kind == route.Read && !left.Load():
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeClosed}, true
		}
		return outcome(c, 5), nil, true
	}
	address, _ := serve(t, "127.0.0.1:0", l)
	c := dialAll(t, address)
	s := c.Shard(1)
	slow := s.GoRead(within(t), rsm.Linearizable, []byte("slow"))
	await(t, "the slow read", func() bool { return len(l.got(route.Read)) == 1 })
	l.mu.Lock()
	send, id := l.send, l.ids[l.calls[0]]
	l.mu.Unlock()
	began := time.Now()
	var reads []*PendingRead
	for range 20 {
		reads = append(reads, s.GoRead(within(t), rsm.Linearizable, []byte("a")))
	}
	await(t, "the fourth stream", func() bool { return l.taken.Load() >= 4 })
	if took := time.Since(began); took < 2*lastPause {
		t.Errorf("four streams in %v", took)
	}
	left.Store(true)
	for _, r := range reads {
		if _, err := r.Wait(within(t)); err != nil {
			t.Error(err)
		}
	}
	if slow.done.closed() {
		t.Error("the slow read has an answer")
	}
	send(id, route.Read, core.Result{Answer: []byte("late"), Index: 7}, nil)
	if res, err := slow.Wait(within(t)); err != nil || string(res.Answer) != "late" {
		t.Errorf("the slow read: %v, %v", res, err)
	}
	await(t, "those that were left to be left alone", func() bool { return l.streams.Load() == 1 })
}

// A context that has ended has nobody asked, so that nothing is in doubt.
//
// Mutation with which it was seen to fail: the first attempt is made whatever the context.
func TestEndedContext(t *testing.T) {
	l := &liar{cluster: "one", answer: plainly(5)}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancelLate := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancelLate()
	for _, ctx := range []context.Context{cancelled, late} {
		_, err := s.Go(ctx, rsm.Request{Commands: [][]byte{[]byte("b")}}).Wait(within(t))
		if !errors.Is(err, rsm.ErrNotProposed) || !errors.Is(err, ctx.Err()) {
			t.Errorf("a command: %v", err)
		}
		if _, err := s.GoRead(ctx, rsm.Stale, []byte("b")).Wait(within(t)); !errors.Is(err, rsm.ErrNotProposed) || !errors.Is(err, ctx.Err()) {
			t.Errorf("a read: %v", err)
		}
	}
	if _, err := s.Submit(within(t), []byte("c")); err != nil {
		t.Fatal(err)
	}
	if n := len(l.got(route.Submit)) + len(l.got(route.Read)); n != 2 {
		t.Errorf("%d calls came", n)
	}
}

// A link that is up again after the pause is kept, and what was sent on it meanwhile is not sent twice.
//
// Mutation with which it was seen to fail: it is closed.
func TestLinkThatIsBackIsKept(t *testing.T) {
	l := &liar{cluster: "one", answer: plainly(5)}
	address, _ := serve(t, "127.0.0.1:0", l)
	c := dialAll(t, address, address)
	for range 20 { // on a busy machine the pause may be over before it is back
		await(t, "the stream", func() bool { return l.streams.Load() == 1 })
		c.mu.Lock()
		was, number := c.link, c.mains
		c.failed = 100 // the pause is the longest
		c.mu.Unlock()
		c.broken <- was
		await(t, "that to be seen", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.failed != 100
		})
		c.up(number, was)
		time.Sleep(lastPause + 100*time.Millisecond) // nothing is to happen
		c.mu.Lock()
		kept := c.link == was
		c.mu.Unlock()
		if kept {
			return
		}
	}
	t.Error("it is replaced")
}

// A command that waited for a disk, and found no number when it was to be asked again, says at the end of its time what it waited for.
//
// Mutation with which it was seen to fail: it says that there was no number.
func TestNoNumberAfterADisk(t *testing.T) {
	l := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if c.Kind == route.Submit && !c.MakesRoom {
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeDiskLow, RetryAfter: 200 * time.Millisecond}, true
		}
		return outcome(c, 5), nil, c.Kind != route.Submit // which hold their numbers
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ordinary := s.Go(ctx, rsm.Request{Commands: [][]byte{[]byte("ordinary")}})
	for range session.MaxUnacknowledged - 100 {
		s.Go(within(t), rsm.Request{Commands: [][]byte{[]byte("purge")}, MakesRoom: true})
	}
	_, err := ordinary.Wait(within(t))
	if e, _ := core.Verdict(err); e == nil || e.Kind != rsm.ErrNotProposed || e.Code != core.CodeDiskLow || e.RetryAfter == 0 {
		t.Error(err)
	}
}

// Who waits in a context until its deadline is told what the call waited for, whether it changes something or reads, and that the time was over.
//
// Mutation with which it was seen to fail: the deadline is no cause.
func TestDeadlineSaysWhy(t *testing.T) {
	l := &liar{cluster: "one", answer: func(*route.Call, func(error)) (core.Result, error, bool) {
		return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNoLeader}, true
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	for name, call := range map[string]func(context.Context) error{
		"submit": func(ctx context.Context) error { _, err := s.Submit(ctx, []byte("a")); return err },
		"read":   func(ctx context.Context) error { _, err := s.Read(ctx, rsm.Linearizable, []byte("a")); return err },
	} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := call(ctx)
		cancel()
		if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeNoLeader}) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A hint at a node that is not reached makes no leader of it: whoever gave it would be asked again at once, over and over. As soon as it is reached it is one.
//
// Mutation with which it was seen to fail: whoever is named is believed to lead, reached or not.
func TestHintAtWhoIsNotReached(t *testing.T) {
	there, leave := serve(t, "127.0.0.1:0", &liar{})
	leave()
	l := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		if c.Kind == route.Submit {
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNotLeader, Leader: 2, LeaderAddress: there}, true
		}
		return outcome(c, 5), nil, true
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	c := dialAll(t, address)
	s := c.Shard(1)
	p := s.Go(within(t), rsm.Request{Commands: [][]byte{[]byte("a")}})
	await(t, "the hint", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.hinted) == 1
	})
	hint := &core.Error{Leader: 2, LeaderAddress: there}
	if to := c.resolve(s.stay.Load(), hint); to != nil {
		t.Errorf("%v is believed to lead", to)
	}
	serve(t, there, &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) { return outcome(c, 5), nil, true }})
	if _, err := p.Wait(within(t)); err != nil {
		t.Error(err)
	}
	if c.resolve(s.stay.Load(), hint) == nil {
		t.Error("who is reached is not believed to lead")
	}
}

// What a proxy says right before the deadline is the last: a command that was asked for once more then would be unanswered at its end, and so unknown.
//
// Mutation with which it was seen to fail: a call that waits does so until its deadline.
func TestLastWordBeforeTheDeadline(t *testing.T) {
	var late atomic.Int64
	l := &liar{cluster: "one", answer: func(c *route.Call, _ func(error)) (core.Result, error, bool) {
		switch until := late.Load(); {
		case until == 0:
			return outcome(c, 5), nil, true
		case until > monotonic():
			time.Sleep(time.Duration(until - monotonic()))
			return core.Result{}, &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNoLeader}, true
		}
		return core.Result{}, nil, false
	}}
	address, _ := serve(t, "127.0.0.1:0", l)
	s := dialAll(t, address).Shard(1)
	if _, err := s.Submit(within(t), []byte("a")); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context) error{
		"submit": func(ctx context.Context) error { _, err := s.Submit(ctx, []byte("a")); return err },
		"read":   func(ctx context.Context) error { _, err := s.Read(ctx, rsm.Linearizable, []byte("a")); return err },
	} {
		var err error
		asked := 0
		for range 50 { // the answer may take longer than what is left of the time
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			late.Store(monotonic() + int64(485*time.Millisecond))
			l.mu.Lock()
			before := len(l.calls)
			l.mu.Unlock()
			err = call(ctx)
			cancel()
			l.mu.Lock()
			asked = len(l.calls) - before
			l.mu.Unlock()
			if errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeNoLeader}) && asked == 1 {
				break
			}
		}
		if !errors.Is(err, &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeNoLeader}) || asked != 1 {
			t.Errorf("%s: it is asked for %d times, and then: %v", name, asked, err)
		}
	}
}

// A read, as a command, has the router's word where its own deadline ends the wait, though the context ends first; who leaves for another reason has left.
//
// Mutation with which it was seen to fail: a read ends with the context at once.
func TestGraceAtTheDeadline(t *testing.T) {
	late, cancelLate := context.WithDeadline(context.Background(), time.Now())
	defer cancelLate()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	why := &core.Error{Kind: core.ErrNotProposed, Code: core.CodeNoLeader}
	read := &PendingRead{err: why, call: route.Call{Kind: route.Read, Deadline: monotonic()}}
	command := &Pending{err: why, deadline: monotonic()}
	for name, p := range map[string]struct {
		wait func(context.Context) error
		done *done
	}{
		"read":    {func(ctx context.Context) error { _, err := read.Wait(ctx); return err }, &read.done},
		"command": {func(ctx context.Context) error { _, err := command.Wait(ctx); return err }, &command.done},
	} {
		if err := p.wait(gone); !errors.Is(err, &core.Error{Code: core.CodeCancelled}) {
			t.Errorf("a %s that nobody waits for: %v", name, err)
		}
		time.AfterFunc(time.Millisecond, p.done.close)
		if err := p.wait(late); err != error(why) {
			t.Errorf("a %s at its deadline: %v", name, err)
		}
	}
}
