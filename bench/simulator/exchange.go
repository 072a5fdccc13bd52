package simulator

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// exchange is one answer that is billed.
type exchange struct {
	sim     *Simulator
	w       http.ResponseWriter
	r       *http.Request
	request *request
	call    *call
	answer  answer
	usage   usage
	fault   *Fault // nil: none
	entry   *Entry
	pace    time.Duration
}

// event is one event of a stream.
type event struct {
	name     string // empty: only data
	data     string
	content  bool
	terminal bool
	tokens   int64 // output tokens that this event shows
	// raw is what is sent of it, where that is not a server-sent event of name and data.
	raw string
}

// dialect is how one endpoint writes an answer.
type dialect struct {
	// stream yields the events of a streamed answer.
	stream func(*exchange) iter.Seq[event]
	// document returns what goes before and after the text in a JSON answer; the text goes inside a JSON string.
	document func(*exchange) (before, after string)
	// errorEvent is the event that ends a stream early.
	errorEvent func(*exchange) event
	// media is a stream's type; empty: server-sent events.
	media string
}

var dialects = map[string]dialect{
	"/v1/messages":         {stream: messagesStream, document: messagesDocument, errorEvent: messagesError},
	"/v1/chat/completions": {stream: chatStream, document: chatDocument, errorEvent: openaiError},
	"/v1/completions":      {stream: completionsStream, document: completionsDocument, errorEvent: openaiError},
	"/v1/responses":        {stream: responsesStream, document: responsesDocument, errorEvent: responsesError},
	geminiGenerate:         {document: geminiDocument},
	geminiStream:           {stream: geminiEvents, errorEvent: geminiErrorEvent},
	geminiArray:            {stream: geminiElements, errorEvent: geminiErrorElement, media: "application/json; charset=UTF-8"},
	bedrockConverse:        {document: converseDocument},
	bedrockConverseStream:  {stream: converseStream, errorEvent: bedrockError, media: eventStream},
	bedrockInvoke:          {document: messagesDocument},
	bedrockInvokeStream:    {stream: invokeStream, errorEvent: bedrockError, media: eventStream},
}

const eventStream = "application/vnd.amazon.eventstream"

// thoughts is what thinking consists of; each is one token.
var thoughts = []string{"Let ", "me ", "look ", "at ", "this ", "first."}

// spend serves the endpoints whose requests have a model.
func (s *Simulator) spend(w http.ResponseWriter, r *http.Request, q *request) {
	if f, bad := versionFault(r, q.provider); bad {
		s.fail(w, r, q.provider, q.id, f)
		return
	}
	fault := s.faults.next(q.account.key)
	if fault != nil {
		switch fault.Kind {
		case SilentHead:
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		case SlowFirstByte:
			if pause(r.Context(), milliseconds(fault.DelayMS, 1000)) != nil {
				panic(http.ErrAbortHandler)
			}
		case RawAnswer:
			fault.play(w, r)
			return
		default: // later
		}
		if f, ok := fault.failure(q.provider, q.now); ok {
			q.account.limitHeaders(w.Header(), q.now)
			s.fail(w, r, q.provider, q.id, f)
			return
		}
	}
	c, err := parseCall(q, r.Header)
	if err == nil {
		err = foreignState(q)
	}
	if err != nil {
		s.fail(w, r, q.provider, q.id, badRequest(q.provider, err))
		return
	}
	if q.endpoint == "/v1/messages/count_tokens" || q.endpoint == geminiCount {
		s.countTokens(w, r, q, c)
		return
	}
	x := &exchange{sim: s, w: w, r: r, request: q, call: c, answer: answerTo(s.seed, c), fault: fault, pace: s.pace}
	if c.knobs.slow > 0 {
		x.pace = c.knobs.slow
	}
	if x.has(Slow) {
		x.pace = milliseconds(fault.DelayMS, 250)
	}
	if x.has(EchoCredential) {
		x.answer = answer{fixed: []string{"Your key is ", q.credential, "."}}
		w.Header().Set("X-Echo-Credential", q.credential)
	}
	if (x.has(ErrorEvent) || x.has(LateErrorEvent)) && !c.stream {
		s.fail(w, r, q.provider, q.id, overloaded(q.provider))
		return
	}
	output := x.answer.tokens()
	if q.endpoint == "/v1/embeddings" {
		output = 0
	} else if c.thinking {
		output += int64(len(thoughts))
	}
	var refused *refusal
	x.usage, refused = q.account.admit(q.now, c, int(output))
	q.account.limitHeaders(w.Header(), q.now)
	if refused != nil {
		s.fail(w, r, q.provider, q.id, limited(q.provider, q.account.org, c.model, *refused, q.now))
		return
	}
	if c.thinking {
		x.usage.thinking = int64(len(thoughts))
	}
	var ok bool
	x.entry, ok = s.ledger.open(Entry{
		Key: q.account.key, RequestID: q.id, Model: c.model, Input: x.usage.input, CacheRead: x.usage.cacheRead,
		CacheWrite5m: x.usage.write5m, CacheWrite1h: x.usage.write1h, At: q.now.UTC(),
	})
	if !ok {
		f := failureOf(q.provider, http.StatusServiceUnavailable)
		f.message = "simulator: the ledger is full, DELETE /ledger"
		s.fail(w, r, q.provider, q.id, f)
		return
	}
	switch {
	case x.has(Garbage):
		x.garbage()
	case q.endpoint == "/v1/embeddings":
		before, after := embeddingsDocument(x)
		x.serveJSON(before, after, func(func(piece) bool) {})
	case c.stream:
		x.serveStream(dialects[q.endpoint])
	default:
		if q.endpoint == bedrockInvoke {
			w.Header().Set("X-Amzn-Bedrock-Input-Token-Count", strconv.FormatInt(x.usage.input, 10))
			w.Header().Set("X-Amzn-Bedrock-Output-Token-Count", strconv.FormatInt(x.usage.output, 10))
		}
		before, after := dialects[q.endpoint].document(x)
		x.serveJSON(before, after, x.answer.pieces())
	}
}

func (x *exchange) has(k Kind) bool { return x.fault != nil && x.fault.Kind == k }

// serveJSON writes a JSON answer; it is finished with its last byte.
func (x *exchange) serveJSON(before, after string, text iter.Seq[piece]) {
	x.w.Header().Set("Content-Type", "application/json")
	if !x.sleep(x.pace) {
		return
	}
	out := start(x.w, x.r, http.StatusOK)
	_, err := io.WriteString(out, before)
	if x.has(Cut) || x.has(EarlyCut) || x.has(Silent) {
		_ = out.flush()
		if x.has(Silent) {
			<-x.r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}
	for p := range text {
		if err != nil {
			break
		}
		written := inner(p.text)
		if x.answer.tool && x.request.provider != OpenAI {
			written = p.text // a tool's input is an object here, not a string that holds one
		}
		_, err = io.WriteString(out, written)
	}
	x.finish(func() error {
		_, werr := io.WriteString(out, after)
		return errors.Join(err, werr, out.close())
	})
}

// garbage answers with bytes that no parser takes; nobody can tell what they cost.
func (x *exchange) garbage() {
	out := start(x.w, x.r, http.StatusOK)
	text := `{"id":"garbage","usage":{"input_tokens":`
	if x.call.stream {
		text = "data: " + text + "\n\n"
	}
	_, _ = io.WriteString(out, text)
	_ = out.close()
}

// serveStream plays the events of a stream, with the faults that happen to it.
func (x *exchange) serveStream(d dialect) {
	h := x.w.Header()
	if h.Set("Content-Type", d.media); d.media == "" {
		h.Set("Content-Type", "text/event-stream; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
	}
	out := start(x.w, x.r, http.StatusOK)
	contents, first := 0, true
	for e := range d.stream(x) {
		if !first && !x.sleep(x.pace) {
			panic(http.ErrAbortHandler)
		}
		first = false
		if x.has(ErrorEvent) && e.content || x.has(LateErrorEvent) && contents == 3 {
			_ = out.event(d.errorEvent(x))
			_ = out.close()
			return
		}
		if x.has(Cut) && contents == 3 || x.has(EarlyCut) && e.content {
			panic(http.ErrAbortHandler)
		}
		if x.has(Silent) && contents == 1 {
			<-x.r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		if e.content {
			contents++
		}
		if e.tokens > 0 {
			x.sim.ledger.update(x.entry, func(l *Entry) { l.Output += e.tokens })
		}
		write := func() error { return out.event(e) }
		if e.terminal {
			if !x.finish(write) {
				return
			}
		} else if write() != nil {
			return
		}
	}
	_ = out.close() // the terminal event is out already
}

// event writes one event and flushes it.
func (o *output) event(e event) error {
	if e.raw != "" {
		if _, err := io.WriteString(o, e.raw); err != nil {
			return err
		}
		return o.flush()
	}
	var b strings.Builder
	if e.name != "" {
		b.WriteString("event: " + e.name + "\n")
	}
	b.WriteString("data: ")
	b.WriteString(e.data)
	b.WriteString("\n\n")
	if _, err := io.WriteString(o, b.String()); err != nil {
		return err
	}
	return o.flush()
}

// finish marks the answer finished and writes its end. The mark comes first, so that whoever has read the end
// finds it in the ledger; it is taken back when the end cannot be written.
func (x *exchange) finish(write func() error) bool {
	before := x.entry.Output // only this goroutine changes it
	x.sim.ledger.update(x.entry, func(l *Entry) { l.Finished, l.Output = true, x.usage.output })
	if write() == nil {
		return true
	}
	x.sim.ledger.update(x.entry, func(l *Entry) { l.Finished, l.Output = false, before })
	return false
}

func (x *exchange) sleep(d time.Duration) bool { return pause(x.r.Context(), d) == nil }

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func milliseconds(n, fallback int) time.Duration {
	if n == 0 {
		n = fallback
	}
	return time.Duration(n) * time.Millisecond
}

// versionFault is Anthropic's answer to a request without a version that it knows.
func versionFault(r *http.Request, provider string) (failure, bool) {
	if provider != Anthropic {
		return failure{}, false
	}
	f := failureOf(provider, http.StatusBadRequest)
	switch v := r.Header.Get("Anthropic-Version"); v {
	case "2023-06-01", "2026-10-21":
		return failure{}, false
	case "":
		f.message = "anthropic-version: header is required"
	default:
		f.message = "anthropic-version: " + strconv.Quote(v) + " is not a valid version"
	}
	return f, true
}

func badRequest(provider string, err error) failure {
	f := failureOf(provider, http.StatusBadRequest)
	field, _, _ := strings.Cut(err.Error(), ":")
	switch {
	case errors.Is(err, errForeignState):
		f.code, f.message = "invalid_encrypted_content", err.Error()
	case errors.Is(err, errNotJSON) && provider != OpenAI:
		f.message = "The request body is not valid JSON: " + err.Error()
	case errors.Is(err, errNotJSON):
		f.message = "We could not parse the JSON body of your request."
	case errors.Is(err, errField) && provider != OpenAI:
		f.message = field + ": Field required"
	case errors.Is(err, errField):
		f.param, f.code = field, "missing_required_parameter"
		f.message = "Missing required parameter: '" + field + "'."
	default:
		f.message = err.Error()
	}
	return f
}
