package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// demoAgent is one agent of the demo: a plain HTTP client with one conversation
// that grows. It knows authpool's address and the agent token, nothing else.
type demoAgent struct {
	d            *demo
	name         string
	dialect      demoDialect
	http         *http.Client
	messages     []map[string]any
	turns        int
	subscription string // who served last
}

// demoDialect is what differs between the two APIs.
type demoDialect struct {
	path string
	body func(messages []map[string]any) map[string]any
	auth func(h http.Header, token string)
	text func(event []byte) string // the text that a stream event adds
}

var anthropicDialect = demoDialect{
	path: "/v1/messages",
	body: func(messages []map[string]any) map[string]any {
		return map[string]any{
			"model": "claude-sonnet-4-5", "max_tokens": 40, "stream": true, "messages": messages,
			"system": []map[string]any{{
				"type": "text", "text": "You are an agent of the authpool demo. Be brief, and count nothing yourself.",
				"cache_control": map[string]string{"type": "ephemeral"},
			}},
		}
	},
	auth: func(h http.Header, token string) {
		h.Set("X-Api-Key", token)
		h.Set("Anthropic-Version", "2023-06-01")
	},
	text: func(event []byte) string {
		var e struct {
			Delta struct{ Text string }
		}
		_ = json.Unmarshal(event, &e) // events without text have another shape
		return e.Delta.Text
	},
}

// openAIDialect does not ask for usage in the stream: authpool counts all the
// same.
var openAIDialect = demoDialect{
	path: "/v1/chat/completions",
	body: func(messages []map[string]any) map[string]any {
		return map[string]any{"model": "gpt-4.1", "max_tokens": 40, "stream": true, "messages": messages}
	},
	auth: func(h http.Header, token string) { h.Set("Authorization", "Bearer "+token) },
	text: func(event []byte) string {
		var e struct {
			Choices []struct {
				Delta struct{ Content string }
			}
		}
		_ = json.Unmarshal(event, &e) // the last event is no JSON
		if len(e.Choices) == 0 {
			return ""
		}
		return e.Choices[0].Delta.Content
	},
}

func newDemoAgent(d *demo, name string, dialect demoDialect) *demoAgent {
	return &demoAgent{d: d, name: name, dialect: dialect, http: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
}

// turn asks authpool the next question and prints who served it.
func (a *demoAgent) turn(ctx context.Context) error {
	return a.ask(ctx, "http://"+a.d.service.agentAddress(), a.d.service.dir.AgentToken())
}

// ask asks the next question at base.
func (a *demoAgent) ask(ctx context.Context, base, token string) error {
	a.turns++
	a.messages = append(a.messages, map[string]any{"role": "user", "content": fmt.Sprintf("I am %s. This is question %d of mine; what do you say to it?", a.name, a.turns)})
	body, err := json.Marshal(a.dialect.body(a.messages))
	if err != nil {
		return fmt.Errorf("cannot encode a request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+a.dialect.path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("cannot make a request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Authpool-Session", a.name+"-1")
	a.dialect.auth(req.Header, token)
	resp, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s got no answer: %w", a.name, err)
	}
	defer resp.Body.Close()
	answer, err := drained(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s got %s: %s", a.name, resp.Status, bytes.TrimSpace(answer))
	}
	text := a.said(answer)
	a.messages = append(a.messages, map[string]any{"role": "assistant", "content": text})
	a.subscription = resp.Header.Get("X-Authpool-Subscription")
	note := ""
	if n := resp.Header.Get("X-Authpool-Attempts"); n != "1" && n != "" {
		note = " (attempt " + n + ")"
	}
	a.d.say("   %s, turn %d  →  %-7s %d words%s", a.name, a.turns, a.subscription, len(strings.Fields(text)), note)
	return nil
}

// said puts the text of a stream together.
func (a *demoAgent) said(stream []byte) string {
	var text strings.Builder
	for line := range bytes.Lines(stream) {
		if event, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			text.WriteString(a.dialect.text(event))
		}
	}
	return text.String()
}
