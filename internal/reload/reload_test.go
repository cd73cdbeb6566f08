package reload

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// open reads two files into one string; "bad" cannot be used. reads counts.
func open(t *testing.T, every time.Duration, log *slog.Logger, paths ...string) (f *Files[string], reads *int) {
	t.Helper()
	reads = new(int)
	f, err := Open("test files", paths, every, log, func() (string, error) {
		*reads++
		var text string
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			text += string(b)
		}
		if strings.Contains(text, "bad") {
			return "", errors.New("it is bad")
		}
		return text, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, reads
}

// older makes a file one that was written a minute ago.
func older(t *testing.T, path string) {
	t.Helper()
	past := time.Now().Add(-time.Minute)
	if err := os.Chtimes(path, past, past); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "a1")
	older(t, a)
	write(t, b, "b1")
	older(t, b)
	var log bytes.Buffer
	f, reads := open(t, 0, slog.New(slog.NewTextHandler(&log, nil)), a, b)
	expect := func(text string) {
		t.Helper()
		if got := f.Current(); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	expect("a1b1")
	expect("a1b1")
	if *reads != 1 {
		t.Errorf("read %d times", *reads)
	}
	write(t, b, "b22")
	expect("a1b22")
	// One that is moved here is as old and as long as what was there.
	info, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	write(t, a+".new", "a9")
	if err := os.Chtimes(a+".new", info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a+".new", a); err != nil {
		t.Fatal(err)
	}
	expect("a9b22")
	write(t, b, "bad")
	for range 5 {
		expect("a9b22")
	}
	if strings.Count(log.String(), "changed test files cannot be used") != 1 || !strings.Contains(log.String(), "it is bad") {
		t.Errorf("%q", log.String())
	}
	if err := os.Remove(b); err != nil {
		t.Fatal(err)
	}
	expect("a9b22")
	write(t, b, "b333")
	expect("a9b333")
}

// A file that is written twice within one tick of the file system's clock, and has as many bytes, is read again. One that has been as it is for long is not.
func TestSameTick(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "a1")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, reads := open(t, 0, nil, path)
	write(t, path, "a2")
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got := f.Current(); got != "a2" {
		t.Errorf("got %q", got)
	}
	for _, at := range []time.Time{time.Now().Add(-time.Minute), time.Now().Add(time.Hour)} {
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		f.Current()
		*reads = 0
		for range 5 {
			f.Current()
		}
		if *reads != 0 {
			t.Errorf("a file of %v is read %d times", at, *reads)
		}
	}
}

func TestEvery(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "old")
	rare, _ := open(t, time.Hour, nil, path)
	often, _ := open(t, time.Millisecond, nil, path)
	write(t, path, "newer")
	if got := rare.Current(); got != "old" {
		t.Errorf("looked at once: %q", got)
	}
	for end := time.Now().Add(20 * time.Second); often.Current() != "newer"; {
		if time.Now().After(end) {
			t.Fatal("the change is not seen")
		}
	}
}

func TestOpenRefused(t *testing.T) {
	if _, err := Open("test files", []string{filepath.Join(t.TempDir(), "none")}, 0, nil, func() (int, error) { return 0, nil }); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open("test files", nil, 0, nil, func() (int, error) { return 0, os.ErrInvalid }); !errors.Is(err, os.ErrInvalid) {
		t.Error(err)
	}
}

// Many ask while the file changes: everyone gets something that was there.
func TestConcurrent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "1")
	for _, every := range []time.Duration{0, time.Microsecond} {
		f, _ := open(t, every, nil, path)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 200 {
					if got := f.Current(); strings.Trim(got, "1") != "" {
						t.Errorf("%q", got)
					}
				}
			})
		}
		for i := range 50 {
			write(t, path, strings.Repeat("1", i%7+1))
		}
		wg.Wait()
	}
}
