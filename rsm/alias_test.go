package rsm

import (
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// parsed returns the files of a package, without tests. Comments are read where they are asked for.
func parsed(t *testing.T, dir string, mode parser.Mode) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, mode)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// source is a piece of code without comments, blanks made one.
func source(t *testing.T, n ast.Node) string {
	t.Helper()
	var b strings.Builder
	if err := printer.Fprint(&b, token.NewFileSet(), n); err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// shape is what a user can see of a type: fields and methods, one each. first is what kind of type it is.
func shape(t *testing.T, files []*ast.File, name string) (first string, all []string) {
	t.Helper()
	list := func(l *ast.FieldList) {
		for _, f := range l.List {
			if len(f.Names) == 0 {
				all = append(all, source(t, f.Type))
			}
			for _, n := range f.Names {
				if n.IsExported() {
					all = append(all, n.Name+" "+source(t, f.Type))
				}
			}
		}
	}
	for _, f := range files {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.GenDecl:
				for _, s := range d.Specs {
					s, ok := s.(*ast.TypeSpec)
					if !ok || s.Name.Name != name {
						continue
					}
					switch u := s.Type.(type) {
					case *ast.StructType:
						first = "struct"
						list(u.Fields)
					case *ast.InterfaceType:
						first = "interface"
						list(u.Methods)
					default:
						first = source(t, s.Type)
					}
				}
			case *ast.FuncDecl:
				if d.Recv == nil || !d.Name.IsExported() {
					continue
				}
				if of := source(t, d.Recv.List[0].Type); strings.TrimPrefix(of, "*") == name {
					all = append(all, of+" "+d.Name.Name+" "+source(t, d.Type))
				}
			}
		}
	}
	slices.Sort(all)
	return first, all
}

// go doc shows of an alias of an internal type nothing but its text. So the text has the type in it, and this test holds it to what the type is.
//
// Mutations with which it was seen to fail: a field less in a text, one of another type, a method less, a text without the type.
func TestAliasesSayWhatTheyAre(t *testing.T) {
	inside := parsed(t, "../internal/core", 0)
	n := 0
	for _, f := range parsed(t, ".", parser.ParseComments) {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				s := s.(*ast.TypeSpec)
				of, ok := s.Type.(*ast.SelectorExpr)
				if !s.Assign.IsValid() || !ok || source(t, of.X) != "core" {
					continue
				}
				n++
				doc := s.Doc
				if !g.Lparen.IsValid() {
					doc = g.Doc
				}
				name, code := s.Name.Name, ""
				for line := range strings.Lines(doc.Text()) {
					if strings.HasPrefix(line, "\t") {
						code += line
					}
				}
				said, err := parser.ParseFile(token.NewFileSet(), name, "package p\n"+code, 0)
				if err != nil {
					t.Errorf("the code in the text of %s: %v", name, err)
					continue
				}
				first, want := shape(t, inside, of.Sel.Name)
				if len(want) == 0 && code == "" && strings.HasPrefix(doc.Text(), name+", a "+first+", ") {
					continue // a number, without methods
				}
				for i := range want {
					want[i] = strings.Replace(want[i], of.Sel.Name+" ", name+" ", 1)
				}
				if kind, got := shape(t, []*ast.File{said}, name); kind != first || !slices.Equal(got, want) {
					t.Errorf("the text of %s has it as %s\n%s\nand it is %s\n%s", name, kind, strings.Join(got, "\n"), first, strings.Join(want, "\n"))
				}
			}
		}
	}
	if n < 18 {
		t.Errorf("only %d aliases were found", n)
	}
}
