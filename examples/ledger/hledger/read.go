// Package hledger reads what `hledger print -O csv` writes and writes what
// `hledger balance -O csv` writes, so that any hledger, ledger or beancount
// book can go into the ledger, and come out to be compared.
package hledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/decree-raft/decree/examples/ledger/book"
)

// NoCommodity is the asset code of amounts without a commodity: ISO 4217's code for "no currency".
const NoCommodity = "XXX"

// MaxFileBytes bounds a file, which is held in memory.
const MaxFileBytes = 1 << 30

// Options say how to read.
type Options struct {
	// DecimalMark is '.' or ',' for all amounts. Zero finds it out for each
	// commodity, and refuses an amount such as "1,234" when nothing in the file tells.
	DecimalMark byte
}

// Problem is why a transaction cannot be booked.
type Problem struct {
	Line   int // of the file, from 1
	Reason string
}

func (p Problem) Error() string { return fmt.Sprintf("line %d: %s", p.Line, p.Reason) }

// Posting is one line of a transaction.
type Posting struct {
	Line      int
	Account   string
	Commodity string
	Amount    Decimal // positive is a debit
	Kind      PostingKind
}

// PostingKind says with which others a posting must balance.
type PostingKind uint8

const (
	Real            PostingKind = iota // with the other real ones
	BalancedVirtual                    // [account]: with the other balanced virtual ones
	Virtual                            // (account): with nothing
)

// Transaction is one transaction of the journal, sound by itself.
type Transaction struct {
	Index       string // txnidx
	Date        book.Date
	Description string
	Postings    []Posting
}

// Journal is what a file holds. A transaction with a problem in any of its lines is not in Transactions.
type Journal struct {
	Transactions []Transaction
	Problems     []Problem // in the order of their lines
	Malformed    int       // transactions with a problem
	// Decimals are those of the most precise amount in each commodity, amounts in transactions with a problem included:
	// when the problem is solved, they shall fit. Those of more than maxTypical are left out: if a transaction can be booked, Book counts them.
	Decimals map[string]Precision
}

// Precision is how many decimals a commodity has, and the first line that has so many.
type Precision struct {
	Decimals uint8
	Line     int
}

// maxTypical is how many decimals an amount has that is no slip: an asset keeps the decimals that it begins with, and with thirty it holds no more than 340,282,366.
const maxTypical = 12

// precise notes an amount's decimals, if they are more than is known.
func precise(known map[string]Precision, commodity string, decimals, line int) {
	if has, ok := known[commodity]; !ok || decimals > int(has.Decimals) {
		known[commodity] = Precision{uint8(decimals), line}
	}
}

// columns are the places of the columns that are read; the others are not kept.
type columns struct{ index, date, description, account, amount, commodity int }

// rowData is a line of the file that has the right columns.
type rowData struct {
	line                                         int
	index, date, description, account, commodity string
	kind                                         PostingKind
	quantity                                     quantity
	reported                                     bool // a problem of this line has been named
}

// group is the rows of one transaction.
type group struct {
	rows []rowData
	bad  bool
}

type parser struct {
	options  Options
	columns  columns
	width    int
	groups   []*group
	byIndex  map[string]*group
	problems []Problem
	marks    map[string]mark // by commodity
}

// mark is what the amounts of a commodity say about its decimal mark.
type mark struct {
	is       byte // 0 is not known
	conflict bool // some say this and some that
}

// Read reads a whole file. The error is for a file that cannot be read at all;
// what is wrong in single lines becomes a Problem.
func Read(r io.Reader, options Options) (*Journal, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFileBytes {
		return nil, fmt.Errorf("the file is larger than %d bytes", MaxFileBytes)
	}
	p := &parser{options: options, byIndex: make(map[string]*group), marks: make(map[string]mark)}
	lines := newRecords(bytes.TrimPrefix(data, []byte("\ufeff"))) // in front of the quotes of the header
	if err := p.header(lines); err != nil {
		return nil, err
	}
	p.rows(lines)
	p.findMarks()
	j := &Journal{Decimals: make(map[string]Precision)}
	for _, w := range p.allRows() {
		if amount, err := p.amount(*w); err == nil && !w.reported && amount.Decimals <= maxTypical {
			precise(j.Decimals, w.commodity, amount.Decimals, w.line)
		}
	}
	for _, g := range p.groups {
		if t, ok := p.transaction(g); ok {
			j.Transactions = append(j.Transactions, t)
		} else {
			j.Malformed++
		}
	}
	slices.SortStableFunc(p.problems, func(a, b Problem) int { return a.Line - b.Line })
	j.Problems = p.problems
	return j, nil
}

func (p *parser) header(lines *records) error {
	names, _, err := lines.next()
	if err != nil {
		return fmt.Errorf("line 1 is no header: %w", err)
	}
	if slices.ContainsFunc(names, func(s string) bool { return strings.Contains(s, "\r") }) {
		return errors.New("line 1 has a carriage return without a line feed: lines must end with a line feed, as hledger writes them, or with both")
	}
	p.width = len(names)
	for _, want := range []struct {
		name string
		at   *int
	}{
		{"txnidx", &p.columns.index}, {"date", &p.columns.date}, {"description", &p.columns.description},
		{"account", &p.columns.account}, {"amount", &p.columns.amount}, {"commodity", &p.columns.commodity},
	} {
		if *want.at = slices.Index(names, want.name); *want.at < 0 {
			return fmt.Errorf("line 1 has no column %q; this is not what `hledger print -O csv` writes", want.name)
		}
	}
	return nil
}

func (p *parser) problem(line int, format string, args ...any) {
	p.problems = append(p.problems, Problem{line, fmt.Sprintf(format, args...)})
}

// rows reads the lines into groups.
func (p *parser) rows(lines *records) {
	var at *group     // the transaction of the line before
	poisoned := false // by a line that is not known to belong anywhere
	for {
		fields, line, err := lines.next()
		if err == io.EOF {
			return
		}
		if err == nil && len(fields) != p.width {
			err = fmt.Errorf("%d columns, the header has %d", len(fields), p.width)
			p.giveBack(lines, fields)
		} else if err == nil {
			if err = p.oneLine(fields); err != nil {
				p.giveBack(lines, fields)
			}
		}
		if err != nil {
			p.problem(line, "%v", err)
		}
		index := ""
		if len(fields) > p.columns.index {
			index = strings.TrimSpace(fields[p.columns.index])
		}
		if index == "" {
			if err == nil {
				p.problem(line, "txnidx is empty")
			}
			// It may be the last line of the transaction before, or the first of the
			// next one. What lacks a line would look like a conversion, so neither is booked.
			if at != nil {
				at.bad = true
			}
			poisoned = true
			continue
		}
		at = p.groupOf(at, index, line)
		at.bad = at.bad || err != nil || poisoned
		poisoned = false
		if err == nil {
			p.row(at, fields, line)
		}
	}
}

// oneLine refuses line breaks where hledger writes none: there, a stray quote has taken lines in.
func (p *parser) oneLine(fields []string) error {
	c := &p.columns
	for _, at := range []int{c.index, c.date, c.description, c.account, c.amount, c.commodity} {
		if strings.ContainsAny(fields[at], "\r\n") {
			return fmt.Errorf("a line break in column %d: unbalanced quotes?", at+1)
		}
	}
	return nil
}

// giveBack has the lines that a senseless record took in read by themselves. Of its fields only those of its first line are its own.
func (p *parser) giveBack(lines *records, fields []string) {
	if !lines.spans() {
		return
	}
	lines.again()
	for i, f := range fields {
		if strings.Contains(f, "\n") {
			clear(fields[i:])
			return
		}
	}
}

// groupOf returns the transaction of a line. The lines of a transaction stand together.
func (p *parser) groupOf(at *group, index string, line int) *group {
	g := p.byIndex[index]
	if g == nil {
		g = new(group)
		p.groups = append(p.groups, g)
		p.byIndex[index] = g
	} else if g != at {
		p.problem(line, "transaction %s goes on here, but its lines must stand together", index)
		g.bad = true
	}
	return g
}

// row adds a line to its transaction.
func (p *parser) row(g *group, fields []string, line int) {
	field := func(at int) string { return strings.TrimSpace(fields[at]) }
	w := rowData{
		line: line, index: field(p.columns.index), date: field(p.columns.date),
		description: field(p.columns.description), commodity: field(p.columns.commodity),
	}
	w.account, w.kind = accountName(field(p.columns.account))
	q, err := splitQuantity(field(p.columns.amount))
	switch {
	case w.account == "":
		err = errors.New("the account is empty")
	case len(w.account) > book.MaxNameBytes:
		err = fmt.Errorf("the account's name is longer than %d bytes", book.MaxNameBytes)
	case err == nil && q.symbol != "" && w.commodity != "" && q.symbol != w.commodity:
		err = fmt.Errorf("the amount is in %q, the commodity is %q", q.symbol, w.commodity)
	case !utf8.ValidString(w.account + w.commodity + w.description + q.symbol):
		err = errors.New("not UTF-8")
	}
	if w.commodity == "" {
		w.commodity = q.symbol
	}
	if w.commodity == "" {
		w.commodity = NoCommodity
	}
	if err == nil && len(w.commodity) > book.MaxAssetLen {
		err = fmt.Errorf("commodity %q is longer than %d bytes", w.commodity, book.MaxAssetLen)
	}
	if err != nil {
		p.problem(line, "%v", err)
		g.bad = true
		return
	}
	w.quantity = q
	g.rows = append(g.rows, w)
}

// accountName drops the brackets of a virtual posting, as the account is the same, and says what they mean.
func accountName(name string) (string, PostingKind) {
	n := len(name)
	switch {
	case n > 2 && name[0] == '(' && name[n-1] == ')':
		return strings.TrimSpace(name[1 : n-1]), Virtual
	case n > 2 && name[0] == '[' && name[n-1] == ']':
		return strings.TrimSpace(name[1 : n-1]), BalancedVirtual
	}
	return name, Real
}

// findMarks finds out each commodity's decimal mark, from all lines of the file that are numbers with the mark
// that they ask for: 8.2.30 says nothing of 12.345. Where they contradict each
// other, none is believed: whichever came first would else decide what the others are worth.
func (p *parser) findMarks() {
	for g, w := range p.allRows() {
		is, err := p.options.DecimalMark, error(nil)
		if is == 0 {
			is, err = markOf(w.quantity.number)
		}
		if is != 0 {
			_, err = parseNumber(w.quantity.number, is)
		}
		known := p.marks[w.commodity]
		switch {
		case err != nil:
			p.refuse(g, w, "amount %v", err)
		case is != 0:
			p.marks[w.commodity] = mark{is, known.conflict || known.is != 0 && known.is != is}
		}
	}
	for g, w := range p.allRows() {
		if p.marks[w.commodity].conflict && !w.reported && strings.ContainsAny(w.quantity.number, ".,") {
			p.refuse(g, w, "amount %q: in %s, some amounts have a decimal point and some a decimal comma; say which it is with -decimal-mark", w.quantity.number, w.commodity)
		}
	}
}

// allRows are the rows of all groups, each with its group.
func (p *parser) allRows() iter.Seq2[*group, *rowData] {
	return func(yield func(*group, *rowData) bool) {
		for _, g := range p.groups {
			for i := range g.rows {
				if !yield(g, &g.rows[i]) {
					return
				}
			}
		}
	}
}

// refuse names what is wrong with a line, and with it its transaction.
func (p *parser) refuse(g *group, w *rowData, format string, args ...any) {
	p.problem(w.line, format, args...)
	g.bad, w.reported = true, true
}

// transaction puts a group together, if all of it is sound.
func (p *parser) transaction(g *group) (t Transaction, ok bool) {
	for _, w := range g.rows {
		if w.reported {
			continue
		}
		amount, err := p.check(&t, w)
		if err != nil {
			p.problem(w.line, "%v", err)
			g.bad = true
			continue
		}
		t.Postings = append(t.Postings, Posting{Line: w.line, Account: w.account, Commodity: w.commodity, Amount: amount, Kind: w.kind})
	}
	return t, !g.bad && len(t.Postings) > 0
}

// check reads a line's date and amount; what it says of the whole transaction must be what the first sound line says.
func (p *parser) check(t *Transaction, w rowData) (amount Decimal, err error) {
	date, err := book.ParseDate(w.date)
	switch {
	case err != nil:
		return amount, err
	case date == 0:
		return amount, errors.New("the date is empty")
	case len(w.description) > book.MaxMemoBytes:
		return amount, fmt.Errorf("the description is longer than %d bytes", book.MaxMemoBytes)
	}
	if amount, err = p.amount(w); err != nil {
		return amount, err
	}
	if len(t.Postings) == 0 {
		t.Index, t.Date, t.Description = w.index, date, w.description
	}
	switch {
	case date != t.Date:
		return amount, fmt.Errorf("the date %v differs from %v in the lines before of transaction %s", date, t.Date, t.Index)
	case w.description != t.Description:
		return amount, fmt.Errorf("the description differs from the lines before of transaction %s", t.Index)
	}
	return amount, nil
}

func (p *parser) amount(w rowData) (Decimal, error) {
	mark := p.marks[w.commodity].is
	if mark == 0 {
		// Nothing tells. A point alone is a decimal point, as hledger reads it; a comma alone may be a thousand times more.
		if strings.Contains(w.quantity.number, ",") {
			return Decimal{}, fmt.Errorf("amount %q can be read two ways, and nothing in the file tells which; say it with -decimal-mark", w.quantity.number)
		}
		mark = '.'
	}
	d, err := parseNumber(w.quantity.number, mark)
	if err != nil {
		return d, err
	}
	d.Negative = w.quantity.negative && strings.Trim(d.Digits, "0") != ""
	if d.Decimals > book.MaxScale {
		return d, fmt.Errorf("%q has more than %d decimals", w.quantity.number, book.MaxScale)
	}
	return d, nil
}
