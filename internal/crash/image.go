package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Put makes dir, which must not exist, look like the image.
func (m *Image) Put(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, f := range m.files {
		path := filepath.Join(dir, f.path)
		if f.dir {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// ReadImage returns what is in dir.
func ReadImage(dir string) (*Image, error) {
	m := &Image{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := imageFile{path: filepath.ToSlash(rel), dir: e.IsDir()}
		if !f.dir {
			if f.data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		m.files = append(m.files, f)
		return nil
	})
	return m, err
}

// Same returns nil if two images have the same content, or says what differs first.
func (m *Image) Same(o *Image) error {
	byPath := func(a, b imageFile) int { return strings.Compare(a.path, b.path) }
	a, b := slices.SortedFunc(slices.Values(m.files), byPath), slices.SortedFunc(slices.Values(o.files), byPath)
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a):
			return fmt.Errorf("%s is missing from the first", b[i].path)
		case i >= len(b):
			return fmt.Errorf("%s is missing from the second", a[i].path)
		case a[i].path != b[i].path:
			return fmt.Errorf("%s stands where the second has %s", a[i].path, b[i].path)
		case a[i].dir != b[i].dir || !bytes.Equal(a[i].data, b[i].data):
			return fmt.Errorf("%s differs: %d bytes in the first, %d in the second", a[i].path, len(a[i].data), len(b[i].data))
		}
	}
	return nil
}

// Files returns the paths of the files, ascending, with their sizes.
func (m *Image) Files() (paths []string, sizes []int) {
	for _, f := range m.files {
		if !f.dir {
			paths, sizes = append(paths, f.path), append(sizes, len(f.data))
		}
	}
	return paths, sizes
}

// Written returns where the zeros begin that a file ends in.
func (m *Image) Written(path string) int {
	for _, f := range m.files {
		if f.path == path {
			return len(bytes.TrimRight(f.data, "\x00"))
		}
	}
	return 0
}

// Flip returns the image with one bit of one file the other way round: a disk that does not keep what it was given.
func (m *Image) Flip(path string, offset int, bit uint) (*Image, error) {
	o := &Image{files: slices.Clone(m.files)}
	for i := range o.files {
		if f := &o.files[i]; f.path == path && offset < len(f.data) {
			f.data = bytes.Clone(f.data)
			f.data[offset] ^= 1 << (bit % 8)
			return o, nil
		}
	}
	return nil, errors.New("no such byte in the image")
}
