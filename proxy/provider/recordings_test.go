package provider_test

import (
	"bytes"
	"encoding/json"
	"iter"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

// recording is the part of a recorded exchange that the classifier is judged by.
type recording struct {
	ID       string `json:"id"`
	Provider string `json:"provider"`
	Kind     string `json:"kind"`
	Request  struct {
		Method string `json:"method"`
		URL    string `json:"url"`
	} `json:"request"`
	Response struct {
		Status  int               `json:"status"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
		Framing string            `json:"framing"`
	} `json:"response"`
	Expect struct {
		Class        string             `json:"class"`
		AlsoAccepted []string           `json:"also_accepted"`
		RetryAfter   *float64           `json:"retry_after_s"`
		WaitInText   *float64           `json:"wait_in_text_s"`
		WaitReset    *float64           `json:"wait_from_reset_s"`
		Utilization  map[string]float64 `json:"utilization"`
	} `json:"expect"`
}

// classes are the recordings' names of the signals.
var classes = map[ratelimit.Signal]string{
	ratelimit.Limited: "rate_limited", ratelimit.Quota: "quota", ratelimit.Overloaded: "overloaded",
	ratelimit.Auth: "auth", ratelimit.ClientError: "client_error", ratelimit.ServerError: "server_error",
}

// TestRecordings classifies every recorded error of every provider.
func TestRecordings(t *testing.T) {
	errors, good := 0, 0
	for _, r := range recordings(t) {
		v := provider.Classify(r.answer(), now)
		if r.Expect.Class == "" {
			good++
			if v.Signal != ratelimit.OK {
				t.Errorf("%s: a good answer was classified as %v", r.ID, v)
			}
			for name, want := range r.Expect.Utilization {
				if got := windowOf(v, name); got.Utilization != want {
					t.Errorf("%s: window %s: got utilization %v, want %v", r.ID, name, got.Utilization, want)
				}
			}
			continue
		}
		errors++
		if got := classes[v.Signal]; got != r.Expect.Class && !strings.Contains(strings.Join(r.Expect.AlsoAccepted, " "), got) {
			t.Errorf("%s: got %s (row %s), want %s\n%s", r.ID, got, v.Row, r.Expect.Class, r.Response.Body)
		}
		for _, want := range []*float64{r.Expect.RetryAfter, r.Expect.WaitInText, r.Expect.WaitReset} {
			if want != nil && v.Reason != ratelimit.ReasonRequest && math.Abs(v.Wait.Seconds()-*want) > 1e-6 {
				t.Errorf("%s: got a wait of %v (row %s), want %v s", r.ID, v.Wait, v.Row, *want)
			}
		}
	}
	if errors < 60 || good < 300 {
		t.Errorf("only %d errors and %d good answers were found", errors, good)
	}
}

// recordings reads them all.
func recordings(t *testing.T) (list []*recording) {
	t.Helper()
	dir := os.Getenv("AUTHPOOL_RECORDINGS")
	if dir == "" {
		t.Skip("AUTHPOOL_RECORDINGS does not name the folder of recordings")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("cannot find recordings in %s: %v", dir, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r := new(recording)
		if err := json.Unmarshal(text, r); err != nil {
			t.Fatalf("cannot read %s: %v", file, err)
		}
		list = append(list, r)
	}
	return list
}

// TestRecordedPathsAreSent: whatever was recorded at a provider gets a credential there.
func TestRecordedPathsAreSent(t *testing.T) {
	sent := 0
	for _, r := range recordings(t) {
		u, err := url.Parse(r.Request.URL)
		if err != nil || u.Host == "" {
			continue // told without its request
		}
		name := r.Provider
		family, err := provider.ParseFamily(name)
		switch {
		case err == nil:
		case name == "vertex":
			family = provider.Gemini
		case strings.HasPrefix(name, "bedrock"):
			family = provider.Bedrock
		default:
			family = provider.OpenAI
		}
		p, err := provider.New(provider.Options{Name: name, Family: family, BaseURL: "https://" + u.Host})
		if err != nil {
			t.Fatal(err)
		}
		sent++
		if _, err := provider.Inspect(&provider.Request{Provider: p, Method: []byte(strings.ToUpper(r.Request.Method)), Rest: []byte(u.EscapedPath())}); err != nil && r.Response.Status != 404 {
			t.Errorf("%s: %s %s: %v", r.ID, r.Request.Method, r.Request.URL, err)
		}
	}
	if sent < 300 {
		t.Errorf("only %d recordings tell their path", sent)
	}
}

func (r *recording) answer() provider.Answer {
	a := provider.Answer{
		Provider: r.Provider, Status: r.Response.Status, Body: []byte(r.Response.Body),
		Headers: func(yield func(name, value []byte) bool) {
			for name, value := range r.Response.Headers {
				if !yield([]byte(name), []byte(value)) {
					return
				}
			}
		},
	}
	if family, err := provider.ParseFamily(r.Provider); err == nil {
		a.Family = family
	} else if r.Provider == "vertex" {
		a.Family = provider.Gemini
	}
	if r.Kind == "error" && r.Response.Framing == "sse" {
		a.Failure = failureIn(r.Response.Body)
	}
	return a
}

// failureIn finds the error among a stream's events; telling streams apart is
// not this package's work.
func failureIn(body string) *provider.Failure {
	for line := range strings.Lines(body) {
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var event struct {
			Error struct {
				Type    string
				Code    any
				Message string
			}
		}
		d := json.NewDecoder(bytes.NewReader([]byte(data)))
		d.UseNumber()
		if d.Decode(&event) == nil && event.Error.Message != "" {
			code := ""
			switch c := event.Error.Code.(type) {
			case string:
				code = c
			case json.Number:
				code = c.String()
			}
			return &provider.Failure{Type: event.Error.Type, Code: code, Message: event.Error.Message}
		}
	}
	return &provider.Failure{}
}

// now is the time of every test that needs one.
var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// pairs makes an answer's headers of names and values.
func pairs(namesAndValues ...string) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for i := 0; i < len(namesAndValues); i += 2 {
			if !yield([]byte(namesAndValues[i]), []byte(namesAndValues[i+1])) {
				return
			}
		}
	}
}

func windowOf(v ratelimit.Verdict, name string) ratelimit.Window {
	for _, w := range v.Windows {
		if w.Name == name {
			return w
		}
	}
	return ratelimit.Window{}
}
