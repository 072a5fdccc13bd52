package simulator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// socketDialect is how turns are asked for, and told, on a WebSocket.
type socketDialect struct {
	messageType websocket.MessageType
	// greeting is what the provider says first; empty: nothing.
	greeting func(*socket) string
	// ask takes a message of the client's. The body that it returns is a turn to be
	// played, nil for none; answer is what is said at once, empty for nothing.
	ask func(s *socket, message []byte) (body []byte, answer string)
	// tell makes messages of an event of the turn's stream.
	tell func(s *socket, data []byte) []string
	// fail makes messages of an error answer. Without any, the socket is closed with the error.
	fail func(s *socket, status int, body []byte) []string
}

// socket is one WebSocket, served by one goroutine.
type socket struct {
	conn     *websocket.Conn
	endpoint string // whose streams its turns are
	model    string
	items    []json.RawMessage // of the conversation so far
}

// serveSocket plays turns until the client leaves. What happens to a turn is what happens to a streamed request:
// limits, the ledger and the faults are the same.
func (s *Simulator) serveSocket(w http.ResponseWriter, r *http.Request, q *request, endpoint string, d *socketDialect) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"realtime"}, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // it has answered
	}
	conn.SetReadLimit(maxBody)
	defer func() { _ = conn.CloseNow() }()
	sk := &socket{conn: conn, endpoint: endpoint, model: r.URL.Query().Get("model")}
	ctx, cancel := context.WithCancel(r.Context())
	messages := make(chan []byte)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for {
			_, message, err := conn.Read(ctx)
			if err != nil {
				return
			}
			select {
			case messages <- message:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		cancel()
		<-done
	}()
	say := func(text string) error { return conn.Write(ctx, d.messageType, []byte(text)) }
	if d.greeting != nil && say(d.greeting(sk)) != nil {
		return
	}
	for {
		var message []byte
		select {
		case message = <-messages:
		case <-ctx.Done():
			return
		}
		body, answer := d.ask(sk, message)
		if answer != "" && say(answer) != nil {
			return
		}
		if body != nil && !s.playTurn(r.WithContext(ctx), q, sk, d, body, say) {
			return
		}
	}
}

// playTurn serves body as a streamed request would be, and tells what comes of it. It returns false when the socket
// is over.
func (s *Simulator) playTurn(r *http.Request, q *request, sk *socket, d *socketDialect, body []byte, say func(string) error) (goes bool) {
	turn := *q
	turn.endpoint, turn.body, turn.id, turn.now = sk.endpoint, body, requestID(q.provider), time.Now()
	if q.provider == Gemini {
		turn.model = sk.model
	}
	plain := r.Clone(r.Context())
	plain.Header.Del("Accept-Encoding")
	out := &turnWriter{header: http.Header{}, tell: func(data []byte) error {
		for _, text := range d.tell(sk, data) {
			if err := say(text); err != nil {
				return err
			}
		}
		return nil
	}}
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // what net/http's handlers panic with
				panic(p)
			}
			goes = false
		}
	}()
	s.spend(out, plain, &turn)
	if out.status < 400 {
		return true
	}
	texts := d.fail(sk, out.status, out.buf)
	for _, text := range texts {
		if say(text) != nil {
			return false
		}
	}
	if len(texts) == 0 {
		var e struct {
			Error struct{ Status, Message string }
		}
		_ = json.Unmarshal(out.buf, &e)
		reason := e.Error.Status + ": " + e.Error.Message
		_ = sk.conn.Close(websocket.StatusInternalError, reason[:min(len(reason), 120)])
	}
	return len(texts) > 0
}

// turnWriter takes a streamed answer apart into its events, and keeps an error answer whole.
type turnWriter struct {
	header http.Header
	status int
	buf    []byte
	tell   func(data []byte) error
}

func (t *turnWriter) Header() http.Header { return t.header }

func (t *turnWriter) WriteHeader(status int) { t.status = status }

// Flush implements http.Flusher.
func (t *turnWriter) Flush() {}

func (t *turnWriter) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if t.status >= 400 {
		return len(p), nil
	}
	t.buf = bytes.ReplaceAll(t.buf, []byte("\r\n"), []byte("\n")) // Gemini's lines end so
	for {
		event, rest, whole := bytes.Cut(t.buf, []byte("\n\n"))
		if !whole {
			return len(p), nil
		}
		t.buf = rest
		for line := range bytes.Lines(event) {
			if data, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data: ")); ok {
				if err := t.tell(data); err != nil {
					return 0, err
				}
			}
		}
	}
}

// errorObject is the error in the body of an error answer.
func errorObject(body []byte) string {
	var e struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil || e.Error == nil {
		return `{"type":"server_error","message":"no more is known"}`
	}
	return string(e.Error)
}

// responsesSocket is OpenAI's WebSocket mode of /v1/responses.
var responsesSocket = socketDialect{
	messageType: websocket.MessageText,
	ask: func(_ *socket, message []byte) (body []byte, answer string) {
		var fields map[string]json.RawMessage
		if json.Unmarshal(message, &fields) != nil || string(fields["type"]) != `"response.create"` {
			return nil, `{"type":"error","status":400,"error":{"type":"invalid_request_error","message":"want response.create"}}`
		}
		delete(fields, "type")
		fields["stream"] = json.RawMessage("true")
		body, _ = json.Marshal(fields) // of what was just parsed
		return body, ""
	},
	tell: func(_ *socket, data []byte) []string { return []string{string(data)} },
	fail: func(_ *socket, status int, body []byte) []string {
		return []string{fmt.Sprintf(`{"type":"error","status":%d,"error":%s}`, status, errorObject(body))}
	},
}

// realtimeSocket is OpenAI's Realtime API, for text. Its turns are played as those of /v1/responses.
var realtimeSocket = socketDialect{
	messageType: websocket.MessageText,
	greeting: func(s *socket) string {
		return `{"type":"session.created","event_id":"event_1","session":{"type":"realtime","object":"realtime.session","id":"sess_1","model":` + quote(s.model) + `}}`
	},
	ask: func(s *socket, message []byte) (body []byte, answer string) {
		var event struct {
			Type string          `json:"type"`
			Item json.RawMessage `json:"item"`
		}
		_ = json.Unmarshal(message, &event)
		switch event.Type {
		case "session.update":
			return nil, `{"type":"session.updated","session":{"type":"realtime","model":` + quote(s.model) + `}}`
		case "conversation.item.create":
			s.items = append(s.items, event.Item)
			return nil, `{"type":"conversation.item.created","item":` + string(event.Item) + `}`
		case "response.create":
			body, _ = json.Marshal(map[string]any{"model": s.model, "stream": true, "input": s.items}) // of plain values
			return body, ""
		}
		return nil, `{"type":"error","error":{"type":"invalid_request_error","code":"unknown_event","message":"this event is not known"}}`
	},
	tell: func(_ *socket, data []byte) []string {
		var event struct {
			Type string `json:"type"`
		}
		_ = json.Unmarshal(data, &event)
		text := string(data)
		switch event.Type {
		case "response.completed", "response.incomplete":
			text = strings.NewReplacer(`"type":"`+event.Type+`"`, `"type":"response.done"`,
				`"input_tokens_details"`, `"input_token_details"`, `"output_tokens_details"`, `"output_token_details"`).Replace(text)
		case "response.in_progress":
			return nil
		}
		return []string{text}
	},
	fail: func(_ *socket, _ int, body []byte) []string {
		return []string{
			`{"type":"response.created","response":{"object":"realtime.response","id":"resp_failed","status":"in_progress"}}`,
			`{"type":"response.done","response":{"object":"realtime.response","id":"resp_failed","status":"failed","status_details":{"type":"failed","error":` +
				errorObject(body) + `},"output":[],"usage":null}}`,
		}
	},
}

// liveSocket is Gemini's Live API, for text. Its turns are played as those of streamGenerateContent. An error closes it.
var liveSocket = socketDialect{
	messageType: websocket.MessageBinary, // as the real one
	ask: func(s *socket, message []byte) (body []byte, answer string) {
		var m struct {
			Setup struct {
				Model string `json:"model"`
			} `json:"setup"`
			ClientContent struct {
				Turns        []json.RawMessage `json:"turns"`
				TurnComplete bool              `json:"turnComplete"`
			} `json:"clientContent"`
		}
		_ = json.Unmarshal(message, &m)
		if m.Setup.Model != "" {
			s.model = strings.TrimPrefix(m.Setup.Model, "models/")
			return nil, `{"setupComplete":{}}`
		}
		s.items = append(s.items, m.ClientContent.Turns...)
		if m.ClientContent.TurnComplete {
			body, _ = json.Marshal(map[string]any{"contents": s.items}) // of what was just parsed
		}
		return body, ""
	},
	tell: func(_ *socket, data []byte) []string {
		var chunk struct {
			Candidates []struct {
				Content      json.RawMessage `json:"content"`
				FinishReason string          `json:"finishReason"`
			} `json:"candidates"`
			UsageMetadata json.RawMessage `json:"usageMetadata"`
		}
		if json.Unmarshal(data, &chunk) != nil || len(chunk.Candidates) == 0 {
			return []string{string(data)}
		}
		c := chunk.Candidates[0]
		if c.FinishReason == "" {
			return []string{`{"serverContent":{"modelTurn":` + string(c.Content) + `}}`}
		}
		usage := strings.Replace(string(chunk.UsageMetadata), `"candidatesTokenCount"`, `"responseTokenCount"`, 1)
		return []string{
			`{"serverContent":{"generationComplete":true}}`,
			`{"serverContent":{"turnComplete":true},"usageMetadata":` + usage + `}`,
		}
	},
	fail: func(*socket, int, []byte) []string { return nil },
}
