package state

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// TestListWithDamage damages each block in turn of a table that holds three shards: all are listed, or the error is returned. None is ever left out.
//
// Mutation with which it was seen to fail: ShardIDs does not look at the error of its seek to the record.
func TestListWithDamage(t *testing.T) {
	seed := testkit.Random(t).Uint64()
	refused := 0
	for block := 0; ; block++ {
		b := besides{together: true, r: rand.New(rand.NewPCG(seed, 0)), fs: vfs.NewMem()}
		b.write(t)
		if !b.damage(t, block) {
			break
		}
		s := b.open(t)
		switch ids, err := s.ShardIDs(); {
		case IsDamage(err):
			refused++
		case err != nil || !slices.Equal(ids, []uint64{1, 2, 3}):
			t.Errorf("block %d: the shards are %v (%v)", block, ids, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("no damage was met")
	}
}
