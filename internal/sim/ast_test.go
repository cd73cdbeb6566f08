package sim

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A seed is a run only if nothing in it depends on anything else. What must be a function of its inputs is read
// here as source: no clock, no goroutine, no select, no random source that is not handed in, and no
// order of a map. A comment "// any order: why" on the line, or the one above, makes an exception.

const module = "github.com/decree-raft/decree/"

// pure are the folders, and in some of them the files, that must be deterministic.
var pure = map[string][]string{
	"internal/core":  nil,
	"internal/sim":   nil,
	"internal/route": nil,
	"internal/state": {"undo.go", "layer.go", "shard.go", "version.go", "iter.go", "flush.go", "table.go", "format.go", "journal.go", "cut.go", "install.go", "check.go", "chunk.go"},
	"snapshot":       {"cut.go", "manifest.go", "receive.go", "source.go", "verify.go"},
	"wal":            {"codec.go", "encode.go", "frame.go", "memory.go", "recover.go", "repair.go", "scan.go", "torn.go", "track.go", "validate.go", "files.go"},
}

// impure: what repeats whole runs may look at the clock for how long.
var impure = []string{"internal/sim/shrink.go"}

func TestSourceIsDeterministic(t *testing.T) {
	r := newReading(t) // one for all: each would read the standard library's packages anew
	for dir, files := range pure {
		pkg := r.load(module + dir)
		for _, f := range pkg.files {
			name := path.Base(filepath.ToSlash(r.fset.Position(f.Pos()).Filename))
			if (files == nil || slices.Contains(files, name)) && !slices.Contains(impure, dir+"/"+name) {
				for _, v := range r.violations(f) {
					t.Errorf("%s/%s", dir, v)
				}
			}
		}
	}
}

// TestSourceGuardSees: the guard is tested itself.
func TestSourceGuardSees(t *testing.T) {
	const src = `package p
import ("time"; "maps"; "slices"; "math/rand/v2"; old "math/rand")
type s struct{ m map[int]bool }
type named map[string]int
func f(x s, y named, r *rand.Rand, c chan int) {
	_ = time.Now()
	_ = time.Since(time.Time{})
	go f(x, y, r, c)
	select {}
	_ = rand.IntN(3)
	_ = old.Int()
	for range x.m {}
	for k := range y { _ = k }
	for range maps.Keys(y) {}
	_ = slices.Sorted(maps.Keys(y))
	_ = time.Duration(3)
	_ = rand.New(rand.NewPCG(1, 2)).IntN(r.IntN(5))
	for range []int{1} {}
	for range x.m {} // any order: it is empty
	// any order: it is empty
	for range y {}
}`
	r := newReading(t)
	f, err := parser.ParseFile(r.fset, "p.go", src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	r.check("p", []*ast.File{f})
	got := r.violations(f)
	var lines []string
	for _, v := range got {
		line, _, _ := strings.Cut(strings.TrimPrefix(v, "p.go:"), ":")
		lines = append(lines, line)
	}
	if want := "6 7 8 9 10 11 12 13 14"; strings.Join(lines, " ") != want {
		t.Errorf("violations in lines %v, want %s:\n%s", lines, want, strings.Join(got, "\n"))
	}
}

// reading loads packages of this module with their types; of nearly all others it knows the names only.
type reading struct {
	t    *testing.T
	fset *token.FileSet
	pkgs map[string]*readPackage
	std  types.Importer
	info *types.Info
}

type readPackage struct {
	files []*ast.File
	types *types.Package
}

func newReading(t *testing.T) *reading {
	fset := token.NewFileSet()
	return &reading{t: t, fset: fset, pkgs: map[string]*readPackage{}, std: importer.ForCompiler(fset, "source", nil),
		info: &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}}
}

// Import makes reading a types.Importer.
func (r *reading) Import(name string) (*types.Package, error) {
	switch {
	case strings.HasPrefix(name, module):
		return r.load(name).types, nil
	case name == "maps" || name == "slices": // whose functions return maps of ours
		return r.std.Import(name)
	}
	base := path.Base(name)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" { // a major version
		base = path.Base(path.Dir(name))
	}
	p := types.NewPackage(name, base)
	p.MarkComplete()
	return p, nil
}

func (r *reading) load(name string) *readPackage {
	if p := r.pkgs[name]; p != nil {
		return p
	}
	dir := filepath.Join("..", "..", filepath.FromSlash(strings.TrimPrefix(name, module)))
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		r.t.Fatal(err)
	}
	p := &readPackage{}
	for _, file := range names {
		if strings.HasSuffix(file, "_test.go") || filepath.Base(file) == "mutant_on.go" {
			continue
		}
		f, err := parser.ParseFile(r.fset, file, nil, parser.ParseComments)
		if err != nil {
			r.t.Fatal(err)
		}
		p.files = append(p.files, f)
	}
	p.types = r.check(name, p.files)
	r.pkgs[name] = p
	return p
}

func (r *reading) check(name string, files []*ast.File) *types.Package {
	conf := types.Config{Importer: r, Error: func(error) {}} // what depends on other modules has no type
	p, _ := conf.Check(name, r.fset, files, r.info)
	return p
}

func (r *reading) violations(f *ast.File) (all []string) {
	excused := map[int]bool{}
	for _, g := range f.Comments {
		for _, c := range g.List {
			if strings.HasPrefix(c.Text, "// any order: ") {
				line := r.fset.Position(c.Pos()).Line
				excused[line], excused[line+1] = true, true
			}
		}
	}
	found := func(n ast.Node, format string, args ...any) {
		if p := r.fset.Position(n.Pos()); !excused[p.Line] {
			all = append(all, fmt.Sprintf("%s:%d: %s", path.Base(filepath.ToSlash(p.Filename)), p.Line, fmt.Sprintf(format, args...)))
		}
	}
	for _, i := range f.Imports {
		if name, _ := strconv.Unquote(i.Path.Value); name == "net" || name == "crypto/rand" {
			found(i, "imports %s", name)
		}
	}
	var sorted []ast.Node // arguments of slices.Sorted
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found(n, "starts a goroutine")
		case *ast.SelectStmt:
			found(n, "selects")
		case *ast.RangeStmt:
			if tv, ok := r.info.Types[n.X]; ok && tv.Type != nil {
				if _, isMap := tv.Type.Underlying().(*types.Map); isMap {
					found(n, "ranges over a map, whose order is another each time")
				}
			}
		case *ast.CallExpr:
			if pkg, name := r.function(n.Fun); pkg == "slices" && strings.HasPrefix(name, "Sorted") {
				sorted = append(sorted, n.Args[0])
			}
		case *ast.SelectorExpr:
			r.selector(n, sorted, found)
		}
		return true
	})
	return all
}

// function returns the package and the name that an expression refers to, if it is a package's.
func (r *reading) function(e ast.Expr) (pkg, name string) {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := sel.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	if p, ok := r.info.Uses[id].(*types.PkgName); ok {
		return p.Imported().Path(), sel.Sel.Name
	}
	return "", ""
}

func (r *reading) selector(n *ast.SelectorExpr, sorted []ast.Node, found func(ast.Node, string, ...any)) {
	pkg, name := r.function(n)
	switch pkg {
	case "time":
		if slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}, name) {
			found(n, "asks the clock: time.%s", name)
		}
	case "math/rand", "math/rand/v2":
		if !slices.Contains([]string{"New", "NewPCG", "NewSource", "NewChaCha8", "Rand", "Source", "PCG"}, name) {
			found(n, "draws from the source of the whole process: rand.%s", name)
		}
	case "maps":
		inOrder := slices.ContainsFunc(sorted, func(s ast.Node) bool { return s.Pos() <= n.Pos() && n.End() <= s.End() })
		if (name == "Keys" || name == "Values" || name == "All") && !inOrder {
			found(n, "goes through a map in any order: maps.%s", name)
		}
	}
}
