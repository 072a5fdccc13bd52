package proxy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
)

// recording is what this test reads of a recorded exchange.
type recording struct {
	ID       string
	Provider string
	API      string
	Kind     string
	Request  *struct {
		Method, URL string
		Headers     map[string]string
		Body        string
		BodyBase64  string `json:"body_base64"`
	}
	Response struct {
		Status     int
		Headers    map[string]string
		Body       string
		BodyBase64 string `json:"body_base64"`
		Stream     bool
	}
	Expect struct {
		Class         string
		AllInput      *int64 `json:"all_input_tokens"`
		AllOutput     *int64 `json:"all_output_tokens"`
		CacheRead     *int64 `json:"cache_read_tokens"`
		Billable      *bool
		UsageReported *bool `json:"usage_reported"`
	}
}

// TestRecordings lets a fake provider answer with what real ones answered, and
// looks at what the agent gets and what is counted. The recordings are other
// people's and not part of the project: AUTHPOOL_RECORDINGS names their folder.
func TestRecordings(t *testing.T) {
	folder := os.Getenv("AUTHPOOL_RECORDINGS")
	if folder == "" {
		t.Skip("AUTHPOOL_RECORDINGS does not name a folder of recordings")
	}
	files, err := filepath.Glob(filepath.Join(folder, "*", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings in %s (%v)", folder, err)
	}
	var current recording
	up := newUpstream(t, func(c *upstreamConn) { c.replay(&current) })
	r := newRig(t, up.url(), 1, func(o *rigOptions) {
		o.opts.Attempts = 1
		for i := range o.providers {
			o.providers[i].AskUsage = false // the recorded answers are to the recorded requests
		}
		for _, extra := range []string{
			"azure", "groq", "deepseek", "mistral", "xai", "openrouter", "perplexity", "together", "cerebras",
			"huggingface", "zai", "vercel-gateway", "bedrock-mantle", "ollama", "voyage", "gemini",
		} {
			family := provider.OpenAI
			if extra == "azure" {
				family = provider.Azure
			}
			o.providers = append(o.providers, provider.Options{Name: extra, Family: family, BaseURL: up.url(), AllowPlaintext: true})
			o.subs = append(o.subs, pool.Subscription{ID: extra + "-1", Provider: extra, Credential: fixedKey(key(extra, 1))})
		}
	})
	ran := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rec recording
		if err := json.Unmarshal(data, &rec); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		path, ok := rec.path()
		if !ok {
			continue
		}
		ran++
		t.Run(rec.ID, func(t *testing.T) {
			current = rec
			before := len(r.recorder.all())
			body := rec.Request.Body
			resp := r.send(strings.ToUpper(rec.Request.Method), path, "Content-Type: application/json\r\n", body)
			all, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := string(all)
			if want := rec.body(); got != want {
				t.Fatalf("the agent got %d bytes, the provider sent %d:\n%.300q\n%.300q", len(got), len(want), got, want)
			}
			if resp.StatusCode != rec.Response.Status {
				t.Errorf("status %d, want %d", resp.StatusCode, rec.Response.Status)
			}
			events := r.recorder.all()[before:]
			want := 1
			if rec.Kind != "usage" || rec.Expect.Billable != nil && !*rec.Expect.Billable {
				want = 0
			}
			if len(events) != want {
				t.Fatalf("%d usage events, want %d: %+v", len(events), want, events)
			}
			if want == 0 {
				return
			}
			e := events[0]
			if known := rec.Expect.UsageReported == nil || *rec.Expect.UsageReported; e.Unknown == known {
				t.Errorf("unknown %v, want %v: %+v", e.Unknown, !known, e)
			}
			if in := rec.Expect.AllInput; in != nil && e.Tokens.Prompt() != *in && !exempt(rec) {
				t.Errorf("input %d, want %d: %+v", e.Tokens.Prompt(), *in, e.Tokens)
			}
			if out := rec.Expect.AllOutput; out != nil && e.Tokens.Output != *out {
				t.Errorf("output %d, want %d: %+v", e.Tokens.Output, *out, e.Tokens)
			}
		})
	}
	if ran < 200 {
		t.Errorf("only %d recordings could be replayed", ran)
	}
}

// exempt names the recordings whose cached tokens are more than the prompt, so
// that no sum of kinds can be right (Grok on Azure).
func exempt(r recording) bool {
	return r.Expect.CacheRead != nil && r.Expect.AllInput != nil && *r.Expect.CacheRead > *r.Expect.AllInput
}

// path is where an agent sends the recorded request, if it is one of a family
// that is served and an answer that passes through: errors that close a
// subscription are answered by authpool itself.
func (r *recording) path() (string, bool) {
	if r.Request == nil || r.Request.BodyBase64 != "" {
		return "", false
	}
	if r.Kind == "error" && (r.Expect.Class != "client_error" || r.Response.Status < 400) {
		return "", false
	}
	if r.Kind != "usage" && r.Kind != "error" {
		return "", false
	}
	switch {
	case strings.HasPrefix(r.API, "openai-") && r.API != "openai-batches" && r.Provider != "cohere",
		strings.HasPrefix(r.API, "anthropic-") && r.Provider == "anthropic" && r.API != "anthropic-batches":
	default:
		return "", false
	}
	u, err := url.Parse(r.Request.URL)
	if err != nil {
		return "", false
	}
	path := "/" + r.Provider + u.EscapedPath()
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path, true
}

func (r *recording) body() string {
	if r.Response.BodyBase64 != "" {
		b, _ := base64.StdEncoding.DecodeString(r.Response.BodyBase64)
		return string(b)
	}
	return r.Response.Body
}

// replay answers with the recorded answer.
func (c *upstreamConn) replay(r *recording) {
	head := fmt.Sprintf("HTTP/1.1 %d Recorded\r\nConnection: close\r\n", r.Response.Status)
	for name, value := range r.Response.Headers {
		switch strings.ToLower(name) {
		case "connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive":
			continue
		}
		if strings.ContainsAny(value, "\r\n") {
			continue
		}
		head += name + ": " + value + "\r\n"
	}
	body := r.body()
	if !r.Response.Stream {
		c.write("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
		return
	}
	c.write("%sTransfer-Encoding: chunked\r\n\r\n", head)
	for len(body) > 0 {
		n := min(len(body), 997)
		c.chunk(body[:n])
		body = body[n:]
	}
	c.last()
}
