package pool

import (
	"testing"
	"time"

	"github.com/authpool/authpool/pool/store"
)

func TestShare(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	enters := func(s *share, away bool, want int) {
		t.Helper()
		n := 0
		for n < 100 && s.enter(now, away) {
			n++
		}
		if n != want {
			t.Errorf("%d requests got in, want %d", n, want)
		}
	}
	leaves := func(s *share, n int) {
		for range n {
			s.leave()
		}
	}

	unlimited := &share{}
	enters(unlimited, false, 100)
	alone := &share{limit: 5, whole: true}
	enters(alone, false, 5)

	s := &share{limit: 20}
	enters(s, false, 0) // nothing is ours before we ask
	if !s.demand(now) {
		t.Error("a request without room does not have the fleet asked")
	}
	r, ok := s.request(now)
	if want := (store.ShareRequest{Limit: 20, Want: 4}); !ok || r != want {
		t.Errorf("asks for %+v, %v; want %+v", r, ok, want)
	}
	if s.demand(now) {
		t.Error("the fleet is asked again at once")
	}
	if !s.renew(now, store.Share{Granted: 4, Target: 3}) {
		t.Error("more room is not noticed")
	}
	enters(s, false, 3)

	now = now.Add(shareRenew)
	if r, ok := s.request(now); !ok || r.InFlight != 3 || r.Want != 7 { // with the one that was refused, and an eighth
		t.Errorf("renews by %+v, %v", r, ok)
	}
	// Redis goes away: what was held then stays ours, because nobody can get it.
	now = now.Add(time.Minute)
	enters(s, false, 0) // it ended while Redis was there
	leaves(s, 3)
	enters(s, true, 3)
	leaves(s, 3)
	// Who held nothing goes on with one at a time.
	enters(&share{limit: 20}, true, 1)

	// Unused, it is given back.
	if r, ok := s.request(now.Add(shareIdle)); !ok || r.Want != 0 {
		t.Errorf("unused, it asks for %+v, %v", r, ok)
	}
	s.renew(now, store.Share{})
	now = now.Add(time.Hour)
	if r, ok := s.request(now); ok {
		t.Errorf("without use it asks for %+v", r)
	}
}
