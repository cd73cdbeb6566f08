// Command plot draws the samples of a long run (`make endure CSV=file`) as SVG, one small chart for each figure, with the same time axis:
//
//	go run ./plot run.csv > run.svg
package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// chart is a column of the samples, or two of the same unit.
type chart struct {
	title   string
	columns []string
}

var charts = []chart{
	{"calls per second", []string{"calls_per_second"}},
	{"latency, p99 and p50, ms", []string{"p99_ms", "p50_ms"}},
	{"memory of the process, MiB: resident and live heap", []string{"rss_mib", "heap_mib"}},
	{"write-ahead log, MiB", []string{"wal_mib"}},
	{"journal, MiB", []string{"journal_mib"}},
	{"state store, MiB", []string{"state_mib"}},
	{"files", []string{"files"}},
	{"snapshots so far: cut and installed", []string{"cuts", "installs"}},
}

const (
	width, height      = 420, 110 // of a chart, without what is around it
	left, top          = 60, 28
	between, perColumn = 34, 4
)

var colours = []string{"#1f5fa8", "#c2571a"}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: plot FILE.csv > FILE.svg")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	samples, err := read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	_, err = io.WriteString(w, draw(samples))
	return err
}

// read returns the samples by column.
func read(r io.Reader) (map[string][]float64, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(rows) < 3 {
		return nil, fmt.Errorf("%d lines are no run: a line of names and two samples at least", len(rows))
	}
	samples := map[string][]float64{}
	for i, row := range rows[1:] {
		for j, field := range row {
			v, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return nil, fmt.Errorf("line %d, %s: %w", i+2, rows[0][j], err)
			}
			samples[rows[0][j]] = append(samples[rows[0][j]], v)
		}
	}
	for _, name := range append([]string{"seconds"}, columnsOf(charts)...) {
		if samples[name] == nil {
			return nil, fmt.Errorf("there is no column %q", name)
		}
	}
	return samples, nil
}

func columnsOf(charts []chart) (names []string) {
	for _, c := range charts {
		names = append(names, c.columns...)
	}
	return names
}

func draw(samples map[string][]float64) string {
	var b strings.Builder
	cellW, cellH := left+width+20, top+height+between
	w, h := cellW*((len(charts)+perColumn-1)/perColumn), cellH*perColumn
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", w, h, w, h)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", w, h)
	for i, c := range charts {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i/perColumn*cellW+left, i%perColumn*cellH+top)
		c.draw(&b, samples)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (c chart) draw(b *strings.Builder, samples map[string][]float64) {
	times := samples["seconds"]
	end, most := times[len(times)-1], 0.0
	for _, name := range c.columns {
		for _, v := range samples[name] {
			most = max(most, v)
		}
	}
	unit, last := 60.0, "min"
	if end < 300 {
		unit, last = 1, "s"
	}
	step := round(most / 3)
	most = step * math.Ceil(most/step)
	fmt.Fprintf(b, `<text x="0" y="-8" font-weight="bold">%s</text>`+"\n", c.title)
	for v := 0.0; v <= most*1.001; v += step {
		y := height * (1 - v/most)
		fmt.Fprintf(b, `<path d="M0 %.1fH%d" stroke="#ddd"/><text x="-6" y="%.1f" text-anchor="end">%s</text>`+"\n", y, width, y+4, strconv.FormatFloat(v, 'f', -1, 64))
	}
	for step, v := round(end/unit/5), 0.0; v <= end/unit; v += step {
		x := width * v * unit / end
		fmt.Fprintf(b, `<path d="M%.1f 0V%d" stroke="#eee"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x, height, x, height+14, strconv.FormatFloat(v, 'f', -1, 64))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end" fill="#666">%s</text>`+"\n", width, height+26, last)
	for i, name := range c.columns {
		var points []string
		for j, v := range samples[name] {
			points = append(points, fmt.Sprintf("%.1f,%.1f", width*times[j]/end, height*(1-v/most)))
		}
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1.3" points="%s"/>`+"\n", colours[i%len(colours)], strings.Join(points, " "))
	}
}

// round returns a number near v that is easy to read: 1, 2 or 5 times a power of ten, at least 1.
func round(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(max(v, 1))))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*power {
			return m * power
		}
	}
	return 10 * power
}
