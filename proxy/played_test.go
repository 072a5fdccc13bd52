package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/bench/simulator"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

// The examples of provider/testdata/signals, each an answer that one row of
// provider/SIGNALS.md decides, are played here by the simulator to the whole proxy,
// on a clock of its own and with connections in memory. What has to come of each
// stands in testdata/played.txt, which is written by hand.

// playedAt is the Date of the examples.
var playedAt = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// expectation is a line of testdata/played.txt, whose head explains the columns.
type expectation struct {
	example, seen, sent, next string
	again, alone, all         string
}

func expectations(t *testing.T) []expectation {
	t.Helper()
	text, err := os.ReadFile("testdata/played.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []expectation
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Split(line, "|")
		if len(fields) != 7 {
			t.Fatalf("%d columns in %q", len(fields), line)
		}
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		list = append(list, expectation{fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6]})
	}
	return list
}

func (e *expectation) provider() string { return filepath.Dir(e.example) }

// row is the row that decides the example, and form which one of its forms it is.
func (e *expectation) row() (row, form string) {
	row, form, _ = strings.Cut(filepath.Base(e.example), ".")
	return row, form
}

// file is where the example is. The row of what has limits of its own is told from
// the usual one by the call alone.
func (e *expectation) file() string {
	return "provider/testdata/signals/" + strings.TrimSuffix(e.example, "-beside") + ".http"
}

// TestPlayedAnswers plays every example: once to the first of three subscriptions,
// once to one that is alone, and to whatever is sent to any of three.
func TestPlayedAnswers(t *testing.T) {
	for _, e := range expectations(t) {
		t.Run(e.example, func(t *testing.T) {
			raw, err := os.ReadFile(e.file())
			if err != nil {
				t.Fatal(err)
			}
			t.Run("three", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { playAmongThree(t, &e, raw) })
			})
			t.Run("alone", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { playAlone(t, &e, raw) })
			})
			t.Run("all", func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { playToAll(t, &e, raw) })
			})
		})
	}
}

// TestEveryExampleIsPlayed fails for an example that nothing is expected of, and
// for a row without one.
func TestEveryExampleIsPlayed(t *testing.T) {
	played, rows := map[string]bool{}, map[string]bool{}
	for _, e := range expectations(t) {
		row, _ := e.row()
		played[e.example], rows[row] = true, true
	}
	files, err := filepath.Glob("provider/testdata/signals/*/*.http")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		example := strings.TrimSuffix(strings.TrimPrefix(filepath.ToSlash(file), "provider/testdata/signals/"), ".http")
		if !played[example] {
			t.Errorf("testdata/played.txt does not say what comes of %s", example)
		}
	}
	for _, row := range provider.Rows() {
		if !rows[row.Name] {
			t.Errorf("the row %q is not played", row.Name)
		}
	}
}

// TestPlayedOutcomesAreTheTables holds what is expected of each example against
// the scope that its row has in provider/SIGNALS.md.
func TestPlayedOutcomesAreTheTables(t *testing.T) {
	table := map[string]provider.Row{}
	for _, row := range provider.Rows() {
		table[row.Name] = row
	}
	closes := map[ratelimit.Scope]string{
		ratelimit.ScopeModel: "z x", ratelimit.ScopeSubscription: "y y", ratelimit.ScopeDomain: "z z",
	}
	for _, e := range expectations(t) {
		name, _ := e.row()
		row := table[name]
		next := "x x" // most signals close nobody
		switch row.Verdict.Signal {
		case ratelimit.Limited, ratelimit.Quota, ratelimit.Auth:
			next = cmp.Or(closes[row.Verdict.Scope], next)
		default:
		}
		if e.next != next || next == "x x" && e.again != "-" {
			t.Errorf("%s: played.txt has %q and %q, and the row the scope %s", e.example, e.next, e.again, row.Verdict.Scope)
		}
		if isKey := row.Verdict.Signal == ratelimit.Auth && row.Verdict.Scope == ratelimit.ScopeSubscription; isKey != (e.again == "key") {
			t.Errorf("%s: played.txt has %q, and SIGNALS.md %q", e.example, e.again, row.Action())
		}
		// What makes a conversation, as mistral's example would, is not repeated.
		if toAgent := row.Action() == "gives it to the agent"; toAgent != (e.sent == "x") && e.provider() != "mistral" {
			t.Errorf("%s: sent to %s, and SIGNALS.md says %q", e.example, e.sent, row.Action())
		}
	}
}

// playAmongThree plays an example to x, the first choice. y shares its limits, z
// does not.
func playAmongThree(t *testing.T, e *expectation, raw []byte) {
	s := newStage(t, e, raw, 30*time.Second, 1, "x", "y", "z")
	first := make(chan seen, 1)
	go func() { first <- s.ask("m-1") }()
	synctest.Wait() // it was refused, and waits or is being served elsewhere
	other := make(chan seen, 1)
	go func() { other <- s.ask("m-2") }()
	next := s.ask("m-1").by + " " + (<-other).by
	got := <-first
	if s := got.String(); s != e.seen {
		t.Errorf("the agent sees %q, want %q\n%s", s, e.seen, got.body)
	}
	if got.by == "x" && !strings.Contains(got.body, "Hello") && !strings.HasSuffix(s.raw, got.body) {
		t.Errorf("the agent sees another answer than the provider's: %q", got.body)
	}
	if sent := strings.Join(s.sent(got.request), " "); sent != e.sent {
		t.Errorf("sent to %q, want %q", sent, e.sent)
	}
	if next != e.next {
		t.Errorf("the next requests for the model and for another are served by %q, want %q", next, e.next)
	}
	switch {
	case e.again == "-", t.Failed():
	case e.again == "key":
		s.opensWithKey()
	default:
		s.opens(parseEnd(t, e.again))
	}
}

// parseEnd reads when a subscription opens: not before, and at the latest.
func parseEnd(t *testing.T, text string) (least, most time.Duration) {
	t.Helper()
	plain, jittered := strings.CutSuffix(text, "+")
	least, err := time.ParseDuration(plain)
	if err != nil {
		t.Fatal(err)
	}
	if most = least; jittered {
		most += min(least/20, 10*time.Second)
	}
	return least, most
}

// playAlone plays an example to a subscription that has nobody beside it.
func playAlone(t *testing.T, e *expectation, raw []byte) {
	s := newStage(t, e, raw, 30*time.Second, 1, "x")
	if got := s.ask("m-1").String(); !same(got, e.alone) {
		t.Errorf("alone: the agent sees %q, want %q", got, e.alone)
	}
}

// playToAll plays an example to everybody. The request does not wait.
func playToAll(t *testing.T, e *expectation, raw []byte) {
	s := newStage(t, e, raw, 0, -1, "x", "y", "z")
	seen := s.ask("m-1")
	if got := seen.String() + " from " + strings.Join(s.sent(seen.request), " "); !same(got, e.all) {
		t.Errorf("all: the agent sees %q, want %q", got, e.all)
	}
}

// TestPlayedOverloads plays every overload to whatever is sent for one model: soon
// nothing more goes out for it, to no subscription, while other models are served.
func TestPlayedOverloads(t *testing.T) {
	overloads := map[string]bool{}
	for _, row := range provider.Rows() {
		overloads[row.Name] = row.Verdict.Signal == ratelimit.Overloaded
	}
	for _, e := range expectations(t) {
		if row, _ := e.row(); !overloads[row] {
			continue
		}
		t.Run(e.example, func(t *testing.T) {
			raw, err := os.ReadFile(e.file())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, &e, raw, 0, -1, "x", "y", "z")
				for range 10 {
					s.ask("m-1")
				}
				const most = 6 // five failures in a row, and the second try of the last of these requests
				if n := len(s.sim.Arrivals()); n > most {
					t.Errorf("ten requests sent %d, want %d at most", n, most)
				}
				if last := s.ask("m-1"); last.by != "authpool" || last.retry == "" || last.status < 500 {
					t.Errorf("with the model overloaded the agent sees %s", last)
				}
				s.sim.ClearFaults()
				s.answersWell(t)
				if other := s.ask("m-2"); other.status != http.StatusOK {
					t.Errorf("another model's request sees %s", other)
				}
				if again := s.ask("m-1"); again.by != "authpool" {
					t.Errorf("before its first probe the model is served: %s", again)
				}
				time.Sleep(30 * time.Second)
				if by := s.together(1); by["x"] != 1 {
					t.Errorf("after the overload requests go to %v, want x", by)
				}
			})
		})
	}
}

// same compares what is seen with what is expected, in which N+ is a number of
// seconds from N to N+10.
func same(got, want string) bool {
	had, expected := strings.Fields(got), strings.Fields(want)
	return slices.EqualFunc(had, expected, func(had, want string) bool {
		least, err := strconv.Atoi(strings.TrimSuffix(want, "+"))
		if n, nerr := strconv.Atoi(had); strings.HasSuffix(want, "+") && err == nil && nerr == nil {
			return least <= n && n <= least+10
		}
		return had == want
	})
}

// stage is a proxy in front of the simulator, in a bubble.
type stage struct {
	t     *testing.T
	e     *expectation
	raw   string
	rig   *rig
	door  *memory // of the proxy
	sim   *simulator.Simulator
	x     *changingKey
	begun time.Time

	mu       sync.Mutex
	requests int
}

// answerTime is how long good answers take: long enough to be under way together.
const answerTime = 100 * time.Millisecond

// newStage has the subscriptions ids; count requests (-1: all) that are sent to x,
// or to anybody if it is all, are answered with raw. Requests wait for at most wait.
func newStage(t *testing.T, e *expectation, raw []byte, wait time.Duration, count int, ids ...string) *stage {
	t.Helper()
	time.Sleep(time.Until(playedAt))
	s := &stage{t: t, e: e, raw: string(raw), x: &changingKey{key: "x"}, begun: time.Now()}
	// fasthttp's worker pool sees only at its next wake-up that it was stopped.
	t.Cleanup(func() { time.Sleep(11 * time.Second) })
	name := e.provider()
	keys := []simulator.Key{{Key: "new", Provider: name}}
	for _, id := range ids {
		keys = append(keys, simulator.Key{Key: id, Provider: name})
	}
	var err error
	if s.sim, err = simulator.New(simulator.Options{Keys: keys}); err != nil {
		t.Fatal(err)
	}
	signal := simulator.Injection{Key: "x", Fault: simulator.Fault{Kind: simulator.RawAnswer, Count: count, AnswerBase64: base64.StdEncoding.EncodeToString(raw)}}
	if count < 0 {
		signal.Key = ""
	}
	if err := s.sim.Inject(signal); err != nil {
		t.Fatal(err)
	}
	s.answersWell(t)
	back := newMemory()
	done := make(chan error, 1)
	go func() { done <- s.sim.Serve(back) }()
	t.Cleanup(func() {
		if err := s.sim.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.door = newMemory()
	s.rig = newRig(t, "http://provider.test", 0, func(o *rigOptions) {
		o.listener = s.door
		o.transport.Dial = func(context.Context, string) (net.Conn, error) { return back.dial() }
		o.pool.Wait = wait
		family, err := provider.ParseFamily(name)
		if name == "vertex" {
			family = provider.Gemini
		} else if err != nil {
			family = provider.OpenAI
		}
		o.providers = []provider.Options{{Name: name, Family: family, BaseURL: "http://provider.test", AllowPlaintext: true, AskUsage: true}}
		for i, id := range ids {
			sub := pool.Subscription{ID: id, Provider: name, Priority: i + 1, Credential: fixedKey(id)}
			switch id {
			case "x":
				sub.Domain, sub.Credential = "d", s.x
			case "y":
				sub.Domain = "d"
			}
			o.subs = append(o.subs, sub)
		}
	})
	return s
}

// answersWell has the simulator answer well whatever no fault before it answers.
func (s *stage) answersWell(t *testing.T) {
	t.Helper()
	answer := cmp.Or(goodAnswers[s.e.provider()], chatGood)
	if err := s.sim.Inject(simulator.Injection{Fault: simulator.Fault{
		Kind: simulator.RawAnswer, Count: -1, Answer: answer, DelayMS: int(answerTime / time.Millisecond),
	}}); err != nil {
		t.Fatal(err)
	}
}

// seen is what an agent gets.
type seen struct {
	request string // whose answer it is
	status  int
	by      string // the subscription that served, or "authpool", or "provider" for the failure of one that did not
	after   time.Duration
	retry   string
	body    string
}

// String tells it as testdata/played.txt does.
func (s seen) String() string {
	text := fmt.Sprintf("%d %s", s.status, s.by)
	if s.after > 0 {
		text += " after " + s.after.String()
	}
	if s.by == "authpool" && s.retry != "" {
		text += " retry " + s.retry
	}
	return text
}

// ask sends a request of a new session.
func (s *stage) ask(model string) seen {
	s.mu.Lock()
	s.requests++
	text := fmt.Sprintf("request %d", s.requests)
	s.mu.Unlock()
	path, body := s.call(model, text)
	c, err := s.door.dial()
	if err != nil {
		s.t.Error(err)
		return seen{}
	}
	defer c.Close()
	begun := time.Now()
	go fmt.Fprintf(c, "POST /%s%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nX-Text: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		s.e.provider(), path, testToken, text, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		s.t.Errorf("%s %s: %v", s.e.example, model, err)
		return seen{}
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Errorf("%s %s: %v after %q", s.e.example, model, err, got)
	}
	_ = resp.Body.Close() // read whole
	by := resp.Header.Get("X-Authpool-Subscription")
	if code := resp.Header.Get("X-Authpool-Error"); code != "" {
		by = "authpool"
		if shape := cmp.Or(ownErrors[s.e.provider()], ownErrors["openai"]); !strings.HasPrefix(string(got), shape) {
			s.t.Errorf("an error of authpool's own is %s, want it to begin with %s", got, shape)
		}
	}
	if by == "" && strings.HasSuffix(s.raw, string(got)) {
		by = "provider" // nobody served, and the last failure is shown
	}
	after := time.Since(begun)
	if bytes.Contains(got, []byte("Hello")) {
		after -= answerTime
	}
	return seen{text, resp.StatusCode, by, after, resp.Header.Get("Retry-After"), string(got)}
}

// call is a request of the example's kind.
func (s *stage) call(model, text string) (path, body string) {
	row, form := s.e.row()
	streams := slices.Contains([]string{"stream", "flat", "failed", "nested", "frame", "lines", "array"}, form)
	stream := ""
	if streams {
		stream = `"stream":true,`
	}
	messages := fmt.Sprintf(`{"model":%q,%s"max_tokens":9,"messages":[{"role":"user","content":%q}]}`, model, stream, text)
	gemini := fmt.Sprintf(`{"contents":[{"role":"user","parts":[{"text":%q}]}]}`, text)
	method := map[bool]string{true: ":streamGenerateContent", false: ":generateContent"}[streams]
	if form == "stream" {
		method += "?alt=sse"
	}
	switch s.e.provider() {
	case "anthropic":
		if row == "throttled-beside" {
			return "/v1/messages/count_tokens", messages
		}
		return "/v1/messages", messages
	case "openai":
		if streams || strings.HasPrefix(row, "codex-") {
			return "/v1/responses", fmt.Sprintf(`{"model":%q,%s"input":%q}`, model, stream, text)
		}
		return "/v1/chat/completions", messages
	case "gemini":
		return "/v1beta/models/" + model + method, gemini
	case "vertex":
		return "/v1/projects/p/locations/global/publishers/google/models/" + model + method, gemini
	case "bedrock":
		return "/model/maker." + model + map[bool]string{true: "/converse-stream", false: "/converse"}[streams],
			fmt.Sprintf(`{"messages":[{"role":"user","content":[{"text":%q}]}]}`, text)
	case "azure":
		return "/openai/deployments/" + model + "/chat/completions?api-version=2024-10-21", messages
	case "cohere":
		return "/v2/chat", messages
	case "ollama":
		return "/api/chat", messages
	case "mistral":
		return "/v1/conversations", fmt.Sprintf(`{"model":%q,%s"inputs":%q}`, model, stream, text)
	case "groq":
		return "/openai/v1/chat/completions", messages
	case "openrouter":
		return "/api/v1/chat/completions", messages
	case "fireworks":
		return "/inference/v1/chat/completions", messages
	default:
		return "/v1/chat/completions", messages
	}
}

// ownErrors is how errors of authpool's own begin at each provider; those that are
// not here are told as OpenAI does.
var ownErrors = map[string]string{
	"openai":    `{"error":{"message":"authpool: `,
	"anthropic": `{"type":"error","error":{"type":"`,
	"gemini":    `{"error":{"code":`,
	"vertex":    `{"error":{"code":`,
	"bedrock":   `{"message":"authpool: `,
	"cohere":    `{"message":"authpool: `,
	"ollama":    `{"error":"authpool: `,
}

// goodHead begins good answers.
const goodHead = "HTTP/1.1 200 OK\nContent-Type: application/json\n\n"

// Good answers of the providers; those that are not here answer as OpenAI does.
const (
	chatGood   = goodHead + `{"id":"c-1","object":"chat.completion","model":"m-1","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}`
	geminiGood = goodHead + `{"candidates":[{"content":{"role":"model","parts":[{"text":"Hello"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1}}`
)

var goodAnswers = map[string]string{
	"anthropic": goodHead + `{"id":"msg_1","type":"message","role":"assistant","model":"m-1","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":1}}`,
	"gemini":    geminiGood,
	"vertex":    geminiGood,
	"bedrock":   goodHead + `{"output":{"message":{"role":"assistant","content":[{"text":"Hello"}]}},"stopReason":"end_turn","usage":{"inputTokens":3,"outputTokens":1,"totalTokens":4}}`,
	"cohere":    goodHead + `{"id":"1","message":{"role":"assistant","content":[{"type":"text","text":"Hello"}]},"finish_reason":"COMPLETE","usage":{"tokens":{"input_tokens":3,"output_tokens":1}}}`,
	"ollama":    goodHead + `{"model":"m-1","message":{"role":"assistant","content":"Hello"},"done":true,"prompt_eval_count":3,"eval_count":1}`,
	"mistral":   goodHead + `{"object":"conversation.response","conversation_id":"conv_1","outputs":[{"type":"message.output","content":"Hello"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}`,
}

// sent are the keys that saw the request, in order.
func (s *stage) sent(text string) (keys []string) {
	for _, a := range s.sim.Arrivals() {
		if a.Header.Get("X-Text") == text {
			keys = append(keys, a.Key)
		}
	}
	return keys
}

// together sends n requests for m-1 at once and returns how many each subscription
// served.
func (s *stage) together(n int) map[string]int {
	s.t.Helper()
	answers := make(chan seen, n)
	for range n {
		go func() { answers <- s.ask("m-1") }()
	}
	by := map[string]int{}
	for range n {
		a := <-answers
		if a.status != http.StatusOK || a.after > 0 {
			s.t.Errorf("with x opening an agent sees %s", a)
		}
		by[a.by]++
	}
	return by
}

// opens checks that x serves the model again between least and most after the
// answer that closed it: first one request, then one more at a time, then any. What
// was closed with it does not probe beside it.
func (s *stage) opens(least, most time.Duration) {
	s.t.Helper()
	if at := s.begun.Add(least - time.Millisecond); time.Now().Before(at) {
		time.Sleep(time.Until(at))
		if by := s.together(1); by["x"] != 0 {
			s.t.Errorf("x serves before its end, %v", least)
		}
	}
	time.Sleep(time.Until(s.begun.Add(most)))
	rest := s.e.next[:1] // who serves while x does not
	for _, when := range []string{"at the end", "right after the probe"} {
		if by := s.together(3); by["x"] != 1 || by[rest] != 2 {
			s.t.Errorf("three requests %s go to %v, want 1 to x and 2 to %s", when, by, rest)
		}
	}
	time.Sleep(ratelimit.RampTime)
	if by := s.together(3); by["x"] != 3 {
		s.t.Errorf("three requests after the ramp go to %v, want all to x", by)
	}
}

// opensWithKey checks that x stays closed until its credential is another.
func (s *stage) opensWithKey() {
	s.t.Helper()
	time.Sleep(2 * time.Hour)
	if by := s.together(1); by["x"] != 0 {
		s.t.Error("x serves with the credential that was refused")
	}
	s.x.change("new")
	time.Sleep(3 * time.Second)
	if by := s.together(3); by["x"] != 3 {
		s.t.Errorf("three requests after the change of its credential go to %v, want all to x", by)
	}
}

// changingKey is a credential that the operator can change.
type changingKey struct {
	mu  sync.Mutex
	key string
}

func (k *changingKey) change(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.key = key
}

func (k *changingKey) Credential(ctx context.Context) (credential.Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fixedKey(k.key).Credential(ctx)
}

func (k *changingKey) Refresh(ctx context.Context) (credential.Credential, error) {
	return k.Credential(ctx)
}

// memory is a listener whose connections are pipes.
type memory struct {
	conns chan net.Conn
	done  chan struct{}
	close sync.Once
}

func newMemory() *memory { return &memory{conns: make(chan net.Conn), done: make(chan struct{})} }

func (m *memory) dial() (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case m.conns <- pipeEnd{there}:
		return pipeEnd{here}, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

// pipeEnd is an end of a pipe that, like a socket, takes a deadline also when the
// other end is closed.
type pipeEnd struct{ net.Conn }

func (p pipeEnd) SetDeadline(at time.Time) error {
	_ = p.Conn.SetDeadline(at)
	return nil
}

func (p pipeEnd) SetReadDeadline(at time.Time) error {
	_ = p.Conn.SetReadDeadline(at)
	return nil
}

func (p pipeEnd) SetWriteDeadline(at time.Time) error {
	_ = p.Conn.SetWriteDeadline(at)
	return nil
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.close.Do(func() { close(m.done) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }
