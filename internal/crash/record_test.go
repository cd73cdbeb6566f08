package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The recorded programs of these tests are the test binary itself, started with these variables set.
const (
	childEnv = "CRASH_TEST_CHILD"
	dirEnv   = "CRASH_TEST_DIR"
)

var programs = map[string]func(dir string) error{
	"variety": variety,
	"careful": func(dir string) error { return replaceFile(dir, true, true) },
	"no-sync": func(dir string) error { return replaceFile(dir, false, true) },
	"no-dir":  func(dir string) error { return replaceFile(dir, true, false) },
	"mapped":  func(dir string) error { return mapFile(filepath.Join(dir, "m")) },
}

func TestMain(m *testing.M) {
	if p := programs[os.Getenv(childEnv)]; p != nil {
		if err := p(os.Getenv(dirEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// recorded runs a program and returns what it did, and the directory as it left it.
func recorded(t *testing.T, program string) ([]Op, string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+program, dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	ops, err := Record(cmd, dir, time.Minute)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ops, dir
}

func mark(s string) error {
	_, err := os.NewFile(MarkFD, "marks").WriteString(s)
	return err
}

// variety does a little of everything, on several goroutines.
func variety(dir string) error {
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs <- aLittle(filepath.Join(dir, fmt.Sprint("d", i)))
		}()
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(append(all, mark("done"))...)
}

func aLittle(dir string) error {
	p := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(p("sub"), 0o700)); err != nil {
		return err
	}
	f, err := os.Create(p("a"))
	if err != nil {
		return err
	}
	for i := range 20 {
		if _, err := fmt.Fprintf(f, "line %d\n", i); err != nil {
			return err
		}
	}
	_, err = f.WriteAt([]byte("at"), 3000)
	err = errors.Join(err, f.Truncate(2000), f.Sync(), f.Close())
	for range 2 {
		g, gerr := os.OpenFile(p("b"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if gerr != nil {
			return gerr
		}
		_, werr := g.WriteString("appended")
		err = errors.Join(err, werr, g.Close())
	}
	return errors.Join(err,
		os.Link(p("b"), p("sub/b2")), os.Rename(p("a"), p("sub/a")), os.WriteFile(p("c"), []byte("first, longer"), 0o600),
		os.WriteFile(p("c"), []byte("second"), 0o600), os.Rename(p("c"), p("b")), os.WriteFile(p("gone"), []byte("x"), 0o600),
		os.Remove(p("gone")), os.Mkdir(p("old"), 0o700), os.Rename(p("old"), p("new")), os.WriteFile(p("new/in"), []byte("y"), 0o600),
		os.MkdirAll(p("tree/of/some"), 0o700), os.WriteFile(p("tree/of/file"), []byte("z"), 0o600), os.RemoveAll(p("tree")))
}

// A recording that is replayed in full gives what the program left behind.
func TestRecordingIsComplete(t *testing.T) {
	ops, dir := recorded(t, "variety")
	d := NewDisk()
	marks := 0
	for i := range ops {
		if d.Apply(&ops[i]); ops[i].Kind == Mark {
			marks++
		}
	}
	if marks != 1 {
		t.Errorf("%d marks", marks)
	}
	left, err := ReadImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Whole().Same(left); err != nil {
		for i := range ops {
			t.Log(i, &ops[i])
		}
		t.Error("replayed, then left:", err)
	}
}

// What the model does not know is refused.
func TestRecordingRefusesMappedFiles(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=mapped", dirEnv+"="+dir)
	_, err := Record(cmd, dir, time.Minute)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err == nil || !strings.Contains(err.Error(), "mapped") {
		t.Errorf("recorded a mapped file: %v", err)
	}
}

// replaceFile puts new contents in the place of a file, over and over, the way that everyone does it who knows how; or leaves a step out.
func replaceFile(dir string, syncFile, syncDir bool) error {
	for i := range 5 {
		tmp, name := filepath.Join(dir, "tmp"), filepath.Join(dir, "file")
		f, err := os.Create(tmp)
		if err != nil {
			return err
		}
		_, err = f.WriteString(strings.Repeat(fmt.Sprint(i), 1500))
		if syncFile {
			err = errors.Join(err, f.Sync())
		}
		if err = errors.Join(err, f.Close(), os.Rename(tmp, name)); err != nil {
			return err
		}
		if syncDir {
			d, err := os.Open(dir)
			if err != nil {
				return err
			}
			if err := errors.Join(d.Sync(), d.Close()); err != nil {
				return err
			}
		}
		if err := mark(fmt.Sprint(i)); err != nil {
			return err
		}
	}
	return nil
}

// The explorer finds nothing wrong with a file that is replaced as it should be, and
// finds both omissions.
func TestExplorerFindsOmissions(t *testing.T) {
	for program, right := range map[string]bool{"careful": true, "no-sync": false, "no-dir": false} {
		t.Run(program, func(t *testing.T) {
			ops, _ := recorded(t, program)
			acked := make([]int, len(ops)+1) // number of acknowledged contents before each operation
			for i := range ops {
				acked[i+1] = acked[i]
				if ops[i].Kind == Mark {
					acked[i+1]++
				}
			}
			e := Explorer{
				Ops: ops, Mixed: 3, Scratch: t.TempDir(),
				Open: func(dir string, _ uint64) any {
					b, err := os.ReadFile(filepath.Join(dir, "file"))
					switch {
					case errors.Is(err, os.ErrNotExist):
						return 0
					case err != nil:
						return err
					}
					for i := range 5 {
						if string(b) == strings.Repeat(fmt.Sprint(i), 1500) {
							return i + 1
						}
					}
					return fmt.Errorf("%d bytes that were never written", len(b))
				},
				Judge: func(outcome any, first, end int) error {
					if err, ok := outcome.(error); ok {
						return err
					}
					if n := outcome.(int); n < acked[end] || n > acked[first]+1 {
						return fmt.Errorf("version %d, and %d were acknowledged", n, acked[end])
					}
					return nil
				},
			}
			r, err := e.Run()
			if err != nil {
				t.Fatal(err)
			}
			t.Log(r)
			for i := range r.Failures {
				t.Log(&r.Failures[i])
			}
			if (len(r.Failures) == 0) != right {
				t.Errorf("%d failures", len(r.Failures))
			}
		})
	}
}
