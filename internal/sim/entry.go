package sim

import (
	"encoding/binary"
	"errors"

	"github.com/decree-raft/decree/internal/core"
)

// The format of an entry, read once more from its description in core/entry.go: the oracle trusts none of core's code.

type logEntry struct {
	term, seq uint64
	time      int64
	chain     uint64
	requests  []logRequest
}

type logRequest struct {
	open, close, session bool
	timed                bool // the entry's time goes into the id of the session
	ttl, window          uint64
	evicted              []core.SessionID
	id                   core.SessionID
	seq, acked, digest   uint64
	version              uint64 // of the machine, active from the next entry on; 0: no such request
	outcome              logOutcome
	events               [][]byte
}

type logOutcome struct {
	replies [][]byte
	code    core.Code // of a rejection, else ""
	detail  []byte
}

var errDecode = errors.New("entry is malformed")

// decoder panics with errDecode, which decodeEntry turns into an error.
type decoder struct{ b []byte }

func (d *decoder) n() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		panic(errDecode)
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		panic(errDecode)
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() byte      { return d.take(1)[0] }
func (d *decoder) u64() uint64   { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *decoder) bytes() []byte { return d.take(d.n()) }

func decodeEntry(data []byte) (e logEntry, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != any(errDecode) {
				panic(p)
			}
			err = errDecode
		}
	}()
	d := decoder{data}
	if d.u8() != 1 {
		return e, errDecode
	}
	e.term, e.seq, e.time, e.chain = d.n(), d.n(), int64(d.n()), d.u64()
	for n := d.n(); n > 0; n-- {
		e.requests = append(e.requests, d.request())
	}
	if len(d.b) > 0 {
		return e, errDecode
	}
	return e, nil
}

func (d *decoder) request() (r logRequest) {
	flags := d.u8()
	r.session, r.open, r.close = flags&1 != 0, flags&2 != 0, flags&4 != 0
	r.timed = flags&16 != 0
	if r.open {
		r.ttl, r.window = d.n(), d.n()
		for n := d.n(); n > 0; n-- {
			r.evicted = append(r.evicted, core.SessionID(d.n()))
		}
	}
	if r.session {
		r.id, r.seq, r.acked, r.digest = core.SessionID(d.n()), d.n(), d.n(), d.u64()
		if o := d.bytes(); len(o) > 0 {
			r.outcome = (&decoder{o}).outcome()
		}
	}
	if flags&8 != 0 {
		r.version = d.n()
	}
	for n := d.n(); n > 0; n-- {
		r.events = append(r.events, d.bytes())
		d.take(2 * d.n()) // digests of the effects: core compares them, the oracle compares the state
	}
	return r
}

func (d *decoder) outcome() (o logOutcome) {
	if d.u8() == 0 {
		for n := d.n(); n > 0; n-- {
			o.replies = append(o.replies, d.bytes())
		}
		return o
	}
	o.code = core.Code(d.bytes())
	d.bytes() // the message is for people
	o.detail = d.bytes()
	return o
}
