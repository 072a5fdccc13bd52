package pool

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// The reasons of a PlannedMove.
const (
	// WhyClosed: its subscription cannot serve, and will not for some time.
	WhyClosed = "closed"
	// WhyUneven: it is cold, and another of the same tier has clearly fewer sessions
	// for its weight.
	WhyUneven = "uneven"
)

// PlannedMove is one move that rebalancing wants.
type PlannedMove struct {
	Session  SessionKey
	From, To string
	Why      string // WhyClosed or WhyUneven
	// CacheTokens is what the session has read from its prompt cache within the last 5
	// minutes, in this process: it is lost with the move.
	CacheTokens int64
	Model       string // of its last request, or empty
}

// unevenFrom is the part of a subscription's load by more than which another has to be
// below it for a session to be moved: what comes and goes by itself moves nobody.
const unevenFrom = 0.2

// desk is one subscription, as the plan sees it.
type desk struct {
	id, provider string
	priority     int
	weight       int // from 1
	sessions     int // that have a place
	most         int // of them; 0: no limit
	closed       bool
	takes        bool // new sessions
}

func (d *desk) load(more int) float64 { return float64(d.sessions+more) / float64(d.weight) }

func (d *desk) room() bool { return d.takes && !d.closed && (d.most == 0 || d.sessions < d.most) }

// seat is one session that may be moved.
type seat struct {
	key   SessionKey
	on    int // index of its desk
	cold  bool
	cache int64
	model string
	// failed is when it could not be moved the last time; zero: it could, or was not tried.
	failed time.Time
	fits   func(desk int) bool // whether it may be there; asked only about its provider's
}

// planMoves says who is to move, in the order of importance and at most so many. It is
// a pure function, apart from counting the moves in desks.
//
// First come those whose subscription cannot serve, the cheapest first, and who could not
// be moved behind those who may be; then, when even
// is true, cold ones from who has the most sessions for its weight to who has the
// least, within a tier. Such a move is made only where the former still has no fewer
// for it than the latter then: each makes the loads strictly more even, so that plans
// come to an end, and no state comes again.
func planMoves(desks []desk, seats []seat, even bool, most int) (plan []PlannedMove) {
	move := func(s *seat, to int, why string) {
		desks[s.on].sessions--
		desks[to].sessions++
		plan = append(plan, PlannedMove{s.key, desks[s.on].id, desks[to].id, why, s.cache, s.model})
	}
	order := make([]*seat, len(seats))
	for i := range seats {
		order[i] = &seats[i]
	}
	slices.SortFunc(order, func(a, b *seat) int {
		return cmp.Or(a.failed.Compare(b.failed), cmp.Compare(a.cache, b.cache), strings.Compare(a.key.String(), b.key.String()))
	})
	cold := make([][]*seat, len(desks))
	for _, s := range order {
		switch {
		case !desks[s.on].closed:
			if s.cold {
				cold[s.on] = append(cold[s.on], s)
			}
		case len(plan) < most:
			if to := refuge(desks, s); to >= 0 {
				move(s, to, WhyClosed)
			}
		}
	}
	for even && len(plan) < most {
		from, nth, to := evener(desks, cold)
		if from < 0 {
			break
		}
		move(cold[from][nth], to, WhyUneven)
		cold[from] = slices.Delete(cold[from], nth, nth+1)
	}
	return plan
}

// refuge is the desk for a session whose own is closed; -1: there is none.
func refuge(desks []desk, s *seat) int {
	best := -1
	for i := range desks {
		d := &desks[i]
		if i == s.on || d.provider != desks[s.on].provider || !d.room() || !s.fits(i) {
			continue
		}
		if best < 0 || d.priority < desks[best].priority ||
			d.priority == desks[best].priority && d.load(1) < desks[best].load(1) {
			best = i
		}
	}
	return best
}

// seatsTried is how many sessions of one subscription are tried at another.
const seatsTried = 64

// evener is the next move that makes the loads more even: the nth of from's cold
// sessions; from is -1 when there is none.
func evener(desks []desk, cold [][]*seat) (from, nth, to int) {
	byLoad := make([]int, len(desks))
	for i := range desks {
		byLoad[i] = i
	}
	slices.SortStableFunc(byLoad, func(a, b int) int { return cmp.Compare(desks[a].load(0), desks[b].load(0)) })
	for _, from := range slices.Backward(byLoad) {
		if len(cold[from]) == 0 {
			continue
		}
		a := &desks[from]
		for _, to := range byLoad {
			b := &desks[to]
			if b.load(0) >= a.load(0)*(1-unevenFrom) {
				break // nor are the others
			}
			if to == from || b.provider != a.provider || b.priority != a.priority || !b.room() || b.load(1) > a.load(-1) {
				continue
			}
			for nth, s := range cold[from][:min(len(cold[from]), seatsTried)] {
				if s.fits(to) {
					return from, nth, to
				}
			}
		}
	}
	return -1, 0, 0
}
