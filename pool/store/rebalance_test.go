package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/store"
)

func TestOneBalancesAtATime(t *testing.T) {
	each(t, func(t *testing.T, s *store.Store, _ redis.UniversalClient) {
		ask := func(process string, moves int, force bool) store.Balance {
			t.Helper()
			return first(s.Balance(ctx, store.Balancing{
				Process: process, Hold: time.Minute, Moves: moves, Most: 10, Window: time.Minute, Force: force,
			}))
		}
		a := ask("a", 6, false)
		if a.Fence <= 0 || a.Moves != 6 || a.Wait <= 0 || a.Wait > time.Minute {
			t.Fatalf("the first: %+v", a)
		}
		if b := ask("b", 1, false); b.Fence != 0 || b.Moves != 0 || b.Wait <= 0 || b.Wait > time.Minute {
			t.Errorf("another while it is leased: %+v", b)
		}
		b := ask("b", 6, true)
		if b.Fence <= a.Fence || b.Moves != 4 {
			t.Errorf("by force: %+v after %+v; want a higher fence and the 4 moves that are left", b, a)
		}
		// Who was the one is shut out.
		if err := s.Fence(ctx, []string{"one"}, b.Fence); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReserveMoved(ctx, "one", "x", 0, time.Minute, a.Fence); !errors.Is(err, store.ErrFenced) {
			t.Errorf("a move of the former one: %v", err)
		}
		if a := ask("a", 1, true); a.Moves != 0 || a.Fence != 0 || a.Wait <= 0 {
			t.Errorf("beyond the fleet's bound: %+v", a)
		}
		if err := s.Fence(ctx, []string{"one"}, b.Fence); err != nil {
			t.Errorf("who got no moves has shut out who has: %v", err)
		}
	})
}

func TestBalanceEnds(t *testing.T) {
	s, pass := timed(t)
	ask := func(process string) store.Balance {
		t.Helper()
		return first(s.Balance(ctx, store.Balancing{Process: process, Hold: time.Minute, Moves: 9, Most: 10, Window: time.Minute}))
	}
	ask("a")
	if b := ask("b"); b.Fence != 0 {
		t.Fatalf("%+v", b)
	}
	pass(time.Minute)
	if b := ask("b"); b.Fence == 0 || b.Moves != 9 {
		t.Errorf("after the lease: %+v", b)
	}
}

func TestBalanceBoundsEveryMinute(t *testing.T) {
	s, pass := timed(t)
	ask := func(moves int) int {
		t.Helper()
		return first(s.Balance(ctx, store.Balancing{Process: "a", Hold: time.Minute, Moves: moves, Most: 10, Window: time.Minute})).Moves
	}
	ask(1)
	pass(50 * time.Second)
	if n := ask(9); n != 9 {
		t.Fatalf("%d moves, want the 9 that are left", n)
	}
	pass(20 * time.Second) // a minute after the first, but not after the others
	if n := ask(10); n != 0 {
		t.Errorf("%d more moves 20 s after 9, of 10 a minute", n)
	}
	pass(40 * time.Second)
	if n := ask(10); n != 10 {
		t.Errorf("%d moves a minute later", n)
	}
}

// Who asks again and again does not keep the others from their turn: neither with the
// moves that it gets, nor with those that are refused.
func TestBalanceIsNotProlonged(t *testing.T) {
	for name, begins := range map[string]int{"moves are left": 1, "none are left": 20} {
		t.Run(name, func(t *testing.T) {
			s, pass := timed(t)
			ask := func(process string, moves, want int) {
				t.Helper()
				b := first(s.Balance(ctx, store.Balancing{Process: process, Hold: time.Minute, Moves: moves, Most: 20, Window: time.Minute}))
				if b.Moves != want || (b.Fence > 0) != (want > 0) {
					t.Errorf("%s asks for %d: %+v, want %d", process, moves, b, want)
				}
			}
			ask("a", begins, begins)
			pass(40 * time.Second)
			ask("a", 1, min(1, 20-begins))
			ask("b", 1, 0) // another has the lease
			pass(20*time.Second - time.Millisecond)
			ask("b", 1, 0)
			pass(time.Millisecond)
			ask("b", 1, 1)
			ask("a", 1, 0)
		})
	}
}
