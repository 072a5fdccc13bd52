package pool

import "math"

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
