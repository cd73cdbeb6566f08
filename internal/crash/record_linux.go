package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Record runs cmd under ptrace until it ends, and returns what it did to the files in root, which
// must be empty. The calls that change them are let through one at a time, so
// that their order is the one in which they took effect. A program that does not end within limit is killed.
//
// What the model does not know (a file that is mapped for writing, a hole that is punched) is an error,
// not a gap in the recording.
func Record(cmd *exec.Cmd, root string, limit time.Duration) ([]Op, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	type result struct {
		ops []Op
		err error
	}
	done := make(chan result, 1)
	go func() {
		// All of ptrace, the start of the child included, belongs to one thread. It is not unlocked, so it ends with
		// the goroutine, and a tracee that is left dies with it.
		runtime.LockOSThread()
		ops, err := record(cmd, root, limit)
		done <- result{ops, err}
	}()
	r := <-done
	return r.ops, r.err
}

func record(cmd *exec.Cmd, root string, limit time.Duration) ([]Op, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd.ExtraFiles = []*os.File{null}
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
			return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		return nil, err
	}
	pid := cmd.Process.Pid
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return nil, err
	}
	t := &tracer{pid: pid, root: root, threads: map[int]*thread{}, ids: map[inode]ID{inodeOf(&st): Root}, next: Root + 1}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		return nil, err
	}
	kill := func() { _ = unix.Kill(pid, unix.SIGKILL) }
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		kill()
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	timer := time.AfterFunc(limit, kill)
	defer timer.Stop()
	t.threads[pid] = &thread{tid: pid}
	t.resume(pid, 0)
	for len(t.threads) > 0 {
		// Only children of this very thread: the test process may have others.
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			kill()
			return nil, fmt.Errorf("wait for the recorded program: %w", err)
		}
		t.event(tid, ws)
		if t.err != nil {
			kill()
		}
	}
	if t.err != nil {
		return nil, t.err
	}
	if t.status.Signaled() || t.status.ExitStatus() != 0 {
		return nil, fmt.Errorf("the recorded program ended with status %d, signal %d", t.status.ExitStatus(), t.status.Signal())
	}
	return t.ops, nil
}

type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// tracer is the state of a recording.
type tracer struct {
	pid     int
	root    string
	threads map[int]*thread
	busy    *thread   // is inside a call that matters; nil if none
	waiting []*thread // at the entry of one
	ids     map[inode]ID
	next    ID
	ops     []Op
	status  unix.WaitStatus // of the program
	err     error
}

// thread is one of the program's.
type thread struct {
	tid  int
	call call
}

// call is a system call between entry and exit.
type call struct {
	nr   uint64
	args [6]uint64
	// What was true before it.
	file            ID
	path, old       string
	existed, isFile bool
	size            int64
}

// syscallInfo is what PTRACE_GET_SYSCALL_INFO fills in: the same on every architecture.
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	arch   uint32
	ip, sp uint64
	data   [8]uint64 // entry: number, arguments; exit: result, and whether it is an error
}

const (
	ptraceGetSyscallInfo = 0x420e
	infoEntry, infoExit  = 1, 2
)

func (t *tracer) resume(tid, signal int) {
	if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
		t.fail("resume thread %d: %w", tid, err)
	}
}

func (t *tracer) fail(format string, args ...any) {
	if t.err == nil {
		t.err = fmt.Errorf("crash: recording: "+format, args...)
	}
}

// event takes in what happened to a thread, and lets it go on unless it must wait.
func (t *tracer) event(tid int, ws unix.WaitStatus) {
	th := t.threads[tid]
	if th == nil {
		th = &thread{tid: tid}
		t.threads[tid] = th
	}
	switch {
	case ws.Exited(), ws.Signaled():
		if tid == t.pid {
			t.status = ws
		}
		delete(t.threads, tid)
		if t.busy == th {
			t.busy = nil
			t.admit()
		}
		return
	case !ws.Stopped():
		return
	}
	switch sig := ws.StopSignal(); {
	case sig == unix.SIGTRAP|0x80:
		t.syscall(th)
	case sig == unix.SIGTRAP || sig == unix.SIGSTOP:
		t.resume(tid, 0) // a thread made, or begun
	default:
		t.resume(tid, int(sig))
	}
}

// syscall handles entry and exit of a call.
func (t *tracer) syscall(th *thread) {
	var info syscallInfo
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(th.tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		if errno != unix.ESRCH {
			t.fail("PTRACE_GET_SYSCALL_INFO: %w", errno)
		}
		t.resume(th.tid, 0)
		return
	}
	switch {
	case info.op == infoExit && t.busy == th:
		if info.data[1]&0xff == 0 {
			t.exit(th, int64(info.data[0]))
		}
		t.busy = nil
		t.resume(th.tid, 0)
		t.admit()
	case info.op == infoEntry:
		th.call = call{nr: info.data[0], args: [6]uint64(info.data[1:7])}
		if !t.matters(th) {
			t.resume(th.tid, 0)
			return
		}
		t.waiting = append(t.waiting, th)
		t.admit()
	default:
		t.resume(th.tid, 0)
	}
}

// admit lets the next thread into its call, if none is inside one.
func (t *tracer) admit() {
	for t.busy == nil && len(t.waiting) > 0 {
		th := t.waiting[0]
		t.waiting = t.waiting[1:]
		if t.threads[th.tid] != th {
			continue // it died
		}
		t.busy = th
		t.enter(th)
		t.resume(th.tid, 0)
	}
}

// matters reports whether a call may change files of the recording.
func (t *tracer) matters(th *thread) bool {
	c := &th.call
	switch c.nr {
	case unix.SYS_OPENAT:
		return c.args[2]&(unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_RDWR) != 0
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_MKNODAT:
		return true
	case unix.SYS_WRITE:
		if c.args[0] == MarkFD {
			return true
		}
		fallthrough
	case unix.SYS_PWRITE64, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE,
		unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_SENDFILE, unix.SYS_COPY_FILE_RANGE:
		c.file = t.fileOf(th, c.args[0])
		return c.file != 0
	case unix.SYS_MMAP:
		if c.args[3]&unix.MAP_SHARED != 0 && c.args[2]&unix.PROT_WRITE != 0 && t.fileOf(th, c.args[4]) != 0 {
			t.fail("a file is mapped for writing, which is not in the model")
		}
	case unix.SYS_IO_URING_SETUP:
		t.fail("io_uring is not in the model")
	case unix.SYS_SYNC, unix.SYS_SYNCFS:
		t.fail("sync and syncfs are not in the model")
	default:
		if legacyCall(c.nr) && t.inRoot(t.path(th, unix.AT_FDCWD, c.args[0])) != "" {
			t.fail("system call %d with a path is not in the model", c.nr)
		}
	}
	return false
}

// fileOf returns which file of the recording a descriptor is, 0 if none.
func (t *tracer) fileOf(th *thread, fd uint64) ID {
	if int32(fd) < 0 {
		return 0
	}
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", t.pid, int32(fd)), &st) != nil {
		return 0
	}
	return t.ids[inodeOf(&st)]
}

// path reads a path argument and makes it absolute.
func (t *tracer) path(th *thread, dirfd int, addr uint64) string {
	b := make([]byte, unix.PathMax)
	n := 0
	for n < len(b) && bytes.IndexByte(b[:n], 0) < 0 {
		// A page at a time: what lies behind the string may not be readable.
		page := min(len(b)-n, int(4096-(addr+uint64(n))%4096))
		got, err := t.read(addr+uint64(n), b[n:n+page])
		if err != nil {
			return ""
		}
		n += got
	}
	p, _, _ := strings.Cut(string(b[:n]), "\x00")
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	link := fmt.Sprintf("/proc/%d/cwd", t.pid)
	if dirfd != unix.AT_FDCWD {
		link = fmt.Sprintf("/proc/%d/fd/%d", t.pid, dirfd)
	}
	dir, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	return filepath.Join(dir, p)
}

func (t *tracer) read(addr uint64, b []byte) (int, error) {
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	return unix.ProcessVMReadv(t.pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
}

// inRoot returns the path within the recorded directory, "" if it is not there.
func (t *tracer) inRoot(path string) string {
	rel, ok := strings.CutPrefix(path, t.root+"/")
	if !ok {
		return ""
	}
	return rel
}

// lookup returns the recorded file under an absolute path, 0 if there is none.
func (t *tracer) lookup(path string) (ID, *unix.Stat_t) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0, nil
	}
	return t.ids[inodeOf(&st)], &st
}

// enter notes down what is true before a call.
func (t *tracer) enter(th *thread) {
	c := &th.call
	at := func(dirfd, path int) string { return t.path(th, int(int32(c.args[dirfd])), c.args[path]) }
	switch c.nr {
	case unix.SYS_OPENAT, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT:
		c.path = at(0, 1)
	case unix.SYS_SYMLINKAT:
		c.path = at(1, 2)
	case unix.SYS_MKNODAT:
		c.path = at(0, 1)
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		c.old, c.path = at(0, 1), at(2, 3)
	}
	if c.path != "" {
		look := c.path
		if c.old != "" {
			look = c.old
		}
		var st *unix.Stat_t
		if c.file, st = t.lookup(look); st != nil {
			c.existed, c.isFile, c.size = true, st.Mode&unix.S_IFMT == unix.S_IFREG, st.Size
		}
	}
}

// exit records a call that succeeded with result r.
func (t *tracer) exit(th *thread, r int64) {
	c := &th.call
	if c.path != "" && t.inRoot(c.path) == "" && (c.old == "" || t.inRoot(c.old) == "") {
		return // elsewhere
	}
	switch c.nr {
	case unix.SYS_OPENAT:
		t.opened(c)
	case unix.SYS_MKDIRAT:
		t.made(c, Mkdir)
	case unix.SYS_UNLINKAT:
		t.add(t.named(Op{Kind: Unlink, File: c.file}, c.path))
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		if c.nr == unix.SYS_RENAMEAT2 && c.args[4] != 0 || c.file == 0 || t.inRoot(c.path) == "" {
			t.fail("renaming %s to %s is not in the model", c.old, c.path)
			return
		}
		o := t.named(Op{Kind: Rename, File: c.file}, c.old)
		o.OldDir, o.OldName = o.Dir, o.Name
		t.add(t.named(o, c.path))
	case unix.SYS_LINKAT:
		t.add(t.named(Op{Kind: Link, File: c.file}, c.path))
	case unix.SYS_WRITE:
		if c.args[0] == MarkFD {
			t.add(Op{Kind: Mark, Data: t.bytes(c.args[1], r)})
			return
		}
		t.wrote(th, t.position(c.args[0])-r, r)
	case unix.SYS_PWRITE64:
		t.wrote(th, int64(c.args[3]), r)
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		t.add(Op{Kind: Sync, File: c.file, Path: t.nameOf(c.args[0])})
	case unix.SYS_FTRUNCATE:
		t.add(Op{Kind: Truncate, File: c.file, Offset: int64(c.args[1]), Path: t.nameOf(c.args[0])})
	case unix.SYS_FALLOCATE:
		switch c.args[1] {
		case 0:
			t.add(Op{Kind: Extend, File: c.file, Offset: int64(c.args[2] + c.args[3]), Path: t.nameOf(c.args[0])})
		case unix.FALLOC_FL_KEEP_SIZE:
		case unix.FALLOC_FL_ZERO_RANGE: // any part of it may be lost, as of a write
			t.add(Op{Kind: Write, File: c.file, Offset: int64(c.args[2]), Data: make([]byte, c.args[3]), Path: t.nameOf(c.args[0])})
		default:
			t.fail("fallocate with mode %d is not in the model", c.args[1])
		}
	default:
		t.fail("system call %d on %s is not in the model", c.nr, c.path+t.nameOf(c.args[0]))
	}
}

func (t *tracer) add(o Op) { t.ops = append(t.ops, o) }

// named fills in directory and name of a path.
func (t *tracer) named(o Op, path string) Op {
	dir, _ := t.lookup(filepath.Dir(path))
	if dir == 0 {
		t.fail("%s is in a directory that was not recorded", path)
	}
	o.Dir, o.Name, o.Path = dir, filepath.Base(path), t.inRoot(path)
	return o
}

// made records a file or directory that is new.
func (t *tracer) made(c *call, kind Kind) {
	o := t.named(Op{Kind: kind, File: t.next}, c.path)
	var st unix.Stat_t
	if err := unix.Lstat(c.path, &st); err != nil {
		t.fail("look at %s: %w", c.path, err)
		return
	}
	t.ids[inodeOf(&st)] = t.next // if the number was another file's, that one is gone
	t.next++
	t.add(o)
}

func (t *tracer) opened(c *call) {
	if c.args[2]&(unix.O_SYNC|unix.O_DSYNC|unix.O_DIRECT) != 0 || c.args[2]&unix.O_TMPFILE == unix.O_TMPFILE {
		t.fail("opening %s with flags %#x is not in the model", c.path, c.args[2])
		return
	}
	switch {
	case !c.existed:
		t.made(c, Create)
	case c.isFile && c.args[2]&unix.O_TRUNC != 0 && c.size > 0:
		t.add(Op{Kind: Truncate, File: c.file, Path: t.inRoot(c.path)})
	}
}

func (t *tracer) wrote(th *thread, offset, n int64) {
	if n > 0 {
		t.add(Op{Kind: Write, File: th.call.file, Offset: offset, Data: t.bytes(th.call.args[1], n), Path: t.nameOf(th.call.args[0])})
	}
}

// bytes copies what the program wrote.
func (t *tracer) bytes(addr uint64, n int64) []byte {
	b := make([]byte, n)
	if n == 0 {
		return b
	}
	if got, err := t.read(addr, b); err != nil || got != len(b) {
		t.fail("read %d bytes of the program: %d, %w", n, got, err)
	}
	return b
}

// position is where a descriptor stands.
func (t *tracer) position(fd uint64) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", t.pid, fd))
	if err != nil {
		t.fail("position of a file: %w", err)
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "pos:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				t.fail("position of a file: %w", err)
			}
			return n
		}
	}
	t.fail("position of a file: %q", b)
	return 0
}

// nameOf is the path of a descriptor's file, for people.
func (t *tracer) nameOf(fd uint64) string {
	p, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", t.pid, fd))
	if p == t.root {
		return "."
	}
	return t.inRoot(p)
}
