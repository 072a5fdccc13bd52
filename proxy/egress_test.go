package proxy

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/event"
)

const (
	challenge  = `<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>`
	notAllowed = `{"error":{"message":"IP not authorized","type":"invalid_request_error","param":null,"code":null}}`
	noCountry  = `{"error":{"message":"Country not supported","type":"request_forbidden","param":null,"code":"unsupported_country_region_territory"}}`
)

// page answers with a page of what stands in front of a provider.
func (c *upstreamConn) page(status int, text string) {
	c.write("HTTP/1.1 %d No\r\nContent-Type: text/html; charset=UTF-8\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, len(text), text)
}

// TestRefusedForItsAddress: how many subscriptions are tried when a provider
// refuses where requests come from, what the agent sees, and that no subscription
// is closed for it.
func TestRefusedForItsAddress(t *testing.T) {
	for _, tt := range []struct {
		name, path, body string
		refuse           func(c *upstreamConn)
		serves           int // the subscription that is let through; 0: none
		status           int
		shown            string
		attempts, next   int // of the first request, and of the next one
		told             bool
	}{
		{"a challenge to everybody", "/v1/messages", message, func(c *upstreamConn) { c.page(403, challenge) }, 0, 403, challenge, 2, 1, true},
		{"a challenge with 503", "/v1/messages", message, func(c *upstreamConn) { c.page(503, challenge) }, 0, 503, challenge, 2, 1, true},
		{"an address that one key may not come from", "/v1/chat/completions", chat, func(c *upstreamConn) { c.json(401, "", notAllowed) }, 2, 200, answer, 2, 2, false},
		{"an address that two keys may not come from", "/v1/chat/completions", chat, func(c *upstreamConn) { c.json(401, "", notAllowed) }, 3, 401, notAllowed, 2, 1, true},
		{"a country", "/v1/chat/completions", chat, func(c *upstreamConn) { c.json(403, "", noCountry) }, 0, 403, noCountry, 1, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			family := "anthropic"
			if strings.HasSuffix(tt.path, "completions") {
				family = "openai"
			}
			var open atomic.Bool
			up := newUpstream(t, func(c *upstreamConn) {
				if open.Load() || tt.serves > 0 && c.key == key(family, tt.serves) {
					c.json(200, "", answer)
					return
				}
				tt.refuse(c)
			})
			var bus event.Bus
			events, stop := bus.Subscribe("test", 100)
			defer stop()
			r := newRig(t, up.url(), 4, func(o *rigOptions) { o.deps = func(d *Deps) { d.Events = &bus } })
			try := func(want int, session string) {
				t.Helper()
				resp := r.send("POST", tt.path, "X-Authpool-Session: "+session+"\r\n", tt.body)
				body := make([]byte, 4096)
				n, _ := resp.Body.Read(body)
				if resp.StatusCode != tt.status || string(body[:n]) != tt.shown || resp.Header.Get("X-Authpool-Attempts") != fmt.Sprint(want) {
					t.Errorf("%d after %s attempts: %s; want %d after %d: %s", resp.StatusCode, resp.Header.Get("X-Authpool-Attempts"), body[:n], tt.status, want, tt.shown)
				}
			}
			try(tt.attempts, "one")
			for i := range 5 {
				try(tt.next, fmt.Sprint("next", i))
			}
			if n := strings.Count(r.log.text(), "seems to refuse the address"); n > 1 || n == 1 != tt.told {
				t.Errorf("the operator was told %d times", n)
			}
			if n := len(events); n != strings.Count(r.log.text(), "seems to refuse the address") {
				t.Errorf("%d events", n)
			} else if n == 1 {
				if e := <-events; e.Kind != event.ProviderEgress || e.Provider != family || e.Subscription == "" || e.Text == "" {
					t.Errorf("the event is %+v", e)
				}
			}
			for _, s := range r.pool.Status() {
				if s.State != pool.StateReady || s.Breaker != "closed" {
					t.Errorf("%s is %s (%s), its breaker %s", s.ID, s.State, s.Reason, s.Breaker)
				}
			}
			// As soon as one is served the others are tried again.
			open.Store(true)
			if status, _, body := r.post(tt.path, tt.body); status != 200 {
				t.Errorf("%d %s", status, body)
			}
			open.Store(false)
			try(tt.attempts, "last")
		})
	}
}

// A provider with one subscription: its own answer is shown.
func TestRefusedForItsAddressAlone(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) { c.page(403, challenge) })
	r := newRig(t, up.url(), 1)
	for range 3 {
		if status, h, body := r.post("/v1/messages", message); status != 403 || body != challenge || h.Get("X-Authpool-Attempts") != "1" {
			t.Errorf("%d %v: %s", status, h, body)
		}
	}
}

// TestRefusedForItsAddressInARow: what is refused for another reason in between says
// that the address is let through.
func TestRefusedForItsAddressInARow(t *testing.T) {
	up := newUpstream(t, func(c *upstreamConn) {
		switch c.key {
		case key("anthropic", 4):
			c.json(200, "", answer)
		case key("anthropic", 2):
			c.json(429, "Retry-After: 60\r\n", limited)
		default:
			c.page(403, challenge)
		}
	})
	r := newRig(t, up.url(), 4)
	if status, h, body := r.post("/v1/messages", message); status != 200 || h.Get("X-Authpool-Attempts") != "4" {
		t.Errorf("%d after %s attempts: %s", status, h.Get("X-Authpool-Attempts"), body)
	}
}

func TestEgressDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e egresses
		doubted := func() bool { return e.doubted("p", time.Now()) }
		if doubted() || !e.doubt("p", time.Now()) || e.doubt("p", time.Now()) || !doubted() || e.doubted("q", time.Now()) {
			t.Error("the first doubt")
		}
		time.Sleep(egressDoubt)
		if doubted() || !e.doubt("p", time.Now()) || !doubted() {
			t.Error("after its end")
		}
		e.served("p")
		if doubted() || e.count.Load() != 0 {
			t.Error("after a success")
		}
	})
}
