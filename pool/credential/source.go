package credential

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// recheck is how often, at most, a Source looks whether its file has changed.
	recheck = time.Second
	// execEvery is how often a program is run again, and execRetry how often while what
	// it gave is refused, or it fails.
	execEvery = 5 * time.Minute
	execRetry = 10 * time.Second
)

// Source lends the credential behind a Ref and notices when a file: reference
// is rewritten (a rotated key, a Kubernetes secret swapped by symlink), or an exec: one
// gives another secret. Safe for concurrent use; it owns no goroutine.
type Source struct {
	ref    Ref
	scheme Scheme
	now    atomic.Pointer[reading]

	mu sync.Mutex // held by the one caller that looks at the file
}

// reading is what was last seen. It is replaced, never changed.
type reading struct {
	secret Secret      // last good one; empty when there never was one
	err    error       // what was wrong at the last look
	file   os.FileInfo // the file then; nil when it could not be examined
	next   time.Time   // when to look again; zero for never
	ran    time.Time   // when a program last gave an answer
	refuse bool        // the secret was refused: a program's next answer is waited for
}

// NewSource makes a Source of credentials with this scheme. It first resolves
// ref when it is first asked.
func NewSource(ref Ref, scheme Scheme) *Source { return &Source{ref: ref, scheme: scheme} }

// Credential is the credential as of now, fit to be sent to a provider (see
// Check). While a rewritten file cannot be used, the last good secret stays; Err
// tells. It fails only when there has not been a good one yet. Credentials are
// equal (==) exactly when nothing changed, so that a caller can see a rotation.
//
// At most once a second the call looks at a file's metadata; it reads the file
// only when they changed. Callers that come meanwhile get the value at hand.
// Nothing is waited for but a local file, or a program that never gave a secret; each
// has bounds of its own, so the context is not used. A program that did is run by Renew
// and Refresh alone.
func (s *Source) Credential(_ context.Context) (Credential, error) {
	seen := s.reading(time.Now())
	if seen.secret.Empty() {
		return Credential{}, seen.err
	}
	return Credential{Scheme: s.scheme, Secret: seen.secret}, nil
}

// Refresh is Credential after a look at the file that is not put off and
// does not trust its metadata, or a run of the program: for a secret that was refused. Of
// many callers at once one runs the program.
func (s *Source) Refresh(ctx context.Context) (Credential, error) {
	came := time.Now()
	s.mu.Lock()
	last := reading{}
	if seen := s.now.Load(); seen != nil {
		last = *seen
		last.file = nil
	}
	last.refuse = true
	if s.ref.scheme != "exec" || came.Sub(last.ran) > recheck {
		s.look(last, time.Now())
	}
	s.mu.Unlock()
	return s.Credential(ctx)
}

// Renew runs the program of an exec: reference again when it is time to, and does
// nothing for others. It is to be called now and then by somebody who can wait: a run
// takes up to 6 s.
func (s *Source) Renew() {
	seen := s.now.Load()
	if s.ref.scheme != "exec" || seen == nil || time.Now().Before(seen.next) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen = s.now.Load(); !time.Now().Before(seen.next) {
		s.look(*seen, time.Now())
	}
}

// reading is what can be said at now.
func (s *Source) reading(now time.Time) *reading {
	seen := s.now.Load()
	switch {
	case seen == nil:
		s.mu.Lock()
		defer s.mu.Unlock()
		if seen = s.now.Load(); seen == nil {
			seen = s.look(reading{}, now)
		}
	case s.ref.scheme == "exec" && !seen.secret.Empty():
	case !seen.next.IsZero() && !now.Before(seen.next) && s.mu.TryLock():
		defer s.mu.Unlock()
		if seen = s.now.Load(); !now.Before(seen.next) {
			seen = s.look(*seen, now)
		}
	}
	return seen
}

// Err is what was wrong when the source was last looked at; nil when it was
// usable, or was never asked.
func (s *Source) Err() error {
	if seen := s.now.Load(); seen != nil {
		return seen.err
	}
	return nil
}

// look makes and keeps the next reading. The caller holds mu.
func (s *Source) look(last reading, now time.Time) *reading {
	next := last
	if s.ref.scheme == "file" {
		next.next = now.Add(recheck)
		file, err := os.Stat(s.ref.target)
		if err == nil && last.file != nil && last.err == nil && same(file, last.file) {
			s.now.Store(&next)
			return &next
		}
		next.file = file
	}
	secret, err := s.ref.Resolve(context.Background())
	if err == nil {
		if err = Check(secret); err != nil {
			err = fmt.Errorf("cannot use %s: %w", s.ref.name(), err)
		}
	}
	if next.err = err; err == nil {
		next.refuse = next.refuse && secret == next.secret
		next.secret = secret
	}
	if s.ref.scheme == "exec" {
		next.ran = time.Now()
		next.next = next.ran.Add(execEvery)
		if next.refuse || err != nil {
			next.next = next.ran.Add(execRetry)
		}
	}
	s.now.Store(&next)
	return &next
}

// same tells whether two looks found the same file, unchanged.
func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
