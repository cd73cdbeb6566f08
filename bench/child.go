package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Each system runs in a process of its own, a child of the one that compares them: a heap, a scheduler and a garbage
// collector are part of what is measured, and must not be shared. A child lives for one cell; the rounds are asked
// for one by one, and in between it is suspended.

// childTask is what a child is started with, as JSON on its command line.
type childTask struct {
	System string `json:"system"`
	Cell   cell   `json:"cell"`
	Dir    string `json:"dir"`
}

// roundRequest goes to a child's standard input, one JSON value per round. Its end is the order to stop.
type roundRequest struct {
	Warm time.Duration `json:"warm"`
	Span time.Duration `json:"span"`
}

// childReply comes back on file descriptor 3 (libraries print to the others): one when the system is up, one for each round.
type childReply struct {
	Result result `json:"result"`
	Error  string `json:"error,omitempty"`
}

const (
	childReplies = 3
	startTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
)

// runChild is the life of a child.
func runChild(all []contender, taskJSON string) error {
	replies := json.NewEncoder(os.NewFile(childReplies, "replies"))
	var task childTask
	if err := json.Unmarshal([]byte(taskJSON), &task); err != nil {
		return fmt.Errorf("-child: %w", err)
	}
	sys, work, err := startTask(all, task)
	if err != nil {
		return errors.Join(err, replies.Encode(childReply{Error: err.Error()}))
	}
	if err := replies.Encode(childReply{}); err != nil {
		return err
	}
	requests := json.NewDecoder(os.Stdin)
	for {
		var r roundRequest
		if err := requests.Decode(&r); errors.Is(err, io.EOF) {
			return sys.Close()
		} else if err != nil {
			return errors.Join(err, sys.Close())
		}
		if err := replies.Encode(childReply{Result: measure(sys, task.Cell, work, r.Warm, r.Span)}); err != nil {
			return errors.Join(err, sys.Close())
		}
	}
}

func startTask(all []contender, task childTask) (System, workload, error) {
	c, err := find(all, task.System)
	if err != nil {
		return nil, workload{}, err
	}
	m := c.runs(task.Cell.Machine)
	commands := newWorkload
	if c.workload != nil {
		commands = c.workload
	}
	work, err := commands(m, task.Cell.Payload)
	if err != nil {
		return nil, workload{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	sys, err := c.start(ctx, options{Dir: task.Dir, Shards: task.Cell.Shards, Machine: m})
	if err != nil {
		return nil, workload{}, fmt.Errorf("start %s: %w", c.name, err)
	}
	if err := setUp(ctx, sys, task.Cell.Shards, work); err != nil {
		return nil, workload{}, errors.Join(err, sys.Close())
	}
	return sys, work, nil
}

// child is the parent's end.
type child struct {
	name     string
	dir      string
	cmd      *exec.Cmd
	requests io.WriteCloser
	replies  *json.Decoder
	pipe     *os.File
}

// startChild starts a system for a cell in an empty directory below base, and returns when it serves.
func startChild(ctx context.Context, name string, c cell, base string, procs int) (*child, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(base, name+"-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	task, err := json.Marshal(childTask{System: name, Cell: c, Dir: dir})
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, executable, "-child", string(task))
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", procs))
	cmd.Dir = dir // dragonboat reads settings from its working directory: there are none here
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	endWithParent(cmd)
	cmd.ExtraFiles = []*os.File{write}
	requests, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	err = cmd.Start()
	write.Close() // the child's end; in the parent it would keep the pipe open after the child
	if err != nil {
		read.Close()
		return nil, err
	}
	ch := &child{name: name, dir: dir, cmd: cmd, requests: requests, replies: json.NewDecoder(read), pipe: read}
	if _, err := ch.reply(); err != nil {
		return nil, errors.Join(err, ch.stop())
	}
	return ch, ch.suspend()
}

// round has the child measure once. Between rounds it is suspended, and so costs nothing but memory.
func (ch *child) round(warm, span time.Duration) (result, error) {
	if err := ch.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return result{}, fmt.Errorf("%s: %w", ch.name, err)
	}
	if err := json.NewEncoder(ch.requests).Encode(roundRequest{warm, span}); err != nil {
		return result{}, fmt.Errorf("%s: %w", ch.name, err)
	}
	r, err := ch.reply()
	return r, errors.Join(err, ch.suspend())
}

func (ch *child) suspend() error {
	if err := ch.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("%s: %w", ch.name, err)
	}
	return nil
}

func (ch *child) reply() (result, error) {
	var r childReply
	if err := ch.replies.Decode(&r); err != nil {
		return result{}, fmt.Errorf("%s ended: %w", ch.name, err)
	}
	if r.Error != "" {
		return result{}, fmt.Errorf("%s: %s", ch.name, r.Error)
	}
	return r.Result, nil
}

// cpu is the processor time that the child has used so far.
func (ch *child) cpu() time.Duration { return childCPU(ch.cmd.Process.Pid) }

// stop ends the child, by force if it takes too long, and removes its data.
func (ch *child) stop() error {
	ch.requests.Close()
	_ = ch.cmd.Process.Signal(syscall.SIGCONT) // it fails only if the child has ended already
	patience := time.AfterFunc(stopTimeout, func() { _ = ch.cmd.Process.Kill() })
	err := ch.cmd.Wait()
	patience.Stop()
	ch.pipe.Close()
	if err != nil {
		err = fmt.Errorf("%s: %w", ch.name, err)
	}
	return errors.Join(err, os.RemoveAll(ch.dir))
}
