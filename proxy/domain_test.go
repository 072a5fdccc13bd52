package proxy

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// Two keys of one organisation are one limit, though nobody said so: when one is
// refused the other is not tried.
func TestNoHopInsideALearnedDomain(t *testing.T) {
	organisations := map[string]string{key("anthropic", 1): "org-1", key("anthropic", 2): "org-1", key("anthropic", 3): "org-2"}
	var broken, limited atomic.Bool
	up := newUpstream(t, func(c *upstreamConn) {
		organisation := organisations[c.key]
		header := "anthropic-organization-id: " + organisation + "\r\n"
		switch {
		case limited.Load() && organisation == "org-1":
			c.json(429, header+"Retry-After: 3600\r\n", `{"type":"error","error":{"type":"rate_limit_error","message":"limited"}}`)
		case broken.Load() && c.key == key("anthropic", 1):
			c.json(500, header, `{"type":"error","error":{"type":"api_error","message":"broken"}}`)
		default:
			c.json(200, header, `{"type":"message","content":[],"usage":{"input_tokens":1,"output_tokens":1}}`)
		}
	})
	r := newRig(t, up.url(), 3)
	ask := func(text string) (asked []string) {
		t.Helper()
		before := len(up.requests())
		if status, _, body := r.post("/v1/messages", `{"model":"claude-x","max_tokens":1,"messages":[{"role":"user","content":"`+text+`"}]}`); status != 200 {
			t.Errorf("%s: %d %s", text, status, body)
		}
		for _, head := range up.requests()[before:] {
			for k := range organisations {
				if strings.Contains(head, k) {
					asked = append(asked, k)
				}
			}
		}
		return asked
	}
	broken.Store(true)
	if got := ask("one"); !slices.Equal(got, []string{key("anthropic", 1), key("anthropic", 2)}) {
		t.Fatalf("asked %q", got)
	}
	broken.Store(false)
	limited.Store(true)
	if got := ask("two"); !slices.Equal(got, []string{key("anthropic", 1), key("anthropic", 3)}) {
		t.Errorf("asked %q, want the first key and then that of the other organisation", got)
	}
	if got := ask("three"); !slices.Equal(got, []string{key("anthropic", 3)}) {
		t.Errorf("asked %q, want the other organisation's key alone", got)
	}
	for i, want := range []string{"org-1", "org-1", "org-2"} {
		if s := r.pool.Status()[i]; s.Domain != want {
			t.Errorf("%s is of the domain %q, want %q", s.ID, s.Domain, want)
		}
	}
}
