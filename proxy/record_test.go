package proxy

import (
	"io"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Before a request goes out, the journal knows of it: should authpool be killed
// at any moment after that, it is counted.
func TestJournalKnowsBeforeTheProvider(t *testing.T) {
	var r *rig
	known := make(chan int, 1)
	up := newUpstream(t, func(c *upstreamConn) {
		r.recorder.mu.Lock()
		known <- len(r.recorder.opened)
		r.recorder.mu.Unlock()
		c.sse()
		c.chunk(msgStart + msgBlock + msgHello + msgDelta + msgStop)
		c.last()
	})
	r = newRig(t, up.url(), 1)
	if _, err := io.ReadAll(r.send("POST", "/v1/messages", "", messageS).Body); err != nil {
		t.Fatal(err)
	}
	if n := <-known; n != 1 {
		t.Fatalf("the journal knew of %d requests when the provider got the first one", n)
	}
	opened, e := r.recorder.opened, r.recorder.all()[0]
	if o := opened[0]; o.ID != e.ID || o.Subscription != "anthropic-1" || !o.Unknown || o.Tokens != (usage.Tokens{}) {
		t.Errorf("opened %+v", o)
	}
	if len(r.recorder.voided) > 0 || e.Estimated || e.Unknown {
		t.Errorf("voided %v, event %+v", r.recorder.voided, e)
	}
}

// What the agent has, the journal knows: should authpool be killed between two
// pieces of an answer, the last usage that was told is counted.
func TestJournalKnowsWhatTheAgentHas(t *testing.T) {
	chunk := func(choices, usage string) string {
		return `data: {"model":"m","choices":[` + choices + `],"usage":` + usage + "}\n\n"
	}
	tests := []struct {
		name, path string
		pieces     []string
		want       []usage.Tokens // known to the journal when the agent has the piece
	}{
		{
			"Anthropic without its end", "/v1/messages",
			[]string{msgStart + msgBlock + msgHello, msgDelta},
			[]usage.Tokens{{Input: 12, CacheRead: 100, Output: 1}, {Input: 12, CacheRead: 100, Output: 7}},
		},
		{
			"a chat with running totals", "/v1/chat/completions",
			[]string{
				chunk(`{"delta":{"content":"Hel"}}`, `{"prompt_tokens":12,"completion_tokens":1}`),
				chunk(`{"delta":{"content":"lo"}}`, `{"prompt_tokens":12,"completion_tokens":2}`),
				chunk(`{"delta":{},"finish_reason":"stop"}`, `{"prompt_tokens":12,"completion_tokens":3}`),
				chunk(``, `{"prompt_tokens":12,"completion_tokens":4}`),
			},
			[]usage.Tokens{{Input: 12, Output: 1}, {Input: 12, Output: 1}, {Input: 12, Output: 3}, {Input: 12, Output: 4}},
		},
		{
			"a chat with its usage last", "/v1/chat/completions",
			[]string{
				chunk(`{"delta":{"content":"Hello"}}`, `null`),
				chunk(`{"delta":{},"finish_reason":"stop"}`, `null`),
				chunk(``, `{"prompt_tokens":12,"completion_tokens":4}`),
			},
			[]usage.Tokens{{}, {}, {Input: 12, Output: 4}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			more := make(chan struct{})
			up := newUpstream(t, func(c *upstreamConn) {
				c.sse()
				for _, p := range tt.pieces {
					c.chunk(p)
					c.wait(more)
				}
				c.last()
			})
			r := newRig(t, up.url(), 1)
			resp := r.send("POST", tt.path, "", `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}`)
			for i, p := range tt.pieces {
				expect(t, resp.Body, p)
				if e := r.recorder.lastOpened(); e.Tokens != tt.want[i] || e.Unknown != (tt.want[i] == usage.Tokens{}) {
					t.Errorf("after piece %d the journal knows %+v", i+1, e)
				}
				more <- struct{}{}
			}
			if _, err := io.ReadAll(resp.Body); err != nil {
				t.Fatal(err)
			}
			last := tt.want[len(tt.want)-1]
			if e := r.waitEvents(1)[0]; e.Tokens != last || e.Estimated || e.Unknown || e.ID != r.recorder.lastOpened().ID {
				t.Errorf("recorded %+v", e)
			}
		})
	}
}

// Of an answer that tells no usage nothing is made up but what a stream that was
// cut has generated; one that tells only a part is no more than an estimate.
func TestUsageThatIsNotWhole(t *testing.T) {
	tests := []struct {
		name, provider, path string
		answer               func(c *upstreamConn)
		tokens               usage.Tokens
		units                usage.Units
		unknown, estimated   bool
	}{
		{
			"a prompt that Ollama had in its cache", "ollama", "/api/chat",
			func(c *upstreamConn) {
				c.json(200, "", `{"model":"m","message":{"role":"assistant","content":"Hello there"},"done":true,"eval_count":7}`)
			},
			usage.Tokens{Output: 7},
			usage.Units{},
			false, true,
		},
		{
			"images alone", "openai", "/v1/images/generations",
			func(c *upstreamConn) { c.json(200, "", `{"created":1,"data":[{"url":"https://example.com/1.png"}]}`) },
			usage.Tokens{},
			usage.Units{Images: 1},
			true, false,
		},
		{
			"a chat that tells none", "openai", "/v1/chat/completions",
			func(c *upstreamConn) {
				c.sse()
				c.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
				c.last()
			},
			usage.Tokens{},
			usage.Units{},
			true, false,
		},
		{
			"a chat without its end mark", "openai", "/v1/chat/completions",
			func(c *upstreamConn) {
				c.sse()
				c.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"},\"finish_reason\":\"stop\"}]}\n\n")
				c.chunk("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":7}}\n\n")
				c.last()
			},
			usage.Tokens{Input: 12, Output: 7},
			usage.Units{},
			false, false,
		},
		{
			"a chat that was cut", "openai", "/v1/chat/completions",
			func(c *upstreamConn) {
				c.sse()
				c.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n")
			},
			usage.Tokens{Output: 1},
			usage.Units{},
			true, true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, tt.answer)
			s := streamed{name: tt.provider}
			if tt.provider == "ollama" {
				s.family = provider.Ollama
			}
			r := s.rig(t, up, 1)
			resp := r.send("POST", "/"+tt.provider+tt.path, "", `{"model":"m","stream":true,"messages":[]}`)
			_, _ = io.Copy(io.Discard, resp.Body)
			e := r.waitEvents(1)[0]
			if e.Tokens != tt.tokens || e.Units != tt.units || e.Unknown != tt.unknown || e.Estimated != tt.estimated {
				t.Errorf("recorded %+v", e)
			}
		})
	}
}

// A further model within a batch's item has an event of its own, too, by which
// it is counted once.
func TestFurtherModelsOfABatch(t *testing.T) {
	const line = `{"custom_id":"first","result":{"type":"succeeded","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-a","content":[],"usage":{"input_tokens":10,"output_tokens":5,"iterations":[` +
		`{"type":"message","input_tokens":10,"output_tokens":5},{"type":"advisor_message","model":"claude-b","input_tokens":400,"output_tokens":20}]}}}}` + "\n"
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", line) })
	r := newRig(t, up.url(), 1)
	if _, err := io.ReadAll(r.send("GET", "/v1/messages/batches/msgbatch_01/results", "anthropic-version: 2023-06-01\r\n", "").Body); err != nil {
		t.Fatal(err)
	}
	events := r.recorder.all()
	if len(events) != 2 {
		t.Fatalf("events %+v", events)
	}
	further, e := events[0], events[1]
	if e.Further || e.Model != "claude-a" || e.Tokens != (usage.Tokens{Input: 10, Output: 5}) {
		t.Errorf("the item's event: %+v", e)
	}
	if !further.Further || further.Model != "claude-b" || further.Tokens != (usage.Tokens{Input: 400, Output: 20}) || further.Batch != e.Batch || further.Item != "first" || further.ID == e.ID {
		t.Errorf("the advisor's event: %+v", further)
	}
}

// A stored response tells its usage each time that it is shown. It is counted when
// it is made, and not again; one of the background, which is not made yet when it is
// accepted, by each answer that shows it ended, under a name by which only one of
// them counts.
func TestStoredResponses(t *testing.T) {
	const (
		done = `{"id":"resp_1","object":"response","status":"completed","background":true,"model":"m","output":[],"usage":{"input_tokens":12,"output_tokens":7,"total_tokens":19}}`
		made = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"background\":true,\"status\":\"queued\",\"usage\":null}}\n\n" +
			"event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":" + done + "}\n\n"
		queued     = `{"id":"resp_1","object":"response","status":"queued","background":true,"model":"m","output":[],"usage":null}`
		foreground = `{"id":"resp_1","object":"response","status":"completed","background":false,"model":"m","output":[],"usage":{"input_tokens":12,"output_tokens":7,"total_tokens":19}}`
		again      = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":" + foreground + "}\n\n"
	)
	tests := []struct {
		name, method, path, request, answer string
		sse                                 bool
		counted                             int
	}{
		{"fetched", "GET", "/v1/responses/resp_1", "", done, false, 1},
		{"fetched as a stream", "GET", "/v1/responses/resp_1?stream=true&starting_after=0", "", made, true, 1},
		{"fetched before it ran", "GET", "/v1/responses/resp_1", "", queued, false, 0},
		{"asked after", "HEAD", "/v1/responses/resp_1", "", "", false, 0},
		{"cancelled too late", "POST", "/v1/responses/resp_1/cancel", `{}`, done, false, 1},
		{"deleted", "DELETE", "/v1/responses/resp_1", "", done, false, 0},
		{"its input is listed", "GET", "/v1/responses/resp_1/input_items", "", done, false, 0},
		{"of the foreground, fetched", "GET", "/v1/responses/resp_1", "", foreground, false, 0},
		{"of the foreground, fetched as a stream", "GET", "/v1/responses/resp_1?stream=true", "", again, true, 0},
		{"of the foreground, cancelled", "POST", "/v1/responses/resp_1/cancel", `{}`, foreground, false, 0},
		{"ended in the background at once", "POST", "/v1/responses", `{"model":"m","background":true,"input":"hi"}`, done, false, 1},
		{"begun in the background", "POST", "/v1/responses", `{"model":"m","background":true,"input":"hi"}`, queued, false, 0},
		{"made in the background as a stream", "POST", "/v1/responses", `{"model":"m","background":true,"stream":true,"input":"hi"}`, made, true, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				if !tt.sse {
					c.json(200, "", tt.answer)
					return
				}
				c.sse()
				c.chunk(tt.answer)
				c.last()
			})
			r := newRig(t, up.url(), 1)
			got, err := io.ReadAll(r.send(tt.method, tt.path, "", tt.request).Body)
			if err != nil || string(got) != tt.answer {
				t.Fatalf("%q, %v", got, err)
			}
			_ = r.server.Shutdown(t.Context()) // every request has ended then
			events := r.recorder.all()
			if len(events) != tt.counted || len(r.recorder.opened) > 0 && len(events)+len(r.recorder.voided) == 0 {
				t.Fatalf("counted %+v, voided %v of %+v", events, r.recorder.voided, r.recorder.opened)
			}
			for _, e := range events {
				if e.Tokens != (usage.Tokens{Input: 12, Output: 7}) || e.Batch != "resp_1" || e.Item != "resp_1" || e.Model != "m" || e.Unknown || e.Estimated {
					t.Errorf("recorded %+v", e)
				}
			}
			// What was made before counts against no rate now, so that the lease is
			// not told of it, nor the log.
			if told, asked := strings.Contains(r.log.text(), "input=12"), tt.path == "/v1/responses"; told != (asked && tt.counted > 0) {
				t.Errorf("the log: %s", r.log.text())
			}
		})
	}
}

// What an attempt came to: nothing when the provider refused, an event of its own
// when it may have worked.
func TestEveryAttemptIsAccountedFor(t *testing.T) {
	tests := []struct {
		name      string
		bad       func(c *upstreamConn)
		body      string
		event     bool // the first attempt has an event
		unknown   bool
		wantInput int64
	}{
		{"limited", func(c *upstreamConn) { c.json(429, "Retry-After: 600\r\n", limited) }, message, false, false, 0},
		{"overloaded", func(c *upstreamConn) { c.json(529, "", busy) }, message, false, false, 0},
		{"error event before content", func(c *upstreamConn) { c.sse(); c.chunk(msgStart + msgError); c.last() }, messageS, false, false, 0},
		{"no answer", func(c *upstreamConn) {}, message, true, true, 0},
		{"cut after its input was told", func(c *upstreamConn) { c.sse(); c.chunk(msgStart) }, messageS, true, false, 12},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				switch {
				case c.key == key("anthropic", 1):
					tt.bad(c)
				case tt.body == messageS:
					c.sse()
					c.chunk(msgStart + msgBlock + msgHello + msgDelta + msgStop)
					c.last()
				default:
					c.json(200, "", answer)
				}
			})
			r := newRig(t, up.url(), 2)
			if status, _, body := r.post("/v1/messages", tt.body); status != 200 {
				t.Fatalf("%d: %s", status, body)
			}
			events := r.recorder.all()
			last := events[len(events)-1]
			if last.Subscription != "anthropic-2" || last.Tokens.Output != 7 || last.Estimated || last.Unknown {
				t.Errorf("the answer's event: %+v", last)
			}
			first := r.recorder.opened[0].ID
			if !tt.event {
				if len(events) != 1 || len(r.recorder.voided) != 1 || r.recorder.voided[0] != first {
					t.Errorf("events %+v, voided %v, want %s", events, r.recorder.voided, first)
				}
				return
			}
			if len(events) != 2 || len(r.recorder.voided) > 0 {
				t.Fatalf("events %+v, voided %v", events, r.recorder.voided)
			}
			e := events[0]
			if e.ID != first || e.ID == last.ID || e.Subscription != "anthropic-1" || !e.Estimated || e.Unknown != tt.unknown || e.Tokens.Input != tt.wantInput {
				t.Errorf("the lost attempt's event: %+v", e)
			}
		})
	}
}

// A further model within an answer has a price of its own, and so an event.
func TestFurtherModels(t *testing.T) {
	const advised = `{"id":"m","type":"message","role":"assistant","model":"claude-a","content":[],"stop_reason":"end_turn","usage":{"input_tokens":10,"output_tokens":5,"server_tool_use":{"web_search_requests":2},"iterations":[` +
		`{"type":"message","input_tokens":10,"output_tokens":5},{"type":"advisor_message","model":"claude-b","input_tokens":400,"output_tokens":20}]}}`
	up := newUpstream(t, func(c *upstreamConn) { c.json(200, "", advised) })
	r := newRig(t, up.url(), 1)
	r.post("/v1/messages", message)
	events := r.recorder.all()
	if len(events) != 2 {
		t.Fatalf("events %+v", events)
	}
	further, e := events[0], events[1]
	if e.Further || e.Model != "claude-a" || e.Tokens != (usage.Tokens{Input: 10, Output: 5}) || e.Units.WebSearches != 2 {
		t.Errorf("the answer's event: %+v", e)
	}
	if !further.Further || further.Model != "claude-b" || further.Tokens != (usage.Tokens{Input: 400, Output: 20}) || further.Units != (usage.Units{}) || further.ID == e.ID {
		t.Errorf("the advisor's event: %+v", further)
	}
}

// Whoever reads a batch's results pays for each request of it, named so that it
// is counted once however often the results are read; the reading costs nothing.
func TestBatchResults(t *testing.T) {
	const line = `{"custom_id":"first","result":{"type":"succeeded","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-a","content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":10,"output_tokens":5,"service_tier":"batch"}}}}` + "\n" +
		`{"custom_id":"second","result":{"type":"errored","error":{"type":"invalid_request_error","message":"x"}}}` + "\n" +
		`{"custom_id":"third","result":{"type":"succeeded","message":{"id":"msg_3","type":"message","role":"assistant","model":"claude-a","content":[],"usage":{"input_tokens":1,"output_tokens":2,"service_tier":"batch"}}}}` + "\n"
	up := newUpstream(t, func(c *upstreamConn) {
		c.write("HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
		c.chunk(line)
		c.last()
	})
	r := newRig(t, up.url(), 1)
	got, err := io.ReadAll(r.send("GET", "/v1/messages/batches/msgbatch_01/results", "anthropic-version: 2023-06-01\r\n", "").Body)
	if err != nil || string(got) != line {
		t.Fatalf("%q, %v", got, err)
	}
	events := r.recorder.all()
	if len(events) != 2 || len(r.recorder.opened) > 0 {
		t.Fatalf("events %+v, opened %+v", events, r.recorder.opened)
	}
	for i, want := range []struct {
		item   string
		tokens usage.Tokens
	}{{"first", usage.Tokens{Input: 10, Output: 5}}, {"third", usage.Tokens{Input: 1, Output: 2}}} {
		e := events[i]
		if e.Batch != "msgbatch_01" || e.Item != want.item || e.Tokens != want.tokens || e.Model != "claude-a" || e.Unknown || e.Estimated || strings.Count(e.ID, "/") != 1 {
			t.Errorf("event %d: %+v", i, e)
		}
	}
}
