package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// The image is a copy of every key in the form in which a snapshot holds it. It
// is brought up to date in slices: each takes mu, copies a few of the keys written
// since their last copy, and lets go. When a slice ends with none left, the image
// shows the store as it was at that very moment, all keys together, which is what
// makes the counts of a subscription and the sequence numbers that guard them
// agree after a restart.

// sliceKeys is how many keys one slice copies, so that no command waits for more:
// some 0.4 ms.
const sliceKeys = 256

// maxSlices ends a race that the writers win: the slice after it copies all that
// is left. Only a writer that is faster than the copier gets there.
const maxSlices = 4096

// record is one key in the image: a request of the Redis protocol holding type,
// expiry in Unix ms (0: none), key, and then what the type needs: the text; or
// field, value…; or member…; or member, score…; or element….
type record struct {
	encoded []byte
	expires int64
}

// catchUp brings the image up to date and returns the moment that it shows. The
// caller holds saving.
func (s *Store) catchUp(ctx context.Context) (time.Time, error) {
	for slice := 0; ; slice++ {
		most := sliceKeys
		if slice >= maxSlices {
			most = math.MaxInt
		}
		if at, done := s.slice(most); done {
			return at, nil
		}
		// A pause, because a lock that is taken again at once is hardly shared.
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// slice copies at most so many keys and tells whether none is left.
func (s *Store) slice(most int) (at time.Time, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at = wallClock()
	if s.flushed {
		s.dead += len(s.image)
		clear(s.image)
		s.flushed, s.unsaved = false, true
	}
	for key := range s.dirty {
		if most == 0 {
			return at, false
		}
		most--
		delete(s.dirty, key)
		s.unsaved = true
		if r, ok := s.copyKey(key, at); ok {
			s.image[key] = r
		} else {
			delete(s.image, key)
			s.dead++
		}
	}
	s.shown = s.extent
	return at, true
}

// copyKey makes the record of a key; ok is false when there is no such key.
func (s *Store) copyKey(key string, now time.Time) (r record, ok bool) {
	db := s.mini.DB(0)
	kind := db.Type(key)
	if kind == "" {
		return record{}, false
	}
	var values []string
	switch kind {
	case "string":
		values = []string{must(db.Get(key))}
	case "hash":
		for _, field := range must(db.HKeys(key)) {
			values = append(values, field, db.HGet(key, field))
		}
	case "set":
		values = must(db.Members(key))
	case "zset":
		for member, score := range must(db.SortedSet(key)) {
			values = append(values, member, strconv.FormatFloat(score, 'g', -1, 64))
		}
	case "list":
		values = must(db.List(key))
	default:
		panic("BUG: the embedded Redis took a command that makes a " + kind)
	}
	if ttl := db.TTL(key); ttl > 0 {
		r.expires = now.Add(ttl).UnixMilli()
	}
	r.encoded = savedKey{kind, key, r.expires, values}.encode()
	return r, true
}

// must is for reads of a key whose type was just asked, under mu.
func must[T any](v T, err error) T {
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return v
}

// appendRequest appends args as one request of the Redis protocol.
func appendRequest(b []byte, args ...string) []byte {
	b = append(b, '*')
	b = strconv.AppendInt(b, int64(len(args)), 10)
	b = append(b, "\r\n"...)
	for _, arg := range args {
		b = append(b, '$')
		b = strconv.AppendInt(b, int64(len(arg)), 10)
		b = append(b, "\r\n"...)
		b = append(b, arg...)
		b = append(b, "\r\n"...)
	}
	return b
}

// recordLimits are those of a file that this program wrote and whose checksum is
// right.
var recordLimits = limits{args: math.MaxInt32, bulk: math.MaxInt32, total: math.MaxInt32}

// restore puts the records of a snapshot's body into an empty store, leaving out
// keys whose time is over, and returns the image of what it put there.
func restore(mini *miniredis.Miniredis, body []byte, keys int, now time.Time) (map[string]record, error) {
	in := bufio.NewReader(bytes.NewReader(body))
	image := make(map[string]record, keys)
	for range keys {
		k, err := readKey(in)
		if err != nil {
			return nil, err
		}
		if k.over(now) {
			continue
		}
		if err := k.put(mini.DB(0), now); err != nil {
			return nil, err
		}
		image[k.name] = record{encoded: k.encode(), expires: k.expires}
	}
	if _, err := in.Peek(1); err == nil {
		return nil, errors.New("something follows the last record")
	}
	return image, nil
}

// savedKey is a record taken apart.
type savedKey struct {
	kind, name string
	expires    int64 // Unix ms, 0: never
	values     []string
}

// readKey reads one record.
func readKey(in *bufio.Reader) (savedKey, error) {
	head, err := readRequest(in, recordLimits)
	if err != nil {
		return savedKey{}, err
	}
	values, err := readRequest(in, recordLimits)
	if err != nil {
		return savedKey{}, err
	}
	if len(head) != 3 {
		return savedKey{}, fmt.Errorf("a record has %d parts at its head", len(head))
	}
	k := savedKey{kind: head[0], name: head[2], values: values}
	if k.expires, err = strconv.ParseInt(head[1], 10, 64); err != nil {
		return savedKey{}, fmt.Errorf("key %q: the expiry is no number", k.name)
	}
	return k, nil
}

// encode makes the record that readKey reads.
func (k savedKey) encode() []byte {
	return appendRequest(appendRequest(nil, k.kind, strconv.FormatInt(k.expires, 10), k.name), k.values...)
}

// over tells whether the key's time has ended.
func (k savedKey) over(now time.Time) bool { return k.expires != 0 && k.expires <= now.UnixMilli() }

// put makes the key in a store that has none of its name.
func (k savedKey) put(db *miniredis.RedisDB, now time.Time) error {
	if err := put(db, k.kind, k.name, k.values); err != nil {
		return fmt.Errorf("key %q: %w", k.name, err)
	}
	if k.expires != 0 {
		db.SetTTL(k.name, time.UnixMilli(k.expires).Sub(now))
	}
	return nil
}

// put makes a key of what a record holds for its type.
func put(db *miniredis.RedisDB, kind, key string, values []string) (err error) {
	switch {
	case kind == "string" && len(values) == 1:
		err = db.Set(key, values[0])
	case kind == "hash" && len(values)%2 == 0:
		db.HSet(key, values...)
	case kind == "set":
		_, err = db.SetAdd(key, values...)
	case kind == "list":
		_, err = db.Push(key, values...)
	case kind == "zset" && len(values)%2 == 0:
		for pair := range slices.Chunk(values, 2) {
			score, err := strconv.ParseFloat(pair[1], 64)
			if err != nil {
				return err
			}
			if _, err := db.ZAdd(key, score, pair[0]); err != nil {
				return err
			}
		}
	default:
		err = fmt.Errorf("a %s of %d parts is unknown", printable(kind), len(values))
	}
	return err
}
