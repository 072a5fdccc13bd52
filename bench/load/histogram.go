package load

import (
	"math/bits"
	"time"
)

// subBuckets is how finely a power of two is divided: values are off by at most 1/subBuckets.
const subBuckets = 64

// Histogram counts durations in buckets of about 1.6 % width. The zero value is empty. It is not safe for
// concurrent use.
type Histogram struct {
	buckets [64 * subBuckets]uint32
	count   int
}

// Add counts one duration; a negative one counts as zero.
func (h *Histogram) Add(d time.Duration) {
	h.buckets[index(uint64(max(0, d)))]++
	h.count++
}

// Merge adds all that other counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range &other.buckets {
		h.buckets[i] += n
	}
	h.count += other.count
}

// Count is how many durations were added.
func (h *Histogram) Count() int { return h.count }

// Quantile returns the duration that a share q of all (0 to 1) does not exceed, as the lower end of its bucket;
// zero when empty.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank := int(q * float64(h.count-1))
	for i, n := range &h.buckets {
		if rank -= int(n); rank < 0 {
			return time.Duration(lower(i))
		}
	}
	panic("BUG: the buckets hold less than was counted")
}

// index is the bucket of v: the values below subBuckets have one each, then every power of two is cut in
// subBuckets parts.
func index(v uint64) int {
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - bits.Len64(subBuckets)
	return (shift+1)*subBuckets + int(v>>shift) - subBuckets
}

// lower is the least value of bucket i.
func lower(i int) uint64 {
	if i < subBuckets {
		return uint64(i)
	}
	shift := i/subBuckets - 1
	return uint64(i%subBuckets+subBuckets) << shift
}
