package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// sidecar is one process of a fleet whose wire to Redis a test can cut. All of it
// is in memory, for a synctest bubble.
type sidecar struct {
	pool   *pool.Pool
	client redis.UniversalClient
	health health

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

var errCut = errors.New("the wire is cut")

func newSidecar(mini *miniredis.Miniredis, opts pool.Options, subs ...pool.Subscription) *sidecar {
	s := &sidecar{}
	s.client = redis.NewClient(&redis.Options{
		// Never dialled. A name here, as the default is one, might be looked up, and
		// look-ups are shared with what runs outside of the bubble.
		Addr:     "127.0.0.1:6379",
		Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.cut {
				return nil, errCut
			}
			conn, err := mini.Dial()
			if err != nil {
				return nil, err
			}
			s.conns = append(s.conns, conn)
			return &wire{Conn: conn}, nil
		},
	})
	s.pool = startWith(opts, store.New(s.client, s.client, &s.health, "authpool"), subs...)
	return s
}

// wire is a connection that takes its time, as a real one does: else all that asks
// again when it has its answer would do so for ever in one instant of the bubble.
type wire struct {
	net.Conn
	listens atomic.Bool
}

// Write implements net.Conn. What is said where events come in takes no time: go-redis
// holds a lock meanwhile that the end of a subscription waits for, and time in a
// bubble stands still while anybody waits for a lock.
func (w *wire) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("subscribe")) {
		w.listens.Store(true)
	}
	if !w.listens.Load() {
		time.Sleep(500 * time.Microsecond)
	}
	return w.Conn.Write(b)
}

// partition takes Redis away, or gives it back.
func (s *sidecar) partition(cut bool) {
	s.health.away.Store(cut)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = cut
	if cut {
		for _, conn := range s.conns {
			_ = conn.Close()
		}
		s.conns = nil
	}
}

func (s *sidecar) close() {
	s.pool.Close()
	_ = s.client.Close()
	time.Sleep(time.Second) // go-redis' goroutines find out; a bubble must not end before
}

// provider refuses everybody until it opens, and notes what reaches it.
type provider struct {
	opens time.Time

	mu      sync.Mutex
	refused []time.Time
	flights []flight
}

// flight is one served request.
type flight struct{ begin, end time.Time }

// serve is what an agent's request meets there.
func (p *provider) serve(l *pool.Lease) {
	begin := time.Now()
	if wait := p.opens.Sub(begin); wait > 0 {
		p.mu.Lock()
		p.refused = append(p.refused, begin)
		p.mu.Unlock()
		l.Verdict(limited(wait))
		l.Done(usage.Tokens{})
		return
	}
	time.Sleep(50 * time.Millisecond)
	l.Verdict(ok)
	time.Sleep(250 * time.Millisecond)
	p.mu.Lock()
	p.flights = append(p.flights, flight{begin, time.Now()})
	p.mu.Unlock()
	l.Done(usage.Tokens{Input: 1})
}

// under is how many requests were under way at t.
func (p *provider) under(t time.Time) (n int) {
	for _, f := range p.flights {
		if !t.Before(f.begin) && t.Before(f.end) {
			n++
		}
	}
	return n
}

// Four processes with 25 agents each wait for one subscription to open. Whatever
// happens to Redis meanwhile, it opens for all of them, and they do not all come at
// once: one probe, and then a few more at a time. Without Redis that is true for
// every process by itself.
func TestReopening(t *testing.T) {
	const (
		processes, agents = 4, 25
		closed            = 20 * time.Second
	)
	f := func(name string, skew, jump time.Duration, disturb func(mini *miniredis.Miniredis, fleet []*sidecar), groups float64) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				mini := miniredis.NewMiniRedis()
				stop := make(chan struct{})
				var clock sync.WaitGroup
				clock.Go(func() {
					if jump == 0 {
						run(mini, skew, stop)
						return
					}
					early := make(chan struct{})
					time.AfterFunc(closed/2, func() { close(early) })
					run(mini, 0, early)
					for _, key := range mini.Keys() { // they end by the clock
						if left := mini.TTL(key); left > jump {
							mini.SetTTL(key, left-jump)
						} else if left > 0 {
							mini.Del(key)
						}
					}
					run(mini, jump, stop)
				})
				// A clock that was set back says for so long that it is not over yet.
				longest := max(-jump, 0)
				var fleet []*sidecar
				for range processes {
					fleet = append(fleet, newSidecar(mini, pool.Options{Wait: 2*time.Minute + longest}, sub("one")))
				}
				there := &provider{opens: time.Now().Add(closed)}
				end := there.opens.Add(longest + 15*time.Second)
				var wg sync.WaitGroup
				if disturb != nil {
					wg.Go(func() { disturb(mini, fleet) })
				}
				served := make([]atomic.Int64, processes)
				for i, s := range fleet {
					for j := range agents {
						wg.Go(func() {
							for time.Now().Before(end) {
								l, err := s.pool.Acquire(context.Background(), ask(fmt.Sprint("session-", i, "-", j), func(r *pool.Request) { r.Agent = fmt.Sprint("agent-", j) }))
								if err != nil {
									t.Error(err)
									return
								}
								there.serve(l)
								served[i].Add(1)
							}
						})
					}
				}
				wg.Wait()
				for _, s := range fleet {
					s.close()
				}
				close(stop)
				clock.Wait()
				mini.Close()

				for _, at := range there.refused {
					if late := at.Sub(there.opens.Add(-closed)); late > time.Second {
						t.Errorf("a request met the limit %v after it was known", late)
					}
				}
				for i := range served {
					if served[i].Load() < agents {
						t.Errorf("process %d: only %d requests were served", i, served[i].Load())
					}
				}
				if len(there.flights) == 0 {
					t.Fatal("nobody was served")
				}
				first := there.flights[0].begin
				for _, f := range there.flights {
					if f.begin.Before(first) {
						first = f.begin
					}
				}
				if late := first.Sub(there.opens); late > longest+6*time.Second {
					t.Errorf("the first request was served %v after it opened", late)
				}
				peak := 0
				for at := time.Duration(0); at < ratelimit.RampTime; at += 10 * time.Millisecond {
					n := there.under(first.Add(at))
					peak = max(peak, n)
					most := 1 + 1/1. + 1/2. + 1/3. // the processes' paces, one after the other
					if groups > 1 {
						most = groups
					}
					// Each that finds out for itself has a probe beside its ramp.
					if float64(n) > math.Ceil(max(1, groups)+most*float64(1+at/ratelimit.RampPace)) {
						t.Fatalf("%v after the first request %d are under way", at, n)
					}
				}
				if n := there.under(end.Add(-200 * time.Millisecond)); n < processes*agents*9/10 {
					t.Errorf("after the ramp %d are under way, want about all %d", n, processes*agents)
				}
				t.Logf("%d met the limit, the first was served after %v, %d under way at most in the %v after it",
					len(there.refused), first.Sub(there.opens), peak, ratelimit.RampTime)
			})
		})
	}
	f("all is well", 0, 0, nil, 1)
	// All that a process knows of Redis' clock are times to wait; so a clock of
	// its own that is wrong by as much is this as well.
	f("Redis' clock is 5 minutes ahead", 5*time.Minute, 0, nil, 1)
	f("Redis' clock is 5 minutes behind", -5*time.Minute, 0, nil, 1)
	// As when a replica takes over whose clock is wrong: what Redis has is by the
	// former's. A clock that is behind can only be believed: it might as well be
	// a new cooldown.
	f("Redis' clock jumps 5 minutes ahead", 0, 5*time.Minute, nil, 1)
	f("Redis' clock jumps 5 minutes back", 0, -5*time.Minute, nil, 1)
	f("a process is cut off before the limit is met", 0, 0, func(_ *miniredis.Miniredis, fleet []*sidecar) {
		fleet[0].partition(true)
		time.Sleep(30 * time.Second)
		fleet[0].partition(false)
	}, 3.1)
	f("a process is cut off for 30 s", 0, 0, func(_ *miniredis.Miniredis, fleet []*sidecar) {
		time.Sleep(5 * time.Second)
		fleet[0].partition(true)
		time.Sleep(30 * time.Second)
		fleet[0].partition(false)
	}, 3.1)
	f("Redis restarts and has lost everything", 0, 0, func(mini *miniredis.Miniredis, fleet []*sidecar) {
		time.Sleep(closed - 3*time.Second)
		for _, s := range fleet {
			s.partition(true)
		}
		mini.FlushAll()
		time.Sleep(time.Second)
		for _, s := range fleet {
			s.partition(false)
		}
	}, processes) // each finds its connection broken when it asks
	f("Redis is away when it opens", 0, 0, func(_ *miniredis.Miniredis, fleet []*sidecar) {
		time.Sleep(closed - 3*time.Second)
		for _, s := range fleet {
			s.partition(true)
		}
		time.Sleep(6 * time.Second)
		for _, s := range fleet {
			s.partition(false)
		}
	}, processes)
}

// inBubble calls f in a synctest bubble, with a Redis whose time goes on as there.
func inBubble(t *testing.T, f func(t *testing.T, mini *miniredis.Miniredis)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		defer mini.Close()
		stop := make(chan struct{})
		var clock sync.WaitGroup
		clock.Go(func() { run(mini, 0, stop) })
		defer clock.Wait()
		defer close(stop)
		f(t, mini)
	})
}

// run makes a miniredis' time go on, at a distance from the test's.
func run(mini *miniredis.Miniredis, skew time.Duration, stop chan struct{}) {
	const step = 10 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		mini.SetTime(time.Now().Add(skew))
		mini.FastForward(step)
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// That a cooldown of some minutes ago was found to be over says nothing of one that
// only this process knows of: it has a probe of its own.
func TestReopeningAfterAFormerSuccess(t *testing.T) {
	inBubble(t, func(t *testing.T, mini *miniredis.Miniredis) {
		s := newSidecar(mini, pool.Options{Wait: time.Minute}, sub("one"))
		defer s.close()
		serve(t, s.pool, ask("a"), limited(5*time.Second))
		serve(t, s.pool, ask("a"), ok) // the fleet hears that it is over
		pass(time.Minute)
		bare := limited(-1)
		bare.Reason = ratelimit.ReasonBare
		serve(t, s.pool, ask("a"), bare) // one of these says too little for the fleet
		there := &provider{opens: time.Now()}
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				l, err := s.pool.Acquire(context.Background(), ask(fmt.Sprint("session-", i)))
				if err != nil {
					t.Error(err)
					return
				}
				there.serve(l)
			})
		}
		wg.Wait()
		first := there.flights[0].begin
		for _, f := range there.flights {
			if f.begin.Before(first) {
				first = f.begin
			}
		}
		if n := there.under(first.Add(10 * time.Millisecond)); n != 1 {
			t.Errorf("%d requests came at its end, want one that finds out", n)
		}
		for at := time.Duration(0); at < time.Second; at += 10 * time.Millisecond {
			if n := there.under(first.Add(at)); n > 2+int(at/ratelimit.RampPace) {
				t.Fatalf("%v after its end %d requests are under way", at, n)
			}
		}
	})
}
