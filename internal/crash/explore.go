package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Explorer opens every state that a crash in a recording could have left.
type Explorer struct {
	Ops  []Op
	Seed uint64
	// Sample is about how many states are made and opened, drawn evenly from all by the seed, beside
	// those after the last operation: what the program leaves when it has ended is always looked at. 0 is all.
	Sample int
	// At, if set, says after which operations a crash is assumed.
	At func(i int) bool
	// Mixed is how many random mixtures are made per operation.
	Mixed int
	// Limit bounds the time; what is left over then is counted as skipped, but for the states after the last operation. 0 is ten minutes.
	Limit time.Duration
	// Scratch is where directories are made; a file system in memory is best. Empty: the system's place for temporary files.
	Scratch string
	// Open opens the files in dir as the program would, and returns what it found: the
	// outcome, an error included, is kept per image. It is called on several goroutines and may change dir.
	Open func(dir string, sum uint64) any
	// Judge says whether an outcome is right after every crash that leaves its image: the earliest
	// comes right behind operation first, the latest right before operation end.
	Judge func(outcome any, first, end int) error
	// Failures bounds how many are reported. 0 is 10.
	Failures int
}

// Report tells what an Explorer did.
type Report struct {
	Ops, Crashes int // operations, and those after which a crash was assumed
	States       int // that there are
	Made         int // of them
	Opened       int // images that differ from each other
	Skipped      int // states, for lack of time
	Took         time.Duration
	Failures     []Failure
}

func (r *Report) String() string {
	return fmt.Sprintf("%d operations, %d crash points, %d states; %d made, %d different ones opened in %v (%.0f made/s, %.0f opened/s), %d skipped, %d failures",
		r.Ops, r.Crashes, r.States, r.Made, r.Opened, r.Took.Round(time.Millisecond),
		float64(r.Made)/r.Took.Seconds(), float64(r.Opened)/r.Took.Seconds(), r.Skipped, len(r.Failures))
}

// Failure is a state that was not judged right.
type Failure struct {
	Op    int    // after which the crash came
	What  string // operation and state, in words
	Image *Image
	Err   error
}

func (f *Failure) String() string {
	return fmt.Sprintf("crash after %s, image %016x: %v", f.What, f.Image.sum, f.Err)
}

// seen is what is known of an image.
type seen struct {
	image      *Image // only until it is opened, and of a failure
	first, end int
	what       string
	outcome    any
}

// Run explores. An error is one of the machinery; what was found is in the report.
func (e *Explorer) Run() (*Report, error) {
	begun := time.Now()
	limit := e.Limit
	if limit == 0 {
		limit = 10 * time.Minute
	}
	scratch, err := os.MkdirTemp(e.Scratch, "crash-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	r := &Report{Ops: len(e.Ops)}
	images := map[uint64]*seen{}
	var order []*seen
	jobs := make(chan *seen, 64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var broken error
	for i := range runtime.NumCPU() {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for s := range jobs {
				if err := e.open(filepath.Join(scratch, fmt.Sprint(i)), s); err != nil {
					mu.Lock()
					broken = err
					mu.Unlock()
				}
			}
		}()
	}
	every := uint64(1)
	if e.Sample > 0 {
		all := 0
		e.each(func(int, int, *Disk, func() string, []part) { all++ })
		every = uint64(max(1, all/e.Sample))
	}
	r.Crashes = e.each(func(i, end int, d *Disk, label func() string, keep []part) {
		r.States++
		if every > 1 && end < len(e.Ops) && mix(uint64(r.States), e.Seed)%every != 0 {
			return
		}
		if end < len(e.Ops) && time.Since(begun) > limit {
			r.Skipped++
			return
		}
		r.Made++
		m := d.image(keep)
		s := images[m.sum]
		if s != nil {
			s.end = end
			return
		}
		s = &seen{image: m, first: i, end: end, what: fmt.Sprintf("operation %d (%s), %s", i, &e.Ops[i], label())}
		images[m.sum] = s
		order = append(order, s)
		jobs <- s
	})
	close(jobs)
	wg.Wait()
	if broken != nil {
		return nil, broken
	}
	r.Opened = len(order)
	most := e.Failures
	if most == 0 {
		most = 10
	}
	for _, s := range order {
		if len(r.Failures) == most {
			break
		}
		if err := e.Judge(s.outcome, s.first, s.end); err != nil {
			r.Failures = append(r.Failures, Failure{Op: s.first, What: s.what, Image: s.image, Err: err})
		}
	}
	r.Took = time.Since(begun)
	return r, nil
}

// each calls f for every state after every operation i, before operation end, and returns the number of crash points.
func (e *Explorer) each(f func(i, end int, d *Disk, label func() string, keep []part)) (crashes int) {
	d := NewDisk()
	rng := rand.New(rand.NewPCG(e.Seed, 1))
	for i := range e.Ops {
		if d.Apply(&e.Ops[i]); e.Ops[i].Kind == Mark || e.At != nil && !e.At(i) {
			continue
		}
		crashes++
		end := i + 1
		for end < len(e.Ops) && e.Ops[end].Kind == Mark {
			end++
		}
		d.states(rng, e.Mixed, e.Ops[i].Kind == Sync, func(label func() string, keep []part) { f(i, end, d, label, keep) })
	}
	return crashes
}

func (e *Explorer) open(dir string, s *seen) error {
	if err := s.image.Put(dir); err != nil {
		return err
	}
	s.outcome = e.Open(dir, s.image.sum)
	if err := e.Judge(s.outcome, s.first, s.first+1); err == nil {
		s.image = &Image{sum: s.image.sum} // let the memory go; a failure that shows only later has no image
	}
	return os.RemoveAll(dir)
}

// mix spreads a number, so that seeds choose different states.
func mix(n, seed uint64) uint64 {
	x := (n ^ seed<<32) * 0x9e3779b97f4a7c15
	x ^= x >> 31
	x *= 0xbf58476d1ce4e5b9
	return x ^ x>>29
}

const sector = 512

// recent is how many of the pending operations are looked at one by one behind every operation. Those that have been pending for
// longer were so before, and are again behind each sync, since what is acknowledged then may rest on them.
const recent = 8

// states calls yield for each state that a crash at this moment could leave; keep is valid during the call.
func (d *Disk) states(rng *rand.Rand, mixed int, synced bool, yield func(label func() string, keep []part)) {
	n := len(d.pending)
	oldest := max(0, n-recent)
	if synced {
		oldest = 0
	}
	keep := make([]part, n)
	fill := func(p part) {
		for i := range keep {
			keep[i] = p
		}
	}
	text := func(s string) func() string { return func() string { return s } }
	about := func(s string, i int) func() string {
		return func() string { return fmt.Sprintf("%s %d (%s)", s, i, d.pending[i]) }
	}
	fill(lost)
	yield(text("none kept"), keep)
	if n == 0 {
		return
	}
	fill(whole)
	yield(text("all kept"), keep)
	for i := oldest; i < n; i++ {
		fill(whole)
		keep[i] = lost
		yield(about("all kept without", i), keep)
		fill(lost)
		keep[i] = whole
		yield(about("kept only", i), keep)
		for j := range i {
			keep[j] = whole
		}
		yield(about("kept first, up to", i), keep)
	}
	for _, names := range [...]bool{true, false} {
		for i := range keep {
			keep[i] = lost
			if d.pending[i].names() == names {
				keep[i] = whole
			}
		}
		yield(text(map[bool]string{true: "names kept", false: "data kept"}[names]), keep)
	}
	for i := oldest; i < n; i++ {
		ways := tears(rng, d.pending[i])
		if i < n-1 && len(ways) > 2 { // it had all of them when it was the newest
			first := rng.IntN(len(ways) - 1)
			ways = ways[first : first+2]
		}
		for _, p := range ways {
			label := about(fmt.Sprintf("all kept, torn %+v", p), i)
			fill(whole)
			keep[i] = p
			yield(label, keep)
			if i == n-1 {
				fill(lost)
				keep[i] = p
				yield(about(fmt.Sprintf("only kept, torn %+v", p), i), keep)
			}
		}
	}
	for range mixed {
		p := [...]float64{0.2, 0.5, 0.8}[rng.IntN(3)]
		for i := range keep {
			keep[i] = lost
			if rng.Float64() < p {
				keep[i] = whole
			}
			if t := tears(rng, d.pending[i]); keep[i].kept && len(t) > 0 && rng.IntN(4) == 0 {
				keep[i] = t[rng.IntN(len(t))]
			}
		}
		yield(text("mixed"), keep)
	}
}

// tears returns ways to keep a write in part: a few of each kind, the ends among them.
func tears(rng *rand.Rand, o *Op) []part {
	size := len(o.Data)
	if o.Kind != Write || size < 2 {
		return nil
	}
	cuts := []int{1, size - 1, 1 + rng.IntN(size-1), 1 + rng.IntN(size-1)}
	if size > 8 {
		cuts = append(cuts, 8)
	}
	// Sectors are those of the file, not of the write.
	var at []int
	for c := int((o.Offset/sector+1)*sector - o.Offset); c < size; c += sector {
		at = append(at, c)
	}
	if len(at) > 0 {
		cuts = append(cuts, at[0], at[len(at)-1], at[rng.IntN(len(at))])
	}
	slices.Sort(cuts)
	var ps []part
	for _, c := range slices.Compact(cuts) {
		ps = append(ps, part{kept: true, to: c})
	}
	if len(at) > 0 {
		ps = append(ps, part{kept: true, from: at[0], to: allBytes}) // the first sector is missing
		i := rng.IntN(len(at))
		end := size
		if i+1 < len(at) {
			end = at[i+1]
		}
		if end < size {
			ps = append(ps, part{kept: true, to: allBytes, hole: at[i], holeEnd: end})
		}
	}
	return ps
}
