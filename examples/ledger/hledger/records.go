package hledger

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
)

// records reads CSV records one by one, with the number of the line that each begins on.
//
// A record with unbalanced quotes takes lines with it that are not its own: encoding/csv
// goes on behind them. Here reading goes on at the line after the one where the bad record began, so that
// no line is lost without a word: a transaction that lacks a line may look like one that converts money.
// The caller asks for the same, with again, when two stray quotes made a record that parses and makes no sense.
type records struct {
	data []byte // not read yet when c was made
	line int    // lines before data
	c    *csv.Reader

	// Of the record that was read last: where its text begins and ends in data, and on which line of the file.
	from, to, at int
}

func newRecords(data []byte) *records {
	s := &records{}
	s.restart(data, 0)
	return s
}

func (s *records) restart(data []byte, line int) {
	s.data, s.line = data, line
	s.c = csv.NewReader(bytes.NewReader(data))
	s.c.FieldsPerRecord = -1 // counted by the caller, who goes on after a bad line
}

// next returns the fields of a record. With an error other than io.EOF they
// are those before the damage.
func (s *records) next() (fields []string, line int, err error) {
	s.from = int(s.c.InputOffset())
	fields, err = s.c.Read()
	s.to = int(s.c.InputOffset())
	if err == io.EOF {
		return nil, 0, err
	}
	var bad *csv.ParseError
	if !errors.As(err, &bad) {
		at, _ := s.c.FieldPos(0)
		s.at = s.line + at
		return fields, s.at, err
	}
	line = s.line + bad.StartLine
	s.at = line
	err = fmt.Errorf("%w (line %d, column %d)", describe(bad.Err), s.line+bad.Line, bad.Column)
	if bad.Line > bad.StartLine {
		s.restart(afterLine(s.data[s.from:]), line)
	}
	return fields, line, err
}

// spans reports whether the record that was read last has more lines than one.
func (s *records) spans() bool {
	return bytes.IndexByte(bytes.Trim(s.data[s.from:s.to], "\r\n"), '\n') >= 0
}

// again has the lines of the record that was read last, but for the first, read once more as records
// of their own: the record is not one, so they are not its own either.
func (s *records) again() { s.restart(afterLine(s.data[s.from:]), s.at) }

func describe(err error) error {
	switch {
	case errors.Is(err, csv.ErrQuote):
		return errors.New("unbalanced quotes")
	case errors.Is(err, csv.ErrBareQuote):
		return errors.New("a quote within a field that is not quoted")
	}
	return err
}

// afterLine returns what follows the first line of data that is not empty.
func afterLine(data []byte) []byte {
	data = bytes.TrimLeft(data, "\r\n")
	if at := bytes.IndexByte(data, '\n'); at >= 0 {
		return data[at+1:]
	}
	return nil
}
