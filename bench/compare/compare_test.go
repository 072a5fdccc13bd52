package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequestsAreWhatTheirCaseSays(t *testing.T) {
	t.Parallel()
	for _, c := range cases() {
		o := c.options(target{address: "127.0.0.1:1", key: "token"})
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(o.Request)))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if req.Header.Get("X-Api-Key") != "token" || req.Header.Get("X-Bench") != c.answer {
			t.Errorf("%s: headers %v", c.name, req.Header)
		}
		if n := len(body); n > c.bodyKB<<10 || n < c.bodyKB<<10-2 {
			t.Errorf("%s: a body of %d bytes", c.name, n)
		}
		var m struct {
			Stream   bool
			Messages []struct{ Role, Content string }
		}
		if err := json.Unmarshal(body, &m); err != nil || len(m.Messages) != 1 {
			t.Errorf("%s: %v in %.100s…%s", c.name, err, body, body[len(body)-20:])
		}
		if m.Stream != strings.HasPrefix(c.answer, "sse") {
			t.Errorf("%s: stream is %t", c.name, m.Stream)
		}
		if o.Connections != c.connections || o.BodyBytes != c.answerBytes {
			t.Errorf("%s: %d connections, %d bytes expected", c.name, o.Connections, o.BodyBytes)
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	at := func(cpu time.Duration, mallocs float64) sample {
		return sample{perSecond: float64(time.Second / cpu), cpu: cpu, mallocs: mallocs, p50: 40 * time.Microsecond, p99: 12 * time.Millisecond, first: 38 * time.Microsecond}
	}
	targets := []target{{name: "direct"}, {name: "nginx", proxy: &process{}}, {name: "authpool", proxy: &process{}, metrics: "http://…"}}
	samples := map[string][]sample{
		"a case direct":   {at(time.Microsecond, 0), at(time.Microsecond, 0), at(time.Microsecond, 0)},
		"a case nginx":    {at(20*time.Microsecond, 0), at(10*time.Microsecond, 0), at(40*time.Microsecond, 0)},
		"a case authpool": {at(30*time.Microsecond, 9), at(20*time.Microsecond, 3), at(40*time.Microsecond, 5)},
	}
	var out strings.Builder
	if err := report(&out, plan{rounds: 3, window: time.Second}, targets, []benchCase{{name: "a case", unit: "request"}}, samples); err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(out.String(), "\n\n")
	const want = `| case | target | req/s | CPU | to nginx | p50 | p99 | first byte p50 | allocations/request |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| a case | direct | 1000000 |  |  | 40 µs | 12.0 ms | 38 µs |  |
| a case | nginx | 50000 | 20.0 (10.0–40.0) µs/request | 1.00 | 40 µs | 12.0 ms | 38 µs |  |
| a case | authpool | 33333 | 30.0 (20.0–40.0) µs/request | 1.50 | 40 µs | 12.0 ms | 38 µs | 5.0 |
`
	if diff := cmp.Diff(want, table); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	samples["a case nginx"][0].cpu = 0
	out.Reset()
	if err := report(&out, plan{}, targets, []benchCase{{name: "a case", unit: "request"}}, samples); err != nil || !strings.Contains(out.String(), "| ? |") {
		t.Errorf("a time below the clock's resolution gives a ratio: %v\n%s", err, out.String())
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for want, values := range map[float64][]float64{3: {5, 1, 3}, 2.5: {4, 1, 3, 2}, 7: {7}} {
		if got := median(values); got != want {
			t.Errorf("median(%v) = %g, want %g", values, got, want)
		}
	}
}
