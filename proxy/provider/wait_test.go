package provider_test

import (
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/provider"
)

func TestParseWait(t *testing.T) {
	const cap = 35 * 24 * time.Hour
	tests := []struct {
		text string
		want time.Duration
	}{
		{"0", 0},
		{"30", 30 * time.Second},
		{" 7999 ", 7999 * time.Second},
		{"1.5", 1500 * time.Millisecond},
		{"287441", 287441 * time.Second},
		{"1s", time.Second},
		{"12ms", 12 * time.Millisecond},
		{"0s", 0},
		{"6m0s", 6 * time.Minute},
		{"2m59.56s", 2*time.Minute + 59560*time.Millisecond},
		{"1h2m3s", time.Hour + 2*time.Minute + 3*time.Second},
		{"10h17m5.7s", 10*time.Hour + 17*time.Minute + 5700*time.Millisecond},
		{"34.07s", 34070 * time.Millisecond},
		{"51820.6s", 51820600 * time.Millisecond},
		{"1d2h", 26 * time.Hour},
		{"2026-11-22T12:00:05Z", 5 * time.Second},
		{"2026-11-22T14:00:05.5+02:00", 5500 * time.Millisecond},
		{"Sun, 22 Nov 2026 12:01:00 GMT", time.Minute},
		{"Sunday, 22-Nov-26 12:01:00 GMT", time.Minute},
		{"Sun Nov 22 12:01:00 2026", time.Minute},
		{"Sat, 21 Nov 2026 12:00:00 GMT", 0}, // past
		{"1795348810", 10 * time.Second},
		{"1795348810000", 10 * time.Second},
		{"1795348810500", 10500 * time.Millisecond},
		{"99999999", cap},
		{"9000h", cap},
		{"2199-01-01T00:00:00Z", cap},
	}
	for _, test := range tests {
		got, ok := provider.ParseWait(test.text, now)
		if diff := got - test.want; !ok || diff > time.Microsecond || diff < -time.Microsecond {
			t.Errorf("ParseWait(%q): got %v, %v; want %v", test.text, got, ok, test.want)
		}
	}
	for _, text := range []string{
		"", " ", "-1", "-1s", "+5", "NaN", "nan", "Inf", "-Inf", "1e9", "0x10", "1_000", ".", "1.", "1..2", ".5",
		"s", "5 parsecs", "1s2", "soon", "2026-13-01T00:00:00Z", "99999999999999999999999999", "1 s extra",
		"11111111111111111111111111111111111111111111111111111111111111111s",
	} {
		if got, ok := provider.ParseWait(text, now); ok {
			t.Errorf("ParseWait(%q): got %v, want a refusal", text, got)
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, seed := range []string{"6m0s", "2m59.56s", "1795348810", "NaN", "-1", "Sun, 22 Nov 2026 12:01:00 GMT", "9999999999999999h", "1e308"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := provider.ParseWait(text, now)
		if got < 0 || got > 35*24*time.Hour {
			t.Errorf("ParseWait(%q) = %v: out of bounds", text, got)
		}
		if !ok && got != 0 {
			t.Errorf("ParseWait(%q) = %v and a refusal", text, got)
		}
		v := provider.Classify(provider.Answer{Status: 429, Headers: pairs("Retry-After", text)}, now)
		if v.Wait > 35*24*time.Hour {
			t.Errorf("Retry-After %q: a wait of %v", text, v.Wait)
		}
	})
}

// FuzzStatedEnd: whatever an answer says about its end, in all places and by any
// clock, is a wait that one can believe, or none.
func FuzzStatedEnd(f *testing.F) {
	f.Add("Sun, 22 Nov 2026 11:00:00 GMT", "7", "9h", "1795352400", "try again in 20s", int64(1795352400))
	f.Add("Thu, 01 Jan 1970 00:00:00 GMT", "-1", "2199-01-01T00:00:00Z", "NaN", "Please retry in 1e9s", int64(-5))
	f.Add("Sun, 06 Nov 2999 08:49:37 GMT", "Sun, 22 Nov 2026 12:00:01 GMT", "0", "-1", "regain access on 9999-12-31", int64(1)<<62)
	f.Fuzz(func(t *testing.T, date, after, bucket, window, message string, resetsAt int64) {
		headers := pairs("Date", date, "Retry-After", after, "Retry-After-Ms", after,
			"x-ratelimit-remaining-tokens", "0", "x-ratelimit-reset-tokens", bucket,
			"anthropic-ratelimit-unified-status", "rejected", "anthropic-ratelimit-unified-reset", window)
		for _, a := range []provider.Answer{
			{Family: anth, Status: 429, Headers: headers},
			{Family: anth, Status: 400, Headers: headers, Body: []byte(`{"error":{"message":"You have reached your specified API usage limits. ` + message + `"}}`)},
			{Family: gem, Status: 429, Headers: pairs("Date", date), Body: []byte(geminiError("429", "m", `{"retryDelay":"`+bucket+`"},{"violations":[{"quotaId":"PerDay"}]}`))},
			{Family: oai, Status: 200, Headers: pairs("Date", date), Failure: &provider.Failure{Code: "usage_limit_reached", Message: message, ResetsAt: resetsAt}},
		} {
			if wait := provider.Classify(a, now).Wait; wait != none && (wait < 0 || wait > 35*24*time.Hour) {
				t.Errorf("%+v: a wait of %v", a, wait)
			}
		}
		only := provider.Answer{Status: 429, Headers: pairs("Date", date, "x-ratelimit-remaining-tokens", "0", "x-ratelimit-reset-tokens", bucket)}
		if wait := provider.Classify(only, now).Wait; wait > 24*time.Hour {
			t.Errorf("a bucket that refills in %q: a wait of %v", bucket, wait)
		}
	})
}
