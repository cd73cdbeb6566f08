package rsm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/decree-raft/decree/internal/testkit"
)

// The power of a node is cut under load, over and over on the same disk: a file system on a loop device is told to stop at once and to
// write nothing more, not even its journal, and the node is killed. What it had acknowledged is there when it is started again, and
// nothing is there twice [G8]. The control is the same node with a kernel that answers every fsync and does nothing: it must lose.
func TestPowerCut(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			cycles := *powerCycles
			if testing.Short() {
				cycles = min(cycles, 2)
			}
			begun := time.Now()
			p := cutPower(t, fsType, cycles, false)
			if p.err != nil {
				t.Fatalf("after %d power cuts and %d commands: %v\n%s", p.cycles, p.acks, p.err, p.log)
			}
			t.Logf("%d power cuts in %v, %d commands acknowledged, none lost, none doubled; of %d that were acknowledged later %d are gone",
				p.cycles, time.Since(begun).Round(time.Millisecond), p.acks, p.late, p.unfounded)
			control := cutPower(t, fsType, 5, true)
			if !errors.Is(control.err, errLost) {
				t.Fatalf("the control, without fsync, has lost nothing in %d power cuts: %v", control.cycles, control.err)
			}
			t.Logf("the control, without fsync, has lost after %d: %v", control.cycles+1, control.err)
		})
	}
}

var (
	errLost    = errors.New("lost")
	errDoubled = errors.New("doubled")
)

// power is a run of power cuts.
type power struct {
	fsType, image, dir, tmp string
	noSync                  bool
	rng                     *rand.Rand
	loop                    *os.File

	cycles, acks    int
	late, unfounded int // acknowledgements that came when the power was gone, and those of them that the disk knew nothing of
	err             error
	log             string // of the node that was wrong, its end, and of the one before whose power was cut
	told            [powerShards + 1][powerCallers]told
	cut             time.Duration // when the power was, on the clock that all processes share
	cutLog          string        // of the node whose power was, its end
}

// told is what a caller heard.
type told struct {
	acked uint64 // before the power was cut: it has to be there
	said  uint64 // at any time; one more may be there
	at    time.Duration
	// appends is how many writes the log had called durable by then, since it was opened.
	appends uint64
}

// cutPower makes a disk and cuts its power as often as told, or until something is wrong. It skips the test if the machine has not what it takes.
func cutPower(t *testing.T, fsType string, cycles int, noSync bool) *power {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs." + fsType)
	if err != nil {
		t.Skipf("there is no mkfs.%s", fsType)
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := testkit.Scratch(t)
	p := &power{
		fsType: fsType, image: filepath.Join(dir, "disk"), dir: filepath.Join(dir, "mnt"), tmp: filepath.Join(dir, "tmp"),
		noSync: noSync, rng: rand.New(rand.NewPCG(*crashSeed, uint64(cycles))),
	}
	if err := errors.Join(os.Mkdir(p.dir, 0o700), os.Mkdir(p.tmp, 0o700), os.WriteFile(p.image, nil, 0o600), os.Truncate(p.image, 320<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", p.image).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	done := make(chan error, 1)
	go func() {
		// A mount namespace of this thread alone, which ends with it: whatever happens, no mount and no loop device stays.
		// The nodes are children of the thread, and so in the namespace, and die with it.
		runtime.LockOSThread()
		done <- p.run(cycles)
	}()
	var missing missingError
	if err := <-done; errors.As(err, &missing) {
		t.Skip(missing)
	} else if err != nil {
		t.Fatal(err)
	}
	return p
}

// missingError is what the machine does not allow.
type missingError struct{ error }

// run returns an error of the machinery; what is found out about the node is in p.
func (p *power) run(cycles int) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return missingError{fmt.Errorf("no mount namespace of its own: %w", err)}
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return missingError{fmt.Errorf("mounts cannot be made private: %w", err)}
	}
	if err := p.attach(); err != nil {
		return missingError{fmt.Errorf("no loop device: %w", err)}
	}
	defer func() { err = errors.Join(err, p.loop.Close()) }()
	for p.cycles = 0; p.cycles < cycles && p.err == nil; p.cycles++ {
		if err := p.cycle(); err != nil {
			return fmt.Errorf("power cut %d: %w", p.cycles+1, err)
		}
		if p.err != nil {
			return nil
		}
	}
	// What the last one left.
	return p.mounted(func() error { return p.node(nil) })
}

// attach puts the image behind a loop device, which is free again when it is closed.
func (p *power) attach() error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	image, err := os.OpenFile(p.image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	for range 20 { // somebody else may be faster
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		if p.loop, err = os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR, 0); err != nil {
			return err
		}
		c := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		if err = unix.IoctlLoopConfigure(int(p.loop.Fd()), &c); err == nil {
			return nil
		}
		_ = p.loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return errors.New("all are busy")
}

// mounted runs f with the disk mounted.
func (p *power) mounted(f func() error) error {
	if err := unix.Mount(p.loop.Name(), p.dir, p.fsType, 0, ""); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
			return missingError{fmt.Errorf("%s cannot be mounted: %w", p.fsType, err)}
		}
		return fmt.Errorf("mount: %w", err)
	}
	err := f()
	for range 2000 {
		uerr := unix.Unmount(p.dir, 0)
		if uerr == nil {
			return err
		}
		if !errors.Is(uerr, unix.EBUSY) {
			return errors.Join(err, fmt.Errorf("unmount: %w", uerr))
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(err, errors.New("the disk stays busy"))
}

// cycle runs a node for a while and cuts its power.
func (p *power) cycle() error {
	return p.mounted(func() error {
		return p.node(func() error {
			time.Sleep(time.Duration(10+p.rng.IntN(120)) * time.Millisecond)
			return p.shutdown()
		})
	})
}

// shutdown makes the file system stop where it is: EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same call.
//
// A program sees nothing any more once the power is gone. Here it does: a fsync that is under way when ext4 stops may return success
// without having synced, since the journal's commit is gone by the time it is looked for. So what a node says counts if it was
// told before this call was begun, by a clock that both read, and not if it was told later. (To stop the process first is not enough. It
// goes on until one of its threads takes the signal, and that is the first one, which may be without a CPU, or in a fsync itself.)
func (p *power) shutdown() error {
	d, err := os.Open(p.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	const goingDown, noLogFlush = 0x8004587d, 2
	how := uint32(noLogFlush)
	p.cut = monotonic()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), goingDown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return missingError{fmt.Errorf("the file system cannot be shut down: %w", errno)}
	}
	return nil
}

// node starts a node, compares what it has with what was acknowledged, calls end when it is under load, and kills it.
func (p *power) node(end func() error) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), powerEnv+"="+p.dir, "TMPDIR="+p.tmp)
	if p.noSync {
		cmd.Env = append(cmd.Env, noSyncEnv+"=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	stderr, err := os.Create(filepath.Join(p.tmp, "stderr"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(3*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	s := bufio.NewScanner(out)
	started := false
	for !started && s.Scan() && p.err == nil {
		started = p.line(s.Text())
	}
	var acks chan string
	if started && end != nil {
		acks = make(chan string, 1<<20) // more than there can be
		go func() {
			defer close(acks)
			for s.Scan() {
				acks <- s.Text()
			}
		}()
		err = end()
	}
	_ = cmd.Process.Kill()
	if acks == nil {
		_, _ = io.Copy(io.Discard, out)
	} else {
		for line := range acks { // whenever it is heard: it has said when it was told
			if err == nil && p.err == nil {
				p.line(line)
			}
		}
	}
	_ = cmd.Wait()
	if err == nil && !started && p.err == nil {
		p.err = fmt.Errorf("the node did not start: %w", errLost)
	}
	log, rerr := os.ReadFile(stderr.Name())
	last := string(log[max(0, len(log)-16<<10):])
	if p.err != nil {
		p.log = fmt.Sprintf("the node whose power was cut:\n%s\nthe node after it:\n%s", p.cutLog, last)
	}
	p.cutLog = last
	return errors.Join(err, rerr, removeAllIn(p.tmp))
}

// line takes in what a node says, and reports whether it is ready.
func (p *power) line(line string) (ready bool) {
	what, rest, _ := strings.Cut(line, " ")
	switch what {
	case "ready":
		return true
	case "stopped": // without power
	case "error":
		p.err = fmt.Errorf("%w: the node does not start: %s", errLost, rest)
	case "have", "ack":
		var shard, caller int
		var n, appends uint64
		var at time.Duration
		if _, err := fmt.Sscan(rest, &shard, &caller, &n, (*int64)(&at), &appends); err != nil || shard < 1 || shard > powerShards || caller < 0 || caller >= powerCallers {
			p.err = fmt.Errorf("the node says %q", line)
			return false
		}
		who := fmt.Sprintf("shard %d, caller %d", shard, caller)
		if c := &p.told[shard][caller]; what == "have" {
			p.have(who, c, n)
			*c = told{acked: n, said: n, at: at, appends: appends}
		} else {
			p.ack(who, c, n, at, appends)
		}
	default:
		p.err = fmt.Errorf("the node says %q", line)
	}
	return false
}

// have compares what a caller had heard with what is there.
func (p *power) have(who string, c *told, n uint64) {
	if n < c.said && n >= c.acked {
		p.unfounded += int(c.said - n)
	}
	switch {
	case n < c.acked:
		p.err = fmt.Errorf("%w: %s: %d were acknowledged, %d are there; the last was %v before the power was cut, "+
			"when the log had called %d writes durable since it was opened", errLost, who, c.acked, n, p.cut-c.at, c.appends)
	case n > c.said+1: // one command per caller was under way, and may be there or not
		p.err = fmt.Errorf("%w: %s: %d were acknowledged, one more was submitted, %d are there", errDoubled, who, c.said, n)
	}
}

// ack takes in that a caller was told.
func (p *power) ack(who string, c *told, n uint64, at time.Duration, appends uint64) {
	if n != c.said+1 {
		p.err = fmt.Errorf("%w: %s: acknowledged %d after %d", errDoubled, who, n, c.said)
	}
	c.said = n
	if at >= p.cut {
		p.late++
		return
	}
	c.acked, c.at, c.appends = n, at, appends
	p.acks++
}

func removeAllIn(dir string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, n.Name())))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// monotonic reads the clock that all processes share.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // there is this clock on every Linux
	return time.Duration(ts.Nano())
}

// pretendToSync makes the kernel answer all syncs of this process, and not carry them out.
func pretendToSync() error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number of the call
	calls := []uint32{unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_SYNCFS}
	for i, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: uint8(len(calls) - i)})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO}) // with the number 0: success
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Not Syscall: the flag makes it true of all threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("install a filter: %w", errno)
	}
	return nil
}
