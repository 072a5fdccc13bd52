// Package explain remembers of the last requests why they went where they went,
// for people: who was looked at and passed over, what each attempt came to, how
// long it all took. Nothing of a request's or an answer's content is kept, and no
// secret.
//
// Start at Request, which is what is told of one. A Story is noted while the
// request is under way and goes into a Ring at its end; both are bytes, so that
// they cost the request next to nothing and the collector nothing at all.
package explain

import (
	"strconv"
	"time"
)

// Request is all that is known of one request. Times are UTC; texts are cut at
// maxText bytes.
type Request struct {
	ID            string    `json:"id"`
	Start         time.Time `json:"start"`
	Agent         string    `json:"agent"`
	Provider      string    `json:"provider"`
	Endpoint      string    `json:"endpoint"` // the path's name in the manifest
	Action        string    `json:"action"`   // what the manifest says of the path: `inject`, `free`, `bound`, `local`, `refuse`, `unknown`
	Model         string    `json:"model"`
	Session       string    `json:"session"`
	SessionSource string    `json:"session_source"` // the header or field that named it, `hash`, or `socket`
	Parent        string    `json:"parent"`         // the session that started this one
	Stream        bool      `json:"stream"`
	Bytes         int64     `json:"bytes"` // of its body
	// Tries counts the tries before this one that failed in a row, as far as the
	// agent tells or authpool has seen.
	Tries int64 `json:"tries"`
	// Damped says that there were too many of them: the provider was left in peace,
	// and its last error shown again.
	Damped  bool     `json:"damped"`
	Choices []Choice `json:"choices"` // never null
	// MoreChoices counts those that came after Choices and are not told.
	MoreChoices  int64  `json:"more_choices"`
	Subscription string `json:"subscription"` // whose answer the agent got; empty: authpool's own
	Status       int64  `json:"status"`
	// End is how the answer ended: `whole`, `cut`, `agent left`, `refused` (by
	// authpool), `closed` (a WebSocket, by authpool), `answered locally`, or `failed` (a fault of authpool's).
	End       string  `json:"end"`
	Error     string  `json:"error"`   // code of an error of authpool's own
	Message   string  `json:"message"` // its text, or why an answer was cut
	Tokens    Tokens  `json:"tokens"`
	Estimated bool    `json:"estimated"` // Tokens are, because the answer was cut
	Turns     int64   `json:"turns"`     // of a WebSocket, that were counted
	Took      Seconds `json:"took_s"`    // until the answer's last byte
}

// Tokens are what the answer used.
type Tokens struct {
	Input        int64 `json:"input"`
	Output       int64 `json:"output"`
	CacheRead    int64 `json:"cache_read"`
	CacheWrite5m int64 `json:"cache_write_5m"`
	CacheWrite1h int64 `json:"cache_write_1h"`
}

// Total is the sum of all kinds.
func (t Tokens) Total() int64 {
	return t.Input + t.Output + t.CacheRead + t.CacheWrite5m + t.CacheWrite1h
}

// Choice is how the pool was asked once, and what became of it.
type Choice struct {
	Subscription string `json:"subscription"` // empty: nobody could serve
	// Source is how it was chosen: `bound`, `new`, `moved` or `elsewhere`, as
	// package pool has it; empty: nobody was.
	Source    string `json:"source"`
	Home      string `json:"home"`      // where the session stuck before
	Inherited bool   `json:"inherited"` // the session was put where its parent is
	Strategy  string `json:"strategy"`  // by which Candidates were compared; empty: they were not
	ByHash    bool   `json:"by_hash"`   // Redis did not answer: chosen by the session's name alone
	Pinned    bool   `json:"pinned"`    // only the session's own domain could serve
	Owner     string `json:"owner"`     // the one that has what the request names
	// Candidates are those that were looked at; never null, and empty where that was
	// not needed.
	Candidates []Candidate `json:"candidates"`
	Omitted    int64       `json:"omitted"` // that were looked at and are not in Candidates
	Wait       *Wait       `json:"wait"`    // null: it did not wait
	Refusal    string      `json:"refusal"` // why nobody could serve
	Attempt    *Attempt    `json:"attempt"` // null: nothing was sent
}

// Candidate is one subscription that might have served.
type Candidate struct {
	Subscription string     `json:"subscription"`
	Obstacle     string     `json:"obstacle"` // what kept it from serving; empty: it could
	Reason       string     `json:"reason"`
	Until        *time.Time `json:"until"` // when that may change; null: not known
	Priority     int64      `json:"priority"`
	Draining     bool       `json:"draining"` // nearly used up: any other comes first
	Standing     *Standing  `json:"standing"` // null without a score, and where the score decided alone
	Score        *Score     `json:"score"`    // null with an obstacle, and where no score was looked at
}

// Score is pool.Score.
type Score struct {
	Total        float64 `json:"total"`        // 0..100, the product of the parts
	Availability float64 `json:"availability"` // these are 0..1, in thousandths
	Headroom     float64 `json:"headroom"`
	Soundness    float64 `json:"soundness"`
	Swiftness    float64 `json:"swiftness"`
	Idleness     float64 `json:"idleness"`
}

// Standing is pool.Standing.
type Standing struct {
	Used      float64 `json:"used"`         // spent part of the tightest limit, in thousandths
	ExpiresIn Seconds `json:"expires_in_s"` // until the rest of its tightest window is lost; 0: nothing is
	Sessions  int64   `json:"sessions"`
	InFlight  int64   `json:"in_flight"`
	Turn      float64 `json:"turn"` // the lower, the sooner it is served in turn
}

// Wait is how the request stood in the queue of its provider.
type Wait struct {
	For   Seconds `json:"for_s"`
	Ahead int64   `json:"ahead"` // requests that waited when it came
	Own   int64   `json:"own"`   // of those, the same agent's
	// Subscription was the first that was expected to open, at Until (null: nobody
	// could know); Reason is why it was closed.
	Subscription string     `json:"subscription"`
	Reason       string     `json:"reason"`
	Until        *time.Time `json:"until"`
}

// Attempt is one sending of the request.
type Attempt struct {
	At   Seconds `json:"at_s"`   // since Request.Start
	Took Seconds `json:"took_s"` // until it was known what the answer is worth: its head or first content
	// Status is the answer's; 0: none came.
	Status int64 `json:"status"`
	Verdict
	Error string   `json:"error"` // why no whole answer came
	Final string   `json:"final"` // why the request went to nobody else after it; empty: it did, or was served
	Late  *Verdict `json:"late"`  // an error behind the answer's content; null: none
}

// Verdict is what the classifier said, as `authpool explain-response` shows it.
type Verdict struct {
	Signal string   `json:"signal"`
	Reason string   `json:"reason"`
	Scope  string   `json:"scope"`
	Wait   *Seconds `json:"wait_s"` // null: no end is stated
	Row    string   `json:"row"`
}

// Seconds is a duration that JSON tells in seconds, to the microsecond.
type Seconds time.Duration

// MarshalJSON implements json.Marshaler.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Round(time.Microsecond).Seconds(), 'f', -1, 64), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Seconds) UnmarshalJSON(text []byte) error {
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		return err
	}
	*s = Seconds(time.Duration(f * float64(time.Second)).Round(time.Microsecond))
	return nil
}
