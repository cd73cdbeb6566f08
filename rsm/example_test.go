package rsm_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/decree-raft/decree/rsm"
)

// seats gives each seat away once. A command is the name of a seat.
type seats struct{}

const codeTaken rsm.Code = "seat_taken"

func (seats) Decide(v rsm.View, c rsm.Command) (events [][]byte, reply []byte, err error) {
	if _, taken := v.Get(c.Data); taken {
		return nil, nil, rsm.Reject(codeTaken, "seat %s is taken", c.Data)
	}
	return [][]byte{c.Data}, []byte("yours"), nil
}

func (seats) Apply(s rsm.State, e rsm.Event) { s.Set(e.Data, nil) }

func (seats) Query(v rsm.View, seat []byte) ([]byte, error) {
	if _, taken := v.Get(seat); taken {
		return []byte("taken"), nil
	}
	return []byte("free"), nil
}

// Every error of a call says first whether it happened, then why.
func ExampleError() {
	cluster, err := rsm.StartCluster(rsm.ClusterConfig{
		Shards:    []rsm.ShardConfig{{ID: 1, Machine: seats{}}},
		Configure: func(c *rsm.Config) { c.Limits = rsm.Limits{MaxCommandBytes: 8} },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cluster.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := cluster.Client(1)
	for _, seat := range []string{"12A", "12A", "number twelve A"} {
		reply, err := client.Submit(ctx, []byte(seat))
		report(seat, reply, err)
	}
	// Output:
	// 12A: yours
	// 12A: decided, and the answer is no (seat_taken)
	// number twelve A: it did not happen (command_too_large): the command has 15 bytes, 8 are allowed (MaxCommandBytes)
}

func report(seat string, reply []byte, err error) {
	var no *rsm.Rejection
	var e *rsm.Error
	switch {
	case err == nil:
		fmt.Printf("%s: %s\n", seat, reply)
	case errors.As(err, &no): // as errors.Is(err, rsm.ErrRejected)
		fmt.Printf("%s: decided, and the answer is no (%s)\n", seat, no.Code)
	case errors.Is(err, &rsm.Error{Code: rsm.CodeOverloaded}):
		fmt.Printf("%s: later\n", seat)
	case errors.Is(err, rsm.ErrNotProposed) && errors.As(err, &e):
		fmt.Printf("%s: it did not happen (%s): %s\n", seat, e.Code, e.Message)
	default: // rsm.ErrUnknown, rsm.ErrBroken
		fmt.Printf("%s: it may have happened: %v\n", seat, err)
	}
}
