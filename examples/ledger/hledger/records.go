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
// no line is lost without a word: a transaction that lacks a line would look like one that converts money.
type records struct {
	data []byte // not read yet when c was made
	line int    // lines before data
	c    *csv.Reader
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
	start := s.c.InputOffset()
	fields, err = s.c.Read()
	if err == io.EOF {
		return nil, 0, err
	}
	var bad *csv.ParseError
	if !errors.As(err, &bad) {
		at, _ := s.c.FieldPos(0)
		return fields, s.line + at, err
	}
	line = s.line + bad.StartLine
	err = fmt.Errorf("%w (line %d, column %d)", describe(bad.Err), s.line+bad.Line, bad.Column)
	if bad.Line > bad.StartLine {
		s.restart(afterLine(s.data[start:]), line)
	}
	return fields, line, err
}

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
