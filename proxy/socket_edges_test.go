package proxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// rawSocket is a WebSocket of an agent that writes what it likes.
type rawSocket struct {
	net.Conn
	t  testing.TB
	br *bufio.Reader
}

// rawSocket opens one for /v1/responses.
func (r *rig) rawSocket(token string) *rawSocket {
	r.t.Helper()
	c := r.dial()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = fmt.Fprintf(c, "GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", token)
	br := bufio.NewReader(c)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
		r.t.Fatal(resp, err)
	}
	return &rawSocket{c, r.t, br}
}

func (c *rawSocket) send(frames ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c, strings.Join(frames, "")); err != nil {
		c.t.Fatal(err)
	}
}

// frame reads one frame of the provider's, or authpool's.
func (c *rawSocket) frame() (first byte, payload string, err error) {
	var h [2]byte
	if _, err := io.ReadFull(c.br, h[:]); err != nil {
		return 0, "", err
	}
	n := int(h[1])
	if n == 126 {
		var long [2]byte
		if _, err := io.ReadFull(c.br, long[:]); err != nil {
			return 0, "", err
		}
		n = int(binary.BigEndian.Uint16(long[:]))
	}
	text := make([]byte, n)
	_, err = io.ReadFull(c.br, text)
	return h[0], string(text), err
}

// expectFrame reads a frame that must be this one.
func (c *rawSocket) expectFrame(first byte, payload string) {
	c.t.Helper()
	if got, text, err := c.frame(); err != nil || got != first || text != payload {
		c.t.Fatalf("the agent got %x %q, %v, want %x %q", got, text, err, first, payload)
	}
}

// expectClose reads a Close with this code, whose reason begins so.
func (c *rawSocket) expectClose(code uint16, reason string) {
	c.t.Helper()
	first, text, err := c.frame()
	if err != nil || first != 0x88 || len(text) < 2 || binary.BigEndian.Uint16([]byte(text)) != code || !strings.HasPrefix(text[2:], reason) {
		c.t.Fatalf("the agent got %x %q, %v, want a Close with %d, %q", first, text, err, code, reason)
	}
}

// A frame that is under way when authpool closes the socket comes to its end, and the Close behind it.
func TestSocketClosesBehindAFrame(t *testing.T) {
	goOn := make(chan struct{})
	whole := frame(0x81, delta)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		_, _ = io.WriteString(p, frame(0x81, created)+whole[:10])
		c.wait(goOn)
		_, _ = io.WriteString(p, whole[10:20])
		_, _ = io.WriteString(p, whole[20:])
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	r.server.farewellWait = 30 * time.Second
	c := r.rawSocket(testToken)
	c.send(mask(frame(0x81, askTurn)))
	c.expectFrame(0x81, created)
	begun := make([]byte, 10)
	if _, err := io.ReadFull(c.br, begun); err != nil || string(begun) != whole[:10] {
		t.Fatalf("%q, %v", begun, err)
	}
	c.send(frame(0x81, askTurn)) // without a mask
	r.expectFarewell()
	close(goOn)
	rest := make([]byte, len(whole)-10)
	if _, err := io.ReadFull(c.br, rest); err != nil || string(rest) != whole[10:] {
		t.Fatalf("the rest of the frame is %q, %v", rest, err)
	}
	c.expectClose(1002, "authpool: ")
}

// expectFarewell waits until authpool closes a socket.
func (r *rig) expectFarewell() {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		select {
		case <-tick.C:
		case <-late:
			r.t.Fatal("no socket is being closed")
		}
		r.server.mu.Lock()
		sockets := slices.Clone(r.server.sockets)
		r.server.mu.Unlock()
		for _, sk := range sockets {
			sk.mu.Lock()
			bye := sk.farewell != nil
			sk.mu.Unlock()
			if bye {
				return
			}
		}
	}
}

// A stop waits for a frame that is under way, and the agent gets that and its Close.
func TestSocketLeavesBehindAFrame(t *testing.T) {
	goOn := make(chan struct{})
	whole := frame(0x81, delta)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		_, _ = io.WriteString(p, whole[:10])
		c.wait(goOn)
		_, _ = io.WriteString(p, whole[10:])
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	r.server.farewellWait = 30 * time.Second
	c := r.rawSocket(testToken)
	c.send(mask(frame(0x81, askTurn)))
	got := make([]byte, len(whole))
	if _, err := io.ReadFull(c.br, got[:10]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	done := make(chan error, 1)
	go func() { done <- r.server.Shutdown(ctx) }()
	r.expectFarewell()
	close(goOn)
	if _, err := io.ReadFull(c.br, got[10:]); err != nil || string(got) != whole {
		t.Fatalf("%q, %v", got, err)
	}
	c.expectClose(1001, stopping)
	_ = c.Close()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// An agent that has its Close and stays holds up no stop.
func TestSocketStopsWithoutTheAgent(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.accept(t, "").receive() })
	r := newRig(t, u.url(), 1, func(o *rigOptions) { o.opts.Idle = time.Hour })
	c := r.rawSocket(testToken)
	done := make(chan error, 1)
	go func() { done <- r.server.Shutdown(context.Background()) }()
	c.expectClose(1001, stopping)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the stop waits for the agent")
		_ = c.Close()
	}
}

// What an agent asks for when the provider has left is no turn.
func TestSocketTurnBehindTheEnd(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		_, _ = io.WriteString(p, frame(0x88, "\x03\xe8"))
	})
	r := newRig(t, u.url(), 1)
	c := r.rawSocket(testToken)
	c.send(mask(frame(0x81, "hello")))
	c.expectClose(1000, "")
	if _, err := c.br.ReadByte(); err != io.EOF { //nolint:errorlint // bare by contract
		t.Fatalf("behind the Close came %v", err)
	}
	_, _ = io.WriteString(c, mask(frame(0x81, askTurn)))
	_ = c.Close()
	r.ended()
	r.recorder.mu.Lock()
	defer r.recorder.mu.Unlock()
	if len(r.recorder.opened)+len(r.recorder.events) > 0 {
		t.Errorf("opened %+v, counted %+v", r.recorder.opened, r.recorder.events)
	}
}

// A socket in which authpool fails ends, its turn is counted as unknown, and its agent may go on with another.
func TestSocketPanic(t *testing.T) {
	u := newUpstream(t, answerTurns(t))
	book := newBook(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newRig(t, u.url(), 1, knowing(book), func(o *rigOptions) {
		o.deps = func(d *Deps) { d.Prices = panicPrices{broken: &broken} }
	})
	token := create(t, book, agents.Agent{ID: "bob", Budgets: []agents.Budget{{Period: usage.PeriodMonth, Requests: 1}}})
	c := r.rawSocket(token)
	c.send(mask(frame(0x81, askTurn)))
	if _, err := io.Copy(io.Discard, c.br); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the socket is still open")
	}
	r.ended()
	events := r.recorder.all()
	if len(events) != 1 || !events[0].Unknown || events[0].ID != r.recorder.lastOpened().ID {
		t.Errorf("events %+v", events)
	}
	broken.Store(false)
	c = r.rawSocket(token) // the book counts nothing here: there is room, unless the first is still under way
	c.send(mask(frame(0x81, askTurn)))
	c.expectFrame(0x81, created)
}

// A frame that never ends holds no socket open that authpool closes.
func TestSocketClosesInAnEndlessFrame(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		_, _ = p.Write([]byte{0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0})
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if _, err := io.WriteString(p, " "); err != nil {
					return
				}
			case <-stop:
				return
			}
		}
	})
	r := newRig(t, u.url(), 1)
	c := r.rawSocket(testToken)
	c.send(mask(frame(0x81, askTurn)))
	if _, err := io.ReadFull(c.br, make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	c.send(frame(0x81, askTurn)) // without a mask
	if _, err := io.Copy(io.Discard, c.br); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the socket is still open")
	}
}

// What stands before a fault of the agent's goes on, though they came together.
func TestSocketFaultBehindAMessage(t *testing.T) {
	got := make(chan string, 1)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		got <- p.receive()
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.rawSocket(testToken)
	c.send(mask(frame(0x81, askTurn)), frame(0x89, "without a mask"))
	c.expectClose(1002, "authpool: ")
	select {
	case m := <-got:
		if m != askTurn {
			t.Errorf("the provider got %q", m)
		}
	case <-time.After(30 * time.Second):
		t.Error("the provider got nothing")
	}
}

// Control frames bring no credential to the agent either: neither a Ping nor a Close with its reason,
// also in the middle of a message that holds a piece of it.
func TestSocketEchoInControlFrames(t *testing.T) {
	secret := key("openai", 1)
	stars := strings.Repeat("*", len(secret))
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		_, _ = io.WriteString(p, frame(0x01, `{"say":"`+secret[:5])+frame(0x89, secret)+frame(0x80, `"}`)+frame(0x88, "\x0f\xa0no such key: "+secret))
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.rawSocket(testToken)
	c.expectFrame(0x01, `{"say":"`+secret[:5])
	c.expectFrame(0x89, stars)
	c.expectFrame(0x80, `"}`)
	c.expectFrame(0x88, "\x0f\xa0no such key: "+stars)
}

// What another model has used in the middle of a turn is counted beside it, and not in its place.
func TestSocketCountsBesideATurn(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.send(
			`{"type":"session.created","session":{"model":"gpt-realtime","audio":{"input":{"transcription":{"model":"whisper-1"}}}}}`,
			`{"type":"response.created","response":{"id":"resp_1"}}`,
			`{"type":"conversation.item.input_audio_transcription.completed","usage":{"type":"tokens","input_tokens":13,"output_tokens":9}}`,
			`{"type":"response.done","response":{"id":"resp_1","status":"completed","usage":{"input_tokens":20,"output_tokens":5}}}`,
		)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/realtime?model=gpt-realtime")
	readUntil(t, c, "response.done")
	events := r.recorder.all()
	if len(events) != 2 || events[0].ID == events[1].ID {
		t.Fatalf("events %+v", events)
	}
	if opened := r.recorder.lastOpened().ID; events[1].ID != opened {
		t.Errorf("the turn %s is settled as %s", opened, events[1].ID)
	}
}

// A message that names two models, by whatever fields, names none that could be judged.
func TestSocketNamesOneModel(t *testing.T) {
	got := make(chan string, 1)
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		got <- p.receive()
		p.receive()
	})
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book))
	token := create(t, book, agents.Agent{ID: "carol", Rights: agents.Rights{Models: []string{"gpt-5.1*"}}})
	f := func(message, want string) {
		t.Helper()
		c := r.rawSocket(token)
		c.send(mask(frame(0x81, message)))
		c.expectClose(1008, want)
		if m := <-got; m != "" {
			t.Errorf("the provider got %s", m)
		}
	}
	f(`{"type":"response.create","model":"o9-pro","model":"gpt-5.1","input":[]}`, "authpool: a message names its model more than once")
	f(`{"type":"response.create","model":"gpt-5.1","model":"o9-pro","input":[]}`, "authpool: a message names its model more than once")
	f(`{"type":"response.create","model":"o9-pro","input":[],"session":{"model":"gpt-5.1"}}`, "authpool: agent carol may not use model \"o9-pro\"")
	f(`{"type":"response.create","model":"o9-pro","input":[],"setup":{"model":"gpt-5.1"}}`, "authpool: agent carol may not use model \"o9-pro\"")
	f(`{"type":"response.create","mod\u0065l":"o9-pro","input":[]}`, "authpool: agent carol may not use model \"o9-pro\"")
}

// A turn of a Realtime session costs what the session's model costs, whatever an agent's message says besides.
func TestSocketBooksTheSessionsModel(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.send(`{"type":"session.created","session":{"model":"gpt-realtime"}}`)
		for range 2 {
			p.receive()
		}
		p.send(`{"type":"response.created","response":{"id":"resp_1"}}`,
			`{"type":"response.done","response":{"id":"resp_1","status":"completed","usage":{"input_tokens":20,"output_tokens":5}}}`)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/realtime?model=gpt-realtime")
	readUntil(t, c, "session.created")
	say(t, c, `{"type":"session.update","session":{"model":"gpt-realtime-mini"}}`)
	say(t, c, `{"type":"response.create","model":"gpt-realtime-mini"}`)
	readUntil(t, c, "response.done")
	if e := r.waitEvents(1)[0]; e.Model != "gpt-realtime" {
		t.Errorf("event %+v", e)
	}
}

// Limits without an end, told in one turn after the other of a socket, close for longer and longer, as they do of
// requests: each turn was asked for when the one before had been refused.
func TestSocketLimitsInARow(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		for p.receive() != "" {
			p.send(`{"type":"error","error":{"type":"requests","code":"rate_limit_exceeded","message":"slow down"}}`)
		}
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/realtime?model=gpt-realtime")
	before := limitsOf(t, "openai-1")
	for range 2 {
		say(t, c, `{"type":"response.create"}`)
		readUntil(t, c, "error")
	}
	if n := limitsOf(t, "openai-1") - before; n != 2 {
		t.Errorf("%v of two limits have closed the model", n)
	}
}

// limitsOf is how often a limit has closed something of a subscription.
func limitsOf(t *testing.T, subscription string) (n float64) {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "authpool_subscription_verdicts_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if labels["subscription"] == subscription && labels["signal"] == ratelimit.Limited.String() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// Turns take from a subscription's limits per minute what they have used: of its tokens those that were not cached, and
// of its requests all but the first, which the upgrade has taken. What is counted beside them takes tokens alone.
func TestSocketRates(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		if c.header("Upgrade") == "" {
			c.json(200, "", `{}`)
			return
		}
		p := c.accept(t, "")
		p.send(`{"type":"session.created","session":{"model":"gpt-realtime"}}`)
		for {
			switch m := p.receive(); {
			case m == "":
				return
			case strings.Contains(m, "audio"):
				p.send(`{"type":"conversation.item.input_audio_transcription.completed","usage":{"type":"tokens","input_tokens":12,"output_tokens":5}}`)
			default:
				p.send(`{"type":"response.done","response":{"status":"completed","usage":{"input_tokens":20,"input_token_details":{"cached_tokens":8},"output_tokens":5}}}`)
			}
		}
	})
	const turn, audio = `{"type":"response.create"}`, `{"type":"input_audio_buffer.commit"}`
	f := func(limits pool.Limits, want int, messages ...string) {
		t.Helper()
		r := newRig(t, u.url(), 1, func(o *rigOptions) {
			for i := range o.subs {
				o.subs[i].Limits = limits
			}
		})
		c := r.mustSocket("/v1/realtime?model=gpt-realtime")
		readUntil(t, c, "session.created")
		for _, m := range messages {
			say(t, c, m)
			readUntil(t, c, "usage")
		}
		if status, _, body := r.post("/v1/responses", `{"model":"gpt-5.1","input":"hi"}`); status != want {
			t.Errorf("%+v after %d turns: %d %s", limits, len(messages), status, body)
		}
	}
	f(pool.Limits{InputTokensPerMinute: 20}, 429, turn, turn)
	f(pool.Limits{InputTokensPerMinute: 36}, 200, turn, turn)
	f(pool.Limits{InputTokensPerMinute: 20}, 429, audio, audio)
	f(pool.Limits{OutputTokensPerMinute: 10}, 429, turn, turn)
	f(pool.Limits{OutputTokensPerMinute: 10}, 429, turn, audio)
	f(pool.Limits{RequestsPerMinute: 3}, 200, turn, turn, audio)
	f(pool.Limits{RequestsPerMinute: 3}, 429, turn, turn, turn)
}

// What is used beside turns uses up a budget, too, also where no turn ever begins.
func TestSocketBudgetWithoutTurns(t *testing.T) {
	const heard = `{"type":"conversation.item.input_audio_transcription.completed","usage":{"type":"tokens","input_tokens":12,"output_tokens":5}}`
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		for m := p.receive(); m != ""; m = p.receive() {
			if strings.Contains(m, "audio") {
				p.send(heard)
				continue
			}
			p.send(`{"type":"response.created","response":{"id":"resp_1"}}`, heard)
			p.send(`{"type":"response.done","response":{"id":"resp_1","status":"completed","usage":{"input_tokens":20,"output_tokens":5}}}`)
		}
	})
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book), func(o *rigOptions) {
		o.deps = func(d *Deps) { d.Recorder = counting{d.Recorder, book} }
	})
	bob := create(t, book, agents.Agent{ID: "bob", Budgets: []agents.Budget{{Period: usage.PeriodMonth, Tokens: 30}}})
	c, _, err := r.socket("/v1/realtime?intent=transcription", http.Header{"Authorization": {"Bearer " + bob}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		say(t, c, `{"type":"input_audio_buffer.commit"}`)
		readUntil(t, c, "usage")
	}
	refusedFor(t, c, "authpool: this agent has used up its budget of tokens")

	// The last turn that a budget has room for is not cut by what is used beside it.
	eve := create(t, book, agents.Agent{ID: "eve", Budgets: []agents.Budget{{Period: usage.PeriodMonth, Requests: 1}}})
	if c, _, err = r.socket("/v1/realtime?model=gpt-realtime", http.Header{"Authorization": {"Bearer " + eve}}); err != nil {
		t.Fatal(err)
	}
	say(t, c, `{"type":"response.create"}`)
	readUntil(t, c, "response.done")
	refusedFor(t, c, "authpool: this agent has used up its budget of requests")
}

// A turn that a provider has refused is no usage, also should authpool be killed.
func TestSocketVoidsAFailedTurn(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.receive()
		p.send(`{"type":"error","status":400,"error":{"type":"invalid_request_error","code":"previous_response_not_found","message":"no"}}`)
		p.receive()
	})
	r := newRig(t, u.url(), 1)
	c := r.mustSocket("/v1/responses")
	say(t, c, askTurn)
	readUntil(t, c, "error")
	opened := r.recorder.lastOpened().ID
	r.recorder.mu.Lock()
	defer r.recorder.mu.Unlock()
	if len(r.recorder.events) != 0 || !slices.Contains(r.recorder.voided, opened) {
		t.Errorf("%s was opened, %v voided, %+v counted", opened, r.recorder.voided, r.recorder.events)
	}
}

// A socket that joins a call goes to the account which has made that, and only its agent's.
func TestSocketJoinsItsCall(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		if c.header("Upgrade") != "" {
			c.accept(t, "").receive()
			return
		}
		c.write("HTTP/1.1 201 Created\r\nContent-Type: application/sdp\r\nLocation: /v1/realtime/calls/rtc_of_%s?x=1\r\nContent-Length: 5\r\n\r\nv=0\r\n", c.key[len(c.key)-4:])
	})
	r := newRig(t, u.url(), 3, isolated, func(o *rigOptions) {
		for i := range o.subs {
			o.subs[i].Priority = 1
		}
	})
	for n := range 4 { // whoever the sessions' own subscriptions are
		resp := r.send("POST", "/openai/v1/realtime/calls", fmt.Sprintf("Content-Type: application/sdp\r\nX-Authpool-Session: maker-%d\r\n", n), "v=0\r\n")
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != 201 {
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
		location := resp.Header.Get("Location")
		id := strings.TrimSuffix(location[strings.LastIndexByte(location, '/')+1:], "?x=1")
		owner := resp.Header.Get("X-Authpool-Subscription")
		path := "/v1/realtime?call_id=" + id
		_, joined, err := r.socket(path, http.Header{"X-Authpool-Session": {fmt.Sprint("user-", n)}})
		if err != nil || joined.Header.Get("X-Authpool-Subscription") != owner {
			t.Errorf("%s: %v, %v, want %s", path, joined, err, owner)
		}
		if _, refused, err := r.socket(path, http.Header{"Authorization": {"Bearer " + otherToken}}); err == nil || refused.StatusCode != 404 {
			t.Errorf("another agent got %v, %v", refused, err)
		}
	}
}

// An upgrade that two servers could read as two is refused; so is a model that its agent may not use, however it is
// written, and whatever names are the other API's.
func TestSocketQuery(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.accept(t, "").receive() })
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book))
	token := create(t, book, agents.Agent{ID: "carol", Rights: agents.Rights{Models: []string{"gpt-realtime"}}})
	f := func(query string, want int) {
		t.Helper()
		_, resp, err := r.socket("/v1/realtime?"+query, http.Header{"Authorization": {"Bearer " + token}})
		if resp == nil || resp.StatusCode != want {
			t.Errorf("%s: %v, %v, want %d", query, resp, err, want)
		}
	}
	f("model=gpt-realtime", 101)
	f("model=gpt%2Drealtime", 101)
	f("model=o9-pro", 403)
	f("mod%65l=o9-pro", 403)
	f("deployment=gpt-realtime&model=o9-pro", 403) // that one is Azure's
	f("model=gpt-realtime&model=o9-pro", 400)
	f("model=gpt-realtime&mod%65l=o9-pro", 400)
	f("call_id=rtc_1&call_id=rtc_2", 400)
}

// An agent that may use a model is not refused for what the provider calls the same.
func TestSocketRightsByTheAgentsName(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) {
		p := c.accept(t, "")
		p.send(`{"type":"session.created","session":{"model":"gpt-realtime-2025-08-28"}}`)
		p.receive()
		p.send(`{"type":"response.created","response":{"id":"resp_1"}}`,
			`{"type":"response.done","response":{"id":"resp_1","status":"completed","usage":{"input_tokens":20,"output_tokens":5}}}`)
		p.receive()
	})
	book := newBook(t)
	r := newRig(t, u.url(), 1, knowing(book))
	token := create(t, book, agents.Agent{ID: "carol", Rights: agents.Rights{Models: []string{"gpt-realtime"}}})
	c, _, err := r.socket("/v1/realtime?model=gpt-realtime", http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		t.Fatal(err)
	}
	readUntil(t, c, "session.created")
	say(t, c, `{"type":"response.create"}`)
	readUntil(t, c, "response.done")
	if e := r.waitEvents(1)[0]; e.Model != "gpt-realtime-2025-08-28" {
		t.Errorf("event %+v", e)
	}
}
