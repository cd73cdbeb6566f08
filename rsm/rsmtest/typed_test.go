package rsmtest_test

import (
	"math/rand/v2"
	"regexp"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/decree-raft/decree/rsm"
	"github.com/decree-raft/decree/rsm/rsmtest"
)

// register is a machine over protobuf messages: a command sets fields, and the answer has all of them. Its messages
// have maps, which are encoded differently each time.
type register struct {
	loses bool // the field "b"
}

func (register) Decide(_ rsm.View, command *structpb.Struct, _ rsm.Command) ([]*structpb.Struct, *wrapperspb.Int64Value, error) {
	if len(command.GetFields()) == 0 {
		return nil, nil, rsm.Reject("empty", "there is nothing to set")
	}
	return []*structpb.Struct{command}, wrapperspb.Int64(int64(len(command.GetFields()))), nil
}

func (m register) Apply(s rsm.State, e *structpb.Struct, _ rsm.Event) {
	for _, name := range names { // not the map itself
		if v, ok := e.GetFields()[name]; ok && (name != "b" || !m.loses) {
			s.Set([]byte(name), []byte(v.GetStringValue()))
		}
	}
}

func (register) Query(v rsm.View, _ *wrapperspb.BoolValue) (*structpb.Struct, error) {
	all := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, value := range v.Scan(nil, nil) {
		all.Fields[string(k)] = structpb.NewStringValue(string(value))
	}
	return all, nil
}

type typedRegister = rsm.Typed[*structpb.Struct, *structpb.Struct, *wrapperspb.Int64Value, *wrapperspb.BoolValue, *structpb.Struct]

func registerConfig(m register) rsmtest.Config {
	return rsmtest.Typed(func() typedRegister { return m },
		func(r *rand.Rand) *structpb.Struct {
			c := &structpb.Struct{Fields: map[string]*structpb.Value{}}
			for _, name := range names {
				if r.IntN(2) == 0 {
					c.Fields[name] = structpb.NewStringValue(string(rune('a' + r.IntN(26))))
				}
			}
			return c
		},
		func(*rand.Rand) *wrapperspb.BoolValue { return wrapperspb.Bool(true) })
}

// registerModel is never changed: a step makes a copy.
type registerModel map[string]string

func (m registerModel) Step(c rsm.Command) (rsmtest.Model, rsmtest.Outcome) {
	var command structpb.Struct
	if err := proto.Unmarshal(c.Data, &command); err != nil {
		panic(err)
	}
	if len(command.Fields) == 0 {
		return m, rsmtest.Outcome{Code: "empty"}
	}
	next := registerModel{}
	for k, v := range m {
		next[k] = v
	}
	for k, v := range command.Fields {
		next[k] = v.GetStringValue()
	}
	return next, rsmtest.Replies(wrapperspb.Int64(int64(len(command.Fields))))
}

func (m registerModel) Query([]byte) rsmtest.Outcome {
	all := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for k, v := range m {
		all.Fields[k] = structpb.NewStringValue(v)
	}
	return rsmtest.Replies(all)
}

func TestTyped(t *testing.T) {
	c := registerConfig(register{})
	c.Model, c.Seeds = registerModel{}, seeds(10)
	rsmtest.Run(t, c)
}

func TestTypedStory(t *testing.T) {
	c := registerConfig(register{loses: true})
	c.Model = registerModel{}
	story := failure(t, func(t testing.TB) { rsmtest.Run(t, c) })
	for _, want := range []string{
		`asks node \d( again)?: \{.*"b": ?"[a-z]".*\}`,
		`expected:  the model says \{.*"b": ?"[a-z]".*\}`,
		`seen:      the machine answered \{`,
	} {
		if !regexp.MustCompile(want).MatchString(story) {
			t.Errorf("the story does not match %q:\n%s", want, story)
		}
	}
}
