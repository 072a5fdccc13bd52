package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/bench/simulator"
)

// crashes is how often the crash tests kill authpool: AUTHPOOL_CRASHES, else 20; the embedded leg does with less.
func crashes(t *testing.T) int {
	t.Helper()
	text := os.Getenv("AUTHPOOL_CRASHES")
	if text == "" {
		return 20
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("AUTHPOOL_CRASHES is %q, want a number", text)
	}
	return n
}

// dice returns a source of random moments: AUTHPOOL_SEED repeats those of a former run, as far as events repeat.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("AUTHPOOL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("AUTHPOOL_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestCrashes kills authpool again and again under load, and Redis, too, which keeps its writes as the README
// recommends (appendonly yes, appendfsync everysec).
func TestCrashes(t *testing.T) {
	r := startRedis(t)
	c := newCrashing(t, options{redis: r.url()}, r)
	for range crashes(t) {
		c.live()
	}
	c.end()
}

// TestCrashesEmbedded does so with the embedded Redis, which dies with authpool. Most lives end before its first
// snapshot, so that everything comes back from the journal; the journal keeps nothing that a snapshot has.
func TestCrashesEmbedded(t *testing.T) {
	c := newCrashing(t, options{extra: "journal: {max: 32MiB, keep: 1s}\n"}, nil)
	for range max(crashes(t)/3, 1) {
		c.live()
	}
	c.end()
}

// TestIdleFleetFillsRedisAgain: Redis comes back without its data while nobody asks anything. No new event meets the
// gap, and it is closed all the same.
func TestIdleFleetFillsRedisAgain(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url, redis: r.url()})
	a.serveSome(t, "before", 10)
	a.expectLedger(t, p, pairs)
	r.stop(t)
	if err := errors.Join(os.RemoveAll(r.dir), os.Mkdir(r.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	a.expectLedger(t, p, pairs)
}

// crashing is authpool under load, killed and started again on one state folder.
type crashing struct {
	t        *testing.T
	dice     *rand.Rand
	options  options
	redis    *redisServer // nil: embedded
	provider *provider
	trip     tripwire
	lives    lives
	agents   sync.WaitGroup

	mu      sync.Mutex
	asked   []question          // in no order
	billed  map[string][]string // by answer: the provider's request ids
	redises int                 // times that Redis was killed
	empties int                 // and came back empty
	early   int                 // times that authpool was killed while it started
}

// question is a request of an agent and what came of it.
type question struct {
	session, answer, model string
	// ended tells that the agent has read the answer's end.
	ended bool
}

const (
	sessions  = 50    // agents that ask at a time
	maxPieces = 20000 // pieces of answers in a life
)

func newCrashing(t *testing.T, o options, r *redisServer) *crashing {
	t.Helper()
	c := &crashing{t: t, dice: dice(t), options: o, redis: r, billed: map[string][]string{}}
	c.lives.changed = make(chan struct{})
	c.startProvider()
	c.options.subscriptions, c.options.upstream = pairs, c.provider.url
	c.options.state = filepath.Join(t.TempDir(), "state")
	c.options.extra += "log: {level: warn}\n"
	for i := range sessions {
		c.agents.Go(func() { c.agent(i) })
	}
	t.Cleanup(c.agents.Wait) // before it, also when the test has failed:
	t.Cleanup(c.lives.end)
	return c
}

// startProvider starts a simulator that tells which of its answers is which of an agent.
func (c *crashing) startProvider() {
	s, err := simulator.New(simulator.Options{Keys: keysOf(pairs)})
	if err != nil {
		c.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	handler := s.Handler()
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			answer := r.Header.Get("X-Answer")
			for _, name := range []string{"Request-Id", "X-Request-Id"} {
				if id := w.Header().Get(name); id != "" {
					c.billed[answer] = append(c.billed[answer], id)
				}
			}
		}()
		handler.ServeHTTP(w, r)
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	c.t.Cleanup(func() {
		if err := errors.Join(server.Close(), s.Close()); err != nil || !errors.Is(<-done, http.ErrServerClosed) {
			c.t.Errorf("the provider did not end well: %v", err)
		}
	})
	c.provider = &provider{s, "http://" + ln.Addr().String()}
}

// live starts authpool and kills it after a random number of pieces of answers. In between Redis may be killed, and
// started again before or after that.
func (c *crashing) live() {
	c.t.Helper()
	if c.dice.IntN(5) == 0 {
		c.killEarly()
		return
	}
	a := startAuthpool(c.t, c.options)
	c.lives.begin(a)
	until := c.dice.IntN(maxPieces)
	if c.dice.IntN(4) == 0 {
		until /= 100
	}
	if c.redis != nil && c.dice.IntN(3) == 0 {
		until -= c.toggleRedis(until)
		if c.dice.IntN(2) == 0 {
			until -= c.toggleRedis(until)
		}
	}
	c.trip.await(c.t, until)
	a.kill(c.t)
	c.lives.crashed(a)
}

// killEarly starts authpool and kills it as soon as it listens, which is when it begins to read what the one before has
// left.
func (c *crashing) killEarly() {
	c.t.Helper()
	a := launchAuthpool(c.t, c.options)
	timeout := time.After(patience)
	for listens := false; !listens; {
		if conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://")); err == nil {
			listens = true
			_ = conn.Close()
		}
		select {
		case <-a.exited:
			c.t.Fatalf("authpool did not start: %v", a.err)
		case <-timeout:
			c.t.Fatal("authpool does not listen")
		default:
		}
	}
	a.kill(c.t)
	c.early++
}

// toggleRedis kills Redis, or starts it, after at most so many pieces of answers. It returns how many it waited for.
func (c *crashing) toggleRedis(most int) (waited int) {
	c.t.Helper()
	waited = c.dice.IntN(most + 1)
	c.trip.await(c.t, waited)
	if c.redis.cmd == nil {
		c.startRedis()
		return waited
	}
	if err := c.redis.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.redis.cmd.Wait() // killed
	c.redis.cmd = nil
	c.redises++
	return waited
}

// startRedis starts Redis with what it had, or sometimes without: as after a fail-over to a replica that had nothing yet.
func (c *crashing) startRedis() {
	c.t.Helper()
	if c.dice.IntN(3) == 0 {
		if err := errors.Join(os.RemoveAll(c.redis.dir), os.Mkdir(c.redis.dir, 0o700)); err != nil {
			c.t.Fatal(err)
		}
		c.empties++
	}
	c.redis.start(c.t)
}

// end starts authpool for the last time, lets the agents have their answers, and compares what was counted with what
// the provider has billed.
func (c *crashing) end() {
	c.t.Helper()
	if c.redis != nil && c.redis.cmd == nil {
		c.startRedis()
	}
	a := startAuthpool(c.t, c.options)
	c.lives.begin(a)
	c.trip.await(c.t, 100)
	c.lives.end()
	c.agents.Wait()
	var found findings
	eventually(c.t, func() (err error) {
		found, err = c.compare(a)
		return err
	})
	c.t.Logf("authpool was killed %d times while it started; Redis was killed %d times and came back empty %d times; of %d answers %d were cut: of these %d counted whole, %d estimated, %d never begun",
		c.early, c.redises, c.empties, len(c.asked), found.cut, found.whole, found.estimated, found.never)
}

// findings is what became of the answers whose end no agent has read.
type findings struct{ cut, whole, estimated, never int }

// compare holds what authpool has counted against what the provider has billed: for each session, which has at most one
// answer that was cut, and then for each subscription and model.
func (c *crashing) compare(a *authpool) (found findings, err error) {
	entries := map[string]simulator.Entry{}
	for _, e := range c.provider.Ledger() {
		entries[e.RequestID] = e
	}
	rows, err := a.usage(c.t, "session")
	if err != nil {
		return found, err
	}
	subscription := map[string]string{}
	for _, s := range c.options.subscriptions {
		subscription[s.key] = s.id
	}
	finished, cut := map[string]counts{}, map[string]question{}
	bySub, byModel := map[string]counts{}, map[string]counts{}
	for _, q := range c.asked {
		if !q.ended {
			cut[q.session] = q
			continue
		}
		ids := c.billed[q.answer]
		if len(ids) != 1 || !entries[ids[0]].Finished {
			return found, fmt.Errorf("%s has ended, and the provider billed %v", q.answer, ids)
		}
		e := entries[ids[0]]
		finished[q.session] = finished[q.session].plus(billed(e))
		bySub[subscription[e.Key]] = bySub[subscription[e.Key]].plus(billed(e))
		byModel[q.model] = byModel[q.model].plus(billed(e))
	}
	known := map[string]bool{}
	var nowhere int64 // requests counted that did not reach the provider
	for _, q := range c.asked {
		if known[q.session] {
			continue
		}
		known[q.session] = true
		row := rows["default/"+q.session]
		rest := row.counts().minus(finished[q.session])
		q, wasCut := cut[q.session]
		if !wasCut {
			if rest != (counts{}) || row.Estimated+row.Unknown > 0 {
				return found, fmt.Errorf("session %s: counted %+v, which is %+v more than was billed, though every answer ended", q.session, row, rest)
			}
			continue
		}
		found.cut++
		ids := c.billed[q.answer]
		switch {
		case len(ids) == 0 && rest == (counts{}):
			found.never++
		case len(ids) == 0 && rest == (counts{Requests: 1}) && row.Estimated == 1:
			found.estimated++
			nowhere++
		case len(ids) == 1 && rest == billed(entries[ids[0]]) && row.Estimated == 0 && entries[ids[0]].Finished:
			found.whole++
		case len(ids) == 1 && row.Estimated == 1 && part(rest, billed(entries[ids[0]])):
			found.estimated++
		default:
			return found, fmt.Errorf("%s was cut: counted %+v, which is %+v more than the answers before it; billed %v: %+v", q.answer, row, rest, ids, entries[first(ids)])
		}
		if len(ids) == 1 {
			id := subscription[entries[ids[0]].Key]
			bySub[id] = bySub[id].plus(rest)
		}
		byModel[q.model] = byModel[q.model].plus(rest)
	}
	for key := range rows {
		if !known[strings.TrimPrefix(key, "default/")] {
			return found, fmt.Errorf("session %s has not asked anything", key)
		}
	}
	return found, errors.Join(c.compareSums(a, "subscription", bySub, nowhere), c.compareSums(a, "model", byModel, 0))
}

// compareSums compares usage in another view with sums. Some requests may be counted in any row.
func (c *crashing) compareSums(a *authpool, by string, want map[string]counts, somewhere int64) error {
	rows, err := a.usage(c.t, by)
	if err != nil {
		return err
	}
	got := map[string]counts{}
	for key, row := range rows {
		n := row.counts()
		if extra := n.Requests - want[key].Requests; extra > 0 && extra <= somewhere {
			n.Requests -= extra
			somewhere -= extra
		}
		if n != (counts{}) {
			got[key] = n
		}
	}
	maps.DeleteFunc(want, func(_ string, n counts) bool { return n == counts{} })
	if diff := cmp.Diff(want, got); diff != "" || somewhere != 0 {
		return fmt.Errorf("by %s (-billed +counted), %d requests missing:\n%s", by, somewhere, diff)
	}
	return nil
}

// part tells whether got, of an answer that was cut, is what could be known of it: its input whole or not at all, and
// no more output than was sent.
func part(got, billed counts) bool {
	output := got.Output
	got.Output, billed.Output = 0, max(billed.Output, 1)
	in := billed
	in.Output = 0
	return output <= billed.Output && (got == in || got == counts{Requests: 1} && output == 0)
}

func first(ids []string) string {
	if len(ids) == 0 {
		return ""
	}
	return ids[0]
}

func (c counts) minus(d counts) counts {
	return counts{c.Requests - d.Requests, c.Input - d.Input, c.Output - d.Output, c.CacheRead - d.CacheRead, c.Write5m - d.Write5m, c.Write1h - d.Write1h}
}

// ways are the requests that agents make, with what ends their answers.
var ways = []struct{ path, model, body, end string }{
	{"/v1/messages", "claude-haiku-4-5", `{"model":"claude-haiku-4-5","max_tokens":100,"stream":true,"messages":[{"role":"user","content":%q}]}`, "event: message_stop"},
	{"/v1/chat/completions", "gpt-4.1", `{"model":"gpt-4.1","stream":true,"messages":[{"role":"user","content":%q}]}`, "data: [DONE]"},
	{"/v1/messages", "claude-sonnet-4-5", `{"model":"claude-sonnet-4-5","max_tokens":100,"messages":[{"role":"user","content":%q}]}`, ""},
	{"/v1/responses", "gpt-5", `{"model":"gpt-5","stream":true,"input":%q}`, "event: response.completed"},
}

// agent asks one question after another until the test ends. After a crash it goes on in a new session, so that a
// session has one answer at most that was cut: its last.
func (c *crashing) agent(number int) {
	transport := &http.Transport{DisableCompression: true, ResponseHeaderTimeout: patience}
	defer transport.CloseIdleConnections()
	life := 0
	a := c.lives.after(nil)
	for n := 0; a != nil; n++ {
		w := ways[(number+n)%len(ways)]
		q := question{session: fmt.Sprintf("s%d-%d", number, life), model: w.model}
		q.answer = fmt.Sprintf("%s-%d", q.session, n)
		req, err := http.NewRequest(http.MethodPost, a.url+w.path, strings.NewReader(fmt.Sprintf(w.body, strings.Repeat(q.answer+" ", 1+n%7))))
		if err != nil {
			c.t.Error(err)
			return
		}
		for name, value := range map[string]string{
			"Content-Type": "application/json", "Authorization": "Bearer " + a.token, "Anthropic-Version": "2023-06-01",
			"X-Authpool-Session": q.session, "X-Answer": q.answer, "X-Simulate": "tokens-" + strconv.Itoa(5+n%40) + "-slow-2",
		} {
			req.Header.Set(name, value)
		}
		q.ended, err = c.read(transport, req, w.end)
		c.mu.Lock()
		c.asked = append(c.asked, q)
		c.mu.Unlock()
		if err == nil {
			a = c.lives.after(nil)
			continue
		}
		// authpool has been killed in the middle, or the test is wrong.
		select {
		case <-a.exited:
		case <-time.After(patience):
			c.t.Errorf("%s failed though authpool lives: %v", q.answer, err)
			return
		}
		life++
		a = c.lives.after(a)
	}
}

// read sends a request and reads its answer. It tells whether its end came: the line that begins so, or for an answer
// that is no stream all of it.
func (c *crashing) read(transport *http.Transport, req *http.Request, end string) (ended bool, err error) {
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return false, fmt.Errorf("%s: %s", resp.Status, text)
	}
	in := bufio.NewReader(resp.Body)
	for {
		line, err := in.ReadString('\n')
		c.trip.hit()
		ended = ended || end != "" && strings.HasPrefix(line, end)
		if errors.Is(err, io.EOF) {
			return ended || end == "", nil
		}
		if err != nil {
			return ended, err
		}
	}
}

// tripwire tells when so many things have happened. Its zero value is ready.
type tripwire struct {
	left    atomic.Int64
	reached chan struct{} // of the await under way
	mu      sync.Mutex
}

func (w *tripwire) hit() {
	if w.left.Add(-1) == 0 {
		w.mu.Lock()
		close(w.reached)
		w.mu.Unlock()
	}
}

// await returns after n hits.
func (w *tripwire) await(t *testing.T, n int) {
	t.Helper()
	if n < 1 {
		return
	}
	w.mu.Lock()
	w.reached = make(chan struct{})
	w.mu.Unlock()
	w.left.Store(int64(n))
	select {
	case <-w.reached:
	case <-time.After(patience):
		t.Fatalf("agents read nothing any more: %d pieces of %d are missing", w.left.Load(), n)
	}
}

// lives tell the agents which authpool to ask.
type lives struct {
	mu      sync.Mutex
	now     *authpool     // nil: killed, and not started again
	over    bool          // the agents are to end
	changed chan struct{} // closed when one of these changes
}

func (l *lives) change(set func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	set()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *lives) begin(a *authpool)   { l.change(func() { l.now = a }) }
func (l *lives) crashed(a *authpool) { l.change(func() { l.now = nil }) }
func (l *lives) end()                { l.change(func() { l.over = true }) }

// after waits for an authpool other than old, and returns nil when the agents are to end.
func (l *lives) after(old *authpool) *authpool {
	for {
		l.mu.Lock()
		now, over, changed := l.now, l.over, l.changed
		l.mu.Unlock()
		switch {
		case over:
			return nil
		case now != nil && now != old:
			return now
		}
		<-changed
	}
}
