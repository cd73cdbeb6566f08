package core

// Which version of the machine is active is part of the replicated state: it changes with an entry, and the same for every
// replica. The leader writes that entry when each member has said that its program can run the version.

// maxVersion is what this replica's program can run.
func (r *Replica) maxVersion() uint64 {
	if v, ok := r.machine.(Versioned); ok {
		return v.MaxVersion()
	}
	return 0
}

// checkVersion stops the replica before it applies anything by rules that its program does not know.
func (r *Replica) checkVersion(v uint64, at Index) {
	if limit := r.maxVersion(); v > limit {
		panic(broken(CodeUnsupported, nil, "entry %d makes version %d of the machine active, this program knows up to %d: start the newer program", at, v, limit))
	}
}

// versionWord is what a member said, and when: it may have been restarted with another program since.
type versionWord struct {
	version uint64
	at      int64 // monotonic ns
	ticks   int   // the same, in ticks of this leader, which has none while it rests
}

// tellVersion says to the leader what this replica can run: once, and as long as that is more than what is active, again and again.
func (r *Replica) tellVersion() {
	limit := r.maxVersion()
	if r.toldVersion && (limit <= r.meta.machine || r.ticks%(2*r.cfg.HeartbeatTicks) != 0) {
		return
	}
	if r.lead != nil {
		r.raiseVersion()
	} else if r.leader != 0 {
		r.toldVersion = true
		r.sayVersion()
	}
}

func (r *Replica) sayVersion() {
	if _, ok := r.machine.(Versioned); ok {
		r.w.env.SendNote(r.leader, Note{Shard: r.shard, Kind: noteVersions, A: r.maxVersion()})
	}
}

func (r *Replica) hearVersions(n Note) {
	if l := r.lead; l != nil && r.conf.Has(n.From) {
		if l.versions == nil {
			l.versions = map[NodeID]versionWord{}
		}
		l.versions[n.From] = versionWord{n.A, r.w.now.Mono, r.ticks}
		r.raiseVersion()
		if r.quiet && r.mayRaise() {
			r.wake() // the others as well, who said it before they rested
		}
	}
}

// raiseVersion has the version activated that every member can run.
func (r *Replica) raiseVersion() {
	l := r.lead
	if !l.ready || l.raising != 0 || len(r.conf.Voters) == 0 {
		return
	}
	version := r.runnable()
	if version <= r.meta.machine {
		return
	}
	l.raising = version
	r.logger.Info("every member can run a new version of the machine", "version", version, "active", r.meta.machine)
	r.pending.requests++
	r.queue = append(r.queue, &Request{Kind: kindVersion, Shard: r.shard, Done: func(*Request) {}})
	r.wake()
	r.touch()
}

// versionPatience is how many election timeouts a leader stays awake for a member to say again what it can run. Who can run more than what is active says so twice in each:
// one that does not has an older program by now, or has stopped.
const versionPatience = 4

// mayRaise reports whether all members could run a version later than the active one, by what each has said before the shard rested, or since: it does not rest before they have said it again.
func (r *Replica) mayRaise() bool {
	version := r.maxVersion()
	for _, m := range r.conf.Members() {
		if m == r.cfg.Node {
			continue
		}
		w := r.lead.versions[m]
		if r.ticks-w.ticks > versionPatience*r.cfg.ElectionTicks {
			return false
		}
		version = min(version, w.version)
	}
	return version > r.meta.machine
}

// runnable returns the version that every member has lately said it can run; 0 if one has not, or if the members are about to change:
// who is being added has said nothing yet.
func (r *Replica) runnable() uint64 {
	l, version := r.lead, r.maxVersion()
	if l.changing && !mutated("version-of-the-old-members") {
		return 0
	}
	for _, m := range r.conf.Members() {
		if m == r.cfg.Node || mutated("version-alone") {
			continue
		}
		w := l.versions[m]
		if r.w.now.Mono-w.at > r.electionNanos() {
			return 0
		}
		version = min(version, w.version)
	}
	return version
}

// decideVersion writes the activation into the open batch. It takes effect with the next entry.
// The members may have changed since it was asked for, or the leadership, which has asked for nothing yet.
func (r *Replica) decideVersion(b *batch, q *Request) {
	if v := r.lead.raising; v == 0 || r.runnable() < v && !mutated("version-of-the-old-members") {
		r.lead.raising = 0
		b.ride(q, nil)
		return
	}
	h := requestHeader{flags: flagVersion, version: r.lead.raising}
	b.nextMachine = h.version
	b.buf = h.append(b.buf)
	b.decided = append(b.decided, decided{req: q, result: Result{Index: b.index}})
}
