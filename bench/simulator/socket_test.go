package simulator_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/authpool/authpool/bench/simulator"
)

// TestSockets plays turns on each WebSocket, the second of them limited.
func TestSockets(t *testing.T) {
	sim, err := simulator.New(simulator.Options{Keys: []simulator.Key{{Key: "k", Provider: simulator.OpenAI}, {Key: "g", Provider: simulator.Gemini}}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(sim.Handler())
	defer server.Close()
	defer func() { _ = sim.Close() }()
	f := func(path, key string, say []string, end, limited string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(ctx, server.URL+path, &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + key}}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.CloseNow() }()
		until := func(text string) {
			t.Helper()
			for {
				_, m, err := c.Read(ctx)
				if err != nil && strings.Contains(err.Error(), text) {
					return
				}
				if err != nil {
					t.Fatalf("%s: %v, want %s", path, err, text)
				}
				if strings.Contains(string(m), text) {
					return
				}
			}
		}
		for _, m := range say {
			_ = c.Write(ctx, websocket.MessageText, []byte(m))
		}
		until(end)
		ledger := sim.Ledger()
		if last := ledger[len(ledger)-1]; !last.Finished || last.Output == 0 || last.Model != "m-1" {
			t.Errorf("%s: the ledger has %+v", path, last)
		}
		if err := sim.Inject(simulator.Injection{Key: key, Fault: simulator.Fault{Kind: simulator.RateLimit}}); err != nil {
			t.Fatal(err)
		}
		_ = c.Write(ctx, websocket.MessageText, []byte(say[len(say)-1]))
		until(limited)
	}
	f("/v1/responses", "k", []string{`{"type":"response.create","model":"m-1","input":"hi"}`}, `"response.completed"`, `"status":429`)
	f("/v1/realtime?model=m-1", "k", []string{`{"type":"conversation.item.create","item":{"type":"message","role":"user"}}`, `{"type":"response.create"}`},
		`"input_token_details"`, `"rate_limit_exceeded"`)
	f("/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent?key=g", "g",
		[]string{`{"setup":{"model":"models/m-1"}}`, `{"clientContent":{"turns":[{"role":"user","parts":[{"text":"hi"}]}],"turnComplete":true}}`},
		`"responseTokenCount"`, "RESOURCE_EXHAUSTED")
}
