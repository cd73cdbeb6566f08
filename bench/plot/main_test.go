package main

import (
	"strings"
	"testing"
)

func TestPlot(t *testing.T) {
	names := append([]string{"seconds"}, columnsOf(charts)...)
	row := func(v string) string { return strings.Repeat(v+",", len(names)-1) + v + "\n" }
	samples, err := read(strings.NewReader(strings.Join(names, ",") + "\n" + row("0") + row("100") + row("7.5")))
	if err != nil {
		t.Fatal(err)
	}
	svg := draw(samples)
	for _, c := range charts {
		if !strings.Contains(svg, c.title) {
			t.Errorf("%q is not drawn", c.title)
		}
	}
	if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Error("some numbers are none")
	}
	for _, bad := range []string{"", "seconds\n1\n2\n", strings.Join(names, ",") + "\n" + row("0") + row("x")} {
		if _, err := read(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
