package wal

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A failed write or fsync kills the log: whatever comes after gets the same error, even if
// the disk has recovered, and nothing of it is found at the next start.
func TestFailureIsForEver(t *testing.T) {
	for name, device := range map[string]string{
		"write fails": "/dev/full", // ENOSPC
		"fsync fails": "/dev/null", // takes the write; fdatasync is EINVAL
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w, _ := openT(t, dir)
			appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, 1, 1, 5)})
			restore := replaceFile(t, filepath.Join(dir, segmentDir, segmentName(0, 0)), device)
			err := w.Append([]Record{{Shard: 1, Entries: entriesOf(1, 2, 2, 5)}})
			if err == nil {
				t.Fatal("append succeeds without a disk")
			}
			restore()
			for range 3 {
				if again := w.Append([]Record{{Shard: 1, Entries: entriesOf(1, 2, 2, 5)}}); again != err {
					t.Fatalf("got %v, want %v again", again, err)
				}
			}
			if s := w.Stats(); s.Appends != 1 {
				t.Fatalf("stats %+v", s)
			}
			w.Close()
			_, rec := openT(t, dir)
			wantEntries(t, rec, 1, entriesOf(1, 1, 1, 5)) // the second never reached the disk
		})
	}
}

// replaceFile puts a device behind the descriptor that this process has of path; restore undoes it.
func replaceFile(t *testing.T, path, device string) (restore func()) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { dev.Close() })
	for _, d := range fds {
		fd, err := strconv.Atoi(d.Name())
		if err != nil {
			t.Fatal(err)
		}
		if to, _ := os.Readlink(filepath.Join("/proc/self/fd", d.Name())); to != path {
			continue
		}
		saved, err := syscall.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Dup3(int(dev.Fd()), fd, syscall.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := syscall.Dup3(saved, fd, syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			syscall.Close(saved)
		}
	}
	t.Fatalf("%s is not open", path)
	return nil
}

// The file of a released segment is closed too: otherwise its space would never come back.
func TestReleasedSegmentsAreClosed(t *testing.T) {
	dir := t.TempDir()
	w, _ := openT(t, dir)
	for i := uint64(1); i <= 12; i++ {
		appendT(t, w, Record{Shard: 1, Entries: entriesOf(1, i, i, tiny)})
		w.Flushed(1, i)
	}
	if w.Stats().Released < 5 {
		t.Fatalf("stats %+v", w.Stats())
	}
	w.closing.Wait()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	for _, d := range fds {
		to, _ := os.Readlink(filepath.Join("/proc/self/fd", d.Name()))
		if strings.HasPrefix(to, dir) && strings.HasSuffix(to, ".wal (deleted)") {
			t.Errorf("%s is still open", to)
		}
	}
}
