package crash

import "fmt"

// ID names a file or directory: one inode, whatever its names. The recorded directory is Root.
type ID int

// Root is the directory that was recorded.
const Root ID = 1

// Kind says what an operation does.
type Kind uint8

// The kinds of operation.
const (
	Create   Kind = iota + 1 // a file named Name in Dir
	Mkdir                    // a directory named Name in Dir
	Write                    // Data at Offset of File
	Truncate                 // File to Offset bytes
	Extend                   // File to at least Offset bytes, with zeros
	Rename                   // File, from OldName in OldDir to Name in Dir
	Unlink                   // Name in Dir
	Link                     // File gets a further Name in Dir
	Sync                     // File, which may be a directory
	Mark                     // Data is what the program says
)

// Op is one operation as the kernel confirmed it.
type Op struct {
	Kind    Kind
	File    ID
	Dir     ID
	Name    string
	OldDir  ID
	OldName string
	Offset  int64
	Data    []byte
	Path    string // of the file at that time, for people
}

func (o *Op) String() string {
	switch o.Kind {
	case Create:
		return "create " + o.Path
	case Mkdir:
		return "mkdir " + o.Path
	case Write:
		return fmt.Sprintf("write %s, %d bytes at %d", o.Path, len(o.Data), o.Offset)
	case Truncate:
		return fmt.Sprintf("truncate %s to %d", o.Path, o.Offset)
	case Extend:
		return fmt.Sprintf("extend %s to %d", o.Path, o.Offset)
	case Rename:
		return fmt.Sprintf("rename %s to %s", o.OldName, o.Path)
	case Unlink:
		return "unlink " + o.Path
	case Link:
		return "link " + o.Path
	case Sync:
		return "sync " + o.Path
	case Mark:
		return fmt.Sprintf("mark %q", o.Data)
	}
	return "unknown operation"
}

// names reports whether the operation changes a directory.
func (o *Op) names() bool {
	switch o.Kind {
	case Create, Mkdir, Rename, Unlink, Link:
		return true
	}
	return false
}

// owner is whose sync makes the operation durable.
func (o *Op) owner() ID {
	if o.names() {
		return o.Dir
	}
	return o.File
}
