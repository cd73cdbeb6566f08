package datadir

import (
	"errors"
	"io/fs"
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/testkit"
)

// forgetful is a disk in memory.
type forgetful struct{ *testkit.ForgetfulDirs }

func (d forgetful) WriteFile(name string, b []byte) error {
	f, err := d.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func (d forgetful) SyncAbove(dir string) error { return syncDir(d, d.PathDir(dir)) }

func (d forgetful) OpenLog(string) (Log, error) { return nil, errors.ErrUnsupported }

// A directory that could not be synced is not believed to be durable because its next sync succeeds: the next attempt finds nothing, and what it makes is there after a loss of power.
//
// Mutations with which it was seen to fail, one by one: MakeDir leaves the directory; Write leaves the first node.json; finish leaves the name.
func TestFailedSyncsOfDirectories(t *testing.T) {
	disk := forgetful{testkit.NewForgetfulDirs(0)}
	const dir = "/data"
	r := &restore{Restore: Restore{Disk: disk, Nodes: map[core.NodeID]string{1: dir}, Logger: slog.New(slog.DiscardHandler)}}
	for _, step := range []struct {
		name, makes string
		do          func() error
	}{
		{"the directory", dir, func() error { return MakeDir(disk, dir) }},
		{"node.json", identityFile(disk, dir), func() error { return New("c", 1).Write(disk, dir) }},
		{"what is being restored", UnfinishedFile(disk, dir), func() error {
			if err := disk.Remove(identityFile(disk, dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return New("c", 1).writeAs(disk, dir, UnfinishedFile(disk, dir))
		}},
		{"what is restored", identityFile(disk, dir), func() error { return r.finish(1) }},
	} {
		disk.FailNext(1)
		if err := step.do(); !errors.Is(err, errorfs.ErrInjected) {
			t.Fatalf("%s: %v", step.name, err)
		}
		if _, err := disk.Stat(step.makes); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there after a failure: %v", step.name, err)
		}
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if _, err := disk.Synced().Stat(step.makes); err != nil {
			t.Errorf("%s after a loss of power: %v", step.name, err)
		}
	}
}
