package explain

import (
	"sync"

	"github.com/google/uuid"
)

// The bounds of a Ring: of one request in ten the record is longer than half a
// kilobyte, so that Most is what usually counts.
const (
	// Most is how many requests are remembered.
	Most = 10_000
	// MostBytes bounds their records; what is beside them is 24 bytes each.
	MostBytes = 8 << 20

	firstBytes = 64 << 10 // of memory, which doubles until MostBytes
)

// Ring remembers the last requests: at most Most of them, in at most MostBytes, the
// oldest forgotten first. Its memory holds no pointers. It is safe for concurrent
// use, and the zero Ring is ready.
type Ring struct {
	mu    sync.Mutex
	slots []slot // of the record numbers, modulo Most
	first uint64 // number of the oldest record
	next  uint64 // number of the next record
	buf   []byte // the records, around the end
	end   int    // of the newest one in buf
}

// slot is where a request's record is in buf.
type slot struct {
	id       [16]byte
	at, size uint32
}

// Add remembers the request r, whose Choices are noted in s. What r says of them is
// not looked at. An id that is no UUID is not remembered.
func (g *Ring) Add(r *Request, s *Story) {
	id, err := uuid.Parse(r.ID)
	if err != nil {
		return
	}
	r.MoreChoices = s.more
	// The head goes behind the notes, in the same memory, and comes out in front.
	notes := len(s.notes.buf)
	s.notes.request(r)
	head, tail := s.notes.buf[notes:], s.notes.buf[:notes]

	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.room(len(head) + len(tail))
	copy(g.buf[at:], head)
	copy(g.buf[at+len(head):], tail)
	one := slot{id: id, at: uint32(at), size: uint32(len(head) + len(tail))} //nolint:gosec // both below MostBytes
	if i := int(g.next % Most); i < len(g.slots) {
		g.slots[i] = one
	} else {
		g.slots = append(g.slots, one)
	}
	g.next++
	g.end = at + len(head) + len(tail)
}

// room makes room for a record of size bytes and returns where, under the lock.
func (g *Ring) room(size int) int {
	if g.next-g.first == Most {
		g.first++
	}
	for {
		at := g.end
		if at+size > len(g.buf) {
			at = 0
		}
		if at+size <= len(g.buf) && !g.taken(at, size) {
			return at
		}
		if len(g.buf) < MostBytes {
			g.grow()
			continue
		}
		g.first++
	}
}

// taken tells whether a record lies where one of size bytes would at at. Only the
// oldest ones can: those behind the end of the newest come first, then those in
// front of it, each in the order of their age.
func (g *Ring) taken(at, size int) bool {
	if g.first == g.next {
		return false
	}
	oldest := int(g.slots[g.first%Most].at)
	if at < g.end { // around the end: what lies behind the newest has to go first
		return oldest >= g.end || oldest < at+size
	}
	return oldest >= at && oldest < at+size
}

// grow doubles the memory and puts the records in order.
func (g *Ring) grow() {
	buf := make([]byte, min(max(2*len(g.buf), firstBytes), MostBytes))
	g.end = 0
	for n := g.first; n < g.next; n++ {
		one := &g.slots[n%Most]
		size := copy(buf[g.end:], g.buf[one.at:one.at+one.size])
		one.at = uint32(g.end) //nolint:gosec // below MostBytes
		g.end += size
	}
	g.buf = buf
}

// Find returns the request of an id, unless it is forgotten, or has not ended yet.
func (g *Ring) Find(id string) (Request, bool) {
	want, err := uuid.Parse(id)
	if err != nil {
		return Request{}, false
	}
	g.mu.Lock()
	var record []byte
	for n := g.first; n < g.next; n++ {
		if one := g.slots[n%Most]; one.id == want {
			record = append(record, g.buf[one.at:one.at+one.size]...)
			break
		}
	}
	g.mu.Unlock()
	if record == nil {
		return Request{}, false
	}
	r := read(record)
	r.ID = want.String()
	return r, true
}

// Filter says which requests are wanted; a zero field is any.
type Filter struct {
	Limit        int    // how many
	Session      string // the id, or agent/id
	Subscription string // one that was chosen at any attempt
	Status       int
}

// Last returns the requests that fit f, the newest first. Requests go on meanwhile,
// and may push the oldest out before they are looked at.
func (g *Ring) Last(f Filter) []Request {
	list := []Request{}
	var record []byte
	g.mu.Lock()
	before := g.next
	g.mu.Unlock()
	for before > 0 && (f.Limit == 0 || len(list) < f.Limit) {
		before--
		g.mu.Lock()
		there := before >= g.first
		var id uuid.UUID
		if there {
			one := g.slots[before%Most]
			id = one.id
			record = append(record[:0], g.buf[one.at:one.at+one.size]...)
		}
		g.mu.Unlock()
		if !there {
			break
		}
		if r := read(record); f.fits(&r) {
			r.ID = id.String()
			list = append(list, r)
		}
	}
	return list
}

func (f *Filter) fits(r *Request) bool {
	switch {
	case f.Status != 0 && int64(f.Status) != r.Status:
	case f.Session != "" && f.Session != r.Session && f.Session != r.Agent+"/"+r.Session:
	case f.Subscription != "" && !r.chose(f.Subscription):
	default:
		return true
	}
	return false
}

func (r *Request) chose(subscription string) bool {
	for i := range r.Choices {
		if r.Choices[i].Subscription == subscription {
			return true
		}
	}
	return false
}
