package e2e

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// TestChaos: four processes with 25 agents each wait for one subscription that is limited. Whatever happens to Redis
// meanwhile, it opens for all of them, and they do not all come at once: one probe, and then one more request under way
// with every quarter of a second. Without Redis that is true for every process by itself.
//
// Clocks that differ are tested in package pool, in bubbles, where they can be set. What a process has of Redis' clock are
// times to wait, and what a provider says is counted from the answer's own Date: no process compares an instant with its
// own wall clock. So a process whose clock is wrong is the same as a Redis whose clock is.
func TestChaos(t *testing.T) {
	const processes = 4
	_, long := stormTime(t)
	closed, away := 6*time.Second, 8*time.Second
	if long {
		closed, away = 20*time.Second, 30*time.Second
	}
	for _, c := range []struct {
		name    string
		disturb func(*chaos)
		// groups is how many ramps like one process's there may be at once: those that know of each other take their turns
		// one after the other, and the n-th of them goes n times as slowly.
		groups float64
		smoke  bool
	}{
		{"all is well", func(*chaos) {}, 1 + 1./2 + 1./3 + 1./4, false},
		{"a process is cut off from Redis", func(c *chaos) {
			c.pass(time.Second)
			c.wire.cut(true)
			c.pass(away)
			c.wire.cut(false)
		}, 1 + 1 + 1./2 + 1./3, true},
		{"a process is cut off before the limit is met", func(c *chaos) {
			c.wire.cut(true)
			c.pass(away)
			c.wire.cut(false)
		}, 1 + 1 + 1./2 + 1./3, false},
		{"Redis restarts and has lost everything", func(c *chaos) {
			c.pass(closed - 3*time.Second)
			c.redis.stop(c.t)
			if err := errors.Join(os.RemoveAll(c.redis.dir), os.Mkdir(c.redis.dir, 0o700)); err != nil {
				c.t.Error(err)
			}
			c.redis.start(c.t)
		}, processes, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.smoke && !long {
				t.Skip("set AUTHPOOL_STORM to run it")
			}
			if !long {
				t.Parallel()
			}
			newChaos(t, processes, closed).run(c.disturb, c.groups)
		})
	}
}

// rampTime and rampPace are how a cooldown opens.
const (
	rampTime = 5 * time.Second
	rampPace = 250 * time.Millisecond
)

// chaos is a provider that refuses everybody until it opens, and the processes before it.
type chaos struct {
	t      *testing.T
	redis  *redisServer
	wire   *wire // between the first process and Redis
	fleet  []*authpool
	closed time.Duration

	mu      sync.Mutex
	began   time.Time // of the first request
	refused []time.Time
	flights []flight
}

// flight is one served request, as the provider sees it.
type flight struct{ begin, end time.Time }

func newChaos(t *testing.T, processes int, closed time.Duration) *chaos {
	t.Helper()
	c := &chaos{t: t, redis: startRedis(t), closed: closed}
	c.wire = startWire(t, c.redis.address)
	sim, err := simulator.New(simulator.Options{Pace: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	upstream := startHandler(t, sim, c.handle(sim.Handler()))
	for i := range processes {
		o := options{
			subscriptions: []subscription{{"one", simulator.Anthropic, "sk-ant-api03-chaos"}}, upstream: upstream.url, redis: c.redis.url(),
			extra: "failover: {wait: 3m, deadline: 5m}\nlog: {level: warn}\n",
		}
		if i == 0 {
			o.redis = "redis://" + c.wire.address() + "/0"
		}
		c.fleet = append(c.fleet, startAuthpool(t, o))
	}
	return c
}

// handle refuses what comes while it is closed.
func (c *chaos) handle(open http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		c.mu.Lock()
		if c.began.IsZero() {
			c.began = begin
		}
		wait := c.began.Add(c.closed).Sub(begin)
		if wait > 0 {
			c.refused = append(c.refused, begin)
		}
		c.mu.Unlock()
		if wait > 0 {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"type":"error","error":{"type":"rate_limit_error","message":"Number of requests has exceeded your rate limit."}}`)
			return
		}
		open.ServeHTTP(w, r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.flights = append(c.flights, flight{begin, time.Now()})
	})
}

// pass lets time pass.
func (c *chaos) pass(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.t.Context().Done():
	}
}

// run lets the agents ask until everybody has been served and the ramp is over, and looks at what reached the provider.
func (c *chaos) run(disturb func(*chaos), groups float64) {
	const agents = 25
	t := c.t
	var over atomic.Bool
	served := make([]atomic.Int64, len(c.fleet)*agents)
	var crowd sync.WaitGroup
	for i := range served {
		crowd.Go(func() {
			for n := 0; !over.Load(); n++ {
				a := c.fleet[i/agents]
				resp, err := roundTripPatiently(a.ask(t, "/v1/messages", message(fmt.Sprint("turn ", n), false), "X-Authpool-Session", fmt.Sprint("chaos-", i)))
				if err != nil {
					t.Errorf("agent %d: %v", i, err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("agent %d is answered %d %s %v", i, resp.StatusCode, body, err)
					return
				}
				served[i].Add(1)
			}
		})
	}
	disturb(c)
	err := within(c.closed+3*patience, func() error {
		for i := range served {
			if served[i].Load() == 0 {
				return fmt.Errorf("agent %d of process %d waits", i, i/agents)
			}
		}
		if since := time.Since(c.first()); since < rampTime {
			return fmt.Errorf("opened %v ago", since)
		}
		return nil
	})
	over.Store(true)
	if err != nil {
		t.Error(err)
	}
	crowd.Wait()

	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.earliest()
	// Who is on the way when the limit is met cannot know it, and the end of a limit is told in whole milliseconds, so that
	// a probe may come a moment early; nobody else has an excuse.
	for _, at := range c.refused {
		if late := at.Sub(c.began); late > 3*time.Second && late < c.closed-10*time.Millisecond {
			t.Errorf("a request met the limit %v after it was known", late)
		}
	}
	peak := 0
	for at := time.Duration(0); at < rampTime; at += 10 * time.Millisecond {
		n := 0
		for _, f := range c.flights {
			if now := first.Add(at); !now.Before(f.begin) && now.Before(f.end) {
				n++
			}
		}
		peak = max(peak, n)
		if most := 1 + groups*float64(1+at/rampPace); float64(n) > math.Ceil(most) {
			t.Fatalf("%v after the first request %d are under way, want %.0f at most", at, n, math.Ceil(most))
		}
	}
	t.Logf("%d met the limit, the first was served %v after its end, %d were under way at most in the %v after it",
		len(c.refused), first.Sub(c.began.Add(c.closed)).Round(time.Millisecond), peak, rampTime)
}

// first is when the first request came that was served; now, when none was.
func (c *chaos) first() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.earliest()
}

func (c *chaos) earliest() time.Time {
	first := time.Now()
	for _, f := range c.flights {
		if f.begin.Before(first) {
			first = f.begin
		}
	}
	return first
}

// roundTripPatiently is roundTrip for a request that may wait for long.
func roundTripPatiently(req *http.Request) (*http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	return transport.RoundTrip(req)
}

// startHandler starts a simulator as startProvider does, behind a handler of the test's own.
func startHandler(t *testing.T, s *simulator.Simulator, handler http.Handler) *provider {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: handler}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), s.Close()); err != nil || !errors.Is(<-done, http.ErrServerClosed) {
			t.Errorf("the provider did not end well: %v", err)
		}
	})
	return &provider{s, "http://" + ln.Addr().String()}
}

// wire carries connections to a server, until it is cut: then it is as if the network had lost every packet.
type wire struct {
	ln     net.Listener
	server string

	mu     sync.Mutex
	conns  []net.Conn
	closed chan struct{} // closed when what came before is over
	isCut  bool
	work   sync.WaitGroup
}

func startWire(t *testing.T, server string) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{ln: ln, server: server, closed: make(chan struct{})}
	w.work.Go(w.accept)
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		w.hangUp(true)
		w.work.Wait()
	})
	return w
}

func (w *wire) address() string { return w.ln.Addr().String() }

// cut loses everything from now on, silently; or lets new connections through again and breaks the old ones.
func (w *wire) cut(cut bool) {
	if cut {
		w.mu.Lock()
		w.isCut = true
		w.mu.Unlock()
		return
	}
	w.hangUp(false)
}

func (w *wire) hangUp(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = cut
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

func (w *wire) lost() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isCut
}

func (w *wire) accept() {
	for {
		here, err := w.ln.Accept()
		if err != nil {
			return
		}
		there, err := net.Dial("tcp", w.server)
		if err != nil {
			_ = here.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, here, there)
		w.mu.Unlock()
		w.work.Go(func() { w.carry(here, there) })
		w.work.Go(func() { w.carry(there, here) })
	}
}

// carry copies until one of the two is closed.
func (w *wire) carry(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if w.lost() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
