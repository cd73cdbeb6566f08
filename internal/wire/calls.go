package wire

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
)

// Numbers of the fields, as api/decree/v1/decree.proto has them.
const (
	fieldCalls   = 1
	fieldAnswers = 1

	callID      = 1
	callTimeout = 2
	callSubmit  = 3
	callRead    = 4
	callOpen    = 5
	callClose   = 6
	callTrace   = 7

	submitShard        = 1
	submitCommands     = 2
	submitSession      = 3
	submitSequence     = 4
	submitAcknowledged = 5
	submitMakesRoom    = 6

	readShard = 1
	readQuery = 2
	readLevel = 3
	readToken = 4

	sessionShard = 1
	sessionID    = 2
)

// number appends a field that is not left out only if it is not zero.
func number(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func numberSize(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func bytesField(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func bytesSize(field protowire.Number, v int) int {
	if v == 0 {
		return 0
	}
	return sizeOf(field, v)
}

// sizeOf returns the size of a field of n bytes, with its tag.
func sizeOf(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// header appends the tag and the length of a field of n bytes.
func header(b []byte, field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
}

// levels, as they travel.
var levels = [...]uint64{core.Linearizable: 1, core.ReadIndex: 2, core.AtToken: 3, core.Stale: 4}

// AppendCall appends a call to a ConnectRequest.
func AppendCall(b []byte, id uint64, timeout time.Duration, c *route.Call) []byte {
	ms := uint64(milliseconds(timeout))
	field, n := protowire.Number(callSubmit), 0
	switch c.Kind {
	case route.Submit:
		n = numberSize(submitShard, uint64(c.Shard)) + numberSize(submitSession, uint64(c.Session)) +
			numberSize(submitSequence, c.Sequence) + numberSize(submitAcknowledged, c.Acknowledged)
		for _, command := range c.Commands {
			n += sizeOf(submitCommands, len(command))
		}
		if c.MakesRoom {
			n += numberSize(submitMakesRoom, 1)
		}
	case route.Read:
		field = callRead
		n = numberSize(readShard, uint64(c.Shard)) + bytesSize(readQuery, len(c.Query)) +
			numberSize(readLevel, levels[c.Level]) + numberSize(readToken, uint64(c.Token))
	case route.OpenSession:
		field, n = callOpen, numberSize(sessionShard, uint64(c.Shard))
	case route.CloseSession:
		field, n = callClose, numberSize(sessionShard, uint64(c.Shard))+numberSize(sessionID, uint64(c.Session))
	}
	size := numberSize(callID, id) + numberSize(callTimeout, ms) + sizeOf(field, n)
	if c.Trace != nil {
		size += sizeOf(callTrace, traceSize)
	}
	b = header(b, fieldCalls, size)
	b = number(b, callID, id)
	b = number(b, callTimeout, ms)
	if t := c.Trace; t != nil { // here, where generated code has it, as what is called is one of several
		b = append(header(b, callTrace, traceSize), t.TraceID[:]...)
		b = append(append(b, t.SpanID[:]...), t.Flags)
	}
	b = header(b, field, n)
	switch c.Kind {
	case route.Submit:
		b = number(b, submitShard, uint64(c.Shard))
		for _, command := range c.Commands { // an empty one counts, too
			b = append(header(b, submitCommands, len(command)), command...)
		}
		b = number(b, submitSession, uint64(c.Session))
		b = number(b, submitSequence, c.Sequence)
		b = number(b, submitAcknowledged, c.Acknowledged)
		if c.MakesRoom {
			b = number(b, submitMakesRoom, 1)
		}
	case route.Read:
		b = number(b, readShard, uint64(c.Shard))
		b = bytesField(b, readQuery, c.Query)
		b = number(b, readLevel, levels[c.Level])
		b = number(b, readToken, uint64(c.Token))
	case route.OpenSession:
		b = number(b, sessionShard, uint64(c.Shard))
	case route.CloseSession:
		b = number(b, sessionShard, uint64(c.Shard))
		b = number(b, sessionID, uint64(c.Session))
	}
	return b
}

// traceSize is that of a trace context: two ids and a byte of flags.
const traceSize = 16 + 8 + 1

// parseTrace returns the span that b names, nil if it names none: what cannot be followed up is no reason to refuse a call.
func parseTrace(b []byte) *route.Trace {
	if len(b) != traceSize {
		return nil
	}
	t := &route.Trace{TraceID: [16]byte(b), SpanID: [8]byte(b[16:]), Flags: b[24]}
	if t.TraceID == ([16]byte{}) || t.SpanID == ([8]byte{}) {
		return nil
	}
	return t
}

// ReceivedCall is a call as it came in.
type ReceivedCall struct {
	ID      uint64
	Timeout time.Duration // 0: left to the server
	Call    *route.Call
}

// ParseCalls takes a ConnectRequest apart. The calls are what alloc returns, zero ones, and point into b.
func ParseCalls(b []byte, alloc func() *route.Call, f func(ReceivedCall) error) error {
	return fields(b, func(n protowire.Number, t protowire.Type, v []byte, _ uint64) error {
		if n != fieldCalls || t != protowire.BytesType {
			return nil
		}
		c, err := parseCall(v, alloc)
		if err != nil {
			return err
		}
		return f(c)
	})
}

func parseCall(b []byte, alloc func() *route.Call) (ReceivedCall, error) {
	c := ReceivedCall{}
	var trace *route.Trace
	err := fields(b, func(n protowire.Number, t protowire.Type, v []byte, x uint64) error {
		switch {
		case n == callID && t == protowire.VarintType:
			c.ID = x
		case n == callTimeout && t == protowire.VarintType:
			c.Timeout = time.Duration(uint32(x)) * time.Millisecond
		case n >= callSubmit && n <= callClose && t == protowire.BytesType:
			switch kind := route.Kind(n - callSubmit); { // the same twice is one, in pieces; of two kinds the last counts
			case c.Call == nil:
				c.Call = alloc()
				c.Call.Kind = kind
			case c.Call.Kind != kind:
				*c.Call = route.Call{Kind: kind, Owner: c.Call.Owner}
			}
			return parseOne(v, c.Call)
		case n == callTrace && t == protowire.BytesType:
			trace = parseTrace(v)
		}
		return nil
	})
	switch {
	case err != nil:
		return c, err
	case c.ID == 0:
		return c, fmt.Errorf("a call has the id 0: ids start at 1")
	}
	if c.Call != nil {
		c.Call.Trace = trace
	}
	return c, nil
}

// MaxCallBytes bounds what one call carries, so that a frame with one more call fits what everybody takes.
const MaxCallBytes = 8 << 20

// maxCommands bounds the commands of a call while it is read: shards have a lower bound.
const maxCommands = 1 << 16

// CheckCall says what is wrong with a call that parses: it is refused, and the stream goes on.
func CheckCall(c *route.Call) error {
	bad := func(text string) error {
		return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeBadRequest, Message: text}
	}
	switch {
	case c == nil:
		return bad("the call asks for nothing that is known here")
	case c.Shard == 0:
		return bad("the call names no shard: ids start at 1")
	case c.Kind == route.Submit && len(c.Commands) == 0:
		return bad("there is no command: a request has at least one")
	case c.Kind == route.Submit && c.Session != 0 && c.Sequence == 0:
		return bad("the sequence number is 0: within a session numbers start at 1")
	case c.Sequence > core.MaxSequence:
		return bad(fmt.Sprintf("the sequence number is %d: within a session numbers go up to %d", c.Sequence, uint64(core.MaxSequence)))
	case c.Kind == route.Submit && c.Session == 0 && c.Sequence != 0:
		return bad(fmt.Sprintf("there is a sequence number, %d, and no session: open one first", c.Sequence))
	case len(c.Commands) > maxCommands:
		return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeTooManyCommands,
			Message: fmt.Sprintf("the call has more than %d commands: send them in several calls", maxCommands)}
	case c.Size() > MaxCallBytes:
		return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeCommandTooLarge,
			Message: fmt.Sprintf("the call carries %d bytes, at most %d are taken by proxies and over connections, whatever MaxCommandBytes allows within a node: make its commands smaller, or send them in several calls", c.Size(), MaxCallBytes)}
	case c.Kind == route.CloseSession && c.Session == 0:
		return bad("the call names no session")
	case c.Kind == route.Read && int(c.Level) >= len(levels):
		return bad("the level of the read is not known here: linearizable, read-index, token or stale")
	}
	return nil
}

func parseOne(b []byte, c *route.Call) error {
	return fields(b, func(n protowire.Number, t protowire.Type, v []byte, x uint64) error {
		if n == 1 && t == protowire.VarintType { // in all of them
			c.Shard = core.ShardID(x)
			return nil
		}
		switch c.Kind {
		case route.Submit:
			switch {
			case n == submitCommands && t == protowire.BytesType:
				if len(c.Commands) > maxCommands { // refused by CheckCall
					return nil
				}
				c.AddCommand(v)
			case t != protowire.VarintType:
			case n == submitSession:
				c.Session = core.SessionID(x)
			case n == submitSequence:
				c.Sequence = x
			case n == submitAcknowledged:
				c.Acknowledged = x
			case n == submitMakesRoom:
				c.MakesRoom = x != 0
			}
		case route.Read:
			switch {
			case n == readQuery && t == protowire.BytesType:
				c.Query = v
			case t != protowire.VarintType:
			case n == readLevel:
				c.Level = ParseLevel(uint64(uint32(x)))
			case n == readToken:
				c.Token = core.Index(x)
			}
		case route.CloseSession:
			if n == sessionID && t == protowire.VarintType {
				c.Session = core.SessionID(x)
			}
		}
		return nil
	})
}

// ParseLevel returns the level that travels as x; one that is not known is none of them.
func ParseLevel(x uint64) core.Level {
	switch {
	case x == 0:
		return core.Linearizable
	case x <= uint64(len(levels)):
		return core.Level(x - 1)
	}
	return core.Level(len(levels))
}

// fields calls f for every field of a message, with its bytes or its number.
func fields(b []byte, f func(n protowire.Number, t protowire.Type, v []byte, x uint64) error) error {
	for len(b) > 0 {
		n, t, size := protowire.ConsumeTag(b)
		if size < 0 {
			return fmt.Errorf("the message does not parse: %w", protowire.ParseError(size))
		}
		b = b[size:]
		var v []byte
		var x uint64
		switch t {
		case protowire.VarintType:
			x, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, t, b)
		}
		if size < 0 {
			return fmt.Errorf("the message does not parse: %w", protowire.ParseError(size))
		}
		b = b[size:]
		if err := f(n, t, v, x); err != nil {
			return err
		}
	}
	return nil
}
