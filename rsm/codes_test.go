package rsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// constants returns the constants of a file whose names begin with Code, with what they are made of and what is said about them.
func constants(t *testing.T, file string) map[string][2]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][2]string{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			name, value := v.Names[0].Name, ""
			if !strings.HasPrefix(name, "Code") {
				continue
			}
			if of, ok := v.Values[0].(*ast.SelectorExpr); ok {
				value = of.Sel.Name
			}
			all[name] = [2]string{value, v.Doc.Text()}
		}
	}
	return all
}

// Every code that a caller may meet has a name here, the same as inside, and a text that begins with it.
func TestCodesAreExported(t *testing.T) {
	inside, here := constants(t, "../internal/core/errors.go"), constants(t, "codes.go")
	if len(inside) < 38 {
		t.Fatalf("only %d codes were found", len(inside))
	}
	for name := range inside {
		if c := here[name]; c[0] != name || !strings.HasPrefix(c[1], name+":") && !strings.HasPrefix(c[1], name+" (") {
			t.Errorf("%s is %q here, and said to be: %s", name, c[0], c[1])
		}
	}
	if len(here) != len(inside) {
		t.Errorf("%d codes here, %d inside", len(here), len(inside))
	}
}
