package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Pieces of a background response's life as OpenAI tells it.
const (
	backgroundQueued    = `{"id":"resp_1","object":"response","status":"queued","background":true,"error":null,"model":"gpt-5","output":[],"usage":null}`
	backgroundRunning   = `{"id":"resp_1","object":"response","status":"in_progress","background":true,"error":null,"model":"gpt-5","output":[],"usage":null}`
	backgroundDone      = `{"id":"resp_1","object":"response","status":"completed","background":true,"error":null,"model":"gpt-5","output":[],"usage":{"input_tokens":12,"output_tokens":7,"total_tokens":19}}`
	backgroundStopped   = `{"id":"resp_1","object":"response","status":"cancelled","background":true,"error":null,"model":"gpt-5","output":[],"usage":null}`
	backgroundFailed    = `{"id":"resp_1","object":"response","status":"failed","background":true,"error":{"code":"rate_limit_exceeded","message":"Rate limit reached. Please try again in 20s."},"model":"gpt-5","output":[],"usage":null}`
	backgroundCreated   = "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":" + backgroundQueued + "}\n\n"
	backgroundHello     = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":1,\"delta\":\"Hello\"}\n\n"
	backgroundCompleted = "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":2,\"response\":" + backgroundDone + "}\n\n"
	backgroundError     = "event: error\ndata: {\"type\":\"error\",\"sequence_number\":2,\"code\":\"server_error\",\"message\":\"x\",\"param\":null}\n\n"
	backgroundFails     = "event: response.failed\ndata: {\"type\":\"response.failed\",\"sequence_number\":2,\"response\":" + backgroundFailed + "}\n\n"

	askBackground   = `{"model":"gpt-5","background":true,"input":"hi"}`
	askBackgroundSt = `{"model":"gpt-5","background":true,"stream":true,"input":"hi"}`
	secondToken     = "apa_test-token-of-the-second-agent"
)

// process is a rig whose events go to Redis, as those of a process of its own.
type process struct {
	*rig
	usage *usage.Recorder
}

func newProcess(t *testing.T, base string, store *usage.Store) process {
	t.Helper()
	j, err := usage.OpenJournal(t.TempDir(), usage.JournalOptions{Sync: time.Millisecond, Max: 1 << 20, Keep: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	recorder := usage.NewRecorder(j, store, usage.RecorderOptions{Alarm: func(err error) { t.Errorf("alarm: %v", err) }})
	recorder.Start(context.Background())
	t.Cleanup(func() {
		if err := recorder.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return process{newRig(t, base, 1, func(o *rigOptions) {
		o.agents = NewAgents(map[string]string{"default": testToken, "second": secondToken})
		o.deps = func(d *Deps) { d.Recorder = recorder }
	}), recorder}
}

// A background response is counted once, exactly, whoever reads its end first and
// in whatever way, and however often it is read after that.
func TestBackgroundResponseIsCountedOnce(t *testing.T) {
	type step struct {
		process int
		token   string // of the agent
		method  string
		path    string
		request string
		answer  string
		counted int64 // requests counted when it was read
	}
	const get, stream = "/v1/responses/resp_1", "/v1/responses/resp_1?stream=true&starting_after=1"
	begin := func(answer string, counted int64) step {
		return step{0, testToken, "POST", "/v1/responses", askBackground, answer, counted}
	}
	beginStream := func(answer string, counted int64) step {
		return step{0, testToken, "POST", "/v1/responses", askBackgroundSt, answer, counted}
	}
	poll := func(answer string, counted int64) step { return step{0, testToken, "GET", get, "", answer, counted} }
	resume := func(answer string, counted int64) step {
		return step{0, testToken, "GET", stream, "", answer, counted}
	}
	by := func(process int, token string, s step) step {
		s.process, s.token = process, token
		return s
	}
	cut := func(s step) step {
		s.answer += cutHere
		return s
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"polled", []step{
			begin(backgroundQueued, 0), poll(backgroundQueued, 0), poll(backgroundRunning, 0), poll(backgroundDone, 1),
			poll(backgroundDone, 1), by(0, secondToken, poll(backgroundDone, 1)), by(1, testToken, poll(backgroundDone, 1)),
			resume(backgroundCompleted, 1),
		}},
		{"polled first by another agent through another process", []step{
			begin(backgroundQueued, 0), by(1, secondToken, poll(backgroundDone, 1)), poll(backgroundDone, 1),
		}},
		{"read as a stream", []step{
			beginStream(backgroundCreated+backgroundHello+backgroundCompleted, 1), poll(backgroundDone, 1),
			resume(backgroundHello+backgroundCompleted, 1), by(1, secondToken, resume(backgroundCompleted, 1)),
		}},
		{"cut and resumed", []step{
			cut(beginStream(backgroundCreated+backgroundHello, 0)), cut(resume(backgroundHello, 0)),
			by(1, testToken, resume(backgroundHello+backgroundCompleted, 1)), resume(backgroundCompleted, 1), poll(backgroundDone, 1),
		}},
		{"cut and polled", []step{
			cut(beginStream(backgroundCreated+backgroundHello, 0)), poll(backgroundRunning, 0), poll(backgroundDone, 1),
		}},
		{"broken by an error and polled", []step{
			beginStream(backgroundCreated+backgroundHello+backgroundError, 0), poll(backgroundDone, 1),
		}},
		{"polled, then resumed from the beginning", []step{
			begin(backgroundQueued, 0), poll(backgroundDone, 1), resume(backgroundCreated+backgroundHello+backgroundCompleted, 1),
		}},
		{"ended at once", []step{begin(backgroundDone, 1), poll(backgroundDone, 1)}},
		{"cancelled", []step{
			begin(backgroundQueued, 0), {0, testToken, "POST", get + "/cancel", "{}", backgroundStopped, 0}, poll(backgroundStopped, 0),
		}},
		{"cancelled when it had ended", []step{
			begin(backgroundQueued, 0), {0, testToken, "POST", get + "/cancel", "{}", backgroundDone, 1}, poll(backgroundDone, 1),
		}},
		{"failed before it used anything", []step{begin(backgroundQueued, 0), poll(backgroundFailed, 0), resume(backgroundFails, 0)}},
		// The price of not estimating: see claim.
		{"left and never read again", []step{cut(beginStream(backgroundCreated+backgroundHello, 0))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			answers := make(chan string, 1)
			up := newUpstream(t, func(c *upstreamConn) {
				answer := <-answers
				whole := strings.TrimSuffix(answer, cutHere)
				if strings.HasPrefix(answer, "{") {
					c.json(200, "", whole)
					return
				}
				c.sse()
				for event := range strings.SplitAfterSeq(whole, "\n\n") {
					if event != "" {
						c.chunk(event)
					}
				}
				if whole == answer {
					c.last()
				}
			})
			store := usage.NewStore(redistest.Mini(t), "authpool")
			processes := []process{newProcess(t, up.url(), store), newProcess(t, up.url(), store)}
			for i, s := range tt.steps {
				p := processes[s.process]
				answers <- s.answer
				resp, err := talk(p.dial(), s.token, s.method, s.path, s.request)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body) // that some are cut is their point
				if want := strings.TrimSuffix(s.answer, cutHere); string(body) != want {
					t.Fatalf("step %d: the agent got %q, want %q", i+1, body, want)
				}
				sum := counted(t, store, processes)
				want := usage.Counts{Requests: s.counted, Input: 12 * s.counted, Output: 7 * s.counted, Unpriced: s.counted}
				if sum != want {
					t.Fatalf("after step %d (%s %s) counted %+v, want %+v", i+1, s.method, s.path, sum, want)
				}
			}
		})
	}
}

// Whatever agents do with their background responses, all at once and through two
// processes: each response whose end somebody reads is counted once, the others
// are not.
func TestBackgroundResponsesInAnyOrder(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		target := strings.Fields(c.head)[1]
		show, id := between(target, "show=", "&"), between(target, "id=", "&")
		named := func(text string) string { return strings.ReplaceAll(text, "resp_1", id) }
		switch show {
		case "queued":
			c.json(200, "", named(backgroundQueued))
		case "done":
			c.json(200, "", named(backgroundDone))
		case "stream":
			c.sse()
			c.chunk(named(backgroundCreated + backgroundHello))
			c.chunk(named(backgroundCompleted))
			c.last()
		case "cut":
			c.sse()
			c.chunk(named(backgroundCreated + backgroundHello))
		}
	})
	store := usage.NewStore(redistest.Mini(t), "authpool")
	processes := []process{newProcess(t, up.url(), store), newProcess(t, up.url(), store)}
	made := 0
	rapid.Check(t, func(rt *rapid.T) {
		want := counted(t, store, processes)
		var agents sync.WaitGroup
		for range rapid.IntRange(1, 3).Draw(rt, "responses") {
			made++
			id := fmt.Sprint("resp_", made)
			shows := rapid.SliceOfN(rapid.SampledFrom([]string{"queued", "done", "stream", "cut"}), 1, 6).Draw(rt, "shows")
			if slices.Contains(shows, "done") || slices.Contains(shows, "stream") {
				want.Add(usage.Counts{Requests: 1, Input: 12, Output: 7, Unpriced: 1})
			}
			for i, show := range shows {
				p := processes[rapid.IntRange(0, 1).Draw(rt, "process")]
				method, path, body := "GET", "/v1/responses/"+id, ""
				if i == 0 {
					method, path, body = "POST", "/v1/responses", askBackground
				}
				c := p.dial()
				agents.Go(func() {
					defer func() { _ = c.Close() }()
					resp, err := talk(c, testToken, method, path+"?show="+show+"&id="+id, body)
					if err != nil || resp.StatusCode != 200 {
						t.Errorf("%s %s: %v, %v", method, show, resp, err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
				})
			}
		}
		agents.Wait()
		if sum := counted(t, store, processes); sum != want {
			rt.Fatalf("counted %+v, want %+v", sum, want)
		}
	})
}

// between returns what stands in text behind begin, up to end or its own end.
func between(text, begin, end string) string {
	_, text, _ = strings.Cut(text, begin)
	text, _, _ = strings.Cut(text, end)
	return text
}

// counted is what all processes together have counted.
func counted(t *testing.T, store *usage.Store, processes []process) usage.Counts {
	t.Helper()
	for _, p := range processes {
		p.ended()
		if err := p.usage.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := store.Usage(t.Context(), usage.Query{By: usage.BySubscription}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var sum usage.Counts
	for _, row := range rows {
		sum.Add(row.Counts)
	}
	return sum
}

// cutHere ends an answer that breaks off.
const cutHere = "\x00"

// talk sends a request over c for the agent with this token and reads the answer's
// head.
func talk(c net.Conn, token, method, path, body string) (*http.Response, error) {
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, token, len(body), body); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
}

// ended waits until no request is under way.
func (r *rig) ended() { r.server.inFlight.Wait() }

// As soon as the agent can know that its response is made in the background, the
// journal expects nothing of the stream any more: should authpool be killed, what
// the response has used is told to whoever fetches it, and counted then.
func TestBackgroundStreamIsTakenBack(t *testing.T) {
	more := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(backgroundCreated + backgroundHello)
		c.wait(more)
		c.chunk(backgroundCompleted)
		c.last()
	})
	r := newRig(t, up.url(), 1)
	resp := r.send("POST", "/v1/responses", "", askBackgroundSt)
	expect(t, resp.Body, backgroundCreated+backgroundHello)
	r.recorder.mu.Lock()
	opened, voided := r.recorder.opened, slices.Clone(r.recorder.voided)
	r.recorder.mu.Unlock()
	if len(opened) != 1 || len(voided) != 1 || voided[0] != opened[0].ID {
		t.Errorf("opened %+v, voided %v", opened, voided)
	}
	close(more)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	if e := r.waitEvents(1)[0]; e.ID != opened[0].ID || e.Tokens != (usage.Tokens{Input: 12, Output: 7}) || e.Batch != "resp_1" || e.Item != "resp_1" {
		t.Errorf("recorded %+v", e)
	}
}

// What the agent was never told of it cannot fetch: a background response whose
// stream breaks before any of it was shown is counted as unknown.
func TestBackgroundResponseThatNobodyKnows(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		c.sse()
		c.chunk(backgroundCreated)
	})
	r := newRig(t, up.url(), 1)
	if status, _, body := r.post("/v1/responses", askBackgroundSt); status != 502 || strings.Contains(body, "resp_1") {
		t.Fatalf("%d: %s", status, body)
	}
	if e := r.waitEvents(1)[0]; !e.Unknown || !e.Estimated || e.Tokens != (usage.Tokens{}) || e.Batch != "" || e.Item != "" {
		t.Errorf("recorded %+v", e)
	}
}

// A stored response goes to the agent as it comes, whatever it tells: nothing is
// held back, and a limit that it met when it was made is none of now.
func TestStoredStreamIsOnlyRead(t *testing.T) {
	more := make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		switch {
		case strings.HasPrefix(c.head, "POST"):
			c.json(200, "", backgroundQueued)
		case strings.Contains(c.head, "stream=true"):
			c.sse()
			c.wait(more)
			c.chunk(backgroundFails)
			c.last()
		default:
			c.json(200, "", backgroundFailed)
		}
	})
	r := newRig(t, up.url(), 2, func(o *rigOptions) { o.opts.Hold = time.Hour })
	resp := r.send("GET", "/v1/responses/resp_1?stream=true", "", "") // the head comes before anything else
	close(more)
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != backgroundFails {
		t.Fatalf("%q, %v", body, err)
	}
	if body, err := io.ReadAll(r.send("GET", "/v1/responses/resp_1", "", "").Body); err != nil || string(body) != backgroundFailed {
		t.Fatalf("%q, %v", body, err)
	}
	r.ended()
	if status, h, _ := r.post("/v1/responses", askBackground); status != 200 || h.Get("X-Authpool-Subscription") != "openai-1" {
		t.Errorf("then %d by %s", status, h.Get("X-Authpool-Subscription"))
	}
	if n := len(up.requests()); n != 3 {
		t.Errorf("%d requests went out", n)
	}
}
