package pool_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// traced has Acquire note how it came to its answer.
func traced(to *pool.Trace) func(*pool.Request) { return func(r *pool.Request) { r.Trace = to } }

// told writes a Trace in short.
func told(t *pool.Trace, now time.Time) string {
	var words []string
	say := func(said bool, format string, args ...any) {
		if said {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	say(t.Home != "", "home %s", t.Home)
	say(t.Inherited, "inherited")
	say(t.ByHash, "by hash")
	for _, c := range t.Candidates {
		if c.Obstacle == "" {
			word := fmt.Sprintf("%s %.0f", c.Subscription, c.Score.Total)
			if c.Draining {
				word += " draining"
			}
			words = append(words, word)
			continue
		}
		word := c.Subscription + " " + c.Obstacle + "(" + c.Reason + ")"
		if !c.Until.IsZero() {
			word += " for " + c.Until.Sub(now).String()
		}
		words = append(words, word)
	}
	say(t.Omitted > 0, "and %d", t.Omitted)
	if w := t.Wait; w.For > 0 {
		until := "?"
		if !w.Until.IsZero() {
			until = w.Until.Sub(now).String()
		}
		say(true, "waited %s behind %d (%d) for %s(%s) %s", w.For, w.Ahead, w.Own, w.Subscription, w.Reason, until)
	}
	return strings.Join(words, ", ")
}

func TestTrace(t *testing.T) {
	var trace pool.Trace
	note := traced(&trace)
	// f makes a request in a new bubble, after before has made others.
	f := func(name, want string, opts pool.Options, before func(*pool.Pool), req *pool.Request, subs ...pool.Subscription) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(opts, subs...)
				defer p.Close()
				if before != nil {
					before(p)
				}
				now := time.Now()
				l, err := p.Acquire(context.Background(), req)
				if err == nil {
					defer l.Done(usage.Tokens{})
				}
				if got := told(&trace, now); got != want {
					t.Errorf("%v: got %q, want %q", err, got, want)
				}
			})
		})
	}
	closed := func(wait time.Duration) func(p *pool.Pool) {
		return func(p *pool.Pool) { serve(t, p, ask("s"), limited(wait)) }
	}
	bound := func(p *pool.Pool) { serve(t, p, ask("s"), ok) }

	f("new", "one 100, two 100", pool.Options{}, nil, ask("s", note), sub("one"), sub("two", priority(1)))
	f("no session", "one 100", pool.Options{}, nil, ask("", note), sub("one"))
	f("bound", "home one", pool.Options{}, bound, ask("s", note), sub("one"), sub("two", priority(1)))
	f("moved", "home one, one cooling(throttled) for 1h0m0s, two 100", pool.Options{}, closed(time.Hour), ask("s", note), sub("one"), sub("two", priority(1)))
	f("elsewhere", "home one, one unfit(model), two 100", pool.Options{}, bound, ask("s", note, model("other")), sub("one", models("claude-*")), sub("two", priority(1)))
	f("tried", "home one, one tried(tried), two 100", pool.Options{}, bound, ask("s", note, tried("one")), sub("one"), sub("two", priority(1)))
	f("pinned", "home one, one tried(tried), two unfit(domain)", pool.Options{}, bound, ask("s", note, pinned, tried("one")), sub("one"), sub("two", priority(1)))
	f("owner", "one unfit(owner), two 100", pool.Options{}, nil, ask("s", note, func(r *pool.Request) { r.Owner = "two" }), sub("one"), sub("two", priority(1)))
	f("inherited", "inherited", pool.Options{}, bound, ask("child", note, func(r *pool.Request) { r.Parent = "s" }), sub("one"), sub("two", priority(1)))
	f("its parent's cannot serve", "one unfit(model), two 100", pool.Options{}, bound,
		ask("child", note, model("other"), func(r *pool.Request) { r.Parent = "s" }), sub("one", models("claude-*")), sub("two", priority(1)))
	f("disabled", "one disabled(gone), two 100", pool.Options{}, nil, ask("s", note),
		sub("one", func(s *pool.Subscription) { s.Disabled, s.Reason = true, "gone" }), sub("two"))
	f("no place", "one full(sessions) for 30m0s, two 100", pool.Options{}, bound, ask("another", note),
		sub("one", limits(pool.Limits{Sessions: 1})), sub("two", priority(1)))
	f("nobody fits", "one unfit(model)", pool.Options{}, nil, ask("s", note, model("other")), sub("one", models("claude-*")))
	f("nobody in time", "one cooling(throttled) for 1h0m0s", pool.Options{Wait: time.Minute}, closed(time.Hour), ask("another", note), sub("one"))
	f("the model is overloaded", "home one, one overloaded(capacity) for 30s", pool.Options{}, func(p *pool.Pool) {
		serve(t, p, ask("s"), ok)
		for range 10 {
			if l, err := p.Acquire(context.Background(), ask("s")); err == nil {
				l.Verdict(noCapacity(30 * time.Second))
				l.Done(usage.Tokens{})
			}
		}
	}, ask("s", note), sub("one"))
	f("no such provider", "", pool.Options{}, nil, ask("s", note, func(r *pool.Request) { r.Provider = "other" }), sub("one"))
}

// TestTraceOfTheQueue: who waits can say how long, behind whom and for what.
func TestTraceOfTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(pool.Options{Wait: time.Minute}, sub("one", limits(pool.Limits{Concurrent: 1})))
		defer p.Close()
		first, err := p.Acquire(context.Background(), ask("s"))
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		got := make([]string, 3)
		done := make(chan struct{})
		for i, who := range []string{"a", "b", "a"} {
			go func() {
				defer func() { done <- struct{}{} }()
				var trace pool.Trace
				l, err := p.Acquire(context.Background(), ask(fmt.Sprint("s", i), agent(who), traced(&trace)))
				if err != nil {
					t.Error(err)
					return
				}
				got[i] = told(&trace, begun)
				pass(time.Second)
				l.Done(usage.Tokens{})
			}()
			synctest.Wait()
		}
		pass(2 * time.Second)
		first.Done(usage.Tokens{})
		for range got {
			<-done
		}
		for i, want := range []string{
			"one 80, waited 2s behind 0 (0) for one(concurrency) ?",
			"one 67, waited 3s behind 1 (0) for one(concurrency) ?",
			"one 57, waited 4s behind 2 (1) for one(concurrency) ?",
		} {
			if got[i] != want {
				t.Errorf("request %d: got %q, want %q", i, got[i], want)
			}
		}

		// A known end is told, and who is refused after having waited says so.
		p2 := start(pool.Options{Wait: time.Minute}, sub("one"))
		defer p2.Close()
		serve(t, p2, ask("s"), limited(30*time.Second))
		var trace pool.Trace
		now := time.Now()
		l, err := p2.Acquire(context.Background(), ask("s", traced(&trace)))
		if err != nil {
			t.Fatal(err)
		}
		l.Done(usage.Tokens{})
		if w := trace.Wait; w.For < 30*time.Second || !w.Until.After(now.Add(29*time.Second)) || w.Reason != "throttled" || len(trace.Candidates) > 0 {
			t.Errorf("%+v", trace)
		}
	})
}

// Of many candidates a few are told, and the choice is one of them.
func TestTraceOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var subs []pool.Subscription
		for i := range 40 {
			subs = append(subs, sub(fmt.Sprint("s", i), priority(40-i)))
		}
		p := start(pool.Options{}, subs...)
		defer p.Close()
		var trace pool.Trace
		for i := range 2 { // its memory is used again
			id, _ := serve(t, p, ask(fmt.Sprint(i), traced(&trace)), ok)
			found := false
			for _, c := range trace.Candidates {
				found = found || c.Subscription == id && c.Obstacle == "" && c.Score.Total > 0 && c.Priority == 1
			}
			if id != "s39" || !found || len(trace.Candidates)+trace.Omitted != 40 || len(trace.Candidates) != 16 {
				t.Errorf("%s was chosen: %+v", id, trace)
			}
		}
	})
}

// Without Redis no score is looked at, and the trace says so.
func TestTraceWithoutRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, h := fleet(t, client, 1, pool.Options{}, sub("one"), sub("two", priority(1)))
		h.away.Store(true)
		var trace pool.Trace
		serve(t, pools[0], ask("s", traced(&trace)), ok)
		if got, want := told(&trace, time.Now()), "by hash, one 0, two 0"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// What Acquire costs with a trace, as every request of the proxy has one.
func BenchmarkAcquireTraced(b *testing.B) {
	for _, n := range []int{3, 500} {
		var subs []pool.Subscription
		for i := range n {
			subs = append(subs, sub(fmt.Sprint("s", i)))
		}
		f := func(name string, session func(i int) string) {
			b.Run(fmt.Sprintf("%s, %d subscriptions", name, n), func(b *testing.B) {
				p := start(pool.Options{}, subs...)
				defer p.Close()
				var trace pool.Trace
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					l, err := p.Acquire(context.Background(), ask(session(i), traced(&trace)))
					if err != nil {
						b.Fatal(err)
					}
					l.Verdict(ok)
					l.Done(usage.Tokens{Input: 1, Output: 1})
				}
			})
		}
		f("bound", func(int) string { return "s" })
		f("new", func(i int) string { return fmt.Sprint("s", i%50_000) })
	}
}
