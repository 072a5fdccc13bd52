package usage

import (
	"context"
	"crypto/sha256"
	_ "embed" // the script
	"encoding/base64"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// The results of a provider's batch can be read again and again, for a month, by
// any agent through any process, and each time they tell the same usage. So can a
// response that was made in the background, which is a batch of one. Hence an
// event of an item is counted only if it owns the item, and it owns it if it was
// the first one to claim it, in the hash of the batch.
//
// The claim is made before the count, by a script of its own, and it says which
// event made it. So nothing that comes between the two, or after them, counts an
// item twice or not at all:
//   - The process dies, or an answer is lost: the event is still in the journal, and
//     when it is sent again it finds its own claim. That its number is counted once
//     is apply.lua's matter, as for every event.
//   - A fail-over loses the last writes: both lie in one slot, so what is lost is the
//     count alone, or the claim and the count. The event comes again from the
//     journal and finds its own claim or none; if another event was faster to claim
//     what had been lost, that one is counted in its place.
//   - A writer is fenced or takes a new id: numbers change, an event's ID does not.
//
// What is left: a journal that is lost with the disk takes the count of its claimed
// items with it, as it does with every event that was not counted yet.

// maxClaims is how many items one call claims. They hold a Redis for about a
// millisecond.
const maxClaims = 512

var (
	//go:embed items.lua
	itemsSource string
	itemsScript = redis.NewScript(itemsSource)
)

// claimItems claims the items that events of sub tell of, and returns which events
// repeat what another one is counted for; nil when there is none.
func (s *Store) claimItems(ctx context.Context, sub string, events []Event) (repeats []bool, err error) {
	var c claims
	for i := range events {
		if events[i].Batch == "" || events[i].Item == "" {
			continue
		}
		c.add(s.batchKey(sub, events[i].Batch), &events[i], i)
		if c.n == maxClaims {
			if repeats, err = s.settleClaims(ctx, &c, repeats, len(events)); err != nil {
				return nil, err
			}
			c = claims{}
		}
	}
	return s.settleClaims(ctx, &c, repeats, len(events))
}

// settleClaims makes one call of items.lua and notes in repeats which of events
// events do not own their items.
func (s *Store) settleClaims(ctx context.Context, c *claims, repeats []bool, events int) ([]bool, error) {
	if c.n == 0 {
		return repeats, nil
	}
	args, places := c.args()
	owns, err := itemsScript.Run(ctx, s.client, c.keys, args...).Text()
	if err != nil {
		return nil, err
	}
	if len(owns) != len(places) {
		return nil, fmt.Errorf("unknown answer %q", owns)
	}
	for i, at := range places {
		if owns[i] == '1' {
			continue
		}
		if repeats == nil {
			repeats = make([]bool, events)
		}
		repeats[at] = true
	}
	return repeats, nil
}

// claims are what one call of items.lua is about.
type claims struct {
	n     int
	keys  []string // in the order of their first claims
	byKey map[string]*batchClaims
}

// batchClaims are the claims on items of one batch.
type batchClaims struct {
	latest int64 // epoch ms
	pairs  []any // item and event in turn
	places []int // of the events
}

func (c *claims) add(key string, e *Event, place int) {
	b := c.byKey[key]
	if b == nil {
		b = &batchClaims{}
		if c.byKey == nil {
			c.byKey = map[string]*batchClaims{}
		}
		c.byKey[key] = b
		c.keys = append(c.keys, key)
	}
	item := shorten(e.Item)
	if e.Further {
		// Each model of an item is counted once.
		item += "\x00" + e.Model
	}
	b.latest = max(b.latest, min(e.Time, maxTime))
	b.pairs = append(b.pairs, digest(item), digest(e.ID))
	b.places = append(b.places, place)
	c.n++
}

// args returns ARGV, and the places of the events in the order of the answer.
func (c *claims) args() (args []any, places []int) {
	for _, key := range c.keys {
		b := c.byKey[key]
		args = append(append(args, b.latest, len(b.places)), b.pairs...)
		places = append(places, b.places...)
	}
	return args, places
}

// digest is 80 bits of a name's hash. As text they and what Redis needs for a string
// are 16 bytes, which its allocator gives without a rest; two of the names of a
// batch, or of its readers, having the same 80 bits is out of the question.
func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base64.RawURLEncoding.EncodeToString(sum[:10])
}
