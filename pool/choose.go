package pool

import "math"

// Factors is what the choice between subscriptions looks at.
type Factors struct {
	Availability float64 // 1 open, 0.5 being probed after it was closed, 0 closed
	Utilization  float64 // spent fraction of the tightest limit, 0..1 and sometimes above
	ErrorRate    float64 // share of failures among recent answers, 0..1
	InFlight     int64   // requests under way
	Sessions     int64   // sessions that have a place
	Weight       int     // the operator's share; less than 1 counts as 1
}

// Score is the worth of a subscription for the next new session, with its
// parts. Health is what people see; Total also knows how busy it is.
//
//	Health = 100 × Availability × Headroom × Soundness
//	Total  = Health × Idleness
//
// Every part is in 0..1, so both are in 0..100, and every part alone can rule a
// subscription out. Headroom is 1 − utilization, Soundness is 1 − error rate.
// Idleness is weight ÷ (weight + busy), where a request under way counts 1 and
// a session that has a place a quarter: equal subscriptions get load in
// proportion to their weights.
type Score struct {
	Total, Health                               float64
	Availability, Headroom, Soundness, Idleness float64
	// Nearly says that the utilization is nearlyFrom or more: new sessions go to
	// whoever is not, of whatever score, so that those that are there find the
	// rest, and nobody runs into the wall.
	Nearly bool
}

// nearlyFrom is later than drainFrom: what is left of a provider's window is the
// provider's to give, and a limit per minute has it again in a moment.
const nearlyFrom = 0.95

// Rate computes the score. It is a pure function; whatever comes in, no part is
// NaN, infinite or out of its range.
func (f Factors) Rate() Score {
	s := Score{
		Availability: unit(f.Availability),
		Headroom:     1 - unit(f.Utilization),
		Soundness:    1 - unit(f.ErrorRate),
		Nearly:       f.Utilization >= nearlyFrom,
	}
	weight := float64(max(f.Weight, 1))
	busy := float64(max(f.InFlight, 0)) + float64(max(f.Sessions, 0))/4
	s.Idleness = weight / (weight + busy)
	s.Health = 100 * s.Availability * s.Headroom * s.Soundness
	s.Total = s.Health * s.Idleness
	return s
}

// unit clamps to 0..1; what is not a number is 0.
func unit(x float64) float64 {
	if math.IsNaN(x) {
		return 0
	}
	return min(max(x, 0), 1)
}

// tie is how far two totals may be apart and still count as equal, so that
// processes that see slightly different loads make the same choice.
const tie = 1.0

// rendezvous is the claim of one subscription on one session, by weighted
// rendezvous hashing: who has the highest claim gets the session. Every process
// comes to the same result without talking, in proportion to the weights, and
// when a subscription goes only its sessions move.
func rendezvous(session, subscription string, weight int) float64 {
	// FNV-1a over both names, a zero between them. Its upper bits follow the
	// input too closely, so the end is that of MurmurHash3.
	const prime = 1099511628211
	x := uint64(14695981039346656037)
	for i := range len(session) {
		x = (x ^ uint64(session[i])) * prime
	}
	x *= prime
	for i := range len(subscription) {
		x = (x ^ uint64(subscription[i])) * prime
	}
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	u := (float64(x>>11) + 0.5) / (1 << 53) // uniform in (0,1)
	return -float64(max(weight, 1)) / math.Log(u)
}

// candidate is one subscription that could serve, as better compares them.
type candidate struct {
	draining bool // the rest of it is for the sessions that are there
	priority int
	total    float64
	claim    float64
}

// better tells whether a is to be taken before b: one that does not drain, of
// whatever tier, then the lower tier, then the better score, then the higher
// claim on the session.
func (a candidate) better(b candidate) bool {
	if a.draining != b.draining {
		return b.draining
	}
	if a.priority != b.priority {
		return a.priority < b.priority
	}
	if x, y := math.Floor(a.total/tie), math.Floor(b.total/tie); x != y {
		return x > y
	}
	return a.claim > b.claim
}
