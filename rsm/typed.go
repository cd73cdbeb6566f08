package rsm

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Typed is a Machine over protobuf messages: C commands, E events, R replies,
// Q queries, A answers. Proto turns it into a Machine, Bind gives typed calls.
// The contract of each method is that of Machine.
type Typed[C, E, R, Q, A proto.Message] interface {
	Decide(v View, command C, c Command) (events []E, reply R, err error)
	Apply(s State, event E, e Event)
	Query(v View, query Q) (A, error)
}

// CodeBadEncoding is the rejection of a command or query that does not parse as the machine's message.
const CodeBadEncoding Code = "bad_encoding"

// Proto makes a Machine of a typed one. If m has the method MaxVersion of Versioned, so has the Machine.
func Proto[C, E, R, Q, A proto.Message](m Typed[C, E, R, Q, A]) Machine {
	p := protoMachine[C, E, R, Q, A]{m}
	if v, ok := m.(interface{ MaxVersion() uint64 }); ok {
		return versionedProto[C, E, R, Q, A]{p, v.MaxVersion()}
	}
	return p
}

type versionedProto[C, E, R, Q, A proto.Message] struct {
	protoMachine[C, E, R, Q, A]
	max uint64
}

func (p versionedProto[C, E, R, Q, A]) MaxVersion() uint64 { return p.max }

type protoMachine[C, E, R, Q, A proto.Message] struct {
	m Typed[C, E, R, Q, A]
}

func newMessage[M proto.Message]() M {
	var zero M
	return zero.ProtoReflect().Type().New().Interface().(M)
}

func (p protoMachine[C, E, R, Q, A]) Decide(v View, c Command) ([][]byte, []byte, error) {
	command := newMessage[C]()
	if err := proto.Unmarshal(c.Data, command); err != nil {
		return nil, nil, Reject(CodeBadEncoding, "the command is no %s: %v", command.ProtoReflect().Descriptor().FullName(), err)
	}
	typed, reply, err := p.m.Decide(v, command, c)
	if err != nil {
		return nil, nil, err
	}
	events := make([][]byte, len(typed))
	for i, e := range typed {
		if events[i], err = proto.Marshal(e); err != nil {
			return nil, nil, fmt.Errorf("event %d of the decision cannot be encoded: %w", i, err)
		}
	}
	data, err := proto.Marshal(reply)
	if err != nil {
		return nil, nil, fmt.Errorf("the reply cannot be encoded: %w", err)
	}
	return events, data, nil
}

func (p protoMachine[C, E, R, Q, A]) Apply(s State, e Event) {
	event := newMessage[E]()
	if err := proto.Unmarshal(e.Data, event); err != nil {
		// Replicated bytes that do not parse: going on would be divergence.
		panic(fmt.Sprintf("the event at %v is no %s: %v", e.Position, event.ProtoReflect().Descriptor().FullName(), err))
	}
	p.m.Apply(s, event, e)
}

func (p protoMachine[C, E, R, Q, A]) Query(v View, data []byte) ([]byte, error) {
	query := newMessage[Q]()
	if err := proto.Unmarshal(data, query); err != nil {
		return nil, Reject(CodeBadEncoding, "the query is no %s: %v", query.ProtoReflect().Descriptor().FullName(), err)
	}
	answer, err := p.m.Query(v, query)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(answer)
}

// Submitter is what a typed Caller calls: a Shard of a node, which must lead, or, wherever the leader is, a Client, a proxy.Shard or a client.Shard of
// package proxy/client.
type Submitter interface {
	Do(ctx context.Context, r Request) (Result, error)
	Read(ctx context.Context, level Level, query []byte) (answer []byte, err error)
}

// Caller makes typed calls to a shard that runs the Typed machine it was bound to.
type Caller[C, R, Q, A proto.Message] struct {
	to        Submitter
	makesRoom bool
}

// Bind returns typed calls for machine m to whatever can be submitted to.
func Bind[C, E, R, Q, A proto.Message](m Typed[C, E, R, Q, A], to Submitter) Caller[C, R, Q, A] {
	return Caller[C, R, Q, A]{to: to}
}

// MakingRoom returns the caller for commands that free space, or finish what was begun: see Request.MakesRoom.
func (c Caller[C, R, Q, A]) MakingRoom() Caller[C, R, Q, A] {
	c.makesRoom = true
	return c
}

// Submit has command decided and waits until its outcome is committed. See Shard.Submit and Client.Submit.
func (c Caller[C, R, Q, A]) Submit(ctx context.Context, command C) (R, error) {
	var none R
	data, err := proto.Marshal(command)
	if err != nil {
		return none, fmt.Errorf("the command cannot be encoded: %w", err)
	}
	res, err := c.to.Do(ctx, Request{Commands: [][]byte{data}, MakesRoom: c.makesRoom})
	if err != nil {
		return none, err
	}
	reply := newMessage[R]()
	if err := proto.Unmarshal(res.Replies[0], reply); err != nil {
		return none, fmt.Errorf("the command was committed, but its reply does not parse: %w", err)
	}
	return reply, nil
}

// Read answers query at the given level. See Shard.Read.
func (c Caller[C, R, Q, A]) Read(ctx context.Context, level Level, query Q) (A, error) {
	var none A
	data, err := proto.Marshal(query)
	if err != nil {
		return none, fmt.Errorf("the query cannot be encoded: %w", err)
	}
	data, err = c.to.Read(ctx, level, data)
	if err != nil {
		return none, err
	}
	answer := newMessage[A]()
	if err := proto.Unmarshal(data, answer); err != nil {
		return none, fmt.Errorf("the answer does not parse: %w", err)
	}
	return answer, nil
}
