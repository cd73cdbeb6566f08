package admit

import (
	"fmt"
	"time"

	"github.com/decree-raft/decree/rsm"
)

// Reason is which limit a request was refused by.
type Reason uint8

// The reasons, in the order in which they are checked.
const (
	TooLarge    Reason = iota // the request exceeds a bound by itself
	ClientCount               // the client's requests at work
	ClientBytes               // and their bytes
	FairShare                 // others need what is left of the shard's limit
	ShardLimit                // the shard's adaptive limit
	ShardCount                // the same at its maximum
	ShardBytes                // the shard's bytes
	Reasons                   // how many there are
	none        = Reasons
)

var reasonNames = [Reasons]string{"too_large", "client_count", "client_bytes", "fair_share", "shard_limit", "shard_count", "shard_bytes"}

// String is the reason's name, fit for a metric's label.
func (r Reason) String() string {
	if r < Reasons {
		return reasonNames[r]
	}
	return "none"
}

const (
	minRetry = time.Millisecond
	maxRetry = time.Second
)

// refusal is what there is to say about one; it is put into words without a lock.
type refusal struct {
	reason  Reason
	client  string
	shard   uint64
	have    int64 // what is at work
	add     int64 // what this would add
	allowed int64
	turn    int64 // how long it takes until what is at work now is done, in ns
	// pressure is how many requests there are for each that is taken.
	pressure float64
	spread   uint32
}

// retryAfter: by Little's law, what is at work is done within one latency; if only one in three requests is taken, three such
// turns pass until it is one's turn. They come back spread over half to one and a half times that, in a golden section's
// order, as all those who are refused at one time would be back at one time.
func (r *refusal) retryAfter() time.Duration {
	fraction := float64(r.spread*0x9e3779b9) / (1 << 32)
	d := float64(max(r.turn, 0)) * r.pressure * (0.5 + fraction)
	return time.Duration(min(max(d, float64(minRetry)), float64(maxRetry)))
}

func (r *refusal) err() error {
	e := &rsm.Error{Kind: rsm.ErrNotProposed, Code: rsm.CodeOverloaded}
	if r.reason == TooLarge {
		e.Code = rsm.CodeCommandTooLarge
		e.Message = fmt.Sprintf("the request has %d bytes, at most %d may be at work (ClientBytes, ShardBytes): make it smaller", r.add, r.allowed)
		return e
	}
	e.RetryAfter = r.retryAfter()
	switch r.reason {
	case ClientCount:
		e.Message = fmt.Sprintf("client %q has %d requests at work, %d are allowed (ClientCount): wait for some to end", r.client, r.have, r.allowed)
	case ClientBytes:
		e.Message = fmt.Sprintf("client %q has %d bytes at work, %d more exceed %d (ClientBytes): wait for some to end", r.client, r.have, r.add, r.allowed)
	case FairShare:
		e.Message = fmt.Sprintf("client %q has its fair share of shard %d, and %d requests are at work there, %d are allowed as long as others ask too: send less at once",
			r.client, r.shard, r.have, r.allowed)
	case ShardLimit:
		e.Message = fmt.Sprintf("%d requests are at work on shard %d, %d are allowed (adaptive limit, it follows the latency): retry later, send less", r.have, r.shard, r.allowed)
	case ShardCount:
		e.Message = fmt.Sprintf("%d requests are at work on shard %d, %d are allowed (ShardCount): retry later, send less", r.have, r.shard, r.allowed)
	case ShardBytes:
		e.Message = fmt.Sprintf("requests with %d bytes are at work on shard %d, %d more exceed %d (ShardBytes): retry later, send less",
			r.have, r.shard, r.add, r.allowed)
	}
	return e
}
