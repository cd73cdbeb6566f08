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
	data    []byte        // of a file; images share it
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
	n, own := d.nodes[id], false
	rest := d.pending[:0:0]
	for _, o := range d.pending {
		switch {
		case o.owner() != id:
			rest = append(rest, o)
		case n.dir:
			d.rename(o, func(dir ID) map[string]ID { return d.nodes[dir].entries })
		default:
			n.data, own = apply(n.data, own, o, whole), true
		}
	}
	if own {
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

// apply carries an operation on data out, or as much of it as p says. It changes data in place
// if that is the caller's own, and returns what is the caller's own then.
func apply(data []byte, own bool, o *Op, p part) []byte {
	size := len(data)
	to := min(p.to, len(o.Data))
	switch o.Kind {
	case Truncate:
		size = int(o.Offset)
	case Extend:
		size = max(size, int(o.Offset))
	case Write:
		size = max(size, int(o.Offset)+to)
	}
	if !own || size > cap(data) {
		b := make([]byte, size, max(size, 2*len(data)))
		copy(b, data)
		data = b
	}
	if old := len(data); size > old {
		data = data[:size]
		clear(data[old:])
	}
	data = data[:size]
	if o.Kind != Write {
		return data
	}
	at := data[o.Offset:]
	if p.holeEnd == 0 {
		copy(at[p.from:], o.Data[p.from:to])
		return data
	}
	copy(at[p.from:], o.Data[p.from:p.hole])
	copy(at[p.holeEnd:], o.Data[p.holeEnd:to])
	return data
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
			data, own := files[o.File]
			if !own {
				data = d.nodes[o.File].data
			}
			files[o.File] = apply(data, own, o, keep[i])
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
