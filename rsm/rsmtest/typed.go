package rsmtest

import (
	"fmt"
	"math/rand/v2"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/decree-raft/decree/internal/sim"
	"github.com/decree-raft/decree/rsm"
)

// Typed returns the Config of a machine over protobuf messages. Stories show messages as JSON, and encodings are compared by what they mean. A
// nil query reads nothing. The rest of the Config can be set afterwards.
func Typed[C, E, R, Q, A proto.Message](newMachine func() rsm.Typed[C, E, R, Q, A], command func(*rand.Rand) C, query func(*rand.Rand) Q) Config {
	c := Config{
		New:         func() rsm.Machine { return rsm.Proto(newMachine()) },
		Command:     func(r *rand.Rand) []byte { return encode(command(r)) },
		ShowCommand: show[C], ShowEvent: show[E], ShowReply: show[R], ShowQuery: show[Q], ShowAnswer: show[A],
		same: func(part sim.Part, a, b []byte) bool {
			switch part {
			case sim.PartEvent:
				return same[E](a, b)
			case sim.PartReply:
				return same[R](a, b)
			}
			return same[A](a, b)
		},
	}
	if query != nil {
		c.Query = func(r *rand.Rand) []byte { return encode(query(r)) }
	}
	return c
}

// Replies is the Outcome of a Model that expects a message for a reply or an answer.
func Replies(m proto.Message) Outcome { return Outcome{Reply: encode(m)} }

func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("rsmtest: %T cannot be encoded: %v", m, err))
	}
	return b
}

func decode[M proto.Message](b []byte) (M, error) {
	var zero M
	m := zero.ProtoReflect().Type().New().Interface().(M)
	return m, proto.Unmarshal(b, m)
}

func show[M proto.Message](b []byte) string {
	m, err := decode[M](b)
	if err != nil {
		return fmt.Sprintf("%q (no %s)", b, m.ProtoReflect().Descriptor().FullName())
	}
	data, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Sprintf("%q", b)
	}
	return string(data)
}

func same[M proto.Message](a, b []byte) bool {
	one, err1 := decode[M](a)
	other, err2 := decode[M](b)
	return err1 == nil && err2 == nil && proto.Equal(one, other)
}
