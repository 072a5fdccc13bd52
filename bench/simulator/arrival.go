package simulator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// arrivalsKept bounds the requests that are remembered; older ones go.
const arrivalsKept = 4096

// Arrival is what is remembered of a request to a provider's endpoint.
type Arrival struct {
	Method string `json:"method"`
	// Path has no query.
	Path string `json:"path"`
	// Headers are the names that arrived, sorted, canonical.
	Headers []string `json:"headers"`
	// Query are the names of the query parameters, sorted.
	Query []string `json:"query"`
	// Key is the credential that the request was served with; empty if there was none that fits.
	Key string `json:"key"`
	// Foreign names each carrier of a credential other than the one that was used: "header X-Api-Key",
	// "query key".
	Foreign []string `json:"foreign"`
	// Watched names each string of Options.Watch that arrived, and where: "0 in header Cookie", "1 in body".
	Watched []string `json:"watched"`
	// BodySHA256 is the hash of the body as it arrived, in hex.
	BodySHA256 string    `json:"body_sha256"`
	BodyBytes  int       `json:"body_bytes"`
	At         time.Time `json:"at"`

	// Header is the request's head with its values, for tests in the same process; GET /requests leaves it out.
	Header http.Header `json:"-"`
}

// credentialHeaders carry a credential at one provider or another.
var credentialHeaders = []string{
	"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Proxy-Authorization", "Cookie",
	"X-Amz-Security-Token", "Ocp-Apim-Subscription-Key", "Sec-Websocket-Protocol",
}

// credentialQuery are query parameters that carry one.
var credentialQuery = []string{"key", "api-key", "access_token", "X-Amz-Credential", "X-Amz-Signature"}

func (s *Simulator) arrived(r *http.Request, carrier, key string, body []byte, now time.Time) {
	a := Arrival{
		Method: r.Method, Path: r.URL.Path, Key: key, BodyBytes: len(body), At: now.UTC(), Header: r.Header.Clone(),
		Headers: []string{}, Query: []string{}, Foreign: []string{}, Watched: []string{},
	}
	sum := sha256.Sum256(body)
	a.BodySHA256 = hex.EncodeToString(sum[:])
	for name, values := range r.Header {
		a.Headers = append(a.Headers, name)
		if slices.Contains(credentialHeaders, name) && (name != carrier || len(values) > 1) {
			a.Foreign = append(a.Foreign, "header "+name)
		}
		for i, secret := range s.watch {
			if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, secret) }) {
				a.Watched = append(a.Watched, itoa(i)+" in header "+name)
			}
		}
	}
	for name := range r.URL.Query() {
		a.Query = append(a.Query, name)
		if slices.Contains(credentialQuery, name) && "query "+name != carrier {
			a.Foreign = append(a.Foreign, "query "+name)
		}
	}
	for i, secret := range s.watch {
		if strings.Contains(r.RequestURI, secret) {
			a.Watched = append(a.Watched, itoa(i)+" in target")
		}
		if bytes.Contains(body, []byte(secret)) {
			a.Watched = append(a.Watched, itoa(i)+" in body")
		}
	}
	for _, list := range [][]string{a.Headers, a.Query, a.Foreign, a.Watched} {
		slices.Sort(list)
	}
	s.arrivals.add(a)
}

// arrivalList is a ring of the newest arrivals. It is safe for concurrent use.
type arrivalList struct {
	mu   sync.Mutex
	ring []Arrival
	next int
}

func (l *arrivalList) add(a Arrival) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < arrivalsKept {
		l.ring = append(l.ring, a)
		return
	}
	l.ring[l.next] = a
	l.next = (l.next + 1) % arrivalsKept
}

func (l *arrivalList) list() []Arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(append([]Arrival{}, l.ring[l.next:]...), l.ring[:l.next]...)
}
