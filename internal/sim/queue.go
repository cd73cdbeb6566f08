package sim

// task is what an event does.
type task struct {
	run func()
	n   *node // if not nil: only in its incarnation gen
	gen uint64
}

// ended reports whether the incarnation that the task was for is over.
func (t *task) ended() bool { return t.n != nil && (!t.n.up || t.n.gen != t.gen) }

// eventQueue is a heap by time and, among equal times, by order of arrival. It has four children
// to a node, and no pointers: it is the busiest structure of a run.
type eventQueue struct {
	heap  []event
	tasks []task  // by slot
	free  []int32 // slots
	seq   uint64
}

type event struct {
	at   int64
	seq  uint64
	slot int32
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (q *eventQueue) push(at int64, t task) {
	q.seq++
	e := event{at: at, seq: q.seq, slot: q.put(t)}
	q.heap = append(q.heap, e)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !e.before(&q.heap[up]) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = e
}

func (q *eventQueue) put(t task) int32 {
	if n := len(q.free); n > 0 {
		slot := q.free[n-1]
		q.free = q.free[:n-1]
		q.tasks[slot] = t
		return slot
	}
	q.tasks = append(q.tasks, t)
	return int32(len(q.tasks) - 1)
}

func (q *eventQueue) pop() (at int64, t task, ok bool) {
	n := len(q.heap) - 1
	if n < 0 {
		return 0, t, false
	}
	first, last := q.heap[0], q.heap[n]
	q.heap = q.heap[:n]
	if n > 0 {
		q.sink(last)
	}
	t = q.tasks[first.slot]
	q.tasks[first.slot] = task{}
	q.free = append(q.free, first.slot)
	return first.at, t, true
}

// sink puts e where it belongs, the root being empty.
func (q *eventQueue) sink(e event) {
	h, i := q.heap, 0
	for {
		next := 4*i + 1
		if next >= len(h) {
			break
		}
		for c := next + 1; c < min(4*i+5, len(h)); c++ {
			if h[c].before(&h[next]) {
				next = c
			}
		}
		if !h[next].before(&e) {
			break
		}
		h[i] = h[next]
		i = next
	}
	h[i] = e
}
