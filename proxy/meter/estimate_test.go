package meter_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/meter"
)

// reasoningSeen matches a stream that shows its reasoning, or passes it sealed.
var reasoningSeen = regexp.MustCompile(`"(thinking|reasoning_content|reasoning|signature|encrypted_content|data)": ?"[^"]|"type": ?"response.reasoning_[a-z_]+.delta"`)

// TestEstimateOfRecordings measures EstimateOutput on every recorded stream that
// tells its output: whole, and cut after a quarter, half and three quarters of
// its events. The medians that its comment states must hold.
func TestEstimateOfRecordings(t *testing.T) {
	dir := os.Getenv(recordingsVar)
	if dir == "" {
		t.Skipf("%s is not set: no recordings to measure", recordingsVar)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	ratios := map[string][]float64{}
	add := func(name string, estimate int64, real float64) {
		ratios[name] = append(ratios[name], float64(estimate)/real)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rec recording
		if err := json.Unmarshal(text, &rec); err != nil {
			t.Fatal(err)
		}
		api, known := recordedAPIs[rec.API]
		real := rec.Expect.AllOutputTokens
		if !known || rec.Kind != "usage" || real == nil || *real < 10 || !rec.Response.Stream {
			continue
		}
		body := append([]byte(rec.Response.Body), rec.Response.Binary...) // it is one of them
		end := []byte("\n\n")
		switch {
		case rec.Response.Framing == "ndjson":
			end = []byte("\n")
		case bytes.Contains(body, []byte("\r\n\r\n")):
			end = []byte("\r\n\r\n")
		}
		m := meter.New(api, meter.Options{ContentType: []byte(rec.Response.Headers["content-type"])})
		m.Write(body)
		estimate := m.EstimateOutput()
		kind := "no reasoning"
		if r := rec.Expect.ReasoningTokens; r != nil && *r > 0 {
			kind = "hidden reasoning"
			if reasoningSeen.Match(body) {
				kind = "reasoning"
			}
		}
		add("all, "+kind, estimate, float64(*real))
		add(rec.API+", "+kind, estimate, float64(*real))
		if testing.Verbose() {
			t.Logf("%-50s %s: %d of %d = %.2f", rec.ID, kind, estimate, *real, float64(estimate)/float64(*real))
		}
		if events := bytes.SplitAfter(body, end); kind == "no reasoning" && len(events) >= 20 {
			for _, part := range []float64{0.25, 0.5, 0.75} {
				n := int(part * float64(len(events)))
				m := meter.New(api, meter.Options{ContentType: []byte(rec.Response.Headers["content-type"])})
				m.Write(bytes.Join(events[:n], nil))
				add(fmt.Sprintf("all, cut at %.2f", part), m.EstimateOutput(), part*float64(*real))
			}
		}
	}
	var table strings.Builder
	for _, name := range slices.Sorted(maps.Keys(ratios)) {
		r := ratios[name]
		slices.Sort(r)
		at := func(q float64) float64 { return r[int(q*float64(len(r)-1)+0.5)] }
		fmt.Fprintf(&table, "%-45s %3d  %.2f  %.2f  %.2f\n", name, len(r), at(0.1), at(0.5), at(0.9))
	}
	t.Logf("estimate/real: streams, 10th percentile, median, 90th\n%s", &table)
	for name, bound := range map[string]float64{
		"all, no reasoning":                0.10,
		"all, reasoning":                   0.15,
		"all, cut at 0.25":                 0.10,
		"all, cut at 0.50":                 0.10,
		"all, cut at 0.75":                 0.10,
		"anthropic-messages, no reasoning": 0.10,
		"anthropic-messages, reasoning":    0.15,
		"openai-chat, no reasoning":        0.10,
		"openai-responses, no reasoning":   0.10,
	} {
		r := ratios[name]
		if len(r) == 0 {
			t.Errorf("%s: no stream measured", name)
		} else if median := r[len(r)/2]; median < 1-bound || median > 1+bound {
			t.Errorf("%s: the median is %.2f, want 1 ± %.2f", name, median, bound)
		}
	}
}
