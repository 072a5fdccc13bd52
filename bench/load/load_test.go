package load_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/authpool/authpool/bench/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const get = "GET /%s HTTP/1.1\r\nHost: bench\r\n\r\n"

func TestRunCountsAnswersAndFailures(t *testing.T) {
	t.Parallel()
	var served atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := served.Add(1)
		switch r.URL.Path {
		case "/chunked":
			_, _ = io.WriteString(w, "01234")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "56789")
		case "/third":
			if n%3 == 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = io.WriteString(w, "0123456789")
		case "/cut":
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "0123")
			panic(http.ErrAbortHandler)
		default:
			_, _ = io.WriteString(w, "0123456789")
		}
	}))
	defer server.Close()
	tests := []struct {
		path         string
		bytes        int
		good, failed bool
		reason       string
	}{
		{"plain", 10, true, false, ""},
		{"chunked", 10, true, false, ""},
		{"plain", 11, false, true, "10 bytes, want 11"},
		{"third", 10, true, true, "503"},
		{"cut", 10, false, true, "EOF"},
	}
	for _, test := range tests {
		var r *load.Result
		served.Store(0)
		for d := 50 * time.Millisecond; served.Load() < 6; d *= 2 { // on a slow machine it takes longer until there were some
			served.Store(0)
			var err error
			if r, err = load.Run(t.Context(), load.Options{
				Address: server.Listener.Addr().String(), Request: fmt.Appendf(nil, get, test.path),
				Connections: 3, Duration: d, BodyBytes: test.bytes,
			}); err != nil {
				t.Fatal(err)
			}
		}
		if r.Requests > 0 != test.good || r.Failures > 0 != test.failed {
			t.Errorf("%s: %d answered, %d failed (%v)", test.path, r.Requests, r.Failures, r.FirstFailure)
		}
		if test.failed && !strings.Contains(r.FirstFailure.Error(), test.reason) {
			t.Errorf("%s: %v, want %q", test.path, r.FirstFailure, test.reason)
		}
		if r.Latency.Count() != r.Requests || r.FirstByte.Quantile(1) > r.Latency.Quantile(1) {
			t.Errorf("%s: %d latencies of %d requests", test.path, r.Latency.Count(), r.Requests)
		}
		if got := int(served.Load()); got != r.Requests+r.Failures {
			t.Errorf("%s: the server saw %d requests, the run %d", test.path, got, r.Requests+r.Failures)
		}
	}
}

func TestRateIsKept(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	defer server.Close()
	r, err := load.Run(t.Context(), load.Options{
		Address: server.Listener.Addr().String(), Request: fmt.Appendf(nil, get, ""),
		Connections: 4, Duration: 100 * time.Millisecond, Rate: 200, BodyBytes: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 20 || r.Failures != 0 {
		t.Errorf("%d answered, %d failed (%v), want the 20 that were due", r.Requests, r.Failures, r.FirstFailure)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel() // the client waits for an answer that does not come
		<-r.Context().Done()
	}))
	defer server.Close()
	r, err := load.Run(ctx, load.Options{Address: server.Listener.Addr().String(), Request: fmt.Appendf(nil, get, ""), Connections: 2, Duration: time.Hour})
	if err != nil || r.Requests+r.Failures != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	good := load.Options{Address: "127.0.0.1:1", Request: []byte("x"), Connections: 1, Duration: time.Nanosecond}
	for name, change := range map[string]func(*load.Options){
		"connections": func(o *load.Options) { o.Connections = 0 },
		"duration":    func(o *load.Options) { o.Duration = 0 },
		"rate":        func(o *load.Options) { o.Rate = -1 },
		"request":     func(o *load.Options) { o.Request = nil },
	} {
		o := good
		change(&o)
		if _, err := load.Run(t.Context(), o); err == nil {
			t.Errorf("wrong %s was taken", name)
		}
	}
}

func TestQuantilesAreNearTheTruth(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, math.MaxInt64), 1, 50).Draw(t, "values")
		var a, b load.Histogram
		low, high := values[0], values[0]
		for i, v := range values {
			low, high = min(low, v), max(high, v)
			if i%2 == 0 {
				a.Add(time.Duration(v))
			} else {
				b.Add(time.Duration(v))
			}
		}
		a.Merge(&b)
		for q, want := range map[float64]int64{0: low, 1: high} {
			got := int64(a.Quantile(q))
			if got > want || float64(want-got) > float64(want)/64 {
				t.Fatalf("quantile %g of %v: %d, want %d", q, values, got, want)
			}
		}
		if a.Count() != len(values) {
			t.Fatalf("%d counted, want %d", a.Count(), len(values))
		}
	})
}

func TestFailuresDoNotChangeTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// The address cannot be dialled, so every request fails at once.
		r, err := load.Run(t.Context(), load.Options{Address: "in a bubble", Request: []byte("x"), Connections: 2, Duration: time.Minute, Rate: 1})
		if err != nil {
			t.Fatal(err)
		}
		if r.Failures != 60 || r.Elapsed != 59*time.Second {
			t.Errorf("%d failures in %s, want 60 in 59s", r.Failures, r.Elapsed)
		}
	})
}
