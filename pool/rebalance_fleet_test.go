package pool_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/store"
)

// Two processes, each with sessions of its own on a subscription that is switched off:
// they take turns, never move more than 20 a minute together, go on when one of them
// dies, and come to rest.
func TestRebalanceByItselfInAFleet(t *testing.T) {
	const each = 40
	var bus event.Bus
	events, stop := bus.Subscribe("test", 1000)
	defer stop()
	opts := pool.Options{IdleTimeout: 2 * time.Hour, Events: &bus}
	together(t, 2, opts, func(t *testing.T, fleet []*sidecar) {
		for i, s := range fleet {
			for n := range each {
				serve(t, s.pool, ask(fmt.Sprintf("s%d-%d", i, n)), ok)
				pass(time.Second) // what is bound is written
			}
		}
		for _, s := range fleet {
			s.pool.Apply([]pool.Subscription{sub("a", off("gone")), sub("b", priority(1))})
		}
		moved := make(map[string]int)
		total := 0
		hear := func() int {
			for {
				select {
				case e := <-events:
					if e.Kind == event.SessionMoved {
						moved[e.Session]++
						total++
					}
				default:
					return total
				}
			}
		}
		var history []int
		for now := range 15 * 6 {
			pass(10 * time.Second)
			history = append(history, hear())
			if now >= 5 && history[now]-history[now-5] > 20 {
				t.Errorf("%d sessions were moved within 50 s: %v", history[now]-history[now-5], history)
			}
			if now == 12 {
				fleet[0].pool.Close() // it dies
			}
		}
		for session, n := range moved {
			if n > 1 {
				t.Errorf("%s was moved %d times", session, n)
			}
		}
		left := 0
		for n := range each {
			if moved[fmt.Sprintf("s1-%d", n)] == 0 {
				left++
			}
		}
		if left > 0 {
			t.Errorf("%d sessions of the process that lives were left: %v", left, history)
		}
	}, sub("a"), sub("b", priority(1)))
}

// stopper does something to a process before its commands, from the nth on.
type stopper struct {
	left atomic.Int64
	do   func()
}

func (s *stopper) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (s *stopper) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		s.step()
		return next(context.WithoutCancel(ctx), cmd) // it was under way
	}
}

func (s *stopper) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.step()
		return next(context.WithoutCancel(ctx), cmds)
	}
}

func (s *stopper) step() {
	if s.left.Add(-1) <= 0 {
		s.do()
	}
}

// armed has do called before each command of a process from the nth on.
func armed(s *sidecar, n int64, do func()) {
	h := &stopper{do: do}
	h.left.Store(n)
	s.client.AddHook(h)
}

// Who moves sessions is killed in the middle of them, or stopped and goes on later. It
// gives nothing back. The other has its turn when the lease is over, and not before; who
// goes on moves nothing with the fence that it has.
func TestWhoRebalancesIsKilled(t *testing.T) {
	const each = 15
	// asleep says that the first one does nothing by itself: the test stops it in the
	// middle of its only goroutine.
	fleet := func(t *testing.T, asleep bool, f func(t *testing.T, first, second *sidecar, on func(process int) (a, b int))) {
		opts := pool.Options{IdleTimeout: 2 * time.Hour, Logger: slog.New(slog.DiscardHandler)}
		subs := []pool.Subscription{sub("a"), sub("b", priority(1))}
		together(t, 2, opts, func(t *testing.T, fleet []*sidecar) {
			if first := fleet[0]; asleep {
				first.pool.Close()
				first.pool = pool.New(opts, subs, store.New(first.client, first.client, &first.health, "authpool"))
			}
			for i, s := range fleet {
				for n := range each {
					serve(t, s.pool, ask(fmt.Sprintf("s%d-%d", i, n)), ok)
				}
			}
			pass(5 * time.Second) // what is bound is written
			for _, s := range fleet {
				s.pool.Apply([]pool.Subscription{sub("a", off("gone")), sub("b", priority(1))})
			}
			f(t, fleet[0], fleet[1], func(process int) (a, b int) {
				t.Helper()
				for n := range each {
					switch id := fleet[1].client.HGet(context.Background(), fmt.Sprintf("authpool:session:{anthropic/a/s%d-%d}", process, n), "subscription").Val(); id {
					case "a":
						a++
					case "b":
						b++
					default:
						t.Errorf("s%d-%d is on %q", process, n, id)
					}
				}
				return a, b
			})
		}, subs...)
	}
	// turn has the second one ask until the lease is over, and then all of its sessions.
	turn := func(t *testing.T, second *sidecar, began time.Time, on func(int) (int, int)) {
		t.Helper()
		for {
			done, wait, err := second.pool.Rebalance(context.Background(), false)
			if err != nil {
				t.Fatal(err)
			}
			since := time.Since(began)
			if left, _ := on(1); left == 0 && len(done) == 0 && since >= time.Minute-time.Second {
				return // it has looked by itself at this very moment
			}
			if len(done) == 0 {
				if wait <= 0 || since+wait > time.Minute+time.Second {
					t.Fatalf("refused for %v, %v after the other began", wait, since)
				}
				pass(min(wait, 10*time.Second))
				continue
			}
			if since < time.Minute-time.Second || len(done) != each {
				t.Errorf("%d moves %v after the other began, want %d after a minute", len(done), since, each)
			}
			for _, one := range done {
				if one.Err != nil {
					t.Errorf("%+v", one)
				}
			}
			return
		}
	}
	t.Run("killed", func(t *testing.T) {
		fleet(t, false, func(t *testing.T, first, second *sidecar, on func(int) (int, int)) {
			began := time.Now()
			armed(first, 40, func() { first.partition(true) })
			_, _, _ = first.pool.Rebalance(context.Background(), false)
			_, moved := on(0)
			if moved == 0 || moved == each {
				t.Fatalf("it was killed after %d moves", moved)
			}
			turn(t, second, began, on)
			pass(time.Minute) // whatever the dead one has reserved is over
			_, moved = on(0)
			if places := second.client.ZCard(context.Background(), "authpool:{b}:sessions").Val(); places != int64(each+moved) {
				t.Errorf("%d places are held for the %d sessions that were moved", places, each+moved)
			}
		})
	})
	t.Run("stopped", func(t *testing.T) {
		fleet(t, true, func(t *testing.T, first, second *sidecar, on func(int) (int, int)) {
			goesOn := make(chan struct{})
			release := sync.OnceFunc(func() { close(goesOn) })
			defer release()
			began := time.Now()
			armed(first, 40, func() { <-goesOn })
			result := make(chan []pool.Rebalanced, 1)
			go func() {
				done, _, _ := first.pool.Rebalance(context.Background(), false)
				result <- done
			}()
			pass(time.Second)
			_, before := on(0)
			turn(t, second, began, on)
			release()
			fenced := 0
			for _, one := range <-result {
				if errors.Is(one.Err, store.ErrFenced) {
					fenced++
				}
			}
			// One may have had its place already when the process was stopped.
			if _, b := on(0); before == 0 || b > before+1 || fenced < each-before-1 {
				t.Errorf("%d sessions were moved when it was stopped, and %d later; %d moves met the fence", before, b-before, fenced)
			}
		})
	})
}
