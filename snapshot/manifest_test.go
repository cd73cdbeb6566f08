package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"

	"github.com/decree-raft/decree/internal/state"
)

func testManifest() *Manifest {
	return &Manifest{
		Info: Info{Cluster: "c", Term: 300, MachineVersion: 1, Time: 1 << 50, Hash: 1 << 63,
			Config: Config{Voters: []uint64{1, 2, 300}, Outgoing: []uint64{2, 5}, Learners: []uint64{7}, LearnersNext: []uint64{5}, AutoLeave: true}},
		Shard: 1 << 40, Index: 1 << 41, TablesVersion: state.TablesVersion,
		Sections:   []state.Section{{Kind: 'd', Keys: 1000, Bytes: 1 << 30}, {Kind: 'm', Keys: 1, Bytes: 60}},
		ChunkBytes: MinChunkBytes,
		Files: []File{
			{Bytes: MinChunkBytes, SHA256: [32]byte{1}, Chunks: []uint32{0xdeadbeef}},
			{Bytes: MinChunkBytes + 1, SHA256: [32]byte{2}, Chunks: []uint32{1, 2}},
		},
	}
}

// TestManifestBytes holds the format still: what was written once must be read for ever.
func TestManifestBytes(t *testing.T) {
	m := testManifest()
	m.Files = m.Files[:1]
	b, id, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := "44454353" + "4e415053" + "00000001" + "00000064" + // magic, version, length
		"0163" + "808080808020" + "808080808040" + "ac02" + "80808080808080" + "02" + // cluster, shard, index, term, time
		"8000000000000000" + "01" + "01" + // hash, machine version, tables version
		"030102ac02" + "020205" + "0107" + "0105" + "01" + // configuration
		"02" + "64e8078080808004" + "6d013c" + // sections
		"8020" + "01" + // chunk bytes, files
		"8020" + "01" + fmt.Sprintf("%062x", 0) + "deadbeef"
	got := fmt.Sprintf("%x", b[:len(b)-sha256.Size])
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	if sum := sha256.Sum256(b[:len(b)-sha256.Size]); id != ID(sum) || !bytes.Equal(b[len(b)-sha256.Size:], sum[:]) {
		t.Error("checksum")
	}
}

func TestManifestRoundTrip(t *testing.T) {
	m := testManifest()
	b, id, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, gotID, err := Decode(b)
	if err != nil || gotID != id || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if _, _, err := Decode(bad); err == nil {
			t.Errorf("byte %d is not covered", i)
		}
		if _, _, err := Decode(b[:i]); err == nil {
			t.Errorf("%d bytes are enough", i)
		}
	}
}

// resum gives made up bytes a header and a checksum that hold.
func resum(b []byte) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint32(b[headerBytes-4:], uint32(len(b)-headerBytes))
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func TestManifestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *Manifest)
		want   error
	}{
		"newer tables":         {func(m *Manifest) { m.TablesVersion++ }, ErrNewerFormat},
		"tables 0":             {func(m *Manifest) { m.TablesVersion = 0 }, ErrCorrupt},
		"cluster":              {func(m *Manifest) { m.Cluster = string(make([]byte, maxClusterBytes+1)) }, ErrTooLarge},
		"shard 0":              {func(m *Manifest) { m.Shard = 0 }, ErrCorrupt},
		"index 0":              {func(m *Manifest) { m.Index = 0 }, ErrCorrupt},
		"last index":           {func(m *Manifest) { m.Index = math.MaxUint64 }, ErrCorrupt},
		"term 0":               {func(m *Manifest) { m.Term = 0 }, ErrCorrupt},
		"negative time":        {func(m *Manifest) { m.Time = -1 }, ErrCorrupt},
		"small chunks":         {func(m *Manifest) { m.ChunkBytes = 1 }, ErrCorrupt},
		"large chunks":         {func(m *Manifest) { m.ChunkBytes = 2 * MaxChunkBytes }, ErrCorrupt},
		"odd chunks":           {func(m *Manifest) { m.ChunkBytes = MinChunkBytes + 1 }, ErrCorrupt},
		"no files":             {func(m *Manifest) { m.Files = nil }, ErrTooLarge},
		"too many files":       {func(m *Manifest) { m.Files = make([]File, MaxFiles+1) }, ErrTooLarge},
		"empty file":           {func(m *Manifest) { m.Files[0].Bytes = 0 }, ErrTooLarge},
		"negative file":        {func(m *Manifest) { m.Files[0].Bytes = -1 }, ErrTooLarge},
		"huge file":            {func(m *Manifest) { m.Files[0].Bytes = math.MaxInt64 }, ErrTooLarge},
		"too few chunks":       {func(m *Manifest) { m.Files[1].Bytes = 2*MinChunkBytes + 1 }, ErrCorrupt},
		"too many chunks":      {func(m *Manifest) { m.Files[1].Bytes = MinChunkBytes }, ErrCorrupt},
		"sections":             {func(m *Manifest) { m.Sections[1].Kind = 'd' }, ErrCorrupt},
		"empty section":        {func(m *Manifest) { m.Sections[1].Keys = 0 }, ErrCorrupt},
		"no voters":            {func(m *Manifest) { m.Config.Voters = nil }, ErrCorrupt},
		"too many voters":      {func(m *Manifest) { m.Config.Voters = make([]uint64, maxMembers+1) }, ErrTooLarge},
		"voter 0":              {func(m *Manifest) { m.Config.Voters[0] = 0 }, ErrCorrupt},
		"voter twice":          {func(m *Manifest) { m.Config.Voters[1] = 1 }, ErrCorrupt},
		"voter and learner":    {func(m *Manifest) { m.Config.Learners[0] = 2 }, ErrCorrupt},
		"next without leaving": {func(m *Manifest) { m.Config.LearnersNext[0] = 1 }, ErrCorrupt},
		"leaves nothing":       {func(m *Manifest) { m.Config.Outgoing, m.Config.LearnersNext = nil, nil }, ErrCorrupt},
	} {
		m := testManifest()
		c.change(m)
		if _, _, err := m.Encode(); !errors.Is(err, c.want) {
			t.Errorf("%s: encoded: %v", name, err)
		}
	}
	good, _, err := testManifest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	good = good[:len(good)-sha256.Size]
	newer := bytes.Clone(good)
	newer[len(manifestMagic)+3]++
	older := bytes.Clone(good)
	older[len(manifestMagic)+3]--
	body := func(b ...byte) []byte { return append(bytes.Clone(good[:headerBytes]), b...) }
	long := bytes.Clone(good[:headerBytes])
	long = append(long, 0x81, 0x00) // a length of 1, in two bytes
	long = append(long, good[headerBytes+1:]...)
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"newer":          {resum(newer), ErrNewerFormat},
		"version 0":      {resum(older), ErrCorrupt},
		"more bytes":     {resum(append(bytes.Clone(good), 0)), ErrCorrupt},
		"no body":        {resum(body()), ErrCorrupt},
		"long cluster":   {resum(body(0xff, 0xff, 0x03)), ErrCorrupt},
		"long encoding":  {resum(long), ErrCorrupt},
		"length differs": {append(bytes.Clone(good), make([]byte, 2*sha256.Size)...), ErrCorrupt},
	} {
		if _, _, err := Decode(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecode: no bytes make it panic or allocate beyond its limits, and what it accepts has this one encoding.
func FuzzDecode(f *testing.F) {
	b, _, err := testManifest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[headerBytes : len(b)-sha256.Size])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _, _ = Decode(body)
		// With a header and a checksum that hold, the rest is met at all.
		whole := resum(append(append([]byte(nil), b[:headerBytes]...), body...))
		m, id, err := Decode(whole)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrNewerFormat) {
				t.Fatalf("%v", err)
			}
			return
		}
		again, againID, err := m.Encode()
		if err != nil || againID != id || !bytes.Equal(again, whole) {
			t.Fatalf("decoded and encoded again it is another: %v", err)
		}
	})
}
