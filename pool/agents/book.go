package agents

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

const (
	hashSize = sha256.Size
	// tokenPrefix is what every agent's token begins with.
	tokenPrefix = "apa_"
	tokenBytes  = 32

	// tick is how often it is looked what is to be read.
	tick = time.Second
	// poll is how old the records may be where a hint was lost.
	poll = 5 * time.Second
	// readTimeout bounds one reading.
	readTimeout = 2 * time.Second
	// activeFor is how long after its last request what others have spent of an
	// agent's budgets is read at every tick; else every idlePoll.
	activeFor = time.Minute
	idlePoll  = 30 * time.Second
	// pastPoll is how often days that are over are read again: what a journal has
	// kept while Redis was away is counted late.
	pastPoll = 5 * time.Minute
	// askedDays is how many days the ledger is asked for in one question: one that is
	// too slow for all of them still answers some.
	askedDays = 64
)

// Errors of a Book's changes.
var (
	ErrExists     = errors.New("there is an agent of that name: limit it, or revoke it first")
	ErrUnknown    = errors.New("there is no agent of that name")
	ErrVersion    = errors.New("the agent was changed meanwhile")
	ErrUnreadable = errors.New("its record cannot be read: revoke it and create it anew")
	ErrFull       = errors.New("there is no room for one more agent: revoke one that is not needed")
)

// Records are where agents are kept; *store.Store is one.
type Records interface {
	Healthy() bool
	PutAgent(ctx context.Context, r store.AgentRecord) (version int64, err error)
	RemoveAgent(ctx context.Context, id string, version int64) error
	Agents(ctx context.Context, known string) (list []store.AgentRecord, state string, changed bool, err error)
	Hear(f func(store.Event)) (stop func())
}

// Memory keeps the agents for a start without Redis; *recall.File is one.
type Memory interface {
	Load() (list []store.AgentRecord, known time.Time, err error)
	Keep(list []store.AgentRecord)
	Flush()
	Close()
}

// Ledger tells what agents have used, by all processes. It is asked off the request
// path.
type Ledger interface {
	// AgentDays returns what was counted on each of the days. All that Book.Count was
	// told before the call has to be in it.
	AgentDays(ctx context.Context, days []usage.AgentDay) ([]usage.Counts, error)
}

// Book is all agents that have a record, and what they have used. It is safe for
// concurrent use. Make one with New.
type Book struct {
	records Records
	ledger  Ledger
	memory  Memory
	log     *slog.Logger

	view atomic.Pointer[view]
	kick chan struct{}

	reading sync.Mutex // one reader of records at a time; guards what follows
	state   string
	read    time.Time
	stale   bool

	// The ledger has a lock and a goroutine of its own: while it is slow to answer, a
	// revocation is heard of all the same.
	asking sync.Mutex // one who asks it at a time; guards what follows
	past   map[usage.AgentDay]pastDay
	spent  map[string]time.Time // when what an agent has spent was read

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// view is what requests are decided by.
type view struct {
	told   bool // by Redis; else it is what was known before this process began
	byID   map[string]*Entry
	byHash map[[8]byte][]*Entry // by the first bytes of a token's hash
}

// Entry is an agent, and what it has used. It is safe for concurrent use, and stays
// what it is when the agent is changed: it is asked for anew for every request.
type Entry struct {
	Agent
	account *account
}

type pastDay struct {
	read   time.Time
	counts spending
}

// New returns a Book that knows nobody yet. log is never nil.
func New(records Records, ledger Ledger, memory Memory, log *slog.Logger) *Book {
	return &Book{
		records: records, ledger: ledger, memory: memory, log: log, kick: make(chan struct{}, 1),
		past: make(map[usage.AgentDay]pastDay), spent: make(map[string]time.Time),
	}
}

// Start reads all agents, if Redis is there within ctx, and keeps on reading until
// Close. Without Redis those hold that were last known.
func (b *Book) Start(ctx context.Context) {
	stop := b.records.Hear(func(e store.Event) {
		if e.Agents || e == (store.Event{}) {
			b.wake()
		}
	})
	b.turn(ctx, time.Now(), true)
	if !b.Known() {
		b.recall()
	}
	b.ask(ctx, time.Now())
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.cancel = cancel
	b.done.Go(func() {
		defer stop()
		b.run(run)
	})
	b.done.Go(func() { b.follow(run) })
}

// Close ends the reading.
func (b *Book) Close() {
	if b.cancel != nil {
		b.cancel()
		b.done.Wait()
		b.memory.Close()
	}
}

// recall takes over what was known when Redis was last there: limits and the ends of
// tokens hold without it, too.
func (b *Book) recall() {
	list, known, err := b.memory.Load()
	if err != nil {
		b.log.Warn("the agents are not known before Redis is there: their tokens are refused, and default and anonymous have no limits", "error", err)
		return
	}
	b.log.Warn("Redis is away: the agents are as they were last known", "agents", len(list), "known", known)
	b.reading.Lock()
	defer b.reading.Unlock()
	b.take(list, false)
}

func (b *Book) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// run keeps the records as they are in Redis.
func (b *Book) run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		hinted := false
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-b.kick:
			hinted = true
		}
		b.turn(ctx, time.Now(), hinted)
		b.memory.Flush()
	}
}

// follow keeps what agents have spent as the ledger has it.
func (b *Book) follow(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.ask(ctx, time.Now())
		}
	}
}

// turn reads the records when that is due.
func (b *Book) turn(ctx context.Context, now time.Time, hinted bool) {
	b.reading.Lock()
	defer b.reading.Unlock()
	b.stale = b.stale || hinted
	if !b.records.Healthy() || !b.stale && now.Sub(b.read) < poll {
		return
	}
	if err := b.readRecords(ctx, now); err != nil && ctx.Err() == nil {
		b.log.Debug("the agents are not known anew", "error", err)
	}
}

// ask asks the ledger for what is due. While it does not answer, the last known amounts
// and what this process counts stay.
func (b *Book) ask(ctx context.Context, now time.Time) {
	b.asking.Lock()
	defer b.asking.Unlock()
	if err := b.readSpent(ctx, b.due(now)); err != nil && ctx.Err() == nil {
		b.log.Debug("what agents have used is not known anew", "error", err)
	}
}

// readRecords takes over the records as they are. Its caller holds reading.
func (b *Book) readRecords(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	list, state, changed, err := b.records.Agents(ctx, b.state)
	if err != nil {
		b.stale = true
		return err
	}
	b.read, b.stale = now, false
	if !changed {
		return nil
	}
	b.state = state
	b.take(list, true)
	b.memory.Keep(list)
	return nil
}

// take makes the records what requests are decided by. Its caller holds reading.
func (b *Book) take(list []store.AgentRecord, told bool) {
	former := b.view.Load()
	v := &view{told: told, byID: make(map[string]*Entry, len(list)), byHash: make(map[[8]byte][]*Entry, len(list))}
	for _, r := range list {
		a, err := parseRecord(r)
		if err != nil {
			b.log.Error("an agent's record cannot be read, and it is refused; revoke and create it anew", "agent", r.ID, "error", err)
			a = &Agent{ID: r.ID, Version: r.Version, Unreadable: true}
		}
		e := &Entry{Agent: *a, account: new(account)}
		if former != nil && former.byID[a.ID] != nil {
			e.account = former.byID[a.ID].account
		}
		v.byID[a.ID] = e
		if a.Token {
			v.byHash[[8]byte(a.hash)] = append(v.byHash[[8]byte(a.hash)], e)
		}
	}
	b.view.Store(v)
}

// due are the agents with budgets of which it is not known lately what they have spent,
// first those of which it is not known for longest. Its caller holds asking.
func (b *Book) due(now time.Time) []*Entry {
	v := b.view.Load()
	if v == nil {
		return nil
	}
	for id := range b.spent {
		if v.byID[id] == nil {
			delete(b.spent, id)
		}
	}
	var due []*Entry
	for id, e := range v.byID {
		every := idlePoll
		if now.Sub(e.account.seen()) < activeFor {
			every = tick / 2
		}
		if len(e.Budgets) > 0 && now.Sub(b.spent[id]) >= every {
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, c *Entry) int { return b.spent[a.ID].Compare(b.spent[c.ID]) })
	return due
}

// readSpent asks what the agents have spent, some at a time, so that a ledger that is
// too slow for all of them is believed in what it does tell; the error is that of the
// first question without an answer. Its caller holds asking.
func (b *Book) readSpent(ctx context.Context, due []*Entry) (err error) {
	for d, known := range b.past {
		if time.Since(known.read) >= pastPoll {
			delete(b.past, d)
		}
	}
	for len(due) > 0 && ctx.Err() == nil {
		if !b.records.Healthy() {
			return cmp.Or(err, store.ErrAway)
		}
		// Each question has a moment of its own: a day may end before the last one.
		now := time.Now()
		var days []usage.AgentDay
		n := 0
		for n < len(due) && len(days) < askedDays {
			days = append(days, b.unknown(now, due[n])...)
			n++
		}
		if e := b.readDays(ctx, now, due[:n], days); err == nil {
			err = e
		}
		due = due[n:]
	}
	return cmp.Or(err, ctx.Err())
}

// unknown are the days of an agent's budgets that are to be asked for.
func (b *Book) unknown(now time.Time, e *Entry) (days []usage.AgentDay) {
	today, _ := usage.PeriodDay.Bounds(now, nil)
	first := today
	for _, budget := range e.Budgets {
		if start, _ := budget.Period.Bounds(now, nil); start.Before(first) {
			first = start
		}
	}
	for d := first; !d.After(today); d = d.AddDate(0, 0, 1) {
		day := usage.AgentDay{Agent: e.ID, Day: d}
		// A day's last events come after it.
		if known, ok := b.past[day]; !ok || known.read.Before(d.AddDate(0, 0, 1)) {
			days = append(days, day)
		}
	}
	return days
}

// readDays asks the ledger for the days, which are all that is not known of the agents'
// periods, and has the agents learn the answer.
func (b *Book) readDays(ctx context.Context, now time.Time, of []*Entry, days []usage.AgentDay) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	before := make([][len(periods)]spending, len(of))
	for i, e := range of {
		before[i] = e.account.counted(now)
	}
	counts, err := b.ledger.AgentDays(ctx, days)
	if err != nil {
		return err
	}
	for i, day := range days {
		b.past[day] = pastDay{now, spendingOf(counts[i])}
	}
	today, _ := usage.PeriodDay.Bounds(now, nil)
	for i, e := range of {
		b.spent[e.ID] = now
		for _, budget := range e.Budgets {
			start, _ := budget.Period.Bounds(now, nil)
			var told spending
			for d := start; !d.After(today); d = d.AddDate(0, 0, 1) {
				told = told.plus(b.past[usage.AgentDay{Agent: e.ID, Day: d}].counts)
			}
			p := indexOf(budget.Period)
			e.account.learn(time.Now(), p, start, told, before[i][p])
		}
	}
	return nil
}

// Known tells whether Redis has ever told of the agents: before that, nobody can say
// that a token is none's.
func (b *Book) Known() bool {
	v := b.view.Load()
	return v != nil && v.told
}

// ByHash finds the agent whose token has this SHA-256; nil: there is none. It takes
// the same time for all that begin alike, which nobody can make a token's hash do.
func (b *Book) ByHash(hash *[hashSize]byte) *Entry {
	v := b.view.Load()
	if v == nil {
		return nil
	}
	var found *Entry
	for _, e := range v.byHash[[8]byte(hash[:8])] {
		if subtle.ConstantTimeCompare(e.hash, hash[:]) == 1 {
			found = e
		}
	}
	return found
}

// ByID finds an agent; nil: there is no record of it.
func (b *Book) ByID(id string) *Entry {
	if v := b.view.Load(); v != nil {
		return v.byID[id]
	}
	return nil
}

// Expired tells whether the agent's time is over.
func (e *Entry) Expired(now time.Time) bool { return !e.Expires.IsZero() && !now.Before(e.Expires) }

// Seen notes that the agent has sent a request.
func (e *Entry) Seen(now time.Time) { e.account.used(now) }

// Begin counts in a request that is about to be made and costs something, until End.
// Where a budget has nothing left for it, the error is an *OverError, and nothing is
// counted.
func (e *Entry) Begin(now time.Time) error {
	if over := e.account.begin(now, e.Budgets); over != nil {
		return over
	}
	return nil
}

// End says that a request has ended for which Begin returned nil.
func (e *Entry) End() { e.account.end() }

// Count takes note of a counted event at once: the ledger tells of it a moment later.
// It is to be called before the event goes to the ledger.
func (b *Book) Count(e *usage.Event) {
	entry := b.ByID(e.Agent)
	if entry == nil {
		return
	}
	s := spending{cost: e.CostNanoUSD, tokens: e.Tokens.Total(), requests: 1}
	if e.Further {
		s.requests = 0
	}
	entry.account.count(time.Now(), s)
}

// Create makes the agent and its token, which is told this once.
func (b *Book) Create(ctx context.Context, a Agent) (Agent, credential.Secret, error) {
	random := make([]byte, tokenBytes)
	_, _ = rand.Read(random) // as documented it never fails
	token := tokenPrefix + base64.RawURLEncoding.EncodeToString(random)
	hash := sha256.Sum256([]byte(token))
	a.Version, a.Created, a.Token, a.hash = 0, time.Now().UTC().Truncate(time.Millisecond), true, hash[:]
	version, err := b.records.PutAgent(ctx, a.record())
	a.Version = version
	if errors.Is(err, store.ErrAgentVersion) {
		err = ErrExists
	}
	if err := b.changed(ctx, err); err != nil {
		return Agent{}, credential.Secret{}, err
	}
	return a, credential.NewSecret(token), nil
}

// retries is how often a change is tried whose version somebody else has taken.
const retries = 5

// Change has change alter an agent, from what it is now, and returns what it became.
// version is the one that it must have, 0 for any. orNew says that a record is made for
// who has none: an agent that is known by another token than Create's. An error of
// change is returned as it is.
func (b *Book) Change(ctx context.Context, id string, version int64, orNew bool, change func(*Agent) error) (Agent, error) {
	for try := 1; ; try++ {
		if err := b.Refresh(ctx); err != nil {
			return Agent{}, err
		}
		a := Agent{ID: id, Created: time.Now().UTC().Truncate(time.Millisecond)}
		if e := b.ByID(id); e != nil {
			a = e.Agent
		} else if !orNew {
			return Agent{}, ErrUnknown
		}
		if version != 0 && a.Version != version {
			return a, ErrVersion
		}
		if a.Unreadable {
			return a, ErrUnreadable
		}
		if err := change(&a); err != nil {
			return Agent{}, err
		}
		next, err := b.records.PutAgent(ctx, a.record())
		a.Version = next
		if errors.Is(err, store.ErrAgentVersion) && try < retries {
			continue
		}
		if errors.Is(err, store.ErrAgentVersion) {
			err = ErrVersion
		}
		return a, b.changed(ctx, err)
	}
}

// Remove ends an agent: its token is that of nobody from now on. version is the one
// that it must have, 0 for any.
func (b *Book) Remove(ctx context.Context, id string, version int64) error {
	err := b.records.RemoveAgent(ctx, id, version)
	switch {
	case errors.Is(err, store.ErrNoAgent):
		err = ErrUnknown
	case errors.Is(err, store.ErrAgentVersion):
		err = ErrVersion
	}
	return b.changed(ctx, err)
}

// changed has this process know at once what it has changed.
func (b *Book) changed(ctx context.Context, err error) error {
	if errors.Is(err, store.ErrAgentsFull) {
		return ErrFull
	}
	if err != nil {
		return err
	}
	if b.Refresh(ctx) != nil {
		b.wake() // it is changed all the same
	}
	return nil
}

// Refresh reads the agents now.
func (b *Book) Refresh(ctx context.Context) error {
	b.reading.Lock()
	defer b.reading.Unlock()
	return b.readRecords(ctx, time.Now())
}

// Used is an agent, and what it has used.
type Used struct {
	Agent
	Last  time.Time // of its last request to this process; zero: there was none
	Spent []Spent   // of Budgets, in their order
}

// Spent is what was used of one budget.
type Spent struct {
	CostNanoUSD, Tokens, Requests int64
	Resets                        time.Time
}

// List returns all agents by id. Where Redis does not answer, they are as they were
// last known, and fresh is false.
func (b *Book) List(ctx context.Context) (list []Used, fresh bool) {
	all, fresh := b.look(ctx, func(v *view) []*Entry { return slices.Collect(maps.Values(v.byID)) })
	now := time.Now()
	for _, e := range all {
		list = append(list, e.used(now))
	}
	slices.SortFunc(list, func(a, b Used) int { return cmp.Compare(a.ID, b.ID) })
	return list, fresh
}

// Find is List of one agent; ok is false where there is none.
func (b *Book) Find(ctx context.Context, id string) (u Used, ok, fresh bool) {
	one, fresh := b.look(ctx, func(v *view) []*Entry {
		if e := v.byID[id]; e != nil {
			return []*Entry{e}
		}
		return nil
	})
	if len(one) == 0 {
		return Used{}, false, fresh
	}
	return one[0].used(time.Now()), true, fresh
}

// look reads the agents, and what those that are wanted have used.
func (b *Book) look(ctx context.Context, wanted func(*view) []*Entry) (list []*Entry, fresh bool) {
	fresh = b.records.Healthy() && b.Refresh(ctx) == nil
	v := b.view.Load()
	if v == nil {
		return nil, false
	}
	list = wanted(v)
	if !fresh {
		return list, false
	}
	var due []*Entry
	for _, e := range list {
		if len(e.Budgets) > 0 {
			due = append(due, e)
		}
	}
	b.asking.Lock()
	defer b.asking.Unlock()
	return list, b.readSpent(ctx, due) == nil
}

func (e *Entry) used(now time.Time) Used {
	u := Used{Agent: e.Agent, Last: e.account.seen()}
	for _, budget := range e.Budgets {
		s, resets := e.account.look(now, budget.Period)
		u.Spent = append(u.Spent, Spent{s.cost, s.tokens, s.requests, resets})
	}
	return u
}

// String keeps a token's hash out of logs.
func (a Agent) String() string { return fmt.Sprintf("agent %s, version %d", a.ID, a.Version) }
