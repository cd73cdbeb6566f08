package transport_test

import (
	"fmt"

	"github.com/decree-raft/decree/internal/transport"
)

// Two nodes in one process. With Start instead of NewMemoryNetwork they could be
// anywhere.
func Example() {
	network := transport.NewMemoryNetwork()
	peers := map[uint64]string{1: "first", 2: "second"}
	got := make(chan string)
	start := func(id uint64) transport.Peer {
		node, err := network.Start(transport.Config{
			Cluster: "example", Node: id, Peers: peers,
			Receive: func(from uint64, frame []byte) { got <- fmt.Sprintf("from %d: %s", from, frame) },
		})
		if err != nil {
			panic(err)
		}
		return node
	}
	one, two := start(1), start(2)

	// A pass of an engine: items for a peer gather in one frame, then it goes.
	for _, item := range []string{"prepare ", "commit"} {
		if !one.Append(2, len(item), func(buf []byte) []byte { return append(buf, item...) }) {
			fmt.Println("dropped") // raft sends it again, in time
		}
	}
	one.Flush()
	fmt.Println(<-got)
	fmt.Println(one.Close(), two.Close())
	// Output:
	// from 1: prepare commit
	// <nil> <nil>
}
