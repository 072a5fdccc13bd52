package embedded

import "time"

// tickEvery is how often keys age. A key may therefore outlive its time by up to
// a tick, or end up to a tick early when it was set just before one: expiries of
// a few seconds are not to be relied on. Each tick walks all keys once, some 7 ms
// at 20,000; ClockTTL, which miniredis offers for this, walks them at every
// access, inside scripts too.
const tickEvery = time.Second

// tick ages the keys until the store stops. It goes by the wall clock, as Redis
// does: after a suspend the keys that are overdue end at once. A clock set back
// ages nothing.
func (s *Store) tick() {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	last := wallClock()
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
		}
		now := wallClock()
		if elapsed := now.Sub(last); elapsed > 0 {
			s.age(elapsed)
		}
		last = now
	}
}

func (s *Store) age(elapsed time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mini.FastForward(elapsed)
}

// wallClock is now without its monotonic part, which stands still in a suspend.
func wallClock() time.Time { return time.Now().Round(0) }
