package crash

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Disk is a recording replayed up to some operation: what is durable, and what is pending.
type Disk struct {
	nodes   map[ID]*node
	pending []*Op // in order
}

// node is the durable part of a file or directory.
type node struct {
	dir     bool
	entries map[string]ID // of a directory
	data    []byte        // of a file; never written in place
	sum     uint64        // of data
}

// NewDisk returns a disk with nothing but the root directory.
func NewDisk() *Disk {
	return &Disk{nodes: map[ID]*node{Root: {dir: true, entries: map[string]ID{}}}}
}

// Apply replays the next operation.
func (d *Disk) Apply(o *Op) {
	switch o.Kind {
	case Mark:
		return
	case Sync:
		d.sync(o.File)
		return
	case Create:
		d.nodes[o.File] = &node{sum: xxhash.Sum64(nil)}
	case Mkdir:
		d.nodes[o.File] = &node{dir: true, entries: map[string]ID{}}
	}
	d.pending = append(d.pending, o)
}

// sync makes durable what is pending of one file or directory.
func (d *Disk) sync(id ID) {
	n := d.nodes[id]
	rest, changed := d.pending[:0:0], false
	for _, o := range d.pending {
		switch {
		case o.owner() != id:
			rest = append(rest, o)
		case n.dir:
			d.rename(o, func(dir ID) map[string]ID { return d.nodes[dir].entries })
		default:
			n.data, changed = apply(n.data, o, whole), true
		}
	}
	if changed {
		n.sum = xxhash.Sum64(n.data)
	}
	d.pending = rest
}

// rename carries an operation on names out.
func (d *Disk) rename(o *Op, entries func(ID) map[string]ID) {
	switch o.Kind {
	case Rename:
		if from := entries(o.OldDir); from[o.OldName] == o.File {
			delete(from, o.OldName)
		}
		entries(o.Dir)[o.Name] = o.File
	case Unlink:
		delete(entries(o.Dir), o.Name)
	default:
		entries(o.Dir)[o.Name] = o.File
	}
}

// part is what is kept of a pending operation: of a write the bytes from..to, without hole..holeEnd.
type part struct {
	kept          bool
	from, to      int
	hole, holeEnd int
}

const allBytes = 1 << 40

var (
	lost  = part{}
	whole = part{kept: true, to: allBytes}
)

// apply returns data with an operation carried out, or as much of it as p says.
func apply(data []byte, o *Op, p part) []byte {
	switch o.Kind {
	case Truncate, Extend:
		if o.Kind == Extend && int64(len(data)) >= o.Offset {
			return data
		}
		b := make([]byte, o.Offset)
		copy(b, data)
		return b
	}
	to := min(p.to, len(o.Data))
	b := make([]byte, max(len(data), int(o.Offset)+to))
	copy(b, data)
	for _, r := range [...][2]int{{p.from, min(to, max(p.hole, p.from))}, {max(p.holeEnd, p.from), to}} {
		if p.holeEnd == 0 {
			r = [2]int{p.from, to}
		}
		if r[0] < r[1] {
			copy(b[int(o.Offset)+r[0]:], o.Data[r[0]:r[1]])
		}
	}
	return b
}

// Image is the content of the directory in one state, by path.
type Image struct {
	files []imageFile // ascending by path
	sum   uint64
}

type imageFile struct {
	path string
	dir  bool
	data []byte // shared, never written
}

// Sum identifies the image by its content.
func (m *Image) Sum() uint64 { return m.sum }

// image returns the state in which keep[i] is kept of d.pending[i], and what was durable.
func (d *Disk) image(keep []part) *Image {
	dirs := map[ID]map[string]ID{}
	entries := func(id ID) map[string]ID {
		if dirs[id] == nil {
			dirs[id] = maps.Clone(d.nodes[id].entries)
		}
		return dirs[id]
	}
	files := map[ID][]byte{}
	for i, o := range d.pending {
		switch {
		case !keep[i].kept:
		case o.names():
			d.rename(o, entries)
		default:
			data, ok := files[o.File]
			if !ok {
				data = d.nodes[o.File].data
			}
			files[o.File] = apply(data, o, keep[i])
		}
	}
	m := &Image{}
	var h xxhash.Digest
	h.Reset()
	var walk func(id ID, path string)
	walk = func(id ID, path string) {
		names, ok := dirs[id]
		if !ok {
			names = d.nodes[id].entries
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			n := d.nodes[names[name]]
			f := imageFile{path: path + name, dir: n.dir}
			sum := n.sum
			if !n.dir {
				if data, ok := files[names[name]]; ok {
					f.data, sum = data, xxhash.Sum64(data)
				} else {
					f.data = n.data
				}
			}
			m.files = append(m.files, f)
			fmt.Fprintf(&h, "%s\x00%d\x00%x\x00", f.path, len(f.data), sum)
			if n.dir {
				walk(names[name], f.path+"/")
			}
		}
	}
	walk(Root, "")
	m.sum = h.Sum64()
	return m
}

// Whole returns the state with everything kept: what the program itself sees.
func (d *Disk) Whole() *Image { return d.image(slices.Repeat([]part{whole}, len(d.pending))) }

// Durable returns the state with nothing kept but what is durable.
func (d *Disk) Durable() *Image { return d.image(make([]part, len(d.pending))) }
