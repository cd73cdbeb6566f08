package wire

import (
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	decreev1 "github.com/decree-raft/decree/api/decree/v1"
	"github.com/decree-raft/decree/internal/core"
	"github.com/decree-raft/decree/internal/route"
)

const (
	answerID     = 1
	answerError  = 2
	answerSubmit = 3 // those of the other kinds follow, in their order

	submittedReplies = 1
	submittedIndex   = 2

	readAnswer = 1
	readIndex  = 2
	readAge    = 3

	openedSession = 1
)

// MaxAnswerBytes bounds what one answer carries, so that a frame with one fits what everybody takes.
const MaxAnswerBytes = 32 << 20

// AnswerBytes returns about how many bytes an answer has on its way: no less. It is a result, or an error, of which a machine's may be as large.
func AnswerBytes(res *core.Result, err error) int {
	const field = 1 + 5 // a tag and a length
	n := len(res.Answer) + 64
	switch e, r := core.Verdict(err); {
	case r != nil:
		return n + textBytes(string(r.Code)) + textBytes(r.Message) + len(r.Detail)
	case e != nil:
		n += textBytes(string(e.Code)) + textBytes(e.Message) + textBytes(e.LeaderAddress) + 64
		if e.Cause != nil { // no text is made of what is refused, which is many under overload
			n += len(": ") + textBytes(e.Cause.Error())
		}
		return n
	case err != nil:
		return n + textBytes(err.Error()) + 64
	}
	for _, r := range res.Replies {
		n += len(r) + field
	}
	return n
}

// textBytes returns how many bytes a text of an error has on its way, at most: ErrorOf replaces what is not UTF-8, and a replacement has three.
func textBytes(s string) int {
	if utf8.ValidString(s) {
		return len(s)
	}
	return 3 * len(s)
}

// TooLarge returns what is sent in the place of an outcome that is too large for that: nil if it is not. An error stays what it is, with fewer words.
func TooLarge(kind route.Kind, res *core.Result, err error) error {
	n := AnswerBytes(res, err)
	switch {
	case n <= MaxAnswerBytes:
		return nil
	case err != nil:
		return cut(err)
	case kind == route.Read:
		return &core.Error{Kind: core.ErrNotProposed, Code: core.CodeAnswerTooLarge,
			Message: fmt.Sprintf("the answer has %d bytes: at most %d, so ask for less at once", n, MaxAnswerBytes)}
	}
	return &core.Error{Kind: core.ErrUnknown, Code: core.CodeAnswerTooLarge,
		Message: fmt.Sprintf("it was decided, and its outcome has %d bytes: at most %d, so it cannot be sent", n, MaxAnswerBytes)}
}

// AppendAnswer appends the outcome of a call of a kind to a ConnectResponse.
func AppendAnswer(b []byte, id uint64, kind route.Kind, res *core.Result, err error) []byte {
	field, n := protowire.Number(answerSubmit)+protowire.Number(kind), 0
	var failed []byte
	switch {
	case err != nil:
		failed, _ = proto.Marshal(ErrorOf(err)) // all its text is UTF-8
		field, n = answerError, len(failed)
	case kind == route.Submit:
		n = numberSize(submittedIndex, uint64(res.Index))
		for _, r := range res.Replies {
			n += sizeOf(submittedReplies, len(r))
		}
	case kind == route.Read:
		n = bytesSize(readAnswer, len(res.Answer)) + numberSize(readIndex, uint64(res.Index)) + numberSize(readAge, uint64(res.Age))
	case kind == route.OpenSession:
		n = numberSize(openedSession, uint64(res.Session))
	}
	b = header(b, fieldAnswers, numberSize(answerID, id)+sizeOf(field, n))
	b = number(b, answerID, id)
	b = header(b, field, n)
	switch {
	case err != nil:
		b = append(b, failed...)
	case kind == route.Submit:
		for _, r := range res.Replies {
			b = append(header(b, submittedReplies, len(r)), r...)
		}
		b = number(b, submittedIndex, uint64(res.Index))
	case kind == route.Read:
		b = bytesField(b, readAnswer, res.Answer)
		b = number(b, readIndex, uint64(res.Index))
		b = number(b, readAge, uint64(res.Age))
	case kind == route.OpenSession:
		b = number(b, openedSession, uint64(res.Session))
	}
	return b
}

// ReceivedAnswer is an outcome as it came in.
type ReceivedAnswer struct {
	ID     uint64
	Kind   route.Kind // of a call that succeeded
	Result core.Result
	Err    error
}

// ParseAnswers takes a ConnectResponse apart. The answers point into b.
func ParseAnswers(b []byte, f func(*ReceivedAnswer)) error {
	return fields(b, func(n protowire.Number, t protowire.Type, v []byte, _ uint64) error {
		if n != fieldAnswers || t != protowire.BytesType {
			return nil
		}
		var a ReceivedAnswer
		if err := parseAnswer(v, &a); err != nil {
			return err
		}
		f(&a)
		return nil
	})
}

func parseAnswer(b []byte, a *ReceivedAnswer) error {
	known, failed := false, false
	var e decreev1.Error
	err := fields(b, func(n protowire.Number, t protowire.Type, v []byte, x uint64) error {
		switch {
		case n == answerID && t == protowire.VarintType:
			a.ID = x
		case t != protowire.BytesType:
		case n == answerError:
			if !failed {
				e.Reset()
			}
			known, failed = true, true
			if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(v, &e); err != nil {
				return err
			}
			a.Err, a.Kind, a.Result = FromError(&e), 0, core.Result{}
		case n >= answerSubmit && n <= answerSubmit+protowire.Number(route.CloseSession):
			if kind := route.Kind(n - answerSubmit); !known || failed || a.Kind != kind { // the same twice is one, in pieces
				a.Kind, a.Err, a.Result = kind, nil, core.Result{}
			}
			known, failed = true, false
			return parseResult(v, a.Kind, &a.Result)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case a.ID == 0:
		return fmt.Errorf("an answer has the id 0: ids start at 1")
	case !known:
		return fmt.Errorf("the answer to call %d is neither an outcome nor an error that is known here", a.ID)
	}
	return nil
}

func parseResult(b []byte, kind route.Kind, res *core.Result) error {
	return fields(b, func(n protowire.Number, t protowire.Type, v []byte, x uint64) error {
		number := t == protowire.VarintType
		switch kind {
		case route.Submit:
			switch {
			case n == submittedReplies && t == protowire.BytesType:
				res.Replies = append(res.Replies, v)
			case n == submittedIndex && number:
				res.Index = core.Index(x)
			}
		case route.Read:
			switch {
			case n == readAnswer && t == protowire.BytesType:
				res.Answer = v
			case n == readIndex && number:
				res.Index = core.Index(x)
			case n == readAge && number:
				res.Age = time.Duration(x)
			}
		case route.OpenSession:
			if n == openedSession && number {
				res.Session = core.SessionID(x)
			}
		}
		return nil
	})
}
