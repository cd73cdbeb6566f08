package sim

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Pages that say what imports what are held to the sources, whatever the operating system that a file is for.

// imports are those of each folder with Go files in it, tests aside.
func imports(t *testing.T) map[string]map[string]bool {
	t.Helper()
	root, all := filepath.Join("..", ".."), map[string]map[string]bool{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != root:
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil || d.Name()[0] == '.' || d.Name() == "testdata" {
				return filepath.SkipDir // another module, or no source
			}
			return nil
		case d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		dir = filepath.ToSlash(dir)
		if all[dir] == nil {
			all[dir] = map[string]bool{}
		}
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			all[dir][name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// tableOf returns a page's text, and the rows of the table that begins with a column of this name.
func tableOf(t *testing.T, page, column string) (text string, rows [][]string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(b), "\n| "+column+" |")
	if !found {
		t.Fatalf("%s has no table of each %s", page, column)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for _, line := range strings.Split(table, "\n")[2:] {
		rows = append(rows, strings.Split(strings.Trim(line, "| "), " | "))
	}
	return string(b), rows
}

var quoted = regexp.MustCompile("`([^`]+)`")

// names are the folders that a cell names; files and symbols are not looked at.
func names(cell string, known func(string) bool) (all []string) {
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		if known(m[1]) {
			all = append(all, m[1])
		}
	}
	return all
}

// within reports whether a folder, or package, is this one or below it.
func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

// docs/architecture.md names every package, and each of ours that it imports; none imports what stands above it.
func TestArchitecturePage(t *testing.T) {
	_, rows := tableOf(t, "architecture.md", "folder")
	all, rank := imports(t), map[string]int{}
	for i, r := range rows {
		if len(r) != 3 {
			t.Fatalf("a row with %d columns: %v", len(r), r)
		}
		rank[strings.Trim(r[0], "`")] = i
	}
	// rowOf is the row of the folder itself, or of the nearest above it.
	rowOf := func(dir string) int {
		for ; dir != "."; dir = path.Dir(dir) {
			if i, ok := rank[dir]; ok {
				return i
			}
		}
		return -1
	}
	said, done := make([][]string, len(rows)), make([]map[string]bool, len(rows))
	for i, r := range rows {
		said[i] = names(r[2], func(string) bool { return true })
		done[i] = map[string]bool{}
	}
	for _, dir := range slices.Sorted(maps.Keys(all)) {
		i := rowOf(dir)
		if i < 0 {
			t.Errorf("the page does not name %s", dir)
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(all[dir])) {
			name, ours := strings.CutPrefix(name, module)
			if j := rowOf(name); !ours || j == i {
				continue
			} else if j < i {
				t.Errorf("%s imports %s, which stands above it, or nowhere", dir, name)
			}
			if done[i][name] = true; !slices.Contains(said[i], name) {
				t.Errorf("%s imports %s, and the page does not say so", dir, name)
			}
		}
	}
	for i, r := range rows {
		for _, name := range said[i] {
			if !done[i][name] {
				t.Errorf("the page says that %s imports %s, which it does not", r[0], name)
			}
		}
	}
}

// A fault that is built in and that TestMutants (of another build) does not run would prove nothing.
func TestEveryMutantRuns(t *testing.T) {
	list, err := os.ReadFile("mutants_test.go")
	if err != nil {
		t.Fatal(err)
	}
	run := map[string]bool{}
	for _, m := range regexp.MustCompile(`faults: "([^"]+)"`).FindAllStringSubmatch(string(list), -1) {
		for _, fault := range strings.Fields(m[1]) {
			run[fault] = true
		}
	}
	built := map[string]bool{}
	for dir := range imports(t) {
		files, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(dir), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`\bmutated\("([^"]+)"\)`).FindAllStringSubmatch(string(src), -1) {
				if built[m[1]] = true; !run[m[1]] {
					t.Errorf("%s has the fault %q, which mutants_test.go does not run", file, m[1])
				}
			}
		}
	}
	for _, fault := range slices.Sorted(maps.Keys(run)) {
		if !built[fault] {
			t.Errorf("mutants_test.go runs %q, which is nowhere", fault)
		}
	}
}

// Every module that go.mod requires directly is in docs/decisions/0001-dependencies.md, with whoever imports it, or else named as one that only tests need.
func TestDependenciesPage(t *testing.T) {
	text, rows := tableOf(t, "decisions/0001-dependencies.md", "module")
	gomod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	all, importers := imports(t), map[string][]string{} // of each module that is required directly
	for _, m := range regexp.MustCompile(`(?m)^(?:require )?\s*([^\s/]+\.[^\s]+) v[^\s]+$`).FindAllStringSubmatch(string(gomod), -1) {
		importers[m[1]] = nil
	}
	if len(importers) < 10 {
		t.Fatalf("%d modules in go.mod: %v", len(importers), importers)
	}
	for _, dir := range slices.Sorted(maps.Keys(all)) {
		from := map[string]bool{}
		for name := range all[dir] {
			longest := ""
			for m := range importers {
				if within(name, m) && len(m) > len(longest) {
					longest = m
				}
			}
			from[longest] = true
		}
		for m := range from {
			if m != "" {
				importers[m] = append(importers[m], dir)
			}
		}
	}
	_, tests, _ := strings.Cut(text, "\nFor tests only: ")
	for _, r := range rows {
		m := strings.Trim(r[0], "`")
		if importers[m] == nil {
			t.Errorf("the page has a row for %s, which is not required, or by tests only", m)
		}
		said := names(r[len(r)-1], func(name string) bool {
			return slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(dir string) bool { return within(dir, name) })
		})
		for _, dir := range importers[m] {
			if !slices.ContainsFunc(said, func(name string) bool { return within(dir, name) }) {
				t.Errorf("%s imports %s, and the page does not say so", dir, m)
			}
		}
		for _, name := range said {
			if !slices.ContainsFunc(importers[m], func(dir string) bool { return within(dir, name) }) {
				t.Errorf("the page says that %s imports %s, which it does not", name, m)
			}
		}
		delete(importers, m)
	}
	for _, m := range slices.Sorted(maps.Keys(importers)) {
		if len(importers[m]) > 0 {
			t.Errorf("the page has no row for %s, which %v import", m, importers[m])
		} else if !strings.Contains(tests, "`"+m+"`") {
			t.Errorf("the page does not name %s among what only tests need", m)
		}
	}
}
