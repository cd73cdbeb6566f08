package crash

import "errors"

// MarkFD is the descriptor that a recorded program writes its marks to: the first of exec.Cmd.ExtraFiles,
// which the recorder opens. Outside of a recording there is nothing behind it.
const MarkFD = 3

// ErrUnsupported is returned by Record where programs cannot be recorded.
var ErrUnsupported = errors.New("crash: file operations can be recorded on Linux only, and only where ptrace is allowed")
