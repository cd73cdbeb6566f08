package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
)

// sums is a machine like a user's: "k 5" adds five to k, which never goes below zero; the answer to a query is all sums.
type sums struct{}

func (sums) Decide(v core.View, c core.Command) ([][]byte, []byte, error) {
	key, delta, _ := strings.Cut(string(c.Data), " ")
	was, _ := v.Get([]byte(key))
	n, _ := strconv.Atoi(string(was))
	d, err := strconv.Atoi(delta)
	if err != nil {
		return nil, nil, err
	}
	if n += d; n < 0 {
		return nil, nil, core.Reject("below_zero", "%s is %s", key, was)
	}
	return [][]byte{fmt.Appendf(nil, "%s %d", key, n)}, []byte(strconv.Itoa(n)), nil
}

func (sums) Apply(s core.State, e core.Event) {
	key, sum, _ := strings.Cut(string(e.Data), " ")
	s.Set([]byte(key), []byte(sum))
}

func (sums) Query(v core.View, _ []byte) (answer []byte, err error) {
	for k, n := range v.Scan(nil, nil) {
		answer = fmt.Appendf(answer, "%s=%s ", k, n)
	}
	return answer, nil
}

func sumsUser() *User {
	return &User{
		New:     func() core.Machine { return sums{} },
		Command: func(r *rand.Rand) []byte { return fmt.Appendf(nil, "k%d %d", r.IntN(3), r.IntN(20)-8) },
		Query:   func(*rand.Rand) []byte { return []byte("all") },
	}
}

// TestUser: the simulator finds nothing wrong with a sound machine, and a seed is a run.
func TestUser(t *testing.T) {
	testkit.SkipUnderRace(t)
	var total Stats
	for seed := uint64(1); seed <= 40; seed++ {
		r := Run(seed, Options{User: sumsUser()})
		if r.Failure != nil {
			t.Fatal(Shrink(r, Options{User: sumsUser()}, Budget{}, nil).Story())
		}
		if seed <= 5 {
			if again := Run(seed, Options{User: sumsUser()}); again.Hash != r.Hash {
				t.Errorf("seed %d: trace %x, and then %x", seed, r.Hash, again.Hash)
			}
		}
		if f := r.Replay(); f != nil {
			t.Error(f)
		}
		total.add(&r.Stats)
	}
	if total.Acked < 1000 || total.Rejected < 100 || total.Reads < 1000 || total.Retries < 100 {
		t.Errorf("too little happened: %+v", total)
	}
}
