package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"github.com/authpool/authpool/bench/simulator"
)

// talk is a WebSocket of an agent.
type talk struct {
	*websocket.Conn
	t *testing.T
}

// openSocket opens one with the agent's token; header is further names and values.
func (a *authpool) openSocket(t *testing.T, path string, header ...string) talk {
	t.Helper()
	h := http.Header{"Authorization": {"Bearer " + a.token}}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, _, err := websocket.Dial(ctx, a.url+path, &websocket.DialOptions{HTTPHeader: h})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(-1)
	t.Cleanup(func() { _ = c.CloseNow() })
	return talk{c, t}
}

func (c talk) say(messages ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, m := range messages {
		if err := c.Write(ctx, websocket.MessageText, []byte(m)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// until reads messages up to one that holds text, or up to an error.
func (c talk) until(text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		_, m, err := c.Read(ctx)
		if err != nil {
			return fmt.Errorf("before %q: %w", text, err)
		}
		if strings.Contains(string(m), text) {
			return nil
		}
	}
}

// must is until that must succeed.
func (c talk) must(text string) {
	c.t.Helper()
	if err := c.until(text); err != nil {
		c.t.Fatal(err)
	}
}

var socketSubscriptions = []subscription{
	{"gpt-a", simulator.OpenAI, "sk-proj-pool-a"},
	{"gpt-b", simulator.OpenAI, "sk-proj-pool-b"},
	{"gem-a", simulator.Gemini, "AIza-pool-a"},
}

// Turns of the three sockets.
const (
	liveSocket    = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
	responsesTurn = `{"type":"response.create","model":"gpt-5.1","input":[{"type":"message","role":"user","content":"a question of some length"}]}`
	realtimeTurn  = `{"type":"response.create"}`
	liveTurn      = `{"clientContent":{"turns":[{"role":"user","parts":[{"text":"a question of some length"}]}],"turnComplete":true}}`
)

// startSockets starts authpool with the simulator behind it.
func startSockets(t *testing.T, o options) (*authpool, *provider) {
	t.Helper()
	p := startProvider(t, simulator.Options{Keys: keysOf(socketSubscriptions)})
	return startAuthpool(t, o.sockets(p)), p
}

func (o options) sockets(p *provider) options {
	o.subscriptions, o.upstream = socketSubscriptions, p.url
	o.providers = fmt.Sprintf("  openai: {base_url: %q, allow_plaintext: true}\n  gemini: {base_url: %[1]q, allow_plaintext: true}\n", p.url)
	return o
}

// TestSocketsEqualTheLedger: what was counted of turns on WebSockets is what the provider has billed, also where a limit
// came between them.
func TestSocketsEqualTheLedger(t *testing.T) {
	t.Parallel()
	a, p := startSockets(t, options{})
	responses := a.openSocket(t, "/v1/responses")
	realtime := a.openSocket(t, "/v1/realtime?model=gpt-realtime")
	realtime.say(`{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hello"}]}}`)
	live := a.openSocket(t, liveSocket)
	live.say(`{"setup":{"model":"models/gemini-live-2.5-flash"}}`)
	for range 3 {
		responses.say(responsesTurn)
		responses.must(`"response.completed"`)
		realtime.say(realtimeTurn)
		realtime.must(`"response.done"`)
		live.say(liveTurn)
		live.must(`"turnComplete"`)
	}
	for _, s := range socketSubscriptions[:2] {
		if err := p.Inject(simulator.Injection{Key: s.key, Fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	responses.say(responsesTurn)
	responses.must(`"status":429`)
	p.ClearFaults()
	responses.say(responsesTurn)
	responses.must(`"response.completed"`)
	a.expectLedger(t, p, socketSubscriptions)
	rows, err := a.usage(t, "model")
	if err != nil {
		t.Fatal(err)
	}
	for model, requests := range map[string]int64{"gpt-5.1": 4, "gpt-realtime": 3, "gemini-live-2.5-flash": 3} {
		if r := rows[model]; r.Requests != requests || r.Estimated+r.Unknown != 0 {
			t.Errorf("%s: %+v, want %d requests", model, r, requests)
		}
	}
}

// TestKilledInASocketsTurn: the turn under way is an estimate after the next start, the one before is what it was.
func TestKilledInASocketsTurn(t *testing.T) {
	t.Parallel()
	o := options{state: filepath.Join(t.TempDir(), "state")}
	a, p := startSockets(t, o)
	c := a.openSocket(t, "/v1/responses", "X-Simulate", "tokens-80-slow-20")
	c.say(responsesTurn)
	c.must(`"response.completed"`)
	c.say(responsesTurn)
	c.must(`output_text.delta`)
	a.kill(t)
	b := startAuthpool(t, o.sockets(p))
	eventually(t, func() error {
		rows, err := b.usage(t, "model")
		if err != nil {
			return err
		}
		if r := rows["gpt-5.1"]; r.Requests != 2 || r.Estimated != 1 || r.Output < 80 {
			return fmt.Errorf("%+v, want 2 requests, one of them estimated", rows)
		}
		return nil
	})
}

// TestSIGTERMClosesSockets: a socket lives on until its turn has ended, and its agent is told then.
func TestSIGTERMClosesSockets(t *testing.T) {
	t.Parallel()
	a, _ := startSockets(t, options{extra: "shutdown: {grace: 1m}\n"})
	c := a.openSocket(t, "/v1/responses", "X-Simulate", "tokens-80-slow-20")
	c.say(responsesTurn)
	c.must(`output_text.delta`)
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.must(`"response.completed"`)
	var closed websocket.CloseError
	if err := c.until("nothing more"); !errors.As(err, &closed) || closed.Code != websocket.StatusGoingAway {
		t.Errorf("the agent got %v", err)
	}
	_ = c.CloseNow()
	a.waitEnd(t)
	if a.err != nil {
		t.Errorf("authpool ended with %v", a.err)
	}
}
