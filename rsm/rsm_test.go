package rsm

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"
)

type noop struct{}

func (noop) Decide(View, Command) ([][]byte, []byte, error) { return nil, nil, nil }
func (noop) Apply(State, Event)                             {}
func (noop) Query(View, []byte) ([]byte, error)             { return nil, nil }

type adder struct{}

func (adder) Decide(v View, c Command) ([][]byte, []byte, error) {
	old, _ := v.Get(c.Data)
	var n uint64
	if len(old) == 8 {
		n = binary.BigEndian.Uint64(old)
	}
	e := append(binary.BigEndian.AppendUint64(nil, n+1), c.Data...)
	return [][]byte{e}, e[:8], nil
}
func (adder) Apply(s State, e Event) { s.Set(e.Data[8:], e.Data[:8]) }
func (adder) Query(v View, q []byte) ([]byte, error) {
	a, _ := v.Get(q)
	return a, nil
}

func TestSmoke(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		c, err := StartCluster(ClusterConfig{Dir: dir, Shards: []ShardConfig{{ID: 1, Machine: noop{}}, {ID: 2, Machine: adder{}}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		n, _ := c.Leader(ctx, 1)
		for _, callers := range []int{1, 16, 256, 2048} {
			var wg sync.WaitGroup
			start := time.Now()
			const per = 20000
			for range callers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range per/callers + 1 {
						if _, err := n.Shard(1).Submit(ctx, make([]byte, 128)); err != nil {
							t.Error(err)
							return
						}
					}
				}()
			}
			wg.Wait()
			d := time.Since(start)
			fmt.Println(dir != "", callers, float64(per)/d.Seconds())
		}
		st, err := n.Status()
		fmt.Printf("%+v %v\n", st, err)
		c.Close()
	}
}
