package simulator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Kind names what goes wrong in a [Fault].
type Kind string

// The kinds of faults.
const (
	// Status answers with Fault.Status and the provider's own error body for it. With RetryAfter a 429 says
	// when to come back, without it is bare.
	Status Kind = "status"
	// RateLimit is a 429.
	RateLimit Kind = "rate_limit"
	// Window is a 429 of a subscription whose five-hour window is used up for RetryAfter seconds.
	Window Kind = "window"
	// Quota says that the money is used up: no waiting helps.
	Quota Kind = "quota"
	// Overloaded is Anthropic's 529, OpenAI's 503.
	Overloaded Kind = "overloaded"
	// Cut closes the connection in the middle of the answer.
	Cut Kind = "cut"
	// EarlyCut closes the connection of a stream before its first content; of a JSON answer as Cut does.
	EarlyCut Kind = "early_cut"
	// ErrorEvent ends a stream with an error event before its first content; a JSON answer is Overloaded.
	ErrorEvent Kind = "error_event"
	// LateErrorEvent ends a stream with an error event in the middle of its content.
	LateErrorEvent Kind = "late_error_event"
	// SlowFirstByte waits DelayMS (1000 if zero) before the head of the answer.
	SlowFirstByte Kind = "slow_first_byte"
	// Silent stops sending after the first content and keeps the connection open.
	Silent Kind = "silent"
	// SilentHead sends nothing at all and keeps the connection open.
	SilentHead Kind = "silent_head"
	// Slow waits DelayMS (250 if zero) between stream events.
	Slow Kind = "slow"
	// EchoCredential repeats the credential that arrived, in the header X-Echo-Credential and in the text.
	EchoCredential Kind = "echo_credential" //nolint:gosec // the name of a fault
	// Garbage answers 200 with something that is not JSON.
	Garbage Kind = "garbage"
	// RawAnswer plays Fault.Answer, whatever was asked, DelayMS after it was. Nobody bills it.
	RawAnswer Kind = "answer"
)

var kinds = []Kind{
	Status, RateLimit, Window, Quota, Overloaded, Cut, EarlyCut, ErrorEvent, LateErrorEvent,
	SlowFirstByte, Silent, SilentHead, Slow, EchoCredential, Garbage, RawAnswer,
}

// Fault makes some requests of a key go wrong.
type Fault struct {
	// After is how many requests pass before the fault begins.
	After int `yaml:"after" json:"after"`
	// Count is for how many requests it holds: 0 means one, -1 means until faults are deleted.
	Count int `yaml:"count" json:"count"`
	// Kind says what goes wrong; it may be left out when Status is given.
	Kind Kind `yaml:"kind" json:"kind"`
	// Status is the HTTP status of kind [Status], from 400 to 599.
	Status int `yaml:"status" json:"status"`
	// RetryAfter is how many seconds to wait, as the answer's headers say it; zero says nothing.
	RetryAfter float64 `yaml:"retry_after" json:"retry_after"`
	// DelayMS is the pause of the slow kinds, and of RawAnswer before its head, in milliseconds.
	DelayMS int `yaml:"delay_ms" json:"delay_ms"`
	// Answer is the raw HTTP/1.1 answer of kind [RawAnswer]: head, blank line, body. It is sent byte for byte, but for
	// line feeds in its head that lack their CR.
	Answer string `yaml:"answer" json:"answer,omitempty"`
	// AnswerBase64 is Answer in base64, for one that is no text.
	AnswerBase64 string `yaml:"answer_base64" json:"answer_base64,omitempty"`
	// AnswerFile names the file that holds Answer, from the working directory; only in a keys file.
	AnswerFile string `yaml:"answer_file" json:"-"`
}

// Injection is a fault added at run time: the body of POST /faults, or an element of it.
type Injection struct {
	// Key is the key it happens to; empty means to the requests of all keys together.
	Key string `json:"key"`
	Fault
}

func (f Fault) check() error {
	var faults []error
	if f.Kind == "" && f.Status == 0 {
		faults = append(faults, errors.New("kind: missing, or give a status"))
	}
	if f.Kind != "" && !slices.Contains(kinds, f.Kind) {
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = string(k)
		}
		faults = append(faults, fmt.Errorf("kind: %q, want one of %s", f.Kind, strings.Join(names, ", ")))
	}
	if isStatus := f.Kind == Status || f.Kind == ""; isStatus && f.Kind != "" || f.Status != 0 {
		if f.Status < 400 || f.Status > 599 {
			faults = append(faults, fmt.Errorf("status: %d, want 400 to 599", f.Status))
		} else if !isStatus {
			faults = append(faults, fmt.Errorf("status: only with kind %s, not %s", Status, f.Kind))
		}
	}
	if f.After < 0 || f.Count < -1 || f.RetryAfter < 0 || f.DelayMS < 0 {
		faults = append(faults, errors.New("after, count, retry_after, delay_ms: negative"))
	}
	if err := f.checkAnswer(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// armed is a fault with what is left of it.
type armed struct {
	Injection
	after, left int
}

func arm(i Injection) *armed {
	if i.Kind == "" {
		i.Kind = Status
	}
	if i.Count == 0 {
		i.Count = 1
	}
	return &armed{Injection: i, after: i.After, left: i.Count}
}

// faultList hands out faults to requests in the order they were added. It is safe for concurrent use.
type faultList struct {
	mu    sync.Mutex
	armed []*armed
}

func (l *faultList) add(in ...Injection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range in {
		l.armed = append(l.armed, arm(i))
	}
}

// next counts one request of key and returns the first fault that is due, or nil. Every fault counts every
// request that fits it, but only the one that happens is used up.
func (l *faultList) next(key string) *Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	var due *Fault
	l.armed = slices.DeleteFunc(l.armed, func(a *armed) bool {
		if a.Key != "" && a.Key != key {
			return false
		}
		if a.after > 0 {
			a.after--
			return false
		}
		if due != nil {
			return false
		}
		due = &a.Fault
		if a.left > 0 {
			a.left--
		}
		return a.left == 0
	})
	return due
}

// list returns the faults that are still to come, with what is left of After and Count.
func (l *faultList) list() []Injection {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Injection, len(l.armed))
	for i, a := range l.armed {
		out[i] = a.Injection
		out[i].After, out[i].Count = a.after, a.left
	}
	return out
}

func (l *faultList) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = nil
}
