package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/decree-raft/decree/internal/testkit"
)

// entriesOf are made up entries from an index on.
func entriesOf(first uint64, n, size int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for i := range uint64(n) {
			e := Entry{Index: first + i, Term: 3 + i/10, Type: byte(i % 3), Data: bytes.Repeat([]byte{byte(i)}, size)}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// writeBackup backs up the world's shard, and shard 9, which has a journal only.
func writeBackup(ctx context.Context, w *world, sink Sink) (*Backup, error) {
	b, err := NewBackupWriter(sink, Backup{Cluster: testCluster, Node: 2, Library: "v1", Note: "n", Made: 1 << 60},
		BackupOptions{TableBytes: 16 << 10, ChunkBytes: MinChunkBytes, JournalBytes: 2000})
	if err != nil {
		return nil, err
	}
	cut, err := w.store.Cut(testShard)
	if err != nil {
		return nil, err
	}
	defer cut.Close()
	if err := b.Add(ctx, BackupSource{Shard: testShard, Cut: cut, Info: testInfo(), Entries: entriesOf(cut.Index()+1, 50, 100)}); err != nil {
		return nil, err
	}
	if err := b.Add(ctx, BackupSource{Shard: 9, Entries: entriesOf(1, 20, 10)}); err != nil {
		return nil, err
	}
	return b.Finish()
}

func backupWorld(t testing.TB) *world {
	w := newWorld(t, vfs.NewMem(), "/state")
	w.fill(rand.New(rand.NewPCG(1, 2)), 3, 200, 500)
	return w
}

// backupIn makes a backup in a directory.
func backupIn(t testing.TB, w *world, fs vfs.FS, dir string) *Backup {
	t.Helper()
	sink, err := NewDirSink(fs, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := writeBackup(t.Context(), w, sink)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tree has all files under a directory.
func tree(t testing.TB, fs vfs.FS, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		p := fs.PathJoin(dir, name)
		info, err := fs.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if !info.IsDir() {
			out[name] = readT(t, fs, p)
			continue
		}
		for sub, b := range tree(t, fs, p) {
			out[name+"/"+sub] = b
		}
	}
	return out
}

func plant(t testing.TB, files map[string][]byte) vfs.FS {
	t.Helper()
	fs := vfs.NewMem()
	for name, b := range files {
		if err := fs.MkdirAll(path.Dir("/b/"+name), 0o755); err != nil {
			t.Fatal(err)
		}
		writeT(t, fs, "/b/"+name, b)
	}
	return fs
}

// TestBackupForms: the directory, the stream written at once, and the stream packed from the directory hold the same, byte by byte, and all of it is read back.
func TestBackupForms(t *testing.T) {
	w, fs := backupWorld(t), vfs.NewMem()
	made := backupIn(t, w, fs, "/b")
	got, err := VerifyBackup(t.Context(), fs, "/b", nil)
	if err != nil || !reflect.DeepEqual(got, made) {
		t.Fatalf("got %+v, %v, want %+v", got, err, made)
	}
	if s := got.Find(testShard); s.First() != w.index || s.Last() != w.index+50 || len(s.Journal) != 3 || s.Hash != testInfo().Hash {
		t.Errorf("shard %d: %+v", testShard, s)
	}
	if s := got.Find(9); s.First() != 1 || s.Last() != 20 || s.HasSnapshot() {
		t.Errorf("shard 9: %+v", s)
	}
	var direct, packed bytes.Buffer
	if _, err := writeBackup(t.Context(), w, NewStreamSink(&direct)); err != nil {
		t.Fatal(err)
	}
	var last Progress
	if err := PackBackup(t.Context(), fs, "/b", &packed, func(p Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if last.Bytes < last.Total {
		t.Errorf("progress ended at %+v", last)
	}
	want := tree(t, fs, "/b")
	for name, stream := range map[string]*bytes.Buffer{"direct": &direct, "packed": &packed} {
		b, err := UnpackBackup(t.Context(), iotestOneByte{stream}, fs, "/"+name, UnpackOptions{})
		if err != nil || !reflect.DeepEqual(b, made) {
			t.Fatalf("%s: got %+v, %v", name, b, err)
		}
		if got := tree(t, fs, "/"+name); !maps.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: got other files than there were", name)
		}
	}
	for _, shard := range made.Shards {
		next := shard.Index + 1
		for e, err := range shard.Entries(t.Context(), fs, "/b", next, shard.Last()) {
			if err != nil || e.Index != next {
				t.Fatalf("entry %d: got %d, %v", next, e.Index, err)
			}
			next++
		}
		if next != shard.Last()+1 {
			t.Errorf("shard %d: the journal ends at %d of %d", shard.Shard, next, shard.Last())
		}
		n := 0
		for e, err := range shard.Entries(t.Context(), fs, "/b", shard.Index+7, shard.Index+9) {
			if err != nil || e.Index < shard.Index+7 || e.Index > shard.Index+9 {
				t.Fatal(e, err)
			}
			n++
		}
		if n != 3 {
			t.Errorf("%d entries of three", n)
		}
	}
	if _, err := NewDirSink(fs, "/b", 0); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a second backup into the directory: %v", err)
	}
}

// iotestOneByte is a connection that hands out little at a time.
type iotestOneByte struct{ b *bytes.Buffer }

func (r iotestOneByte) Read(p []byte) (int, error) { return r.b.Read(p[:min(len(p), 997)]) }

// TestBackupDamage damages every file of a backup in turn, in every way, and Verify names the file.
//
// Mutations with which it was seen to fail, one by one: the SHA-256 of a journal file is not compared; compare does not look for what is
// missing; the names of the top directory are not compared; the ID of a snapshot is not compared with that of its manifest.
func TestBackupDamage(t *testing.T) {
	fs := vfs.NewMem()
	backupIn(t, backupWorld(t), fs, "/b")
	whole := tree(t, fs, "/b")
	r := testkit.Random(t)
	if len(whole) < 10 {
		t.Fatalf("only %d files", len(whole))
	}
	named := func(name string, err error) bool {
		// Of the manifest of a snapshot, the whole directory can be named.
		return err != nil && (strings.Contains(err.Error(), name) || strings.Contains(err.Error(), path.Dir("/b/"+name)))
	}
	for _, name := range slices.Sorted(maps.Keys(whole)) {
		try := func(what string, damage func(files map[string][]byte)) {
			t.Helper()
			files := maps.Clone(whole)
			damage(files)
			_, err := VerifyBackup(t.Context(), plant(t, files), "/b", nil)
			if !named(name, err) {
				t.Errorf("%s, %s: got %v", name, what, err)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, ErrNoBackup) && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s, %s: the error %v is of no kind", name, what, err)
			}
		}
		b := whole[name]
		for range 8 {
			bit := r.IntN(8 * len(b))
			try(fmt.Sprintf("bit %d", bit), func(f map[string][]byte) {
				f[name] = bytes.Clone(b)
				f[name][bit/8] ^= 1 << (bit % 8)
			})
		}
		try("cut off", func(f map[string][]byte) { f[name] = b[:r.IntN(len(b))] })
		try("longer", func(f map[string][]byte) { f[name] = append(bytes.Clone(b), 0) })
		try("gone", func(f map[string][]byte) { delete(f, name) })
		if name != backupName {
			for other := range whole { // of the same kind
				if other != name && path.Ext(other) == path.Ext(name) && !bytes.Equal(whole[other], b) {
					try("that of "+other, func(f map[string][]byte) { f[name] = whole[other] })
				}
			}
		}
	}
	// What was made up to fit its own checksums, and not those of the backup.
	made := func(name string, damage func(fs vfs.FS)) {
		t.Helper()
		fs := plant(t, whole)
		damage(fs)
		if _, err := VerifyBackup(t.Context(), fs, "/b", nil); !errors.Is(err, ErrCorrupt) || !named(name, err) {
			t.Errorf("%s, made up: got %v", name, err)
		}
	}
	made("journal-0000000000000009/000001.jnl", func(fs vfs.FS) {
		var out bytes.Buffer
		j, err := newJournalWriter(&out, 9, 1)
		if err != nil {
			t.Fatal(err)
		}
		for e := range entriesOf(1, 20, 10) {
			e.Data[0]++
			if err := j.add(&e); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := j.finish(); err != nil {
			t.Fatal(err)
		}
		writeT(t, fs, "/b/journal-0000000000000009/000001.jnl", out.Bytes())
	})
	made("shard-0000000000000007/MANIFEST", func(fs vfs.FS) {
		m, _, err := readManifest(fs, "/b/shard-0000000000000007")
		if err != nil {
			t.Fatal(err)
		}
		m.Config.Voters = []uint64{1, 2}
		b, _, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		writeT(t, fs, "/b/shard-0000000000000007/MANIFEST", b)
	})
	for _, extra := range []string{"x", "shard-0000000000000007/x", "journal-0000000000000009/000002.jnl", "shard-0000000000000001/MANIFEST"} {
		files := maps.Clone(whole)
		files[extra] = []byte("x")
		if _, err := VerifyBackup(t.Context(), plant(t, files), "/b", nil); err == nil || !strings.Contains(err.Error(), strings.Split(extra, "/")[0]) {
			t.Errorf("a file too many, %s: %v", extra, err)
		}
	}
	// All that is damaged, at once.
	files := maps.Clone(whole)
	for _, name := range []string{"journal-0000000000000009/000001.jnl", "journal-0000000000000007/000002.jnl", "shard-0000000000000007/000001.sst"} {
		files[name] = append(bytes.Clone(files[name]), 1)
	}
	_, err := VerifyBackup(t.Context(), plant(t, files), "/b", nil)
	for _, name := range []string{"journal-0000000000000009", "journal-0000000000000007", "000001.sst"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not in %v", name, err)
		}
	}
}

// TestBackupStreamDamage: whatever happens to a stream, no backup comes of it, and nothing is left.
//
// Mutations with which it was seen to fail, one by one: the checksum of the whole stream is not compared; what follows the end is not looked at; validName lets everything through.
func TestBackupStreamDamage(t *testing.T) {
	var stream bytes.Buffer
	if _, err := writeBackup(t.Context(), backupWorld(t), NewStreamSink(&stream)); err != nil {
		t.Fatal(err)
	}
	whole, r := stream.Bytes(), testkit.Random(t)
	refused := func(what string, b []byte) {
		t.Helper()
		fs := vfs.NewMem()
		_, err := UnpackBackup(t.Context(), bytes.NewReader(b), fs, "/b", UnpackOptions{})
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: got %v", what, err)
		}
		if left := tree(t, fs, "/b"); len(left) > 0 {
			t.Errorf("%s: %d files are left", what, len(left))
		}
	}
	for range 300 {
		b := bytes.Clone(whole)
		bit := r.IntN(8 * len(b))
		b[bit/8] ^= 1 << (bit % 8)
		refused(fmt.Sprintf("bit %d", bit), b)
		refused("cut off", whole[:r.IntN(len(whole))])
	}
	refused("one byte short", whole[:len(whole)-1])
	for what, at := range map[string]int{"its checksum": len(whole) - 1, "the shard in a name": bytes.Index(whole, []byte("0000000009/")) + 9} {
		b := bytes.Clone(whole)
		b[at] ^= 1
		refused(what, b)
	}
	refused("longer", append(bytes.Clone(whole), 0))
	for _, name := range []string{"../x", "/etc/x", "shard-0000000000000007/../x", "shard-7/MANIFEST", "x", "", "BACKUP.tmp", "shard-0000000000000007/000000.sst"} {
		var b bytes.Buffer
		s := NewStreamSink(&b)
		head := binary.BigEndian.AppendUint16([]byte{frameFile}, uint16(len(name)))
		s.write(append(head, name...))
		if err := s.out.Flush(); err != nil {
			t.Fatal(err)
		}
		refused("name "+name, b.Bytes())
		if _, err := NewStreamSink(&b).Create(name); err == nil {
			t.Errorf("a file %q is written", name)
		}
	}
}

// TestCrashOfBackup: after a crash at any point there is the whole backup, or none, and after Finish it is there.
//
// Mutations with which it was seen to fail, one by one: Finish renames before it syncs the directories, or does not sync the top one. (Files that are not synced by us are so by pebble's
// when they are closed.)
func TestCrashOfBackup(t *testing.T) {
	w := backupWorld(t)
	fs := testkit.NewCrashFS(testkit.Random(t))
	images := fs.During(func() { backupIn(t, w, fs, "/b") })
	for _, image := range images {
		if _, err := VerifyBackup(t.Context(), image, "/b", nil); err != nil && !errors.Is(err, ErrNoBackup) {
			t.Errorf("a crash has left what looks like a backup: %v", err)
		}
	}
	if _, err := VerifyBackup(t.Context(), fs.Synced(), "/b", nil); err != nil {
		t.Errorf("a finished backup is lost: %v", err)
	}
	if len(images) < 20 {
		t.Errorf("only %d crashes", len(images))
	}
}

// TestBackupErrorsOfTheDisk: every error comes out, leaves no backup, and after Abort a second try goes into the same directory.
func TestBackupErrorsOfTheDisk(t *testing.T) {
	w := backupWorld(t)
	failed := 0
	for n := int32(0); ; n++ {
		mem, index := vfs.NewMem(), errorfs.OnIndex(-1)
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				return index.MaybeError(op)
			}
			return nil
		}))
		sink, err := NewDirSink(fs, "/b", 0)
		if err != nil {
			t.Fatal(err)
		}
		index.Store(n)
		_, err = writeBackup(t.Context(), w, sink)
		met := index.Load() < 0
		index.Store(-1)
		if err == nil && !met {
			break
		}
		if err == nil {
			t.Fatalf("change %d failed, and nobody said so", n)
		}
		if failed++; !errors.Is(err, errorfs.ErrInjected) {
			t.Errorf("change %d: %v", n, err)
		}
		if _, err := VerifyBackup(t.Context(), mem, "/b", nil); err == nil {
			t.Errorf("change %d failed, and there is a backup", n) // which is not known to be durable
		}
		if err := sink.Abort(); err != nil {
			t.Fatal(err)
		}
		backupIn(t, w, mem, "/b")
		if _, err := VerifyBackup(t.Context(), mem, "/b", nil); err != nil {
			t.Errorf("change %d: the second try: %v", n, err)
		}
	}
	if failed < 20 {
		t.Errorf("only %d failures", failed)
	}
}

// The same for directories whose next sync would succeed without having written anything: see TestFailedSyncsOfDirectories.
//
// Mutation with which it was seen to fail: Finish leaves the name of the manifest.
func TestBackupAfterFailedSyncsOfDirectories(t *testing.T) {
	w := backupWorld(t)
	failed := 0
	for n := 1; ; n++ {
		fs := testkit.NewForgetfulDirs(n)
		try := func() error {
			sink, err := NewDirSink(fs, "/b", 0)
			if err != nil {
				return err
			}
			if _, err = writeBackup(t.Context(), w, sink); err != nil {
				if _, verr := VerifyBackup(t.Context(), fs, "/b", nil); verr == nil {
					t.Errorf("failure %d: there is a backup", n)
				}
				if aerr := sink.Abort(); aerr != nil {
					t.Fatal(aerr)
				}
			}
			return err
		}
		err := try()
		if err != nil {
			failed++
			err = try()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyBackup(t.Context(), fs.Synced(), "/b", nil); err != nil {
			t.Errorf("failure %d: after a loss of power: %v", n, err)
		}
		if !fs.Failed() {
			break
		}
	}
	if failed < 5 {
		t.Errorf("only %d failures", failed)
	}
}

func testBackup() *Backup {
	return &Backup{
		Cluster: "c", Library: "v", Note: "n", Node: 300, Made: 1 << 50,
		Shards: []BackupShard{
			{Shard: 1, Snapshot: ID{1}, Index: 300, Term: 2, Time: 4, Hash: 1 << 63, MachineVersion: 5, Bytes: 600,
				Journal: []JournalFile{{First: 301, Last: 310, Bytes: 400, SHA256: [32]byte{2}}}},
			{Shard: 2, Journal: []JournalFile{{First: 1, Last: 1, Bytes: 40, SHA256: [32]byte{3}}}},
		},
	}
}

// TestBackupBytes holds the formats still: what was written once must be read for ever.
func TestBackupBytes(t *testing.T) {
	b, err := testBackup().Encode()
	if err != nil {
		t.Fatal(err)
	}
	body := "0163" + "0176" + "016e" + "ac02" + "80808080808080" + "02" + "02" + // cluster, library, note, node, time, shards
		"01" + "01" + "01" + strings.Repeat("00", 31) + "ac02" + "02" + "04" + "8000000000000000" + "05" + "d804" + // shard 1, its snapshot
		"01" + "ad02" + "b602" + "9003" + "02" + strings.Repeat("00", 31) + // and journal
		"02" + "00" + "01" + "01" + "01" + "28" + "03" + strings.Repeat("00", 31) // shard 2
	want := fmt.Sprintf("%x", "DECBACKP") + "00000001" + fmt.Sprintf("%08x", len(body)/2) + body
	if got := fmt.Sprintf("%x", b[:len(b)-sha256.Size]); got != want {
		t.Errorf("manifest: got\n%s, want\n%s", got, want)
	}
	var out bytes.Buffer
	j, err := newJournalWriter(&out, 7, 300)
	if err == nil {
		err = j.add(&Entry{Index: 300, Term: 2, Type: 1, Data: []byte("abc")})
	}
	if err == nil {
		_, err = j.finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	want = fmt.Sprintf("%x", "DECJOURN") + "00000001" + "0000000000000007" + "000000000000012c" +
		"00000007" + "53b44fd9" + "ac02" + "02" + "01" + "616263"
	if got := fmt.Sprintf("%x", out.Bytes()); got != want {
		t.Errorf("journal: got\n%s, want\n%s", got, want)
	}
	out.Reset()
	s := NewStreamSink(&out)
	f, err := s.Create(backupName)
	if err == nil {
		_, err = f.Write([]byte("abc"))
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), s.Finish())
	}
	if err != nil {
		t.Fatal(err)
	}
	abc := sha256.Sum256([]byte("abc"))
	want = fmt.Sprintf("%x", "DECBKSTR") + "00000001" + "46" + "0006" + fmt.Sprintf("%x", "BACKUP") +
		"44" + "00000003" + "364b3fb7" + "616263" + "45" + "0000000000000003" + fmt.Sprintf("%x", abc) + "5a" + "00000001"
	if got := fmt.Sprintf("%x", out.Bytes()[:out.Len()-sha256.Size]); got != want {
		t.Errorf("stream: got\n%s, want\n%s", got, want)
	}
}

// TestBackupRefusals: what a manifest may not say, neither on its way out nor on its way in.
func TestBackupRefusals(t *testing.T) {
	if b, err := testBackup().Encode(); err != nil {
		t.Fatal(err)
	} else if got, err := DecodeBackup(b); err != nil || !reflect.DeepEqual(got, testBackup()) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, spoil := range map[string]func(b *Backup){
		"no shards":          func(b *Backup) { b.Shards = nil },
		"order":              func(b *Backup) { slices.Reverse(b.Shards) },
		"twice":              func(b *Backup) { b.Shards[1] = b.Shards[0] },
		"shard 0":            func(b *Backup) { b.Shards[0].Shard = 0 },
		"nothing in it":      func(b *Backup) { b.Shards[1].Journal = nil },
		"gap":                func(b *Backup) { b.Shards[0].Journal[0].First++ },
		"overlap":            func(b *Backup) { b.Shards[0].Journal[0].First-- },
		"empty file":         func(b *Backup) { b.Shards[0].Journal[0].Last = 300 },
		"not from the start": func(b *Backup) { b.Shards[1].Journal[0].First = 2; b.Shards[1].Journal[0].Last = 2 },
		"no term":            func(b *Backup) { b.Shards[0].Term = 0 },
		"large":              func(b *Backup) { b.Shards[0].Journal[0].Bytes = MaxJournalBytes + 1 },
		"cluster":            func(b *Backup) { b.Cluster = strings.Repeat("x", maxClusterBytes+1) },
		"note":               func(b *Backup) { b.Note = strings.Repeat("x", maxNoteBytes+1) },
		"time":               func(b *Backup) { b.Made = -1 },
	} {
		b := testBackup()
		spoil(b)
		if _, err := b.Encode(); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	b, err := testBackup().Encode()
	if err != nil {
		t.Fatal(err)
	}
	b[11]++
	if _, err := DecodeBackup(b); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("a newer format: %v", err)
	}
	if _, err := DecodeBackup(make([]byte, MaxBackupBytes+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large manifest: %v", err)
	}
	// Lengths are not believed: nothing of that size is allocated for them.
	head := append([]byte(journalMagic), 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1)
	j, err := NewJournalReader(bytes.NewReader(append(head, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)), "f", 1<<50)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a large record: %v", err)
	}
	stream := append([]byte(streamMagic), 0, 0, 0, 1, frameFile, 0, 6)
	stream = append(append(stream, backupName...), frameData, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	if _, err := UnpackBackup(t.Context(), bytes.NewReader(stream), vfs.NewMem(), "/b", UnpackOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a large frame: %v", err)
	}
	if _, err := ReadBackup(vfs.NewMem(), "/nowhere"); !errors.Is(err, ErrNoBackup) {
		t.Errorf("no backup: %v", err)
	}
}

// resealed is b with a right checksum, if it is long enough to have one.
func resealed(b []byte) []byte {
	if len(b) < sha256.Size {
		return b
	}
	sum := sha256.Sum256(b[:len(b)-sha256.Size])
	return append(bytes.Clone(b[:len(b)-sha256.Size]), sum[:]...)
}

func FuzzDecodeBackup(f *testing.F) {
	b, err := testBackup().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, in := range [][]byte{in, resealed(in)} {
			m, err := DecodeBackup(in)
			if err != nil {
				continue
			}
			out, err := m.Encode()
			if err != nil || !bytes.Equal(in, out) {
				t.Errorf("%x is read, and written as %x, %v", in, out, err)
			}
		}
	})
}

func FuzzJournalReader(f *testing.F) {
	var out bytes.Buffer
	j, err := newJournalWriter(&out, 7, 300)
	if err != nil {
		f.Fatal(err)
	}
	for e := range entriesOf(300, 3, 5) {
		if err := j.add(&e); err != nil {
			f.Fatal(err)
		}
	}
	if _, err := j.finish(); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := NewJournalReader(bytes.NewReader(in), "f", int64(len(in)))
		for err == nil {
			_, err = r.Next()
		}
		if err == nil {
			t.Error("no end")
		}
	})
}

func FuzzUnpack(f *testing.F) {
	var stream bytes.Buffer
	s := NewStreamSink(&stream)
	b, err := testBackup().Encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"journal-0000000000000002/000001.jnl", backupName} {
		file, err := s.Create(name)
		if err == nil {
			_, err = file.Write(b)
		}
		if err = errors.Join(err, file.Sync()); err != nil {
			f.Fatal(err)
		}
	}
	if err := s.Finish(); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, in := range [][]byte{in, resealed(in)} {
			fs := vfs.NewMem()
			if _, err := UnpackBackup(t.Context(), bytes.NewReader(in), fs, "/b", UnpackOptions{}); err != nil {
				if left := tree(t, fs, "/b"); len(left) > 0 {
					t.Errorf("%d files are left", len(left))
				}
			}
			if names, err := fs.List("/"); err != nil || len(names) > 1 {
				t.Errorf("outside of the directory: %v, %v", names, err)
			}
		}
	})
}
