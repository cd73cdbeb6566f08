package core

import "time"

// decidePatience bounds for how long a pass decides for one shard. A machine that takes a millisecond for each command is not to decide a thousand of them while
// the first wait for their write, the leader says nothing to its followers, and the worker's other shards stand still. What is left over is decided in the next pass, which
// follows at once, beside the write.
const decidePatience = 2 * time.Millisecond

// pace is how far a replica has got with deciding in a pass.
type pace struct {
	pass    uint64 // that it is about
	decided int    // requests
	began   int64  // as Env.Spent has it
	over    bool   // it has taken long enough
}

// inPass returns how far this pass has got: what an earlier one has left is over.
func (r *Replica) inPass() *pace {
	if r.pace.pass != r.w.passes {
		r.pace = pace{pass: r.w.passes}
	}
	return &r.pace
}

// mayDecide reports whether this pass may go on deciding. A batch that was late goes out first.
func (r *Replica) mayDecide() bool {
	p := r.inPass()
	if b := r.lead.open; b != nil && b.late && !r.writing && len(r.lead.inflight) < r.cfg.Limits.PipelineDepth {
		return false
	}
	if p.decided == 0 && len(r.queue) > 0 {
		p.began = r.w.env.Spent()
	}
	return !p.over
}

// tooLong notes a request that was decided, and reports whether that has taken long enough for this pass. The clock is looked at after the first, the second, the fourth, and
// every eighth.
func (r *Replica) tooLong() bool {
	p := r.inPass()
	p.decided++
	if n := p.decided; n&(n-1) != 0 && n%8 != 0 || r.w.env.Spent()-p.began <= int64(decidePatience) {
		return false
	}
	p.over = true
	if b := r.lead.open; b != nil {
		b.late = true
	}
	return true
}

// putOff has the replica go on in the next pass.
func (r *Replica) putOff() {
	if len(r.w.putOff) == 0 || r.w.putOff[len(r.w.putOff)-1] != r {
		r.w.putOff = append(r.w.putOff, r)
	}
}
