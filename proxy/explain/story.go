package explain

import (
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/ratelimit"
)

// Story is what is noted of one request while it is under way. The zero Story is
// empty. It is not safe for concurrent use.
type Story struct {
	notes   codec // one behind the other, each with its kind in front
	more    int64 // choices that are not in notes
	skipped bool  // the last choice is not in notes
	attempt bool  // an attempt is in notes
	verdict ratelimit.Verdict
}

// The kinds of notes.
const (
	noteChoice    = iota // begins a choice; all others are about the last one
	noteCandidate        // one more that was looked at
	noteAttempt
	noteVerdict // replaces the attempt's
	noteLate
	noteFinal
)

const (
	// storyMost bounds the notes of one request, which may have an attempt at each of
	// hundreds of subscriptions.
	storyMost = 8 << 10
	// storyFull is from where on candidates are only counted, as they are much the same
	// as before.
	storyFull = storyMost / 2
)

// Reset empties s. Its memory is used again.
func (s *Story) Reset() {
	if cap(s.notes.buf) > storyFull {
		s.notes.buf = nil // rare, and much for an idle connection
	}
	*s = Story{notes: codec{buf: s.notes.buf[:0]}}
}

// begin begins a note.
func (s *Story) begin(kind int64) *codec {
	s.notes.number(&kind)
	return &s.notes
}

// Choice notes what Pool.Acquire answered to req, whose Trace must be set.
func (s *Story) Choice(req *pool.Request, lease *pool.Lease, err error) {
	if s.skipped = len(s.notes.buf) >= storyMost; s.skipped {
		s.more++
		return
	}
	s.attempt = false
	t := req.Trace
	c := Choice{
		Home: t.Home, Inherited: t.Inherited, Strategy: string(t.Strategy), ByHash: t.ByHash, Pinned: req.Pinned, Owner: req.Owner, Omitted: int64(t.Omitted),
	}
	if lease != nil {
		c.Subscription, c.Source = lease.Subscription().ID, string(lease.Source())
	}
	if err != nil {
		c.Refusal = err.Error()
	}
	var wait Wait
	if t.Wait.For > 0 {
		wait = Wait{
			For: Seconds(t.Wait.For), Ahead: int64(t.Wait.Ahead), Own: int64(t.Wait.Own),
			Subscription: t.Wait.Subscription, Reason: t.Wait.Reason, Until: instant(&t.Wait.Until),
		}
		c.Wait = &wait
	}
	candidates := t.Candidates
	if len(s.notes.buf) >= storyFull {
		c.Omitted, candidates = c.Omitted+int64(len(candidates)), nil
	}
	s.begin(noteChoice).choice(&c)
	for i := range candidates {
		s.candidate(&candidates[i], t)
	}
}

func (s *Story) candidate(from *pool.Candidate, t *pool.Trace) {
	c := Candidate{
		Subscription: from.Subscription, Obstacle: from.Obstacle, Reason: from.Reason,
		Until: instant(&from.Until), Priority: int64(from.Priority), Draining: from.Draining,
	}
	score := Score{
		Total: from.Score.Total, Availability: from.Score.Availability, Headroom: from.Score.Headroom,
		Soundness: from.Score.Soundness, Swiftness: from.Score.Swiftness, Idleness: from.Score.Idleness,
	}
	standing := Standing{
		Used: from.Standing.Used, ExpiresIn: Seconds(from.Standing.ExpiresIn),
		Sessions: from.Standing.Sessions, InFlight: from.Standing.InFlight, Turn: from.Standing.Turn,
	}
	if from.Obstacle == "" && !t.ByHash {
		c.Score = &score
		if t.Strategy != pool.StrategyBalanced {
			c.Standing = &standing
		}
	}
	s.begin(noteCandidate).candidate(&c)
}

// instant is t, or nil for the zero time.
func instant(t *time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return t
}

// Attempt notes that the last choice's subscription was asked, from at on for took,
// with the answer's status (0: none) and what it means. err is why no whole answer
// came.
func (s *Story) Attempt(at, took time.Duration, status int, v ratelimit.Verdict, err error) {
	if s.skipped {
		return
	}
	s.attempt, s.verdict = true, v
	a := Attempt{At: Seconds(at), Took: Seconds(took), Status: int64(status)}
	if err != nil {
		a.Error = err.Error()
	}
	var wait Seconds
	a.Verdict = verdictOf(v, &wait)
	s.begin(noteAttempt).attempt(&a)
}

// Verdict notes what the last attempt's answer turned out to mean after all.
func (s *Story) Verdict(v ratelimit.Verdict) {
	if !s.attempt || s.skipped || v.Row == s.verdict.Row && v.Signal == s.verdict.Signal && v.Reason == s.verdict.Reason {
		return
	}
	s.verdict = v
	s.noteVerdict(noteVerdict, v)
}

// Late notes an error behind the content of the last attempt's answer, which was
// good until then.
func (s *Story) Late(v ratelimit.Verdict) {
	if s.attempt && !s.skipped && s.verdict.Signal == ratelimit.OK {
		s.noteVerdict(noteLate, v)
	}
}

// Final notes why the last attempt was the last.
func (s *Story) Final(why string) {
	if s.attempt && !s.skipped {
		s.begin(noteFinal).text(&why)
	}
}

func (s *Story) noteVerdict(kind int64, v ratelimit.Verdict) {
	var wait Seconds
	told := verdictOf(v, &wait)
	s.begin(kind).verdict(&told)
}

// verdictOf is v as it is told; wait is memory for its Wait.
func verdictOf(v ratelimit.Verdict, wait *Seconds) Verdict {
	told := Verdict{Signal: v.Signal.String(), Reason: string(v.Reason), Scope: v.Scope.String(), Row: v.Row}
	if v.Signal != ratelimit.OK && v.Wait >= 0 {
		*wait = Seconds(v.Wait)
		told.Wait = wait
	}
	return told
}

// read reads a request and its notes. The record's bytes are read only.
func read(record []byte) Request {
	c := codec{buf: record, reading: true}
	r := Request{Choices: []Choice{}}
	c.request(&r)
	for len(c.buf) > 0 {
		var kind int64
		if c.number(&kind); kind == noteChoice {
			choice := Choice{Candidates: []Candidate{}}
			c.choice(&choice)
			r.Choices = append(r.Choices, choice)
			continue
		}
		last := &r.Choices[len(r.Choices)-1]
		switch kind {
		case noteCandidate:
			var one Candidate
			c.candidate(&one)
			last.Candidates = append(last.Candidates, one)
		case noteAttempt:
			last.Attempt = new(Attempt)
			c.attempt(last.Attempt)
		case noteVerdict:
			last.Attempt.Verdict = Verdict{}
			c.verdict(&last.Attempt.Verdict)
		case noteLate:
			last.Attempt.Late = new(Verdict)
			c.verdict(last.Attempt.Late)
		case noteFinal:
			c.text(&last.Attempt.Final)
		default:
			panic("BUG: a note of a kind that is not written")
		}
	}
	return r
}
