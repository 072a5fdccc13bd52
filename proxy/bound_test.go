package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// account is a provider whose keys are accounts of their own: what one has made the
// others do not know.
type account struct {
	mu      sync.Mutex
	owners  map[string]string // by id, the key
	limited string            // the key that is limited
	made    int
	asked   int
}

func (a *account) serve(c *upstreamConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	line, _, _ := strings.Cut(c.head, " HTTP/")
	for _, name := range []string{"x-goog-api-key: ", "\napi-key: "} {
		if _, rest, ok := strings.Cut(strings.ToLower(c.head), name); ok && c.key == "" {
			c.key, _, _ = strings.Cut(rest, "\r\n")
		}
	}
	if c.key == a.limited {
		c.json(429, "Retry-After: 720\r\n", limited)
		return
	}
	for id, owner := range a.owners {
		if owner != c.key && strings.Contains(line+c.body, id) {
			c.json(404, "", `{"error":{"type":"invalid_request_error","message":"not found"}}`)
			return
		}
	}
	a.made++
	make := func(kind string) string {
		id := fmt.Sprintf("%s%08d", kind, a.made)
		a.owners[id] = c.key
		return id
	}
	switch {
	case strings.HasPrefix(line, "POST /v1/files"):
		c.json(200, "", `{"object":"file","id":"`+make("file-")+`","bytes":3}`)
	case strings.HasPrefix(line, "POST /v1/environments"):
		c.json(200, "", `{"id":"`+make("env_")+`","name":"x"}`)
	case strings.HasPrefix(line, "POST /v1/libraries"):
		c.json(200, "", `{"id":"`+make("3fa85f64-5717-4562-b3fc-2c96")+`","name":"x"}`)
	case strings.HasPrefix(line, "POST /v1/responses") && strings.Contains(c.body, `"stream":true`):
		c.sse()
		id := make("resp_")
		c.chunk("event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"" + id + "\",\"status\":\"in_progress\"}}\n\n")
		c.chunk("data: {\"type\":\"response.output_text.delta\",\"delta\":\"{\\\"id\\\":\\\"file-00000000\\\"}\"}\n\n")
		c.chunk("data: {\"type\":\"response.completed\",\"response\":{\"id\":\"" + id + "\",\"status\":\"completed\",\"model\":\"gpt-x\",\"usage\":{\"input_tokens\":1,\"output_tokens\":1,\"total_tokens\":2}}}\n\n")
		c.last()
	case strings.HasPrefix(line, "POST /v1/responses"):
		c.json(200, "", `{"id":"`+make("resp_")+`","object":"response","status":"completed","model":"gpt-x","usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}`)
	case strings.HasPrefix(line, "POST /v1/messages"):
		c.json(200, "", `{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"x"}],"container":{"id":"`+make("container_")+`"},"usage":{"input_tokens":1,"output_tokens":1}}`)
	case strings.HasPrefix(line, "GET /v1/batches/"):
		c.json(200, "", `{"id":"batch_1","object":"batch","status":"completed","output_file_id":"`+make("file-")+`"}`)
	case strings.HasPrefix(line, "POST /v1/batches"):
		c.json(200, "", `{"id":"`+make("batch_")+`","object":"batch"}`)
	case strings.HasPrefix(line, "POST /v1beta/cachedContents"):
		c.json(200, "", `{"name":"cachedContents/`+make("cache")+`","model":"models/gemini-x"}`)
	default:
		c.json(200, "", `{"ok":true}`)
	}
}

func (a *account) limit(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limited = key
}

// requests is how many requests came.
func (a *account) requests() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// last is the id that was made last.
func (a *account) last() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.owners {
		if strings.HasSuffix(id, fmt.Sprintf("%08d", a.made)) {
			return id
		}
	}
	return ""
}

// newAccounts is a rig of three equal subscriptions of each provider.
func newAccounts(t *testing.T, change ...func(*rigOptions)) (*rig, *account) {
	t.Helper()
	a := &account{owners: map[string]string{}}
	u := newUpstream(t, a.serve)
	r := newRig(t, u.url(), 3, append([]func(*rigOptions){func(o *rigOptions) {
		for i := range o.subs {
			o.subs[i].Priority = 1
		}
		o.providers = append(o.providers, provider.Options{Name: "gemini", Family: provider.Gemini, BaseURL: u.url(), AllowPlaintext: true})
		for i := range 3 {
			o.subs = append(o.subs, pool.Subscription{ID: fmt.Sprint("gemini-", i+1), Provider: "gemini", Credential: fixedKey(key("gemini", i+1))})
		}
	}}, change...)...)
	return r, a
}

// call sends a request of a session and returns what came, with who served it.
func (r *rig) call(method, path, session, body string) (status int, sub, text string, header http.Header) {
	r.t.Helper()
	headers := "Content-Type: application/json\r\n"
	if session != "" {
		headers += "X-Authpool-Session: " + session + "\r\n"
	}
	resp := r.send(method, path, headers, body)
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("X-Authpool-Subscription"), string(b), resp.Header
}

// Whatever made it, and wherever the id stands in the request that names it: the
// request goes to the account that has it, from any session.
func TestBoundThingsAreServedByTheirOwner(t *testing.T) {
	tests := map[string]struct {
		path, body string // makes it
		use        string // METHOD PATH BODY, with ID for the id
	}{
		"file in the path":     {"/openai/v1/files", `{}`, `GET /openai/v1/files/ID `},
		"file in the body":     {"/openai/v1/files", `{}`, `POST /openai/v1/chat/completions {"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"ID"}}]}]}`},
		"answer":               {"/openai/v1/responses", `{"model":"m","input":"x"}`, `POST /openai/v1/responses {"model":"m","previous_response_id":"ID","input":"y"}`},
		"streamed answer":      {"/openai/v1/responses", `{"model":"m","stream":true,"input":"x"}`, `POST /openai/v1/responses {"model":"m","previous_response_id":"ID","input":"y"}`},
		"answer, deleted":      {"/openai/v1/responses", `{"model":"m","input":"x"}`, `DELETE /openai/v1/responses/ID `},
		"container":            {"/anthropic/v1/messages", `{"model":"m","tools":[{"type":"code_execution_20250825","name":"code_execution"}],"messages":[{"role":"user","content":"x"}]}`, `POST /anthropic/v1/messages {"model":"m","container":"ID","messages":[{"role":"user","content":"x"}]}`},
		"batch":                {"/openai/v1/batches", `{"input_file_id":"x"}`, `GET /openai/v1/batches/ID `},
		"cache in the body":    {"/gemini/v1beta/cachedContents", `{}`, `POST /gemini/v1beta/models/m:generateContent {"cachedContent":"cachedContents/ID","contents":[]}`},
		"cache in the path":    {"/gemini/v1beta/cachedContents", `{}`, `PATCH /gemini/v1beta/cachedContents/ID {}`},
		"cache in a Vertex id": {"/gemini/v1beta/cachedContents", `{}`, `POST /gemini/v1/projects/p/locations/l/publishers/google/models/m:generateContent {"cachedContent":"projects/p/locations/l/cachedContents/ID","contents":[]}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, a := newAccounts(t)
			for n := range 6 { // whoever the sessions' own subscriptions are
				_, owner, _, _ := r.call("POST", test.path, fmt.Sprint("maker-", n), test.body)
				id := a.last()
				method, rest, _ := strings.Cut(test.use, " ")
				path, body, _ := strings.Cut(strings.ReplaceAll(rest, "ID", id), " ")
				status, sub, text, _ := r.call(method, path, fmt.Sprint("user-", n), body)
				if status != 200 || sub != owner {
					t.Errorf("%s %s: %d by %s, want its owner %s\n%s", method, path, status, sub, owner, text)
				}
			}
		})
	}
}

// The files that a batch has made are its owner's, though nobody posted them.
func TestBoundFilesOfABatch(t *testing.T) {
	r, a := newAccounts(t)
	for n := range 4 {
		_, owner, _, _ := r.call("POST", "/openai/v1/batches", fmt.Sprint("s-", n), `{}`)
		r.call("GET", "/openai/v1/batches/"+a.last(), "", "")
		file := a.last()
		if status, sub, text, _ := r.call("GET", "/openai/v1/files/"+file+"/content", "", ""); status != 200 || sub != owner {
			t.Errorf("GET %s: %d by %s, want %s\n%s", file, status, sub, owner, text)
		}
	}
}

// What makes nothing is not remembered: not what the agent asked not to store, nor
// an id within a text.
func TestBoundLearnsNothingElse(t *testing.T) {
	r, a := newAccounts(t)
	r.call("POST", "/openai/v1/responses", "s", `{"model":"m","store":false,"input":"x"}`)
	unstored := a.last()
	r.call("POST", "/openai/v1/responses", "s", `{"model":"m","stream":true,"input":"x"}`)
	for id, want := range map[string]bool{unstored: false, "file-00000000": false, a.last(): true} {
		if got, _ := r.pool.Owners(t.Context(), "openai", []string{id}); (len(got) > 0) != want {
			t.Errorf("%s: %+v, want known: %v", id, got, want)
		} else if want && got[0].Agent != "default" {
			t.Errorf("%s is agent %q's", id, got[0].Agent)
		}
	}
}

// Of a thing that nobody knows the session's own subscription is asked, and that it
// does not have it closes nothing.
func TestBoundMissClosesNothing(t *testing.T) {
	r, a := newAccounts(t)
	_, home, _, _ := r.call("POST", "/openai/v1/chat/completions", "s", `{"model":"m","messages":[]}`)
	a.owners["resp_foreign1"] = "another account"
	for range 3 {
		if status, sub, _, _ := r.call("POST", "/openai/v1/responses", "s", `{"model":"m","previous_response_id":"resp_foreign1","input":"x"}`); status != 404 || sub != home {
			t.Errorf("%d by %s, want the 404 of %s", status, sub, home)
		}
	}
	for _, s := range r.pool.Status() {
		if s.State != pool.StateReady {
			t.Errorf("%s is %s", s.ID, s.State)
		}
	}
}

// The owner alone is waited for; when that takes too long, or for ever, the error
// says who it is and why, and no other subscription is asked.
func TestBoundOwnerCannotServe(t *testing.T) {
	r, a := newAccounts(t)
	_, owner, _, _ := r.call("POST", "/openai/v1/responses", "s", `{"model":"m","input":"x"}`)
	use := `{"model":"m","previous_response_id":"` + a.last() + `","input":"y"}`
	n := int(owner[len(owner)-1] - '0')
	a.limit(key("openai", n))
	before := a.made
	for range 2 { // by the provider's word, then by ours
		status, _, text, header := r.call("POST", "/openai/v1/responses", "other", use)
		if status != 429 || !strings.Contains(text, fmt.Sprintf(`subscription \"%s\", which alone has what this request names, is limited`, owner)) ||
			!strings.Contains(text, "free in 12m") || strings.Contains(text, "sk-") {
			t.Errorf("%d %s, want a 429 that names %s", status, text, owner)
		}
		if wait := header.Get("Retry-After"); wait != "720" && wait != "719" && wait != "721" {
			t.Errorf("Retry-After %s, want 12 minutes", wait)
		}
	}
	if a.made != before {
		t.Error("another account was asked")
	}
	// The session itself is served, by another.
	if status, sub, text, _ := r.call("POST", "/openai/v1/responses", "other", `{"model":"m","input":"y"}`); status != 200 || sub == owner {
		t.Errorf("%d by %s: %s", status, sub, text)
	}
}

func TestBoundOwnerIsGone(t *testing.T) {
	r, _ := newAccounts(t)
	r.pool.Learn(t.Context(), []pool.Made{{Resource: pool.Resource{ID: "file-1", Subscription: "left", Agent: "default"}, Keep: time.Hour}})
	status, _, text, header := r.call("GET", "/openai/v1/files/file-1", "s", "")
	if status != 503 || !strings.Contains(text, `subscription \"left\", which alone has what this request names, is not configured for it any more`) {
		t.Errorf("%d %s, want a 503 that names it", status, text)
	}
	if header.Get("X-Should-Retry") != "false" {
		t.Errorf("trying again will not help: %v", header)
	}
}

// A short limit of the owner is waited out.
func TestBoundOwnerIsWaitedFor(t *testing.T) {
	r, a := newAccounts(t, func(o *rigOptions) { o.pool.Wait = 10 * time.Second })
	_, owner, _, _ := r.call("POST", "/openai/v1/responses", "s", `{"model":"m","input":"x"}`)
	lease, err := r.pool.Acquire(t.Context(), &pool.Request{Provider: "openai", Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	lease.Verdict(ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeSubscription, Wait: 300 * time.Millisecond})
	lease.Done(usage.Tokens{})
	if status, sub, text, _ := r.call("POST", "/openai/v1/responses", "other", `{"model":"m","previous_response_id":"`+a.last()+`","input":"y"}`); status != 200 || sub != owner {
		t.Errorf("%d by %s, want %s after its limit\n%s", status, sub, owner, text)
	}
}

// BenchmarkBound is what one Responses stream of 200 events costs that may make
// something, beside its metering. Plain messages do not pass here at all.
func BenchmarkBound(b *testing.B) {
	var stream []byte
	stream = append(stream, "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"object\":\"response\",\"output\":[]}}\n\n"...)
	for n := range 200 {
		stream = fmt.Appendf(stream, "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":\" word%d of it\",\"logprobs\":[],\"obfuscation\":\"abcdef\"}\n\n", n)
	}
	one := new(bound)
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	for b.Loop() {
		one.reset(nil, provider.OpenAI)
		for p := stream; len(p) > 0; {
			n := min(len(p), 1400)
			one.Write(p[:n])
			p = p[n:]
		}
	}
	if len(one.made.IDs()) != 1 {
		b.Error("the id was not read")
	}
}

// Split anywhere, and of whatever form, an answer tells the same.
func TestBoundForms(t *testing.T) {
	for text, want := range map[string]string{
		" \n{\"id\":\"file-1\"}": "file-1",
		": comment\n\ndata: {\"response\":\ndata: {\"id\":\"resp_1\"}}\r\n\r\ndata: [DONE]\n\n":                   "resp_1",
		"\ufeffevent: x\ndata: not JSON\n\ndata: {\"thread_id\":\"thread_1\"}\n\ndata: {\"id\":\"thread_1\"}\n\n": "thread_1",
		"[{\"id\":\"file-1\"}]":   "",
		"file-1, {\"id\":\"x\"}":  "",
		"\x00{\"id\":\"file-1\"}": "",
		"":                        "",
	} {
		for size := 1; size <= len(text)+1; size++ {
			b := new(bound)
			b.reset(nil, provider.OpenAI)
			for p := []byte(text); len(p) > 0; {
				n := min(size, len(p))
				b.Write(p[:n])
				p = p[n:]
			}
			b.Close()
			if got := strings.Join(b.made.IDs(), " "); got != want {
				t.Errorf("%q in pieces of %d: %q, want %q", text, size, got, want)
			}
		}
	}
}
