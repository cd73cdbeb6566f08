package probe

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/decree-raft/decree/internal/core"
)

// guard is the view that a machine gets. It hands out copies, and looks at them when the call is over: bytes of the state
// that a machine changes would otherwise be changed for everybody, and those that it keeps would change under its hands.
// It has the methods that write even where writing is forbidden, to see who tries.
type guard struct {
	under  core.State
	mayNot string // "Decide" or "Query", which may not write; "" if writing is allowed
	handed []handed
	scans  int
	over   bool
	fault  *Fault
}

type handed struct {
	key              []byte // under which it stands
	value            bool   // a value, not a key
	original, copied []byte
}

var _ core.State = (*guard)(nil)

func (g *guard) hand(key, original []byte, value bool) []byte {
	if len(original) == 0 {
		return original
	}
	h := handed{key: key, value: value, original: original, copied: append(make([]byte, 0, len(original)), original...)}
	g.handed = append(g.handed, h)
	return h.copied
}

func (g *guard) use() {
	if g.over {
		panic("the view was used after the call that got it had returned")
	}
}

func (g *guard) Get(key []byte) ([]byte, bool) {
	g.use()
	v, ok := g.under.Get(key)
	return g.hand(bytes.Clone(key), v, true), ok
}

func (g *guard) Scan(start, end []byte) iter.Seq2[[]byte, []byte] {
	return g.scan(g.under.Scan(start, end))
}

func (g *guard) ScanBackward(start, end []byte) iter.Seq2[[]byte, []byte] {
	return g.scan(g.under.ScanBackward(start, end))
}

func (g *guard) scan(of iter.Seq2[[]byte, []byte]) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		g.use()
		g.scans++
		defer func() { g.scans-- }()
		for k, v := range of {
			if !yield(g.hand(k, k, false), g.hand(k, v, true)) {
				return
			}
		}
	}
}

func (g *guard) mayWrite(what string, key, value []byte) bool {
	g.use()
	if g.mayNot != "" {
		if g.fault == nil {
			g.fault = &Fault{
				Rule: RuleWrites, Key: bytes.Clone(key), Expected: g.mayNot + " reads only: what shall change goes into events",
				Seen: fmt.Sprintf("it turned its view into one that writes, and %s key %q%s", what, key, value),
			}
		}
		return false
	}
	if g.scans > 0 {
		panic(fmt.Sprintf("key %q is written during a scan", key))
	}
	return true
}

func (g *guard) Set(key, value []byte) {
	if g.mayWrite("set", key, fmt.Appendf(nil, " to %q", value)) {
		g.under.Set(key, value)
	}
}

func (g *guard) Delete(key []byte) {
	if g.mayWrite("deleted", key, nil) {
		g.under.Delete(key)
	}
}

// end is called when the machine has returned, and what it returned has been copied. It
// reports the first thing that the machine did with bytes that were not its own, and makes those useless that it kept.
func (g *guard) end(caller string) *Fault {
	g.over = true
	for i := range g.handed {
		h := &g.handed[i]
		if g.fault == nil && !bytes.Equal(h.original, h.copied) {
			what := "the value"
			if !h.value {
				what = "the key"
			}
			g.fault = &Fault{
				Rule: RuleViewBytes, Key: bytes.Clone(h.key),
				Expected: fmt.Sprintf("%s that the view returned for key %q stays %q: it belongs to the library", what, h.key, h.original),
				Seen:     fmt.Sprintf("%s changed it to %q", caller, h.copied),
			}
		}
		for k := range h.copied {
			h.copied[k] = 0xDB
		}
	}
	return g.fault
}
