// Package testkit is what the tests of several packages share.
package testkit

import (
	"flag"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: a random one")

// Random returns a source whose seed is printed if the test fails.
func Random(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("reproduce with: -run '^%s$' -seed %d", t.Name(), seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// CrashFS takes an image of what a crash would leave before each change of the file system.
type CrashFS struct {
	vfs.FS
	Mem *vfs.MemFS // below it

	mu     sync.Mutex
	r      *rand.Rand
	armed  bool
	images []*vfs.MemFS
}

// NewCrashFS returns an empty one; r decides what a crash keeps of what was not synced.
func NewCrashFS(r *rand.Rand) *CrashFS {
	c := &CrashFS{Mem: vfs.NewCrashableMem(), r: r}
	c.FS = errorfs.Wrap(c.Mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			c.take()
		}
		return nil
	}))
	return c
}

func (c *CrashFS) take() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.armed {
		c.images = append(c.images, c.Mem.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: []int{0, 0, 50, 100}[c.r.IntN(4)], RNG: c.r}))
	}
}

// During returns the images taken while f ran.
func (c *CrashFS) During(f func()) []*vfs.MemFS {
	c.mu.Lock()
	c.armed, c.images = true, nil
	c.mu.Unlock()
	f()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	return c.images
}

// Synced returns an image of what is synced now.
func (c *CrashFS) Synced() *vfs.MemFS { return c.Mem.CrashClone(vfs.CrashCloneCfg{}) }

// Scratch is a directory in memory where there is such a thing, for tests to which fsync means nothing.
func Scratch(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{"/dev/shm", ""} {
		if d, err := os.MkdirTemp(dir, "decree-crash-"); err == nil {
			t.Cleanup(func() { _ = os.RemoveAll(d) })
			return d
		}
	}
	t.Fatal("no place for temporary files")
	return ""
}
