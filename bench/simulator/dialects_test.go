package simulator_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/bench/simulator"
)

const (
	geminiText   = `{"contents":[{"role":"user","parts":[{"text":"hello"}]}]}`
	converseText = `{"messages":[{"role":"user","content":[{"text":"hello"}]}]}`
	invokeText   = `{"anthropic_version":"bedrock-2023-05-31","max_tokens":1000,"messages":[{"role":"user","content":"hello"}]}`
)

// frames cuts an Amazon event stream and checks its checksums.
func frames(t *testing.T, b []byte) (list []map[string]string) {
	t.Helper()
	for len(b) > 0 {
		total, headers := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if crc32.ChecksumIEEE(b[:8]) != binary.BigEndian.Uint32(b[8:]) || crc32.ChecksumIEEE(b[:total-4]) != binary.BigEndian.Uint32(b[total-4:]) {
			t.Fatal("a checksum is wrong")
		}
		f := map[string]string{"payload": string(b[12+headers : total-4])}
		for h := b[12 : 12+headers]; len(h) > 0; {
			n := int(h[0])
			if h[1+n] != 7 {
				t.Fatalf("a header of type %d", h[1+n])
			}
			size := int(binary.BigEndian.Uint16(h[2+n:]))
			f[string(h[1:1+n])] = string(h[4+n : 4+n+size])
			h = h[4+n+size:]
		}
		list = append(list, f)
		b = b[total:]
	}
	return list
}

// lastOf decodes the last of texts that holds the word.
func lastOf(t *testing.T, texts []string, word string) (out map[string]any) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(text, word) {
			out = nil
			if err := json.Unmarshal([]byte(text), &out); err != nil {
				t.Fatalf("%v in %q", err, text)
			}
		}
	}
	return out
}

// told is the usage that an answer of Gemini's or Bedrock's ends with, as its own documentation reads it.
func told(t *testing.T, media, body string) counts {
	t.Helper()
	var texts []string
	switch {
	case media == "application/vnd.amazon.eventstream":
		for _, f := range frames(t, []byte(body)) {
			text := f["payload"]
			if f[":event-type"] == "chunk" {
				var chunk struct{ Bytes []byte }
				if err := json.Unmarshal([]byte(text), &chunk); err != nil {
					t.Fatal(err)
				}
				text = string(chunk.Bytes)
			}
			texts = append(texts, text)
		}
	case strings.HasPrefix(body, "["):
		var list []json.RawMessage
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			t.Fatal(err)
		}
		for _, one := range list {
			texts = append(texts, string(one))
		}
	case strings.HasPrefix(body, "data: "):
		for one := range strings.SplitSeq(strings.TrimSpace(body), "\r\n\r\n") {
			texts = append(texts, strings.TrimPrefix(one, "data: "))
		}
	default:
		texts = []string{body}
	}
	number := func(of map[string]any, name string) int64 { n, _ := of[name].(float64); return int64(n) }
	if u, ok := lastOf(t, texts, "usageMetadata")["usageMetadata"].(map[string]any); ok {
		cached := number(u, "cachedContentTokenCount")
		return counts{Input: number(u, "promptTokenCount") - cached, Output: number(u, "candidatesTokenCount") + number(u, "thoughtsTokenCount"), CacheRead: cached}
	}
	if u, ok := lastOf(t, texts, "inputTokens")["usage"].(map[string]any); ok {
		return counts{number(u, "inputTokens"), number(u, "outputTokens"), number(u, "cacheReadInputTokens"), number(u, "cacheWriteInputTokens"), 0}
	}
	if m, ok := lastOf(t, texts, "invocationMetrics")["amazon-bedrock-invocationMetrics"].(map[string]any); ok {
		return counts{Input: number(m, "inputTokenCount"), Output: number(m, "outputTokenCount")}
	}
	u, _ := lastOf(t, texts, "input_tokens")["usage"].(map[string]any)
	return counts{Input: number(u, "input_tokens"), Output: number(u, "output_tokens")}
}

func TestGeminiAndBedrockReportWhatTheLedgerBilled(t *testing.T) {
	t.Parallel()
	const goog, aws = "X-Goog-Api-Key", "Authorization"
	tests := []struct{ path, body, media, carrier, key string }{
		{"/v1beta/models/m-1:generateContent", geminiText, "application/json", goog, "k1"},
		{"/v1beta/models/m-1:streamGenerateContent?alt=sse", geminiText, "text/event-stream; charset=utf-8", goog, "k1"},
		{"/v1/models/m-1:streamGenerateContent", geminiText, "application/json; charset=UTF-8", goog, "k1"},
		{"/v1beta/models/sim-thinking:generateContent", geminiText, "application/json", goog, "k1"},
		{"/v1beta/models/sim-thinking:streamGenerateContent?alt=sse", geminiText, "text/event-stream; charset=utf-8", goog, "k1"},
		{"/v1beta/models/sim-tool:streamGenerateContent", geminiText, "application/json; charset=UTF-8", goog, "k1"},
		{"/v1beta/models/sim-tool:generateContent", geminiText, "application/json", goog, "k1"},
		{"/model/maker.m-1%3A0/converse", converseText, "application/json", aws, "Bearer k1"},
		{"/model/maker.m-1%3A0/converse-stream", converseText, "application/vnd.amazon.eventstream", aws, "Bearer k1"},
		{"/model/sim-tool-thinking/converse", converseText, "application/json", aws, "Bearer k1"},
		{"/model/sim-tool-thinking/converse-stream", converseText, "application/vnd.amazon.eventstream", aws, "Bearer k1"},
		{"/model/maker.m-1%3A0/invoke", invokeText, "application/json", aws, "Bearer k1"},
		{"/model/maker.m-1%3A0/invoke-with-response-stream", invokeText, "application/vnd.amazon.eventstream", aws, "Bearer k1"},
	}
	for _, test := range tests {
		t.Run(test.path, func(t *testing.T) {
			t.Parallel()
			s := run(t, simulator.Options{Seed: 7})
			resp := s.post(t, test.path, test.body, "Authorization", "", test.carrier, test.key)
			body := text(t, resp.Body)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != test.media {
				t.Fatalf("%s %s %s", resp.Status, resp.Header.Get("Content-Type"), body)
			}
			l := s.Ledger()
			if len(l) != 1 || !l[0].Finished || l[0].Output == 0 || l[0].Input == 0 {
				t.Fatalf("ledger: %+v", l)
			}
			if diff := cmp.Diff(billed(l[0]), told(t, test.media, body)); diff != "" {
				t.Errorf("(-billed +told):\n%s\n%s", diff, body)
			}
		})
	}
}

// Bedrock bills what it writes into its cache when asked; Gemini caches by itself.
func TestCachesOfGeminiAndBedrock(t *testing.T) {
	t.Parallel()
	tests := []struct {
		path, body, carrier, key string
		first, second            func(counts) bool
	}{
		{
			"/v1beta/models/m:generateContent", `{"contents":[{"parts":[{"text":"a long beginning"}]},{"parts":[{"text":"hello"}]}]}`, "X-Goog-Api-Key", "k1",
			func(c counts) bool { return c.CacheRead == 0 && c.Write5m == 0 }, func(c counts) bool { return c.CacheRead > 0 },
		},
		{
			"/model/m/converse", `{"messages":[{"role":"user","content":[{"text":"a long beginning"},{"cachePoint":{"type":"default"}}]},{"role":"user","content":[{"text":"hello"}]}]}`, "Authorization", "Bearer k1",
			func(c counts) bool { return c.CacheRead == 0 && c.Write5m > 0 }, func(c counts) bool { return c.CacheRead > 0 && c.Write5m == 0 },
		},
	}
	for _, test := range tests {
		s := run(t, simulator.Options{})
		for i, right := range []func(counts) bool{test.first, test.second} {
			resp := s.post(t, test.path, test.body, "Authorization", "", test.carrier, test.key)
			got := told(t, "", text(t, resp.Body))
			if e := billed(s.Ledger()[i]); !right(e) || e != got {
				t.Errorf("%s, request %d: billed %+v, told %+v", test.path, i, e, got)
			}
		}
	}
}

func TestErrorsOfGeminiAndBedrock(t *testing.T) {
	t.Parallel()
	const gemini, bedrock = "/v1beta/models/m:generateContent", "/model/m/converse"
	tests := []struct {
		path   string
		fault  simulator.Fault
		status int
		sign   string // in the body, or in x-amzn-errortype
	}{
		{gemini, simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 2.5}, 429, `"retryDelay":"2.5s"`},
		{gemini, simulator.Fault{Kind: simulator.Window, RetryAfter: 60}, 429, "PerDay"},
		{gemini, simulator.Fault{Kind: simulator.Quota}, 429, "prepayment credits are depleted"},
		{gemini, simulator.Fault{Kind: simulator.Overloaded}, 503, `"UNAVAILABLE"`},
		{gemini, simulator.Fault{Status: 404}, 404, `"NOT_FOUND"`},
		{bedrock, simulator.Fault{Kind: simulator.RateLimit}, 429, "ThrottlingException"},
		{bedrock, simulator.Fault{Kind: simulator.Window}, 429, "per day"},
		{bedrock, simulator.Fault{Kind: simulator.Quota}, 400, "ServiceQuotaExceededException"},
		{bedrock, simulator.Fault{Kind: simulator.Overloaded}, 503, "ServiceUnavailableException"},
		{bedrock, simulator.Fault{Status: 424}, 424, "ModelErrorException"},
	}
	for _, test := range tests {
		s := run(t, simulator.Options{})
		if err := s.Inject(simulator.Injection{Fault: test.fault}); err != nil {
			t.Fatal(err)
		}
		body, carrier, key := geminiText, "X-Goog-Api-Key", "k1"
		if test.path == bedrock {
			body, carrier, key = converseText, "Authorization", "Bearer k1"
		}
		resp := s.post(t, test.path, body, "Authorization", "", carrier, key)
		got := text(t, resp.Body)
		if resp.StatusCode != test.status || !strings.Contains(got+resp.Header.Get("X-Amzn-Errortype"), test.sign) || !json.Valid([]byte(got)) {
			t.Errorf("%s %v: %s %v %s", test.path, test.fault.Kind, resp.Status, resp.Header, got)
		}
	}
	s := run(t, simulator.Options{Keys: []simulator.Key{{Key: "right", Provider: simulator.Gemini, RPM: 1}, {Key: "right", Provider: simulator.Bedrock, RPM: 1}}})
	for _, test := range []struct {
		path, body, carrier, key string
		status                   int
		sign                     string
	}{
		{gemini, geminiText, "X-Goog-Api-Key", "wrong", 400, "API_KEY_INVALID"},
		{gemini + "?key=right", geminiText, "X-Other", "x", 200, "candidates"},
		{gemini, geminiText, "X-Goog-Api-Key", "right", 429, "PerMinute"},
		{gemini, `{}`, "X-Goog-Api-Key", "right", 400, "contents"},
		{bedrock, converseText, "Authorization", "Bearer wrong", 403, "UnrecognizedClientException"},
		{bedrock, converseText, "Authorization", "Bearer right", 200, "output"},
		{bedrock, converseText, "Authorization", "Bearer right", 429, "ThrottlingException"},
		{"/v1beta/models/m:predict", geminiText, "X-Goog-Api-Key", "right", 404, "NOT_FOUND"},
		{"/model/m/apply", geminiText, "Authorization", "Bearer right", 404, "ResourceNotFoundException"},
	} {
		resp := s.post(t, test.path, test.body, "Authorization", "", test.carrier, test.key)
		if got := text(t, resp.Body) + resp.Header.Get("X-Amzn-Errortype"); resp.StatusCode != test.status || !strings.Contains(got, test.sign) {
			t.Errorf("%s with %s: %s %s, want %d %s", test.path, test.key, resp.Status, got, test.status, test.sign)
		}
	}
}

// Error events have their dialect's form, before the first content and later.
func TestErrorEventsOfGeminiAndBedrock(t *testing.T) {
	t.Parallel()
	for _, kind := range []simulator.Kind{simulator.ErrorEvent, simulator.LateErrorEvent} {
		s := run(t, simulator.Options{})
		stream := func(path, body, carrier, key string) string {
			if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: kind}}); err != nil {
				t.Fatal(err)
			}
			return text(t, s.post(t, path, body, "Authorization", "", carrier, key).Body)
		}
		var list []map[string]any
		if array := stream("/v1beta/models/sim-tokens-9:streamGenerateContent", geminiText, "X-Goog-Api-Key", "k1"); json.Unmarshal([]byte(array), &list) != nil || list[len(list)-1]["error"] == nil {
			t.Errorf("%s: the array ends in no error: %s", kind, array)
		}
		if want := map[simulator.Kind]int{simulator.ErrorEvent: 1, simulator.LateErrorEvent: 4}[kind]; len(list) != want {
			t.Errorf("%s: %d elements, want %d", kind, len(list), want)
		}
		events := stream("/v1beta/models/sim-tokens-9:streamGenerateContent?alt=sse", geminiText, "X-Goog-Api-Key", "k1")
		if !strings.Contains(events, "data: {\"error\":{\"code\":503") {
			t.Errorf("%s: no error in %s", kind, events)
		}
		fs := frames(t, []byte(stream("/model/sim-tokens-9/converse-stream", converseText, "Authorization", "Bearer k1")))
		if last := fs[len(fs)-1]; last[":message-type"] != "exception" || last[":exception-type"] != "serviceUnavailableException" {
			t.Errorf("%s: the last frame is %v", kind, last)
		}
	}
}

func TestInvokeTellsItsUsageInTheHead(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	resp := s.post(t, "/model/m/invoke", invokeText)
	e := s.Ledger()[0]
	wantHeaders(t, resp.Header, map[string]string{"X-Amzn-Bedrock-Input-Token-Count": itoa(e.Input), "X-Amzn-Bedrock-Output-Token-Count": itoa(e.Output)})
	if !bytes.Contains([]byte(text(t, resp.Body)), []byte(`"type":"message"`)) {
		t.Error("the body is no message")
	}
}

func itoa(n int64) string { b, _ := json.Marshal(n); return string(b) }
