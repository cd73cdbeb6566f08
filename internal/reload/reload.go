// Package reload keeps what was read from files, and reads it again when they change. It has no goroutines: whoever asks for the
// value looks at the files. Certificates and tokens are replaced that way while a port is open.
package reload

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/decree-raft/decree/internal/limitlog"
)

// Files is a value that is read from files. Safe for concurrent use.
type Files[T any] struct {
	what  string
	paths []string
	every time.Duration
	read  func() (T, error)
	log   *limitlog.Log

	value  atomic.Pointer[T]
	opened time.Time
	looked atomic.Int64 // when the files were last looked at, after opened

	mu     sync.Mutex // held by who looks
	stamps stamps
}

// stamps are what the files look like at a time.
type stamps struct {
	files []os.FileInfo
	at    time.Time
}

// settled is how old a file must be when it is looked at, so that it looks another way when it is changed once more: file systems tell times apart by ticks,
// of milliseconds, or of two seconds.
const settled = 3 * time.Second

// Open reads the files for the first time; its error is that of read, or says which file is missing. The files are looked at
// again at most once in every; 0: whenever the value is asked for. what names them in the log, as in "TLS files".
func Open[T any](what string, paths []string, every time.Duration, log *slog.Logger, read func() (T, error)) (*Files[T], error) {
	f := &Files[T]{what: what, paths: paths, every: every, read: read, log: limitlog.New(log), opened: time.Now()}
	stamps, err := f.stat()
	if err != nil {
		return nil, err
	}
	value, err := read()
	if err != nil {
		return nil, err
	}
	f.stamps = stamps
	f.value.Store(&value)
	return f, nil
}

// Current returns the newest value that could be read. A change that cannot be read is logged, and what was read last stays in
// use: the files that belong together are rarely replaced in one instant.
func (f *Files[T]) Current() T {
	if f.every > 0 {
		if now := time.Since(f.opened); now-time.Duration(f.looked.Load()) < f.every || !f.mu.TryLock() {
			return *f.value.Load()
		}
	} else {
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	f.look()
	f.looked.Store(int64(time.Since(f.opened)))
	return *f.value.Load()
}

func (f *Files[T]) look() {
	// The stamps are older than what is read: what changes in between is read again.
	stamps, err := f.stat()
	if err == nil && f.stamps.same(stamps) {
		return
	}
	var value T
	if err == nil {
		value, err = f.read()
	}
	if err != nil {
		f.log.Warn(limitlog.Key{Reason: err.Error()}, "changed "+f.what+" cannot be used, the last ones stay in use", "err", err)
		return
	}
	f.stamps = stamps
	f.value.Store(&value)
}

// same reports whether the files are certainly the same as they were at s.
func (s stamps) same(now stamps) bool {
	for i, was := range s.files {
		// A file that was moved here may be as old and as long.
		if is := now.files[i]; !is.ModTime().Equal(was.ModTime()) || is.Size() != was.Size() || !os.SameFile(is, was) {
			return false
		}
		if s.at.Sub(was.ModTime()).Abs() < settled { // a time that lies far ahead is nobody's tick
			return false
		}
	}
	return true
}

func (f *Files[T]) stat() (s stamps, err error) {
	s.at = time.Now()
	for _, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return s, fmt.Errorf("%s: %w", f.what, err)
		}
		s.files = append(s.files, info)
	}
	return s, nil
}
