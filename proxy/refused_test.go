package proxy

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/provider"
)

// TestRotatedCredential: a key that was just replaced in its file is refused
// once, and the agent does not see it, although nobody else can serve.
func TestRotatedCredential(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	write := func(secret string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	valid := make(chan string, 1)
	valid <- "sk-key-one"
	up := newUpstream(t, func(c *upstreamConn) {
		want := <-valid
		valid <- want
		if c.key != want {
			c.json(401, "", `{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}`)
			return
		}
		c.json(200, "", answer)
	})
	write("sk-key-one")
	ref, err := credential.ParseRef("file:" + path)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, up.url(), 0, func(o *rigOptions) {
		o.subs = []pool.Subscription{{ID: "only", Provider: "anthropic", Credential: credential.NewSource(ref, credential.APIKey)}}
	})
	if status, _, body := r.post("/v1/messages", message); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	<-valid
	write("sk-key-two")
	valid <- "sk-key-two"
	if status, h, body := r.post("/v1/messages", message); status != 200 || h.Get("X-Authpool-Attempts") != "2" || len(up.requests()) != 3 {
		t.Errorf("%d after %s attempts and %d requests in all: %s", status, h.Get("X-Authpool-Attempts"), len(up.requests()), body)
	}
	// Now it is revoked, and there is no other.
	<-valid
	valid <- "sk-key-three"
	status, h, body := r.post("/v1/messages", message)
	if status != 503 || h.Get("X-Should-Retry") != "false" || h.Get("Retry-After") != "" || !strings.Contains(body, "only: credential") || len(up.requests()) != 4 {
		t.Errorf("%d after %d requests in all, %v: %s", status, len(up.requests()), h, body)
	}
	if s := r.pool.Status()[0]; s.State != pool.StateDisabled || s.Reason != "credential" {
		t.Errorf("the subscription is %s (%s)", s.State, s.Reason)
	}
	if status, _, _ = r.post("/v1/messages", message); status != 503 || len(up.requests()) != 4 {
		t.Errorf("%d; %d requests went out with a refused credential", status, len(up.requests())-4)
	}
}

// TestRefusedByTheProvider: what becomes of the subscription that answers this,
// and what its agent sees while another one can serve.
func TestRefusedByTheProvider(t *testing.T) {
	told := func(typ, message string) string {
		return `{"type":"error","error":{"type":"` + typ + `","message":"` + message + `"}}`
	}
	for _, tt := range []struct {
		name   string
		status int
		body   string
		shown  bool // the agent sees the answer; else that of the other subscription
		state  pool.State
		reason string
	}{
		{"a revoked key", 401, told("authentication_error", "invalid x-api-key"), false, pool.StateDisabled, "credential"},
		{"what the key may not do", 403, told("permission_error", "Your API key does not have permission to use the specified resource."), true, pool.StateReady, ""},
		{"no credit", 402, told("billing_error", "no credit"), false, pool.StateDisabled, "credit"},
		{"no credit, told as a wrong request", 400, told("invalid_request_error", "Your credit balance is too low to access the Anthropic API."), false, pool.StateDisabled, "credit"},
		{"a spend limit, told as a wrong request", 400, told("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2126-01-01 at 00:00 UTC."), false, pool.StateDisabled, "spend_limit"},
		{"a wrong request", 400, told("invalid_request_error", "max_tokens: field required"), true, pool.StateReady, ""},
		{"an unknown resource", 404, told("not_found_error", "no such file"), true, pool.StateReady, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				if c.key == key("anthropic", 1) {
					c.json(tt.status, "", tt.body)
					return
				}
				c.json(200, "", answer)
			})
			r := newRig(t, up.url(), 2)
			status, h, body := r.post("/v1/messages", message)
			if tt.shown {
				if status != tt.status || body != tt.body || h.Get("X-Authpool-Subscription") != "anthropic-1" || len(up.requests()) != 1 {
					t.Errorf("%d after %d requests: %s", status, len(up.requests()), body)
				}
			} else if status != 200 || body != answer || h.Get("X-Authpool-Subscription") != "anthropic-2" || len(up.requests()) != 2 {
				t.Errorf("%d after %d requests: %s", status, len(up.requests()), body)
			}
			s := r.pool.Status()[0]
			if s.ID != "anthropic-1" || s.State != tt.state || s.Reason != tt.reason || len(s.CooldownModels) > 0 {
				t.Errorf("the subscription is %+v", s)
			}
			if s := r.pool.Status()[1]; s.State != pool.StateReady {
				t.Errorf("the other subscription is %+v", s)
			}
			// The next request does not ask in vain.
			asked := len(up.requests())
			r.post("/v1/messages", message)
			if n := len(up.requests()) - asked; n != 1 {
				t.Errorf("the next request was sent %d times", n)
			}
		})
	}
}

// TestLimitsForCodex: Codex repeats every 429 but one.
func TestLimitsForCodex(t *testing.T) {
	for _, tt := range []struct {
		name   string
		header string
		wait   string
		want   string
	}{
		{"long", "Originator: codex_exec\r\n", "600", `"type":"usage_limit_reached"`},
		{"short", "originator: codex_cli_rs\r\n", "50", `"code":"rate_limit_exceeded"`},
		{"another agent", "originator: opencode\r\n", "600", `"code":"rate_limit_exceeded"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				c.json(429, "Retry-After: "+tt.wait+"\r\n", `{"error":{"message":"slow","type":"requests","param":null,"code":"rate_limit_exceeded"}}`)
			})
			r := newRig(t, up.url(), 2)
			begin := time.Now().Unix()
			resp := r.send("POST", "/v1/responses", "Content-Type: application/json\r\n"+tt.header, `{"model":"gpt-5","input":"hi","stream":true}`)
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if body := string(text); resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, tt.want) || !strings.Contains(body, "authpool: all 2 subscriptions for gpt-5 are limited; first free in ") {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if _, at, ok := strings.Cut(string(text), `"resets_at":`); ok {
				if n, err := strconv.ParseInt(strings.TrimRight(at, "}"), 10, 64); err != nil || n < begin+598 || n > begin+700 {
					t.Errorf("resets_at is %s, in %d seconds", at, n-begin)
				}
			} else if tt.name == "long" {
				t.Error("no resets_at")
			}
		})
	}
}

// TestNobodyCanServe: each family's agents get the refusal in the shape that
// they read, with the time in both headers, and are not told to come back within
// the turn.
func TestNobodyCanServe(t *testing.T) {
	for _, s := range streams {
		t.Run(s.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) { c.json(429, "Retry-After: 720\r\n", `{}`) })
			r := s.rig(t, up, 3)
			status, h, body := r.post("/"+s.name+s.path, `{"model":"m","stream":true,"messages":[]}`)
			seconds, err := strconv.Atoi(h.Get("Retry-After"))
			ms, errMS := strconv.Atoi(h.Get("Retry-After-Ms"))
			if status != 429 || err != nil || errMS != nil || seconds < 700 || seconds > 721 || ms > seconds*1000 || ms < seconds*1000-1000 ||
				h.Get("X-Should-Retry") != "false" || h.Get("X-Authpool-Error") != "limited" || len(up.requests()) != 3 {
				t.Errorf("%d after %d requests: %v", status, len(up.requests()), h)
			}
			shape, model := s.family, "m"
			switch {
			case strings.Contains(s.path, "anthropic"): // on Vertex
				shape = provider.Anthropic
			case strings.Contains(s.path, "chat/completions"): // at whoever serves it
				shape = provider.OpenAI
			}
			if strings.Contains(s.path, "deployments/d/") {
				model = "d"
			}
			message := "all 3 subscriptions for " + model + " are limited; first free in 12m (" + s.name + "-1)"
			if want := string(provider.ErrorBody(nil, shape, 429, "limited", message, h.Get("X-Authpool-Request-Id"))); body != want {
				t.Errorf("got %s, want %s", body, want)
			}
			if name, value := provider.ErrorHeader(shape, 429); name != "" && h.Get(name) != value {
				t.Errorf("%s is %q, want %q", name, h.Get(name), value)
			}
		})
	}
}

// TestNobodyMayServe: what no wait for a limit mends is told as what it is, at
// once and for as long as it is remembered.
func TestNobodyMayServe(t *testing.T) {
	for _, tt := range []struct {
		name, answer      string
		status, again     int
		message, inAnswer string
	}{
		{
			"a model that no subscription may use",
			`{"type":"error","error":{"type":"permission_error","message":"Your account does not have access to this model"}}`,
			403, 403, "all 2 subscriptions for claude-sonnet-4-5 are not permitted to use it; tried again in 60m (anthropic-1)", "does not have access",
		},
		{
			"no credit",
			`{"type":"error","error":{"type":"billing_error","message":"Your credit balance is too low"}}`,
			402, 429, "all 2 subscriptions for claude-sonnet-4-5 are out of quota; tried again in 60m (anthropic-1: credit)", "are out of quota",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) { c.json(tt.status, "", tt.answer) })
			r := newRig(t, up.url(), 2)
			status, _, body := r.post("/v1/messages", message)
			if status != tt.again || !strings.Contains(body, tt.inAnswer) || len(up.requests()) != 2 {
				t.Errorf("%d after %d requests: %s", status, len(up.requests()), body)
			}
			status, h, body := r.post("/v1/messages", message)
			want := string(provider.ErrorBody(nil, provider.Anthropic, tt.again, "", tt.message, h.Get("X-Authpool-Request-Id")))
			if status != tt.again || body != want || h.Get("X-Should-Retry") != "false" || len(up.requests()) != 2 {
				t.Errorf("then %d %v after %d requests: %s", status, h, len(up.requests()), body)
			}
		})
	}
}

// TestRefusalsAreNoAttempts: failover.attempts counts what a provider may have
// executed. A limit that is met after a failure costs none, and no agent sees it
// while another subscription can serve.
func TestRefusalsAreNoAttempts(t *testing.T) {
	const failed = `{"type":"error","error":{"type":"api_error","message":"Internal server error"}}`
	const limited = `{"type":"error","error":{"type":"rate_limit_error","message":"Slow down"}}`
	for _, tt := range []struct {
		attempts int
		status   int
		by       string
	}{
		{1, 500, "anthropic-1"},
		{2, 200, "anthropic-3"},
		{3, 200, "anthropic-3"},
	} {
		t.Run(strconv.Itoa(tt.attempts), func(t *testing.T) {
			up := newUpstream(t, func(c *upstreamConn) {
				switch c.key {
				case key("anthropic", 1):
					c.json(500, "", failed)
				case key("anthropic", 2):
					c.json(429, "Retry-After: 3600\r\n", limited)
				default:
					c.json(200, "", answer)
				}
			})
			r := newRig(t, up.url(), 3, func(o *rigOptions) { o.opts.Attempts = tt.attempts })
			if status, h, body := r.post("/v1/messages", message); status != tt.status || h.Get("X-Authpool-Subscription") != tt.by {
				t.Errorf("%d from %s: %s", status, h.Get("X-Authpool-Subscription"), body)
			}
		})
	}
}
