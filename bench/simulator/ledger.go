package simulator

import (
	"sync"
	"time"
)

// ledgerSize bounds the ledger. It never forgets: when it is full, requests are refused.
const ledgerSize = 1 << 20

// Entry is one answer that was billed. Output is what has been sent so far, so an answer that was cut holds
// less than it would have.
type Entry struct {
	Key       string `json:"key"`
	RequestID string `json:"request_id"`
	Model     string `json:"model"`
	// Input does not hold what was read from or written to the cache.
	Input        int64 `json:"input"`
	Output       int64 `json:"output"`
	CacheRead    int64 `json:"cache_read"`
	CacheWrite5m int64 `json:"cache_write_5m"`
	CacheWrite1h int64 `json:"cache_write_1h"`
	// Finished is set once the event, or the last byte of the body, that ends the answer was written.
	Finished bool `json:"finished"`
	// At is when the request was admitted, UTC.
	At time.Time `json:"at"`
}

// ledger is the list of what was billed. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	entries []*Entry
}

// open adds an entry; false means that the ledger is full.
func (l *ledger) open(e Entry) (*Entry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) == ledgerSize {
		return nil, false
	}
	l.entries = append(l.entries, &e)
	return &e, true
}

func (l *ledger) update(e *Entry, change func(*Entry)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(e)
}

func (l *ledger) list() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Entry, len(l.entries))
	for i, e := range l.entries {
		out[i] = *e
	}
	return out
}

func (l *ledger) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
}
