package pool

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"time"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/ratelimit"
)

const (
	// credentialRecheck is how often the credential of a subscription that it
	// closed is read again.
	credentialRecheck = 2 * time.Second
	// credentialTimeout bounds one such reading.
	credentialTimeout = 5 * time.Second
)

// digest stands for a secret that has to be recognised but not known.
type digest [sha256.Size]byte

func digestOf(c credential.Credential) digest {
	return sha256.Sum256([]byte(c.Secret.Reveal()))
}

// refuseCredential closes m because the provider does not accept what was
// lent, until its source gives another secret. A source that has another one
// already closes nothing: it was replaced, and the request may be sent once more
// with the new one.
func (p *Pool) refuseCredential(m *member, lent credential.Credential) {
	refused := digestOf(lent)
	ctx, cancel := context.WithTimeout(context.Background(), credentialTimeout)
	defer cancel()
	if c, err := m.conf().Credential.Refresh(ctx); err == nil && digestOf(c) != refused {
		return
	}
	m.mu.Lock()
	known := m.closed != ""
	m.closed, m.refused, m.closedAt = string(ratelimit.ReasonCredential), refused, time.Now()
	m.mu.Unlock()
	if !known {
		p.opts().Logger.Warn("the provider does not accept the credential: the subscription is disabled until it changes",
			slog.String("subscription", m.conf().ID))
		p.tellCredential(event.CredentialFailing, m, string(ratelimit.ReasonCredential), "is not accepted by the provider")
	}
}

// loseCredential closes m because its source gives nothing, until it does.
func (p *Pool) loseCredential(m *member, err error) {
	m.mu.Lock()
	known := m.closed != ""
	if !known {
		m.closed, m.closedAt = ReasonUnreadable, time.Now()
	}
	m.mu.Unlock()
	if !known {
		p.opts().Logger.Warn("the credential cannot be read: the subscription is disabled until it can",
			slog.String("subscription", m.conf().ID), slog.Any("error", err))
		p.tellCredential(event.CredentialFailing, m, ReasonUnreadable, "cannot be read")
	}
}

// watchCredentials opens what a credential has closed once that has changed,
// until ctx ends.
func (p *Pool) watchCredentials(ctx context.Context) {
	tick := time.NewTicker(credentialRecheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.checkCredentials(ctx, false)
		}
	}
}

// checkCredentials reads the credentials that closed their subscription, or
// all, and opens and closes accordingly.
func (p *Pool) checkCredentials(ctx context.Context, all bool) {
	for _, m := range p.members() {
		p.checkCredential(ctx, m, all)
	}
}

// checkCredential is checkCredentials for one subscription.
func (p *Pool) checkCredential(ctx context.Context, m *member, always bool) {
	if source, ok := m.conf().Credential.(interface{ Renew() }); ok && !m.conf().Disabled {
		source.Renew() // a program, which no request waits for
	}
	m.mu.Lock()
	closed, refused := m.closed, m.refused
	m.mu.Unlock()
	if m.conf().Disabled {
		return
	}
	if closed == "" && !always {
		p.checkStale(ctx, m)
		p.checkExpiry(ctx, m)
		return
	}
	c, err := m.readCredential(ctx)
	switch {
	case ctx.Err() != nil: // says nothing about the credential
	case err != nil:
		p.loseCredential(m, err)
	case closed != "" && digestOf(c) != refused:
		m.mu.Lock()
		m.closed, m.refused = "", digest{}
		m.mu.Unlock()
		p.opts().Logger.Info("the credential has changed: the subscription is enabled", slog.String("subscription", m.conf().ID))
		p.tellCredential(event.CredentialRestored, m, closed, "has changed: it is enabled")
		p.group(m.conf().Provider).queue.event()
	}
}

// checkStale tells of a source that cannot be read any more, while what it gave before
// stays in use: whoever has put another secret there is to know that it is not used.
func (p *Pool) checkStale(ctx context.Context, m *member) {
	source, ok := m.conf().Credential.(interface{ Err() error })
	if !ok {
		return
	}
	if _, err := m.readCredential(ctx); err != nil {
		return // and no request gets one: that is told when one asks
	}
	err := source.Err()
	m.mu.Lock()
	was := m.stale
	m.stale = err != nil
	m.mu.Unlock()
	switch {
	case err != nil && !was:
		p.opts().Logger.Warn("the credential cannot be read anew: the one that was read before stays in use",
			slog.String("subscription", m.conf().ID), slog.Any("error", err))
		p.tellCredential(event.CredentialFailing, m, ReasonStale, "cannot be read anew: the one that was read before stays in use")
	case err == nil && was:
		p.opts().Logger.Info("the credential can be read again", slog.String("subscription", m.conf().ID))
		p.tellCredential(event.CredentialRestored, m, ReasonStale, "can be read again")
	}
}

// expiry is what a secret says of its end.
type expiry struct {
	of    credential.Secret
	until time.Time // zero: it says nothing
	warn  time.Time // from when on it is told
	told  bool
}

// expiryOf reads what a secret says. A day before its end is time to replace it by hand;
// one that lives for hours is replaced by a program, which may wait for nearly as long.
func expiryOf(secret credential.Secret, now time.Time) expiry {
	x := expiry{of: secret}
	from, until, ok := secret.Validity()
	if !ok {
		return x
	}
	if from.IsZero() {
		from = now
	}
	x.until, x.warn = until, until.Add(-min(24*time.Hour, until.Sub(from)/20))
	return x
}

// checkExpiry tells of a credential that ends soon, and when it was replaced after that.
func (p *Pool) checkExpiry(ctx context.Context, m *member) {
	c, err := m.readCredential(ctx)
	if err != nil {
		return // as in checkStale
	}
	now, before := time.Now(), expiry{}
	m.mu.Lock()
	if m.expiry.of != c.Secret {
		before, m.expiry = m.expiry, expiryOf(c.Secret, now)
	}
	x := m.expiry
	tell := !x.until.IsZero() && !x.told && !now.Before(x.warn)
	m.expiry.told = x.told || tell
	m.mu.Unlock()
	switch {
	case tell:
		verb := "ends"
		if now.After(x.until) {
			verb = "ended"
		}
		end := x.until.UTC().Format(time.RFC3339)
		p.opts().Logger.Warn("by its own words the credential ends soon, or has ended", slog.String("subscription", m.conf().ID), slog.String("at", end))
		p.tellCredential(event.CredentialExpiring, m, ReasonExpiring, verb+" at "+end+", as it says itself: replace it")
	case before.told:
		p.opts().Logger.Info("the credential that was to end was replaced", slog.String("subscription", m.conf().ID))
		p.tellCredential(event.CredentialRestored, m, ReasonExpiring, "was replaced")
	}
}

func (m *member) readCredential(ctx context.Context) (credential.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, credentialTimeout)
	defer cancel()
	return m.conf().Credential.Credential(ctx)
}
