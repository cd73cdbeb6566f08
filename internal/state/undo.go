package state

// Mark is a place in a shard's undo log: the number of writes recorded before
// it. Marks grow; a rollback goes back to an earlier one, whose successors
// are then given out again.
type Mark uint64

// undoRec is what it takes to undo one write. It does not name its layer:
// the place tells (see Shard.layerAt).
type undoRec struct {
	key  string
	prev entry // absent() if the layer had no such key
}

// undoLog holds the writes between the last Release and now, oldest first.
type undoLog struct {
	on   bool
	base Mark // of recs[head]
	head int  // Invariant: 0 <= head <= len(recs); recs[:head] is zeroed
	recs []undoRec
}

func (u *undoLog) len() int { return len(u.recs) - u.head }

func (u *undoLog) end() Mark { return u.base + Mark(u.len()) }

func (u *undoLog) push(key string, prev entry) { u.recs = append(u.recs, undoRec{key, prev}) }

// undo calls f for each record from the newest down to the one at place to,
// and changes nothing itself.
func (u *undoLog) undo(to Mark, f func(at Mark, r *undoRec)) {
	assert(to >= u.base && to <= u.end(), "mark is not in the undo log")
	at := u.end()
	for i := len(u.recs) - 1; at > to; i-- {
		at--
		f(at, &u.recs[i])
	}
}

func (u *undoLog) truncate(to Mark) {
	n := u.head + int(to-u.base)
	clear(u.recs[n:])
	u.recs = u.recs[:n]
}

// release drops records before upTo. Moving the rest to the front only when
// it is smaller than what was dropped keeps the cost constant per record.
func (u *undoLog) release(upTo Mark) {
	assert(upTo >= u.base && upTo <= u.end(), "mark is not in the undo log")
	n := u.head + int(upTo-u.base)
	clear(u.recs[u.head:n])
	u.head, u.base = n, upTo
	if rest := u.len(); rest < u.head {
		copy(u.recs, u.recs[u.head:])
		clear(u.recs[rest:])
		u.recs, u.head = u.recs[:rest], 0
	}
}

// SetUndo says whether writes are recorded so that they can be rolled back.
// Turning it off with records left panics: release or roll back first.
func (h *Shard) SetUndo(on bool) {
	assert(on || h.undo.len() == 0, "undo is turned off with writes neither released nor rolled back")
	h.undo.on = on
}

// Mark returns the present end of the undo log.
func (h *Shard) Mark() Mark { return h.undo.end() }

// Rollback undoes all writes recorded after the mark, newest first, in the
// frozen layer too.
func (h *Shard) Rollback(to Mark) {
	assert(h.scans == 0 && h.install == nil, "rollback during a scan or an install")
	h.undo.undo(to, func(at Mark, r *undoRec) {
		h.layerAt(at).restore(r.key, r.prev)
	})
	h.undo.truncate(to)
	// What is written from here on has places from to on, and goes to the active layer.
	h.freezeMark = min(h.freezeMark, to)
}

// Release makes the writes before the mark final and drops their records.
func (h *Shard) Release(upTo Mark) { h.undo.release(upTo) }

// layerAt returns the layer that the write at this place went to.
func (h *Shard) layerAt(at Mark) *layer {
	if h.frozen != nil && at < h.freezeMark {
		return h.frozen
	}
	return h.active
}
