package rsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/decree-raft/decree/internal/core"
)

// lowDisk has disks that are always low.
func lowDisk(cfg *Config) {
	cfg.DiskWatermark = 1 << 20
	cfg.freeBytes = func(string) (uint64, error) { return 1000, nil }
}

// When disks are low, a client's ordinary command is refused, and one that makes room is taken, exactly once over changes of leader. A client that has
// no session yet gets one for that [G11].
func TestClientMakesRoom(t *testing.T) {
	c := startCluster(t, t.TempDir(), counters{}, lowDisk)
	awaitLowDisks(t, c)
	fresh := c.Client(1)
	refusedForRoom(t, func(ctx context.Context) error { _, err := fresh.Submit(ctx, []byte("a")); return err })
	room := Request{Commands: [][]byte{[]byte("a")}, MakesRoom: true}
	var wg sync.WaitGroup
	half, all := make(chan struct{}, 20), within(t)
	for range 20 {
		wg.Go(func() {
			for i := range 10 {
				if i == 5 {
					half <- struct{}{}
				}
				if res, err := fresh.Do(all, room); err != nil || len(res.Replies) != 1 || res.Index == 0 {
					t.Errorf("a command that makes room: %+v, %v", res, err)
				}
			}
		})
	}
	<-half
	killed := leaderOf(t, c, 1).ID()
	c.Kill(killed)
	wg.Wait()
	answer, err := fresh.Read(within(t), Linearizable, []byte("a"))
	if n := sum(t, answer, err); n != 200 {
		t.Errorf("200 commands were done %d times", n)
	}
	// Numbers are the client's own.
	for _, r := range []Request{{Session: 1}, {Sequence: 1}, {Acknowledged: 1}} {
		r.Commands = room.Commands
		if _, err := fresh.Do(within(t), r); !errors.Is(err, &Error{Kind: ErrNotProposed, Code: core.CodeBadRequest}) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// awaitLowDisks waits until every node has noticed.
func awaitLowDisks(t *testing.T, c *Cluster) {
	t.Helper()
	for _, n := range c.Nodes() {
		eventually(t, fmt.Sprintf("node %d knows that its disk is low", n.ID()), func() bool { st, err := n.Status(); return err == nil && st.DiskLow })
	}
	eventually(t, "commands are refused", func() bool {
		_, err := leaderOf(t, c, 1).Shard(1).Submit(within(t), []byte("b"))
		return errors.Is(err, &Error{Code: core.CodeDiskLow})
	})
}

// refusedForRoom makes sure that an ordinary command of a client is not executed, and that the reason why it has waited is the disk, as soon as it is given
// the time to hear that.
func refusedForRoom(t *testing.T, submit func(context.Context) error) {
	t.Helper()
	eventually(t, "an ordinary command is refused for the disk", func() bool {
		ctx, cancel := context.WithTimeout(within(t), 300*time.Millisecond)
		defer cancel()
		err := submit(ctx)
		if !errors.Is(err, ErrNotProposed) {
			t.Fatalf("an ordinary command, when the disk is low: %v", err)
		}
		return errors.Is(err, &Error{Code: core.CodeDiskLow})
	})
}

// typedCounters is counters over messages.
type typedCounters struct{}

type text = wrapperspb.StringValue

func (typedCounters) Decide(v View, key *text, _ Command) ([]*text, *wrapperspb.UInt64Value, error) {
	if key.Value == "fail" {
		return nil, nil, Reject("failed", "as told")
	}
	return []*text{key}, wrapperspb.UInt64(number(v, []byte(key.Value)) + 1), nil
}

func (typedCounters) Apply(s State, key *text, _ Event) {
	s.Set([]byte(key.Value), binary.BigEndian.AppendUint64(nil, number(s, []byte(key.Value))+1))
}

func (typedCounters) Query(v View, key *text) (*wrapperspb.UInt64Value, error) {
	return wrapperspb.UInt64(number(v, []byte(key.Value))), nil
}

// A typed caller is bound to a replica or to a client, and says of a command that it makes room.
func TestTypedCaller(t *testing.T) {
	c := startCluster(t, "", Proto(typedCounters{}), patient10s)
	n := uint64(0)
	for name, to := range map[string]Submitter{"replica": leaderOf(t, c, 1).Shard(1), "client": c.Client(1)} {
		caller := Bind(typedCounters{}, to)
		n++
		if got, err := caller.Submit(within(t), wrapperspb.String("a")); err != nil || got.Value != n {
			t.Errorf("%s: %v, %v, want %d", name, got, err, n)
		}
		if _, err := caller.Submit(within(t), wrapperspb.String("fail")); !errors.Is(err, &Rejection{Code: "failed"}) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := caller.Read(within(t), Linearizable, wrapperspb.String("a")); err != nil || got.Value != n {
			t.Errorf("%s: %v, %v, want %d", name, got, err, n)
		}
		if _, err := to.Do(within(t), Request{Commands: [][]byte{{0xff}}}); !errors.Is(err, &Rejection{Code: CodeBadEncoding}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	low := startCluster(t, t.TempDir(), Proto(typedCounters{}), lowDisk)
	awaitLowDisks(t, low)
	caller := Bind(typedCounters{}, low.Client(1))
	refusedForRoom(t, func(ctx context.Context) error { _, err := caller.Submit(ctx, wrapperspb.String("a")); return err })
	if got, err := caller.MakingRoom().Submit(within(t), wrapperspb.String("a")); err != nil || got.Value != 1 {
		t.Errorf("one that makes room: %v, %v", got, err)
	}
}
