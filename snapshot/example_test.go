package snapshot_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/decree-raft/decree/internal/state"
	"github.com/decree-raft/decree/snapshot"
)

// A shard of one node becomes the same shard of another.
func Example() {
	fs, quiet := vfs.NewMem(), slog.New(slog.DiscardHandler)
	if err := move(fs, quiet); err != nil {
		fmt.Println(err)
	}
	// Output:
	// cut shard 1 at 5: 1 files, 1 voters
	// received and installed at 5: hello = world
}

func move(fs vfs.FS, log *slog.Logger) error {
	ctx := context.Background()
	from, err := state.Open(state.Options{Dir: "from", FS: fs, Logger: log})
	if err != nil {
		return err
	}
	defer from.Close()
	shard, err := from.Shard(1)
	if err != nil {
		return err
	}
	shard.Set([]byte("hello"), []byte("world"))
	shard.Freeze()
	flush := shard.Flush(state.Flush{Index: 5, Meta: []byte("the caller's")})
	if err := flush.Run(); err != nil {
		return err
	}
	shard.Flushed(flush)

	// On the node that has it:
	cuts, err := snapshot.Open(snapshot.Options{Path: "cuts", FS: fs, Logger: log})
	if err != nil {
		return err
	}
	cut, err := from.Cut(1)
	if err != nil {
		return err
	}
	s, err := cuts.Cut(ctx, cut, snapshot.CutOptions{Info: snapshot.Info{Cluster: "c", Term: 2, Config: snapshot.Config{Voters: []uint64{1}}}})
	cut.Close()
	if err != nil {
		return err
	}
	fmt.Printf("cut shard %d at %d: %d files, %d voters\n", s.Manifest.Shard, s.Manifest.Index, len(s.Manifest.Files), len(s.Manifest.Config.Voters))
	source, err := cuts.Source(s.ID)
	if err != nil {
		return err
	}
	defer source.Close()
	manifest, err := s.EncodedManifest()
	if err != nil {
		return err
	}

	// On the node that wants it; the manifest has come in a message, and source is behind a network.
	in, err := snapshot.Open(snapshot.Options{Path: "in", FS: fs, Logger: log})
	if err != nil {
		return err
	}
	got, err := in.Receive(ctx, manifest, source, snapshot.ReceiveOptions{Cluster: "c", Shard: 1})
	if err != nil {
		return err
	}
	to, err := state.Open(state.Options{Dir: "to", FS: fs, Logger: log})
	if err != nil {
		return err
	}
	defer to.Close()
	replica, err := to.Shard(1)
	if err != nil {
		return err
	}
	install, err := replica.Install(got.Install())
	if err != nil {
		return err
	}
	if err := install.Run(ctx); err != nil {
		return err
	}
	replica.Installed(install)
	v, _ := replica.Get([]byte("hello"))
	fmt.Printf("received and installed at %d: hello = %s\n", replica.FlushedIndex(), v)
	return in.Remove(got.ID)
}
