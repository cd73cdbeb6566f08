package hledger

import (
	"fmt"
	"strings"
	"testing"
)

const header = `"txnidx","date","date2","status","code","description","comment","account","amount","commodity","credit","debit","posting-status","posting-comment"` + "\n"

// line writes a row as hledger does.
func line(index, date, description, account, amount, commodity string) string {
	fields := []string{index, date, "", "*", "", description, "", account, amount, commodity, "", "", "", ""}
	for i := range fields {
		fields[i] = `"` + strings.ReplaceAll(fields[i], `"`, `""`) + `"`
	}
	return strings.Join(fields, ",") + "\n"
}

func pair(index string) string {
	return line(index, "2025-01-31", "d", "A", "5.00", "EUR") + line(index, "2025-01-31", "d", "B", "-5.00", "EUR")
}

// pairBare is pair without quotes.
func pairBare(index string) string { return strings.ReplaceAll(pair(index), `"`, "") }

func read(t *testing.T, text string, options ...Options) *Journal {
	t.Helper()
	j, err := Read(strings.NewReader(text), append(options, Options{})[0])
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func indexes(j *Journal) string {
	var names []string
	for _, t := range j.Transactions {
		names = append(names, t.Index)
	}
	return strings.Join(names, " ")
}

// Every malformed row is named by its line and the reason; of its transaction nothing is booked, all others are.
func TestMalformed(t *testing.T) {
	good := func(index, account string) string { return line(index, "2025-01-31", "d", account, "5.00", "EUR") }
	for _, c := range []struct {
		name, text string
		booked     string   // indexes of the transactions that remain
		problems   []string // beginnings
	}{
		{"nothing", "", "", nil},
		{"sound", pair("1") + pair("2"), "1 2", nil},
		{"number", pair("1") + good("2", "A") + line("2", "2025-01-31", "d", "B", "-5.0x", "EUR") + pair("3"), "1 3",
			[]string{`line 5: the amount is in "x", the commodity is "EUR"`}},
		{"no digits", line("1", "2025-01-31", "d", "A", "", "EUR") + good("1", "B"), "", []string{`line 2: amount "" has no digits`}},
		{"two signs", line("1", "2025-01-31", "d", "A", "--5", "EUR"), "", []string{`line 2: amount "--5" has more than one sign`}},
		{"letters between", line("1", "2025-01-31", "d", "A", "1e5", "EUR"), "", []string{`line 2: "1e5" is not a number`}},
		{"brackets", line("1", "2025-01-31", "d", "A", "(5.00)", "EUR"), "", []string{`line 2: amount "(5.00)" has a symbol on both sides`}},
		{"account", good("1", "A") + good("1", "  ") + pair("2"), "2", []string{"line 3: the account is empty"}},
		{"long account", good("1", strings.Repeat("a", 257)), "", []string{"line 2: the account's name is longer than 256 bytes"}},
		{"date", line("1", "2025-02-29", "d", "A", "5", "EUR") + good("1", "B"), "", []string{`line 2: "2025-02-29" is not a date`}},
		{"no date", line("1", "", "d", "A", "5", "EUR"), "", []string{"line 2: the date is empty"}},
		{"other date", good("1", "A") + line("1", "2025-02-01", "d", "B", "-5.00", "EUR"), "", []string{"line 3: the date 2025-02-01 differs"}},
		{"other description", good("1", "A") + line("1", "2025-01-31", "e", "B", "-5.00", "EUR"), "", []string{"line 3: the description differs"}},
		{"long description", line("1", "2025-01-31", strings.Repeat("d", 513), "A", "5.00", "EUR"), "", []string{"line 2: the description is longer than 512 bytes"}},
		{"long commodity", line("1", "2025-01-31", "d", "A", "5.00", strings.Repeat("C", 33)), "", []string{"line 2: commodity"}},
		{"other symbol", line("1", "2025-01-31", "d", "A", "$5.00", "EUR"), "", []string{`line 2: the amount is in "$", the commodity is "EUR"`}},
		{"decimals", line("1", "2025-01-31", "d", "A", "0.1234567890123456789012345678901", "EUR"), "", []string{"line 2: \"0.1234567890123456789012345678901\" has more than 30 decimals"}},
		{"columns", pair("1") + `"2","2025-01-31"` + "\n" + good("2", "B") + pair("3"), "1 3", []string{"line 4: 2 columns, the header has 14"}},
		{"apart", pair("1") + pair("2") + pair("1") + pair("3"), "2 3", []string{"line 6: transaction 1 goes on here"}},
		{"no index", good("1", "A") + good("", "B") + good("2", "A") + good("2", "B") + pair("3"), "3", []string{"line 3: txnidx is empty"}},
		{"blank lines", "\n" + pair("1") + "\n\n" + pair("2"), "1 2", nil},
		{"not UTF-8", line("1", "2025-01-31", "\xff", "A", "5.00", "EUR"), "", []string{"line 2: not UTF-8"}},
		{"quote in the middle", pair("1") + `"2","2025"01-31","","","","","","A","5","EUR","","","",""` + "\n" + good("2", "B") + pair("3"), "1 3",
			[]string{"line 4: unbalanced quotes (line 4, column 10)"}},
		{"bare quote", pair("1") + `2,2025"01-31` + "\n" + good("2", "B") + pair("3"), "1 3",
			[]string{"line 4: a quote within a field that is not quoted"}},
		{"bad first field", pair("1") + `"2"x,` + "\n" + good("2", "B") + pair("3"), "3", // whose line 4 is cannot be said
			[]string{"line 4: unbalanced quotes"}},
		// The open quote would swallow the first line of transaction 3, and 3 would look like a conversion.
		{"open quote", pair("1") + good("2", "A") + strings.TrimSuffix(good("2", "B"), "\"\n") + "\n" + pair("3"), "1 3",
			[]string{"line 5: unbalanced quotes (line 6, "}},
		{"open to the end", pair("1") + `"2","2025-01-31","open` + "\n" + pair("3"), "1 3", []string{"line 4: unbalanced quotes"}},
		{"open in the last line", pair("1") + pair("2") + `"3","2025-01-31","open`, "1 2", []string{"line 6: unbalanced quotes"}},
		{"two marks", line("1", "2025-01-31", "d", "A", "1.5", "EUR") + line("1", "2025-01-31", "d", "B", "-1,5", "EUR") + line("2", "2025-01-31", "d", "A", "0.5", "USD"), "2",
			[]string{`line 2: amount "1.5": in EUR, some amounts have a decimal point and some a decimal comma`, `line 3: amount "1,5": in EUR`}},
		{"two marks, and who has none", line("1", "2025-01-31", "d", "A", "1,5", "EUR") + line("2", "2025-01-31", "d", "A", "1,234", "EUR") + line("3", "2025-01-31", "d", "A", "1234", "EUR") + line("4", "2025-01-31", "d", "A", "1.5", "EUR"), "3",
			[]string{`line 2: amount "1,5"`, `line 3: amount "1,234"`, `line 5: amount "1.5"`}},
		// Two stray quotes make one record of several lines, which have to be read by themselves.
		{"quotes over lines", pair("1") + "2,2025-01-31,,*,,\"open,,A,5,EUR,,,,\n" + "2,2025-01-31,,*,,d,,B,-5,EUR,,,,\n" + "3,2025-01-31,,*,,d,,A,7,EUR,,,,\n" + "3,2025-01-31,,*,,close\",,B,-7,EUR,,,,\n" + pair("4"), "1 4",
			[]string{"line 4: a line break in column 6", "line 7: a quote within a field"}},
		{"quotes over lines, and fewer columns", pair("1") + "2,2025-01-31,,*,,\"open,,A,5,EUR,,,,\n" + "2,2025-01-31,,*,,d,,B,-5,EUR,,,,\n" + pairBare("3") + "4,2025-01-31,,*,,d,,A,7,EUR,,,,\"\n" + pair("5"), "1 3 5",
			[]string{"line 4: 6 columns, the header has 14", "line 8: unbalanced quotes"}},
		{"quotes in front of the index", pair("1") + pairBare("2") + "\"3,2025-01-31,,*,,d,,A,5,EUR,,,,\n3\",2025-01-31,,*,,d,,B,-5,EUR,,,,\n" + pairBare("4") + pairBare("5"), "1 5",
			[]string{"line 6: a line break in column 1", "line 7: a quote within"}},
		{"marks in disorder", line("1", "2025-01-31", "d", "A", "1.000,000.0,0", "EUR"), "", []string{`line 2: amount "1.000,000.0,0" has points and commas in no sensible order`}},
		// What is no number tells nothing either. Mutation with which it was seen to fail: findMarks without parseNumber.
		{"marks of what is no number", line("1", "2025-01-31", "d", "A", "12.345", "KG") + line("1", "2025-01-31", "d", "B", "-12.345", "KG") + line("2", "2025-01-31", "d", "A", "8.2.30", "KG") +
			line("3", "2025-01-31", "d", "A", "1,234", "USD") + line("4", "2025-01-31", "d", "A", "1e8,5", "USD"), "1",
			[]string{`line 4: amount "8.2.30" is not a number`, `line 5: amount "1,234" can be read two ways`, `line 6: amount "1e8,5" is not a number`}},
		{"a comma that tells nothing", line("1", "2025-01-31", "d", "A", "1,234", "EUR"), "", []string{`line 2: amount "1,234" can be read two ways`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := read(t, header+c.text)
			if got := indexes(j); got != c.booked {
				t.Errorf("booked %q, want %q", got, c.booked)
			}
			for _, tx := range j.Transactions {
				for _, p := range tx.Postings {
					if p.Commodity == "KG" && p.Amount.Decimals != 3 {
						t.Errorf("12.345 KG is read as %v", p.Amount)
					}
				}
			}
			if len(j.Problems) != len(c.problems) {
				t.Fatalf("problems %v, want %q", j.Problems, c.problems)
			}
			for i, want := range c.problems {
				if got := j.Problems[i].Error(); !strings.HasPrefix(got, want) {
					t.Errorf("problem %q, want %q", got, want)
				}
			}
			if (j.Malformed > 0) != (len(c.problems) > 0) {
				t.Errorf("%d malformed transactions", j.Malformed)
			}
		})
	}
}

func TestHeader(t *testing.T) {
	// Lines that end with a carriage return are one line, the header, and no row would be missed.
	// Mutation with which it was seen to fail: header without the look for them.
	mac := strings.ReplaceAll(strings.ReplaceAll(header+pair("1"), `"`, ""), "\n", "\r")
	for _, text := range []string{"", "\n", "a,b\n", strings.Replace(header, "txnidx", "idx", 1), `"txnidx`, mac} {
		if j, err := Read(strings.NewReader(text), Options{}); err == nil {
			t.Errorf("%q is read as %+v", text, j)
		}
	}
	// The columns that matter may stand in any order, after a byte order mark.
	// Mutation with which it was seen to fail: the mark is cut off the first name, and not off the file.
	j := read(t, "\ufeff\"amount\",commodity,account,description,date,txnidx\n5,EUR,A,d,2025-01-31,1\n")
	if len(j.Transactions) != 1 || j.Transactions[0].Postings[0].Account != "A" || j.Transactions[0].Date != 20250131 {
		t.Errorf("got %+v", j)
	}
}

func TestMultiLineField(t *testing.T) {
	text := header + strings.Replace(pair("1"), `"d",""`, "\"d\",\"comment\nmore\"", 2) + pair("2") + line("3", "2025-01-31", "d", "A", "x", "EUR")
	j := read(t, text)
	if indexes(j) != "1 2" || j.Transactions[0].Description != "d" || j.Transactions[1].Postings[0].Line != 6 || j.Problems[0].Line != 8 {
		t.Errorf("got %+v", j)
	}
}

func TestAmounts(t *testing.T) {
	for _, c := range []struct {
		amount, commodity string
		others            string // more amounts of the commodity in the file
		want              string // "-" is a problem
		wantCommodity     string
	}{
		{"5", "EUR", "", "5", "EUR"},
		{"-0.00", "EUR", "", "0.00", "EUR"},
		{"+3.50", "EUR", "", "3.50", "EUR"},
		{"−3.50", "EUR", "", "-3.50", "EUR"},
		{"$-5.00", "", "", "-5.00", "$"},
		{"-$5.00", "", "", "-5.00", "$"},
		{"$ 5.00", "$", "", "5.00", "$"},
		{"5,00 €", "", "", "5.00", "€"},
		{"EUR 5", "", "", "5", "EUR"},
		{"A-B 5", "A-B", "", "5", "A-B"},
		// Mutation with which these were seen to fail: splitQuantity without its last look for signs.
		{"5.00-", "", "", "-", ""},
		{"$- 5.00", "", "", "-", ""},
		{"5.00 −", "", "", "-", ""},
		{"5.00 +EUR", "", "", "-", ""},
		{"A-B -5", "", "", "-5", "A-B"},
		{"-A-B 5", "", "", "-5", "A-B"},
		{"+-5", "EUR", "", "-", ""},
		{"5", "", "", "5", NoCommodity},
		{"1,234.50", "USD", "", "1234.50", "USD"},
		{"1.234,50", "EUR", "", "1234.50", "EUR"},
		{"1.234.567", "EUR", "", "1234567", "EUR"},
		{"1,234,567", "EUR", "", "1234567", "EUR"},
		{"1,234", "USD", "7.50", "1234", "USD"},
		{"1,234", "EUR", "7,50", "1.234", "EUR"},
		{"1.234", "EUR", "7,50", "1234", "EUR"},
		{"1.234", "EUR", "", "1.234", "EUR"},
		{"1,234.", "USD", "", "1234", "USD"},
		{"1234,567", "EUR", "", "1234.567", "EUR"},
		{"0,123", "EUR", "", "0.123", "EUR"},
		{".5", "EUR", "", "0.5", "EUR"},
		{"5.", "EUR", "", "5", "EUR"},
		{"1 234 567.5", "CHF", "", "1234567.5", "CHF"},
		{"1'234.50", "CHF", "", "1234.50", "CHF"},
		{"1\u00a0234,50", "EUR", "", "1234.50", "EUR"},
		{"12,34,567.00", "INR", "", "1234567.00", "INR"},
		{"489.957000000000", "RGAGX", "", "489.957000000000", "RGAGX"},
		{"340282366920938463463374607431768211455", "X", "", "340282366920938463463374607431768211455", "X"},
		{"1..5", "EUR", "", "-", ""},
		{"1 2..5", "EUR", "", "-", ""},
		{"1,,5", "EUR", "", "-", ""},
		{"1.5.", "EUR", "", "-", ""},
		// Separators that do not separate groups.
		{"1,000,00", "EUR", "", "-", ""},
		{"1.000.00", "EUR", "", "-", ""},
		{"1,5.00", "EUR", "", "-", ""},
		{"5 0", "EUR", "", "-", ""},
		{"1234,567.00", "EUR", "", "-", ""},
		{"12,3,456.00", "INR", "", "-", ""},
		{"12,34,567,890.00", "INR", "", "-", ""},
		{"1 234'567", "CHF", "", "-", ""},
		{"0,750", "EUR", "7.50", "-", ""},
		{"1,00,00,000", "INR", "", "10000000", "INR"},
		{"123 456", "CHF", "", "123456", "CHF"},
	} {
		t.Run(c.amount, func(t *testing.T) {
			text := header + line("1", "2025-01-31", "d", "A", c.amount, c.commodity)
			if c.others != "" {
				text += line("2", "2025-01-31", "d", "A", c.others, c.commodity)
			}
			j := read(t, text)
			if c.want == "-" {
				if len(j.Problems) == 0 {
					t.Errorf("read as %v", j.Transactions[0].Postings[0].Amount)
				}
				return
			}
			if len(j.Problems) != 0 {
				t.Fatal(j.Problems)
			}
			p := j.Transactions[0].Postings[0]
			if p.Amount.String() != c.want || p.Commodity != c.wantCommodity {
				t.Errorf("read as %v %s, want %s %s", p.Amount, p.Commodity, c.want, c.wantCommodity)
			}
		})
	}
	j := read(t, header+line("1", "2025-01-31", "d", "A", "1,234", "EUR"), Options{DecimalMark: ','})
	if got := j.Transactions[0].Postings[0].Amount.String(); got != "1.234" {
		t.Errorf("with a decimal mark given: %s", got)
	}
	if j := read(t, header+line("1", "2025-01-31", "d", "A", "7,50", "EUR"), Options{DecimalMark: '.'}); len(j.Problems) != 1 {
		t.Errorf("7,50 with a decimal point: %+v", j)
	}
}

func TestCanonical(t *testing.T) {
	for text, want := range map[string]string{"5": "5", "5.00": "5", "-05.10": "-5.1", "0.00": "0", "-0": "0", ".50": "0.5", "1000": "1000", "0.050": "0.05"} {
		j := read(t, header+line("1", "2025-01-31", "d", "A", text, "EUR"))
		if got := j.Transactions[0].Postings[0].Amount.canonical(); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

func TestVirtualPostings(t *testing.T) {
	j := read(t, header+line("1", "2025-01-31", "d", "(Budget:Oven)", "5", "EUR")+line("1", "2025-01-31", "d", "[Budget:Oven]", "5", "EUR"))
	for i, p := range j.Transactions[0].Postings {
		if p.Account != "Budget:Oven" || p.Kind != []PostingKind{Virtual, BalancedVirtual}[i] {
			t.Errorf("account %q, kind %d", p.Account, p.Kind)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(header + pair("1") + line("2", "2025-01-31", "d", "(V)", "-1.234,5 €", ""))
	f.Add(header + `"1","2025"` + "\n\"")
	f.Fuzz(func(t *testing.T, text string) {
		j, err := Read(strings.NewReader(text), Options{})
		if err != nil {
			return
		}
		b := j.Book(map[string]uint8{"EUR": 2})
		if len(b.Entries)+b.Refused != len(j.Transactions) {
			t.Errorf("%d transactions, %d entries, %d refused", len(j.Transactions), len(b.Entries), b.Refused)
		}
		for _, tx := range j.Transactions {
			for _, p := range tx.Postings {
				if s := p.Amount.String(); strings.Trim(s, "-0123456789.") != "" {
					t.Errorf("amount %q", s)
				}
			}
		}
	})
}

func ExampleRead() {
	j, err := Read(strings.NewReader("txnidx,date,description,account,amount,commodity\n"+
		"1,2025-01-31,Rent,Assets:Bank,-700.00,EUR\n"+
		"1,2025-01-31,Rent,Expenses:Rent,700.00,EUR\n"+
		"2,2025-01-32,Typo,Assets:Bank,-1.00,EUR\n"), Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, t := range j.Transactions {
		fmt.Println(t.Date, t.Description, len(t.Postings))
	}
	for _, p := range j.Problems {
		fmt.Println(p)
	}
	// Output:
	// 2025-01-31 Rent 2
	// line 4: "2025-01-32" is not a date of the form YYYY-MM-DD
}
