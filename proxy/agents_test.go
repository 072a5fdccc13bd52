package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit/usage"
)

type wellRedis struct{}

func (wellRedis) Healthy() bool { return true }

type emptyLedger struct{}

func (emptyLedger) AgentDays(_ context.Context, days []usage.AgentDay) ([]usage.Counts, error) {
	return make([]usage.Counts, len(days)), nil
}

// newBook makes a Book that a test fills.
func newBook(t *testing.T) *agents.Book {
	t.Helper()
	client := redistest.Mini(t)
	return agents.New(store.New(client, client, wellRedis{}, "authpool"), emptyLedger{}, (*recall.File)(nil), slog.New(slog.DiscardHandler))
}

// create makes an agent and returns its token.
func create(t *testing.T, book *agents.Book, a agents.Agent) string {
	t.Helper()
	_, token, err := book.Create(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

// knowing has the rig know the agents of book.
func knowing(book *agents.Book) func(*rigOptions) {
	return func(o *rigOptions) { o.agents.Of(book) }
}

const hello = `{"model":"claude-x","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}`

func served(c *upstreamConn) {
	c.json(200, "", `{"type":"message","model":"claude-x","usage":{"input_tokens":1,"output_tokens":1}}`)
}

// asked sends one request with a token of its own connection, and returns the answer.
func (r *rig) asked(token, path, body string) (status int, header http.Header, text string) {
	r.t.Helper()
	resp := r.sendAs(token, "POST", path, "anthropic-version: 2023-06-01\r\nContent-Type: application/json\r\n", body)
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.Close {
		resp.Header.Set("Connection", "close") // the client took it out
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestGuessing(t *testing.T) {
	up := newUpstream(t, served)
	book := newBook(t)
	r := newRig(t, up.url(), 1, knowing(book))
	bob := create(t, book, agents.Agent{ID: "bob"})
	wrong := strings.Replace(bob, "apa_", "apa_x", 1)
	refused := 0
	for range 3 * guessBurst {
		status, header, text := r.asked(wrong, "/v1/messages", hello)
		switch status {
		case http.StatusUnauthorized:
			if refused > 0 && !strings.Contains(text, "authentication_error") {
				t.Errorf("%s", text)
			}
		case http.StatusTooManyRequests:
			refused++
			if header.Get("Retry-After") != "1" || header.Get("X-Authpool-Error") != "too_many_tokens" || header.Get("Connection") != "close" ||
				!strings.Contains(text, `"type":"rate_limit_error"`) || !strings.Contains(text, "authpool: too many wrong agent tokens from this address") {
				t.Errorf("%v %s", header, text)
			}
		default:
			t.Fatalf("%d %s", status, text)
		}
	}
	if refused == 0 {
		t.Error("one may guess for ever")
	}
	// Others behind the address have nothing of it, and neither has who shows none.
	for _, token := range []string{bob, testToken} {
		if status, _, text := r.asked(token, "/v1/messages", hello); status != 200 {
			t.Errorf("%d %s", status, text)
		}
	}
	if status, _, text := r.asked("", "/v1/messages", hello); status != 401 {
		t.Errorf("without a token: %d %s", status, text)
	}
	if len(up.requests()) != 2 {
		t.Errorf("the provider saw %d requests", len(up.requests()))
	}
}

func TestGuessesAreBounded(t *testing.T) {
	var g guesses
	now := time.Now()
	from := func(i int) net.Addr {
		return &net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))}
	}
	for i := range 3 * guessRoom {
		g.wrong(now, from(i))
		if len(g.from) > guessRoom {
			t.Fatalf("%d addresses are kept", len(g.from))
		}
	}
	// Who guesses no more is forgotten, and who goes on is not.
	now = now.Add(time.Minute)
	for range guessBurst {
		g.wrong(now, from(-1))
	}
	for i := range guessRoom / 2 {
		g.wrong(now, from(i))
	}
	if g.wrong(now, from(-1)) == 0 {
		t.Error("one that guesses all the time was forgotten")
	}
	now = now.Add(guessEvery)
	if wait := g.wrong(now, from(-1)); wait != 0 {
		t.Errorf("a second later: %v", wait)
	}

	f := func(a net.Addr, want string) {
		t.Helper()
		if got := network(a); got.String() != want {
			t.Errorf("%v counts as %v, want %s", a, got, want)
		}
	}
	f(&net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 1}, "192.0.2.7/32")
	f(&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3:4:5:6"), Zone: "eth0"}, "2001:db8:1:2::/64")
	f(&net.UnixAddr{Name: "/run/x"}, netip.Prefix{}.String())
	f(&net.TCPAddr{}, netip.Prefix{}.String())
}

func TestAgentsThatAreNotLetIn(t *testing.T) {
	up := newUpstream(t, served)
	f := func(name string, book *agents.Book, token string, status int, code, want string) {
		t.Helper()
		got, header, text := newRig(t, up.url(), 1, knowing(book)).asked(token, "/v1/messages", hello)
		if got != status || header.Get("X-Authpool-Error") != code || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s %s", name, got, header.Get("X-Authpool-Error"), text)
		}
		if retry := header.Get("X-Should-Retry"); (status == 401 || status == 403) != (retry == "false") {
			t.Errorf("%s: x-should-retry %q", name, retry)
		}
	}
	book := newBook(t)
	f("of nobody, before the agents are known", book, "apa_of-somebody", 503, "unavailable", "authpool: the agents are not known yet, because Redis is away")
	f("of the state folder, before that", book, testToken, 200, "", "message")
	old := create(t, book, agents.Agent{ID: "old", Expires: time.Now().Add(2 * time.Millisecond)})
	for end := book.ByID("old").Expires; time.Now().Before(end); {
		runtime.Gosched()
	}
	f("expired", book, old, 401, "unauthorized", "authpool: this agent token has expired; ")
	bob := create(t, book, agents.Agent{ID: "bob"})
	f("known", book, bob, 200, "", "message")
	if err := book.Remove(t.Context(), "bob", 0); err != nil {
		t.Fatal(err)
	}
	f("revoked", book, bob, 401, "unauthorized", "authpool: agent token not known; ")
}

func TestWhatAgentsMayUse(t *testing.T) {
	up := newUpstream(t, served)
	book := newBook(t)
	r := newRig(t, up.url(), 2, knowing(book))
	f := func(name string, rights agents.Rights, path, body string, status int, want string) {
		t.Helper()
		token := create(t, book, agents.Agent{ID: name, Rights: rights})
		before := len(up.requests())
		got, header, text := r.asked(token, path, body)
		if got != status || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", name, got, text)
		}
		if refused := status == 403; refused != (header.Get("X-Authpool-Error") == "not_allowed") || refused != (len(up.requests()) == before) {
			t.Errorf("%s: %d, with error %q, and the provider saw %d", name, got, header.Get("X-Authpool-Error"), len(up.requests())-before)
		}
	}
	const chat = `{"model":"gpt-x","messages":[{"role":"user","content":"hello"}]}`
	anthropic := agents.Rights{Providers: []string{"anthropic"}}
	f("p1", anthropic, "/v1/messages", hello, 200, "")
	f("p2", anthropic, "/v1/chat/completions", chat, 403, `{"error":{"message":"authpool: agent p2 may not use provider \"openai\"; `)
	f("p3", anthropic, "/anthropic/v1/messages", hello, 200, "")
	f("p4", anthropic, "/openai/v1/chat/completions", chat, 403, "may not use provider")
	claude := agents.Rights{Models: []string{"claude-*", "o?"}}
	f("m1", claude, "/v1/messages", hello, 200, "")
	f("m2", claude, "/v1/chat/completions", chat, 403, `may not use model \"gpt-x\"`)
	f("m3", claude, "/v1/chat/completions", `{"messages":[]}`, 403, "this request names none that can be read")
	f("m4", claude, "/v1/messages/batches", `{"requests":[{"custom_id":"1","params":{"model":"gpt-x"}}]}`, 403, "names none that can be read")
	f("m5", claude, "/v1/batches", `{"input_file_id":"f"}`, 403, "names none that can be read")
	f("m6", claude, "/v1/batches/b/cancel", ``, 200, "")
	f("s1", agents.Rights{Subscriptions: []string{"anthropic-2"}}, "/v1/messages", hello, 200, "")
	if got := up.requests(); !strings.Contains(got[len(got)-1], key("anthropic", 2)) {
		t.Errorf("another subscription has served:\n%s", got[len(got)-1])
	}
	f("s2", agents.Rights{Subscriptions: []string{"anthropic-2"}}, "/v1/chat/completions", chat, 403, `no subscription of provider \"openai\" that agent s2 may use can serve this`)
}

func TestAgentBudget(t *testing.T) {
	enter, leave := make(chan struct{}, 8), make(chan struct{})
	up := newUpstream(t, func(c *upstreamConn) {
		enter <- struct{}{}
		c.wait(leave)
		served(c)
	})
	book := newBook(t)
	r := newRig(t, up.url(), 1, knowing(book), func(o *rigOptions) {
		o.deps = func(d *Deps) { d.Recorder = counting{d.Recorder, book} }
	})
	bob := create(t, book, agents.Agent{ID: "bob", Budgets: []agents.Budget{{Period: usage.PeriodMonth, Requests: 2}}})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			c := r.dial()
			_, _ = fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", r.addr, bob, len(hello), hello)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("%v %v", resp, err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		})
		<-enter
	}
	// The last ones are under way, and may come to nothing.
	status, header, text := r.asked(bob, "/v1/messages", hello)
	if status != 429 || header.Get("Retry-After") != "1" || !strings.Contains(text, "the last requests of this agent's budget for the month are under way") {
		t.Errorf("%d %v %s", status, header, text)
	}
	close(leave)
	wg.Wait()
	r.waitEvents(2)
	status, header, text = r.asked(bob, "/v1/messages", hello)
	if status != 429 || header.Get("X-Authpool-Error") != "agent_budget" || !strings.Contains(text, `"type":"rate_limit_error","message":"authpool: this agent has used up its budget of requests for the month; the next one begins at `) {
		t.Errorf("%d %v %s", status, header, text)
	}
	end := usage.PeriodMonth
	_, next := end.Bounds(time.Now(), nil)
	if wait, err := time.ParseDuration(header.Get("Retry-After") + "s"); err != nil || wait < time.Until(next)-time.Minute || wait > time.Until(next)+time.Minute {
		t.Errorf("Retry-After %s, and the month ends in %v", header.Get("Retry-After"), time.Until(next))
	}
	// What costs nothing is not held up, a batch that will cost something is, and
	// nobody else is concerned.
	resp := r.sendAs(bob, "GET", "/v1/models", "anthropic-version: 2023-06-01\r\n", "")
	if resp.StatusCode != 200 {
		t.Errorf("a list of models: %d", resp.StatusCode)
	}
	if status, _, text := r.asked(bob, "/v1/messages/batches", `{"requests":[]}`); status != 429 {
		t.Errorf("a batch: %d %s", status, text)
	}
	if status, _, text := r.asked(testToken, "/v1/messages", hello); status != 200 {
		t.Errorf("another agent: %d %s", status, text)
	}
}

// counting has the book know what is recorded.
type counting struct {
	Recorder
	book *agents.Book
}

func (c counting) Add(e usage.Event) error {
	c.book.Count(&e)
	return c.Recorder.Add(e)
}

// BenchmarkIdentify is what a token costs each request.
func BenchmarkIdentify(b *testing.B) {
	a := NewAgents(map[string]string{"default": testToken})
	headers := provider.Headers("Host: x\r\nAuthorization: Bearer " + testToken + "\r\n\r\n")
	b.ReportAllocs()
	for b.Loop() {
		if who, err := a.identify(headers, nil, nil, ""); err != nil || who.agent != "default" {
			b.Fatal(err)
		}
	}
}

// A token may name the session of an agent that can send nothing but a key: what the
// request says itself counts more.
func TestSessionBehindTheToken(t *testing.T) {
	u := newUpstream(t, func(c *upstreamConn) { c.json(200, "", answer) })
	r := newRig(t, u.url(), 1)
	for _, tt := range []struct{ token, more, session string }{
		{testToken + ".my-task", "", "my-task"},
		{testToken + ".v1.2", "", "v1.2"},
		{testToken + ".my-task", "X-Authpool-Session: said\r\n", "said"},
		{testToken + ".with space", "", "h-b1b8dc5d65e4ff5b9c6ea4ed6f3ec57d"},
	} {
		resp := r.sendAs(tt.token, "POST", "/v1/messages", tt.more, message)
		got := resp.Header.Get("X-Authpool-Session")
		if hashed := strings.HasPrefix(tt.session, "h-"); resp.StatusCode != 200 || hashed != strings.HasPrefix(got, "h-") || !hashed && got != tt.session {
			t.Errorf("%q %q: %d, session %q", tt.token, tt.more, resp.StatusCode, got)
		}
	}
	if resp := r.sendAs("apa_wrong.my-task", "POST", "/v1/messages", "", message); resp.StatusCode != 401 {
		t.Errorf("a wrong token with a session: %d", resp.StatusCode)
	}
	if text := strings.Join(u.requests(), ""); strings.Contains(text, "my-task") {
		t.Errorf("the provider got %s", text)
	}
	open := newRig(t, u.url(), 1, func(o *rigOptions) { o.agents = NoAgents() })
	if resp := open.sendAs("anonymous.my-task", "POST", "/v1/messages", "", message); resp.Header.Get("X-Authpool-Session") != "my-task" {
		t.Errorf("without tokens: %d %v", resp.StatusCode, resp.Header)
	}
}
