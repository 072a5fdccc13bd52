package proxy

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
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
		Model            *string
		AllInput         *int64 `json:"all_input_tokens"`
		AllOutput        *int64 `json:"all_output_tokens"`
		CacheRead        *int64 `json:"cache_read_tokens"`
		CacheWrite       *int64 `json:"cache_creation_tokens"`
		CacheWrite5m     *int64 `json:"cache_creation_5m_tokens"`
		CacheWrite1h     *int64 `json:"cache_creation_1h_tokens"`
		Reasoning        *int64 `json:"reasoning_tokens"`
		IterationsInput  *int64 `json:"iterations_input_tokens"`
		IterationsOutput *int64 `json:"iterations_output_tokens"`
		WebSearches      *int64 `json:"web_search_requests"`
		Lines            int    `json:"sum_of_lines"` // of a batch's results
		Billable         *bool
		UsageReported    bool `json:"usage_reported"`
		Partial          *struct {
			UsageReported bool   `json:"usage_reported"`
			Input         *int64 `json:"input_tokens"`
			Output        *int64 `json:"output_tokens"`
		} // what a stream told before its error
	}
}

// recordedSeedsVar says in how many ways each stream is cut; see seeds.
const recordedSeedsVar = "AUTHPOOL_RECORDINGS_SEEDS"

// TestRecordings lets a fake provider answer with what real ones answered, and
// looks at what the provider is asked, what the agent gets and what is counted:
// once with the answer as it was, for streams with every cut of its bytes that
// the seeds give, and compressed in each coding. The recordings are other
// people's and not part of the project: AUTHPOOL_RECORDINGS names their folder.
func TestRecordings(t *testing.T) {
	folder := os.Getenv("AUTHPOOL_RECORDINGS")
	if folder == "" {
		t.Skip("AUTHPOOL_RECORDINGS does not name a folder of recordings")
	}
	recordings, pasted := readRecordings(t, folder)
	plays := playsOf(t, recordings, seeds(t))
	up := newUpstream(t, func(c *upstreamConn) { c.replay(t, plays) })
	events := &eventsByRequest{events: map[string][]usage.Event{}}
	r := newRig(t, up.url(), 0, func(o *rigOptions) {
		o.quiet = true
		o.opts.Attempts = 1
		// Some answers say that they were the last ones for this second.
		o.pool.Wait = time.Minute
		o.providers = nil
		o.deps = func(d *Deps) { d.Recorder = events }
		for name, family := range recordedProviders(t, plays) {
			// The recorded answers are to the recorded requests, so that none is
			// asked for usage.
			o.providers = append(o.providers, provider.Options{Name: name, Family: family, BaseURL: up.url(), AllowPlaintext: true})
			o.subs = append(o.subs, pool.Subscription{ID: name, Provider: name, Credential: fixedKey(key(name, 1))})
		}
	})

	next := make(chan int)
	var agents sync.WaitGroup
	for range 8 {
		agents.Go(func() {
			a := replayAgent{addr: r.addr}
			defer a.close()
			for i := range next {
				p := plays[i]
				id, err := a.play(i, p)
				if err == nil {
					err = p.check(events.of(id))
				}
				if err != nil {
					t.Errorf("%s, %s: %v", p.rec.ID, p.how, err)
				}
			}
		})
	}
	for i := range plays {
		next <- i
	}
	close(next)
	agents.Wait()

	t.Logf("%d recordings in %d ways, %d pastes left out", len(recordings), len(plays), pasted)
	for _, p := range plays {
		if !p.asked.Load() {
			t.Errorf("%s, %s: the provider was not asked", p.rec.ID, p.how)
		}
	}
}

// readRecordings reads all recordings but the pastes, of which only an answer,
// or a part of one, is known.
func readRecordings(t *testing.T, folder string) (recordings []*recording, pasted int) {
	files, err := filepath.Glob(filepath.Join(folder, "*", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings in %s (%v)", folder, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		rec := new(recording)
		if err := json.Unmarshal(data, rec); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		switch {
		case filepath.Base(filepath.Dir(file)) == "issue-pastes":
			pasted++
		case rec.Request == nil || rec.Kind != "usage" && rec.Kind != "error":
			t.Errorf("%s: is no exchange", file)
		default:
			recordings = append(recordings, rec)
		}
	}
	if len(recordings) < 480 {
		t.Errorf("there are %d recordings in %s, want all 480", len(recordings), folder)
	}
	return recordings, pasted
}

// seeds are those of the cuts: two, or as many as the variable says.
func seeds(t *testing.T) []uint64 {
	n := 2
	if text := os.Getenv(recordedSeedsVar); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", recordedSeedsVar, err)
		}
	}
	list := make([]uint64, n)
	for i := range list {
		list[i] = uint64(i + 1)
	}
	return list
}

// play is one answer on its way.
type play struct {
	rec      *recording
	how      string
	provider string   // as authpool knows it
	coding   string   // Content-Encoding
	pieces   []string // what the provider writes at once; a stream's have a chunk each

	asked atomic.Bool
}

// playsOf lists what is played.
func playsOf(t *testing.T, recordings []*recording, seeds []uint64) []*play {
	var plays []*play
	add := func(rec *recording, how, coding string, pieces []string) {
		p := &play{rec: rec, how: how, provider: rec.Provider, coding: coding, pieces: pieces}
		if rec.Kind == "error" {
			// It closes its subscription, so that each has its own.
			p.provider = fmt.Sprintf("%s-%d", rec.Provider, len(plays))
		}
		plays = append(plays, p)
	}
	for i, rec := range recordings {
		body := rec.body()
		add(rec, "whole", "", []string{body})
		if rec.Response.Stream {
			for _, seed := range seeds {
				add(rec, fmt.Sprintf("cut by seed %d", seed), "", cutText(body, uint64(i), seed))
			}
		}
		for _, coding := range []string{"gzip", "br", "zstd"} {
			pieces := []string{body}
			if rec.Response.Stream {
				pieces = cutText(body, uint64(i), 0)
			}
			pieces = compress(t, coding, pieces...)
			if !rec.Response.Stream {
				pieces = []string{strings.Join(pieces, "")}
			}
			add(rec, "in "+coding, coding, pieces)
		}
	}
	return plays
}

// cutText cuts a text into pieces of pseudo-random length, a few of them very
// short.
func cutText(text string, which, seed uint64) []string {
	random := rand.New(rand.NewPCG(which, seed))
	most := max(64, len(text)/20)
	var pieces []string
	for len(text) > 0 {
		n := 1 + random.IntN(most)
		if random.IntN(4) == 0 {
			n = 1 + random.IntN(8)
		}
		n = min(n, len(text))
		pieces = append(pieces, text[:n])
		text = text[n:]
	}
	return pieces
}

// recordedProviders are the families of those who answer.
func recordedProviders(t *testing.T, plays []*play) map[string]provider.Family {
	families := map[string]provider.Family{
		"vertex":         provider.Gemini,
		"bedrock-mantle": provider.Bedrock,
	}
	for _, openAI := range []string{
		"groq", "deepseek", "mistral", "xai", "openrouter", "perplexity", "together", "cerebras", "huggingface", "zai", "vercel-gateway",
	} {
		families[openAI] = provider.OpenAI
	}
	named := map[string]provider.Family{}
	for _, p := range plays {
		name := p.rec.Provider
		family, ok := families[name]
		if !ok {
			var err error
			if family, err = provider.ParseFamily(name); err != nil {
				t.Fatal(err)
			}
		}
		named[p.provider] = family
	}
	return named
}

// eventsByRequest is a Recorder that keeps the events of each request.
type eventsByRequest struct {
	noRecorder
	mu     sync.Mutex
	events map[string][]usage.Event
}

func (r *eventsByRequest) Add(e usage.Event) error {
	const uuid = 36 // characters; what follows sets apart the events of one request
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events[e.ID[:uuid]] = append(r.events[e.ID[:uuid]], e)
	return nil
}

func (r *eventsByRequest) of(id string) []usage.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[id]
}

// replayAgent plays one answer after the other on a connection of its own.
type replayAgent struct {
	addr string
	conn net.Conn
	br   *bufio.Reader
}

func (a *replayAgent) close() {
	if a.conn != nil {
		_ = a.conn.Close()
		a.conn = nil
	}
}

// play asks for the answer n and looks at what comes. It returns the id of the
// request.
func (a *replayAgent) play(n int, p *play) (id string, err error) {
	defer func() {
		if err != nil {
			a.close() // what is left on it is nobody's
		}
	}()
	if a.conn == nil {
		if a.conn, err = net.Dial("tcp", a.addr); err != nil {
			return "", err
		}
		a.br = bufio.NewReader(a.conn)
	}
	_ = a.conn.SetDeadline(time.Now().Add(20 * time.Second))
	method, target, err := p.rec.target()
	if err != nil {
		return "", err
	}
	body := p.rec.requestBody()
	mediaType := p.rec.Request.Headers["content-type"]
	if mediaType == "" {
		mediaType = "application/json"
	}
	if _, err := fmt.Fprintf(a.conn, "%s /%s%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nX-Play: %d\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		method, p.provider, target, a.addr, testToken, n, mediaType, len(body), body); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(a.br, &http.Request{Method: method})
	if err != nil {
		return "", err
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("after %d bytes: %w", len(got), err)
	}
	if want := strings.Join(p.pieces, ""); string(got) != want {
		return "", fmt.Errorf("the agent got %d bytes, the provider sent %d: %.200q and %.200q", len(got), len(want), got, want)
	}
	if resp.StatusCode != p.rec.Response.Status || resp.Header.Get("Content-Encoding") != p.coding {
		return "", fmt.Errorf("the agent got status %d and coding %q", resp.StatusCode, resp.Header.Get("Content-Encoding"))
	}
	return resp.Header.Get("X-Authpool-Request-Id"), nil
}

// replay answers with the recorded answer that the request asks for.
func (c *upstreamConn) replay(t *testing.T, plays []*play) {
	_, number, _ := strings.Cut(c.head, "\r\nX-Play: ")
	number, _, _ = strings.Cut(number, "\r\n")
	n, err := strconv.Atoi(number)
	if err != nil || n >= len(plays) {
		t.Errorf("an unknown answer was asked for:\n%s", c.head)
		return
	}
	p := plays[n]
	p.asked.Store(true)
	method, target, err := p.rec.target()
	if err != nil || !strings.HasPrefix(c.head, method+" "+target+" HTTP/1.1\r\n") || c.body != p.rec.requestBody() {
		t.Errorf("%s, %s: the request was changed:\n%s", p.rec.ID, p.how, c.head)
	}
	if !strings.Contains(c.head, ": "+key(p.provider, 1)+"\r\n") && !strings.Contains(c.head, ": Bearer "+key(p.provider, 1)+"\r\n") {
		t.Errorf("%s, %s: the request has no credential:\n%s", p.rec.ID, p.how, c.head)
	}

	head := fmt.Sprintf("HTTP/1.1 %d Recorded\r\nConnection: close\r\n", p.rec.Response.Status)
	for name, value := range p.rec.Response.Headers {
		switch strings.ToLower(name) {
		case "connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive":
			continue
		}
		if !strings.ContainsAny(value, "\r\n") {
			head += name + ": " + value + "\r\n"
		}
	}
	if p.coding != "" {
		head += "Content-Encoding: " + p.coding + "\r\n"
	}
	if !p.rec.Response.Stream {
		c.write("%sContent-Length: %d\r\n\r\n%s", head, len(p.pieces[0]), p.pieces[0])
		return
	}
	c.write("%sTransfer-Encoding: chunked\r\n\r\n", head)
	for _, piece := range p.pieces {
		if piece != "" {
			c.chunk(piece)
		}
	}
	c.last()
}

// target is what an agent asks for behind the provider's name.
func (r *recording) target() (method, target string, err error) {
	u, err := url.Parse(r.Request.URL)
	if err != nil {
		return "", "", err
	}
	target = u.EscapedPath()
	if u.RawQuery != "" {
		target += "?" + u.RawQuery
	}
	return strings.ToUpper(r.Request.Method), target, nil
}

func (r *recording) requestBody() string { return textOr(r.Request.Body, r.Request.BodyBase64) }

func (r *recording) body() string { return textOr(r.Response.Body, r.Response.BodyBase64) }

// textOr returns what is encoded, else the text.
func textOr(text, encoded string) string {
	if encoded == "" {
		return text
	}
	b, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// check compares what was recorded of an answer with what the recording says.
func (p *play) check(events []usage.Event) error {
	e := &p.rec.Expect
	want := 1
	switch {
	case e.Lines > 0:
		want = e.Lines // each line is an event; that the answer is not billable is said of it as a whole
	case p.shown() != "":
		// That it is not billable is said of it as a whole, and of its being shown
		// twice: it is counted under its name.
	case p.rec.Kind == "error" && e.Partial == nil,
		e.Billable != nil && !*e.Billable,
		p.rec.API == "openai-batches": // what a batch uses, its results tell
		want = 0
	}
	var sum usage.Event
	var all usage.Tokens // sum's, and those of further models
	got := 0
	for _, event := range events {
		all = all.Add(event.Tokens)
		if event.Further {
			continue
		}
		got++
		sum.Tokens = sum.Tokens.Add(event.Tokens)
		sum.Units = sum.Units.Add(event.Units)
		sum.Model, sum.Unknown, sum.Estimated = event.Model, event.Unknown, event.Estimated
		if (event.Batch == "" || event.Item == "") != (e.Lines == 0 && p.shown() == "") || p.shown() != "" && event.Batch != p.shown() {
			return fmt.Errorf("of the batch %q the item %q", event.Batch, event.Item)
		}
	}
	switch {
	case got != want:
		return fmt.Errorf("%d usage events, want %d: %+v", got, want, events)
	case got == 0:
		return nil
	case p.rec.Kind == "error":
		return p.checkPartial(sum)
	case sum.Unknown == e.UsageReported || sum.Estimated && e.AllInput != nil:
		return fmt.Errorf("unknown %v, estimated %v: %+v", sum.Unknown, sum.Estimated, events)
	case sum.Unknown:
		return nil
	}

	var wrong []string
	same := func(what string, got int64, want *int64) {
		if got != deref(want) {
			wrong = append(wrong, fmt.Sprintf("%s is %d, want %d", what, got, deref(want)))
		}
	}
	// Of some answers a part is more than the whole (Grok on Azure; Gemini behind
	// gateways). What was charged is the whole.
	part := func(what string, got int64, want *int64, whole int64) {
		n := min(deref(want), whole)
		same(what, got, &n)
	}
	tokens := sum.Tokens
	same("input", tokens.Prompt(), e.AllInput)
	same("output", tokens.Output, e.AllOutput)
	part("cache read", tokens.CacheRead, e.CacheRead, deref(e.AllInput))
	part("cache writes", tokens.CacheWrite5m+tokens.CacheWrite1h, e.CacheWrite, deref(e.AllInput)-tokens.CacheRead)
	if e.CacheWrite5m != nil || e.CacheWrite1h != nil {
		same("cache writes of 5 minutes", tokens.CacheWrite5m, e.CacheWrite5m)
		same("cache writes of an hour", tokens.CacheWrite1h, e.CacheWrite1h)
	}
	// These were not looked for in all recordings.
	if e.Reasoning != nil {
		part("reasoning", tokens.Reasoning, e.Reasoning, deref(e.AllOutput))
	}
	if e.WebSearches != nil {
		same("web searches", sum.Units.WebSearches, e.WebSearches)
	}
	if e.IterationsInput != nil {
		same("input with iterations", all.Input, e.IterationsInput)
		same("output with iterations", all.Output, e.IterationsOutput)
	}
	if e.Model != nil && sum.Model != provider.CleanModel([]byte(*e.Model)) {
		wrong = append(wrong, fmt.Sprintf("the model is %q, want %q", sum.Model, *e.Model))
	}
	if wrong != nil {
		return fmt.Errorf("%s: %+v", strings.Join(wrong, ", "), events)
	}
	return nil
}

// shown is the id of the response that was made in the background, if the answer
// shows one that has ended; else empty.
func (p *play) shown() string {
	method, target, err := p.rec.target()
	_, id, stored := strings.Cut(target, "/responses/")
	if err != nil || method != "GET" || !stored || !p.rec.Expect.UsageReported || !strings.Contains(p.rec.body(), `"background":true`) {
		return ""
	}
	id, _, _ = strings.Cut(id, "?")
	return id
}

// checkPartial looks at what is recorded of a stream that ended in an error.
func (p *play) checkPartial(e usage.Event) error {
	want := p.rec.Expect.Partial
	if e.Unknown == want.UsageReported || want.UsageReported && (e.Tokens.Prompt() != deref(want.Input) || e.Tokens.Output < deref(want.Output)) {
		return fmt.Errorf("before the error it told %+v", e)
	}
	return nil
}

func deref(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}
