package hledger

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Decimal is an exact number as a journal writes it: a sign, digits, and how
// many of the digits stand after the decimal mark. There is no floating point anywhere.
type Decimal struct {
	Negative bool
	Digits   string // without marks and separators; at least one
	Decimals int
}

// String writes d plainly: "-1234.50".
func (d Decimal) String() string {
	s := d.Digits
	if pad := d.Decimals + 1 - len(s); pad > 0 {
		s = strings.Repeat("0", pad) + s
	}
	if d.Decimals > 0 {
		s = s[:len(s)-d.Decimals] + "." + s[len(s)-d.Decimals:]
	}
	if d.Negative {
		return "-" + s
	}
	return s
}

// canonical writes d so that equal numbers are equal texts: 5, 5.00 and +05 are "5".
func (d Decimal) canonical() string {
	whole, fraction := d.Digits[:max(0, len(d.Digits)-d.Decimals)], ""
	if d.Decimals > 0 {
		digits := strings.Repeat("0", max(0, d.Decimals-len(d.Digits))) + d.Digits
		fraction = strings.TrimRight(digits[len(digits)-d.Decimals:], "0")
	}
	whole = strings.TrimLeft(whole, "0")
	switch {
	case whole == "" && fraction == "":
		return "0"
	case whole == "":
		whole = "0"
	}
	if fraction != "" {
		whole += "." + fraction
	}
	if d.Negative {
		return "-" + whole
	}
	return whole
}

// quantity is an amount field taken apart: sign, symbol, and the number with
// its marks, of which it is not known yet which is the decimal one.
type quantity struct {
	negative bool
	number   string // begins and ends with a digit or a mark
	symbol   string
}

// splitQuantity finds the number in an amount such as "-5.00", "$-5.00", "-$5.00", "5,00 EUR" or "EUR 5".
func splitQuantity(s string) (q quantity, err error) {
	first := strings.IndexAny(s, "0123456789")
	if first < 0 {
		return q, fmt.Errorf("amount %q has no digits", s)
	}
	last := strings.LastIndexAny(s, "0123456789")
	if first > 0 && isMark(s[first-1]) {
		first--
	}
	if last+1 < len(s) && isMark(s[last+1]) {
		last++ // "1,000." says that the comma separates groups
	}
	prefix, suffix := s[:first], s[last+1:]
	q.number = s[first : last+1]
	// A sign stands in front of everything or of the number. Elsewhere it belongs to a symbol such as A-B.
	found := 0
	for _, sign := range signs {
		for _, cut := range []func(string, string) (string, bool){strings.CutPrefix, strings.CutSuffix} {
			if rest, ok := cut(prefix, sign); ok {
				prefix, found = rest, found+1
				q.negative = q.negative || sign != "+"
			}
		}
	}
	if found > 1 {
		return q, fmt.Errorf("amount %q has more than one sign", s)
	}
	prefix, suffix = strings.TrimSpace(prefix), strings.TrimSpace(suffix)
	if prefix != "" && suffix != "" {
		return q, fmt.Errorf("amount %q has a symbol on both sides", s)
	}
	q.symbol = prefix + suffix
	for _, sign := range signs {
		if strings.HasPrefix(q.symbol, sign) || strings.HasSuffix(q.symbol, sign) {
			return q, fmt.Errorf("amount %q has a sign that stands neither in front of everything nor of the number", s)
		}
	}
	return q, nil
}

var signs = []string{"-", "−", "+"}

func isMark(c byte) bool { return c == '.' || c == ',' }

// isGroup reports whether r separates groups of digits and can be nothing else.
func isGroup(r rune) bool {
	return r == ' ' || r == '\u00a0' || r == '\u2009' || r == '\u202f' || r == '\'' || r == '’' || r == '_'
}

// markOf says what a number tells about its commodity's decimal mark: the mark, or 0 if the number may be read either way.
func markOf(number string) (byte, error) {
	points, commas := strings.Count(number, "."), strings.Count(number, ",")
	switch {
	case points == 0 && commas == 0:
		return 0, nil
	case points > 0 && commas > 0:
		mark := number[strings.LastIndexAny(number, ".,")]
		if strings.Count(number, string(mark)) > 1 {
			return 0, fmt.Errorf("%q has points and commas in no sensible order", number)
		}
		return mark, nil
	case points > 1:
		return ',', nil
	case commas > 1:
		return '.', nil
	}
	at := strings.IndexAny(number, ".,")
	before, after := number[:at], number[at+1:]
	if len(after) == 3 && len(before) >= 1 && len(before) <= 3 && before != "0" {
		return 0, nil // 1,234: one and a bit, or more than a thousand?
	}
	return number[at], nil
}

// parseNumber reads a number whose decimal mark is known.
func parseNumber(number string, mark byte) (d Decimal, err error) {
	whole, fraction, _ := strings.Cut(number, string(mark))
	digits, ok := joinGroups(whole)
	if !ok {
		return d, fmt.Errorf("%q is not a number with the decimal mark %q", number, mark)
	}
	if strings.Trim(fraction, "0123456789") != "" {
		return d, fmt.Errorf("%q is not a number with the decimal mark %q", number, mark)
	}
	d.Digits, d.Decimals = digits+fraction, len(fraction)
	return d, nil
}

// joinGroups takes the separators out of a whole number, if they stand where separators do: between groups of
// three digits, or in India of two before the last three. "1,00" is no number but a mistake that is worth a hundredfold.
func joinGroups(whole string) (digits string, ok bool) {
	var groups []string
	var separator rune
	from := 0
	for at, r := range whole {
		switch {
		case r >= '0' && r <= '9':
			continue
		case !isGroup(r) && r != '.' && r != ',', separator != 0 && r != separator:
			return "", false
		}
		separator = r
		groups = append(groups, whole[from:at])
		from = at + utf8.RuneLen(r)
	}
	if separator == 0 {
		return whole, true
	}
	first, between, last := groups[0], groups[1:], whole[from:]
	if len(first) < 1 || len(first) > 3 || strings.Trim(first, "0") == "" || len(last) != 3 {
		return "", false
	}
	for _, g := range between {
		if len(g) != len(between[0]) || len(g) != 3 && len(g) != 2 {
			return "", false
		}
	}
	return strings.Join(groups, "") + last, true
}
