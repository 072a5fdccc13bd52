package pool

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/ratelimit"
)

// CredentialSource gives the credential of one subscription. It is asked for
// every attempt, so it answers from memory; it may be asked by many at once.
type CredentialSource interface {
	Credential(ctx context.Context) (credential.Credential, error)
	// Refresh looks for a newer one right now; it is called when the provider
	// has refused the one that Credential gave.
	Refresh(ctx context.Context) (credential.Credential, error)
}

// Limits are what the operator allows a subscription; 0 is no limit.
type Limits struct {
	RequestsPerMinute     int
	InputTokensPerMinute  int
	OutputTokensPerMinute int
	Concurrent            int // requests under way, over all processes
	Sessions              int // sessions that are not idle, over all processes
}

// Subscription describes one subscription. The pool keeps what it is given and
// changes nothing in it.
type Subscription struct {
	ID         string
	Provider   string
	Domain     string   // subscriptions with the same one share limits; empty: those of its organisation do, once answers name it
	Priority   int      // lower is used first
	Weight     int      // share among equals; less than 1 counts as 1
	Models     []string // globs of the models that it may serve; empty: all
	Limits     Limits
	Budgets    []Budget // all of them are kept
	Credential CredentialSource
	// Origin is the only one that the credential may be sent to, such as
	// https://api.openai.com; empty: whoever lends it knows. See Lease.Origin.
	Origin   string
	Labels   []string // by which agents may be allowed to use it, beside its ID
	Draining bool     // it takes no new sessions; those that it has stay
	Disabled bool     // never offered
	Reason   string   // why it is Disabled, for people
}

// The reasons of a state that the pool itself gives, beside those of package
// ratelimit.
const (
	// ReasonUnreadable: the credential cannot be read from its source.
	ReasonUnreadable = "credential_unreadable"
	// ReasonStale: the credential cannot be read anew, and the one that was read before
	// stays in use. It closes nothing: it is a reason of event.CredentialFailing alone.
	ReasonStale = "credential_stale"
	// ReasonExpiring: by its own words the credential ends soon. It closes nothing: what
	// it says is only believed for a warning, event.CredentialExpiring.
	ReasonExpiring = "credential_expiring"
)

// member is a subscription's live state in the pool. Everything in it
// changes while requests run.
type member struct {
	described atomic.Pointer[Subscription] // its ID, Provider, Limits and Budgets do not change
	gone      atomic.Bool                  // it is not in the pool any more
	next      atomic.Pointer[member]       // who is there in its place, with other limits; nil: nobody
	gate      *ratelimit.Gate

	domain       atomic.Pointer[domain] // who share its limits; set before the pool is used
	organisation atomic.Pointer[string] // that its answers named; nil: none is known

	opts     *atomic.Pointer[Options] // of the pool
	latency  latency                  // of its answers
	answered atomic.Bool              // once at least
	usual    *latency                 // and of all at its provider
	turns    turns                    // for StrategyRoundRobin

	arrivals arrivals
	whole    *ratelimit.Provider // its provider's, of all who are there
	share    share               // requests of this process that are under way
	count    atomic.Int64        // sessions that hold a place, as Redis last told

	budgets     *budgets
	saving      atomic.Pointer[saving]
	windowsTold map[string]*windowTold // what was made known, by window; of watchBudgets alone
	brokenTold  bool                   // it was made known that the breaker is open; of watchBudgets alone

	acquired [len(sources)]prometheus.Counter

	mu       sync.Mutex
	closed   string               // why the credential closes it, "" while it does not
	closedAt time.Time            // since when
	stale    bool                 // the credential cannot be read anew, and that was told
	expiry   expiry               // what the credential in use says of its end
	refused  digest               // of the secret that the provider refused; zero: none
	last     *ratelimit.Verdict   // the last one that was not ok
	places   map[string]time.Time // sessions of this process that hold a place, and until when
	pruned   time.Time            // when places was rid of those that have ended
	retry    time.Time            // after a refusal: when it is worth asking for a place again
	free     time.Time            // and when the first place ends
}

func newMember(conf *Subscription, whole bool) *member {
	m := &member{
		gate: ratelimit.NewGate(conf.ID, ratelimit.Rates{
			Requests:     conf.Limits.RequestsPerMinute,
			InputTokens:  conf.Limits.InputTokensPerMinute,
			OutputTokens: conf.Limits.OutputTokensPerMinute,
		}, ratelimit.NewCooldowns()),
		share:       share{limit: conf.Limits.Concurrent, whole: whole},
		budgets:     newBudgets(conf.Budgets),
		places:      make(map[string]time.Time),
		windowsTold: make(map[string]*windowTold),
	}
	m.described.Store(conf)
	for i, source := range sources {
		m.acquired[i] = acquired.WithLabelValues(conf.ID, string(source))
	}
	return m
}

// conf is what the subscription is now said to be.
func (m *member) conf() *Subscription { return m.described.Load() }

func (c *Subscription) weight() int { return max(c.Weight, 1) }

// serves tells whether the globs allow the model. A request that names none is
// always allowed.
func (c *Subscription) serves(model string) bool {
	return model == "" || len(c.Models) == 0 || Fits(c.Models, model)
}

// allowed tells whether names have the id or a label.
func (c *Subscription) allowed(names []string) bool {
	for _, name := range names {
		if name == c.ID || slices.Contains(c.Labels, name) {
			return true
		}
	}
	return false
}

// disabled returns why nobody is let through until something outside changes.
func (m *member) disabled() (reason string, yes bool) {
	if m.gone.Load() {
		return ReasonRemoved, true
	}
	if conf := m.conf(); conf.Disabled {
		return conf.Reason, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed, m.closed != ""
}

// full tells whether the subscription has refused one more session a moment
// ago, and when its first place ends.
func (m *member) full(now time.Time) (free time.Time, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free, now.Before(m.retry)
}

// setFull remembers a refusal, for a moment only: a place can also be given
// back before its end.
func (m *member) setFull(now time.Time, free time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free = now.Add(max(free, time.Millisecond))
	m.retry = now.Add(min(max(free, time.Millisecond), fullMemory))
}

// fullMemory is how long a subscription that had no place is not asked again.
const fullMemory = time.Second

// place notes that a session of this process holds a place. With a limit, for
// the times when nobody else keeps the count, it refuses what is above it and
// tells when the first place ends.
func (m *member) place(session string, now, until time.Time, limit int) (free time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, held := m.places[session]; !held && limit > 0 {
		m.prune(now)
		if len(m.places) >= limit {
			first := until
			for _, end := range m.places {
				if end.Before(first) {
					first = end
				}
			}
			return first.Sub(now), false
		}
	}
	m.places[session] = until
	return 0, true
}

// extend moves the end of a place that is held.
func (m *member) extend(session string, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[session] = until
}

// unplace forgets a session's place.
func (m *member) unplace(session string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.places, session)
}

// placed is the number of sessions that hold a place: as the fleet last told,
// and those of this process at least.
func (m *member) placed(now time.Time) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.pruned) >= pruneEvery {
		m.prune(now)
	}
	return max(int64(len(m.places)), m.count.Load())
}

// pruneEvery is how old the count of places may be; counting anew for every
// choice would look at every session.
const pruneEvery = time.Second

// prune drops the places that have ended, under the lock.
func (m *member) prune(now time.Time) {
	m.pruned = now
	for session, end := range m.places {
		if !now.Before(end) {
			delete(m.places, session)
		}
	}
}

// remember keeps what a bad answer said, for the error that the agent gets when
// nobody can serve.
func (m *member) remember(v ratelimit.Verdict) {
	v.Windows, v.Organisation = nil, nil // they belong to the answer's buffers
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = &v
}

// matches tells whether name fits glob: * is any run of characters, / too, ? is any
// one byte, and [a-z] and [^a-z] are as in path.Match. It takes linear time for real
// globs and allocates nothing.
func matches(glob, name string) bool {
	g, n := 0, 0
	star, mark := -1, 0
	for n < len(name) {
		width := 0
		if g < len(glob) && glob[g] != '*' {
			width = fitsOne(glob[g:], name[n])
		}
		switch {
		case g < len(glob) && glob[g] == '*':
			star, mark = g, n
			g++
		case width > 0:
			g += width
			n++
		case star >= 0: // let the last star eat one more
			mark++
			g, n = star+1, mark
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}

// fitsOne is how long the beginning of glob is that c fits; 0 when it does not.
func fitsOne(glob string, c byte) (width int) {
	switch {
	case glob[0] == '[':
		if end, in := fitsClass(glob, c); end > 0 {
			if in {
				return end
			}
			return 0
		}
	case glob[0] == '\\' && len(glob) > 1:
		if glob[1] == c {
			return 2
		}
		return 0
	}
	if glob[0] == '?' || glob[0] == c {
		return 1
	}
	return 0
}

// fitsClass reads the class that glob begins with: where it ends, 0 when it does not,
// and whether c is in it.
func fitsClass(glob string, c byte) (end int, in bool) {
	i, not := 1, false
	if i < len(glob) && glob[i] == '^' {
		i, not = i+1, true
	}
	next := func() (b byte, ok bool) {
		if i < len(glob) && glob[i] == '\\' {
			i++
		}
		if i >= len(glob) {
			return 0, false
		}
		i++
		return glob[i-1], true
	}
	for first := true; first || i < len(glob) && glob[i] != ']'; first = false {
		low, ok := next()
		high := low
		if ok && i < len(glob) && glob[i] == '-' {
			i++
			high, ok = next()
		}
		if !ok {
			return 0, false
		}
		in = in || low <= c && c <= high
	}
	if i >= len(glob) {
		return 0, false
	}
	return i + 1, in != not
}

// Fits tells whether a model fits one of the globs, as those of Subscription.Models.
func Fits(globs []string, model string) bool {
	for _, glob := range globs {
		if matches(glob, model) {
			return true
		}
	}
	return false
}
