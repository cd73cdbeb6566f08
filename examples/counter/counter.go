// Command counter is the smallest replicated state machine: a number that never goes below zero.
package main

import (
	"context"
	"fmt"
	"log"
	"strconv"

	"github.com/decree-raft/decree/rsm"
)

// counter adds what a command says. What is replicated is the decision: the new value.
type counter struct{}

func value(v rsm.View) int {
	data, _ := v.Get([]byte("value"))
	n, _ := strconv.Atoi(string(data)) // nothing yet is 0
	return n
}

func (counter) Decide(v rsm.View, c rsm.Command) (events [][]byte, reply []byte, err error) {
	delta, err := strconv.Atoi(string(c.Data))
	if err != nil {
		return nil, nil, rsm.Reject("not_a_number", "%q is no number", c.Data)
	}
	sum := value(v) + delta
	if sum < 0 {
		return nil, nil, rsm.Reject("below_zero", "the counter is %d, it cannot change by %d", value(v), delta)
	}
	event := []byte(strconv.Itoa(sum))
	return [][]byte{event}, event, nil
}

func (counter) Apply(s rsm.State, e rsm.Event) { s.Set([]byte("value"), e.Data) }

func (counter) Query(v rsm.View, _ []byte) ([]byte, error) {
	return []byte(strconv.Itoa(value(v))), nil
}

func main() {
	cluster, err := rsm.StartCluster(rsm.ClusterConfig{Shards: []rsm.ShardConfig{{ID: 1, Machine: counter{}}}})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	ctx, client := context.Background(), cluster.Client(1)
	for _, command := range []string{"5", "-2", "-4"} {
		reply, err := client.Submit(ctx, []byte(command))
		fmt.Printf("%s -> %s %v\n", command, reply, err)
	}
	answer, err := client.Read(ctx, rsm.Linearizable, nil)
	fmt.Println("value", string(answer), err)
}
