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
	signs := strings.Count(prefix, "-") + strings.Count(prefix, "−") + strings.Count(prefix, "+")
	if signs > 1 {
		return q, fmt.Errorf("amount %q has more than one sign", s)
	}
	q.negative = strings.ContainsAny(prefix, "-−")
	prefix = strings.NewReplacer("-", "", "−", "", "+", "").Replace(prefix)
	prefix, suffix = strings.TrimSpace(prefix), strings.TrimSpace(suffix)
	if prefix != "" && suffix != "" {
		return q, fmt.Errorf("amount %q has a symbol on both sides", s)
	}
	q.symbol = prefix + suffix
	return q, nil
}

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
	var digits strings.Builder
	wasDigit := false
	for at, r := range whole {
		switch {
		case r >= '0' && r <= '9':
			digits.WriteRune(r)
			wasDigit = true
		case (isGroup(r) || isMark(byte(r&0x7f)) && r < utf8.RuneSelf) && wasDigit && at+utf8.RuneLen(r) < len(whole):
			wasDigit = false
		default:
			return d, fmt.Errorf("%q is not a number", number)
		}
	}
	for _, r := range fraction {
		if r < '0' || r > '9' {
			return d, fmt.Errorf("%q is not a number", number)
		}
	}
	d.Digits, d.Decimals = digits.String()+fraction, len(fraction)
	return d, nil
}
