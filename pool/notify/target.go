package notify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/sony/gobreaker/v2"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/reach"
)

// Format is what a target understands.
type Format string

// The formats.
const (
	JSON  Format = "json"  // a Message
	Slack Format = "slack" // {"text": …}, as incoming webhooks of Slack, Mattermost and others take it
)

const (
	postTime   = 10 * time.Second // of one attempt
	answerMost = 64 << 10         // bytes of an answer that are read; they say nothing
	headMost   = 16 << 10         // bytes of an answer's head

	// After a failure the next attempt is after a random part of firstWait, then of
	// twice that, and so on to longestWait; or after what Retry-After says, which
	// counts up to longestWait.
	firstWait   = time.Second
	longestWait = 5 * time.Minute
	// oldest is the age from which on an event is no news.
	oldest = 24 * time.Hour
	// breakAfter failures in a row nothing is tried for breakTime.
	breakAfter = 5
	breakTime  = time.Minute
)

// Target is one webhook.
type Target struct {
	URL    string            // https, or http to this machine; a secret
	Secret credential.Secret // signs; empty: nothing is signed
	Events []string          // globs of the kinds that it wants, as event.Kind.Matches
	Format Format
	// Pin, if not empty, is the SHA-256 in base64 of the public key (its
	// SubjectPublicKeyInfo) of the receiver's certificate or of one that issued it;
	// the certificate has to be valid all the same.
	Pin string
	// AllowPrivate allows addresses of private networks and of this machine.
	AllowPrivate bool
}

// target sends what its queue holds. Its fields do not change.
type target struct {
	conf   Target
	host   string
	pin    []byte
	log    *slog.Logger
	queue  *queue
	client *http.Client

	breaker *gobreaker.CircuitBreaker[answer]
	wake    chan struct{} // holds one: there is something in the queue
	closing chan struct{} // closed: send what there is, without waiting, and end
}

// answer is what a receiver said.
type answer struct {
	status int
	wait   time.Duration // that it asked for; 0: none
}

// errRefused is in the error for an answer that another attempt would not better.
var errRefused = errors.New("refused")

func newTarget(index int, conf Target, opts Options, log *slog.Logger) (*target, error) {
	u, err := url.Parse(conf.URL)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return nil, errors.New("url: is not the URL of a webhook") // it is not repeated: it is a secret
	}
	r := public
	if conf.AllowPrivate {
		r = internal
	}
	address, err := netip.ParseAddr(u.Hostname())
	literal := err == nil
	if u.Hostname() == "localhost" || literal && address.Unmap().IsLoopback() {
		r = local
	}
	switch {
	case u.Scheme != "https" && (u.Scheme != "http" || r != local):
		return nil, errors.New("url: would be sent unencrypted")
	case literal:
		if err := r.allows(address); err != nil {
			return nil, fmt.Errorf("url: %w", err)
		}
	}
	t := &target{
		conf: conf, host: u.Hostname(), log: log.With("notifications", index, "host", u.Hostname()),
		wake: make(chan struct{}, 1), closing: make(chan struct{}),
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if conf.Pin != "" {
		if t.pin, err = base64.StdEncoding.DecodeString(conf.Pin); err != nil || len(t.pin) != sha256.Size {
			return nil, errors.New("pin_sha256: is not a SHA-256 in base64")
		}
		config.VerifyConnection = t.verify
	}
	t.client = &http.Client{
		Timeout: postTime,
		Transport: &http.Transport{
			Proxy:                  nil, // it would resolve the name itself
			DialContext:            (&dialer{r, reach.Dialer{Lookup: opts.Lookup, Dial: opts.Dial}}).DialContext,
			TLSClientConfig:        config,
			TLSHandshakeTimeout:    connectTime,
			MaxResponseHeaderBytes: headMost,
			DisableKeepAlives:      true,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opened := breakerOpen.WithLabelValues(t.host)
	opened.Set(0)
	t.breaker = gobreaker.NewCircuitBreaker[answer](gobreaker.Settings{
		Name:         t.host,
		Timeout:      breakTime,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= breakAfter },
		IsSuccessful: func(err error) bool { return err == nil || errors.Is(err, errRefused) },
		OnStateChange: func(_ string, _, to gobreaker.State) {
			opened.Set(0)
			if to == gobreaker.StateOpen {
				opened.Set(1)
				t.log.Warn("a webhook fails: nothing is sent to it for a minute")
			}
		},
	})
	// What the target is called must not tell its URL, and must outlive another order
	// of the configuration.
	name := sha256.Sum256([]byte(conf.URL + "\n" + string(conf.Format)))
	path := filepath.Join(opts.Folder, hex.EncodeToString(name[:12])+queueSuffix)
	var damaged int
	if t.queue, damaged, err = openQueue(path); err != nil {
		return nil, err
	}
	if damaged > 0 {
		t.log.Warn("the queue of notifications was damaged, as by a crash", "lines", damaged)
	}
	waiting.WithLabelValues(t.host).Set(float64(t.queue.len()))
	return t, nil
}

// verify is for tls.Config.VerifyConnection, which comes after the certificate was
// found valid.
func (t *target) verify(state tls.ConnectionState) error {
	for _, chain := range state.VerifiedChains {
		for _, certificate := range chain {
			if sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo); bytes.Equal(sum[:], t.pin) {
				return nil
			}
		}
	}
	return errors.New("no certificate of the receiver has the public key of pin_sha256")
}

func (t *target) wants(k event.Kind) bool {
	return slices.ContainsFunc(t.conf.Events, k.Matches)
}

func (t *target) enqueue(d delivery) {
	full, err := t.queue.push(d)
	if full {
		dropped.WithLabelValues(t.host, "full").Inc()
	}
	if err != nil {
		t.log.Error("a notification waits in memory alone, and would not survive a restart", "error", err)
	}
	waiting.WithLabelValues(t.host).Set(float64(t.queue.len()))
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run sends what is in the queue, in order, until ctx ends, or the target is closing
// and the queue is empty or fails.
func (t *target) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		d, ok := t.queue.first()
		if !ok {
			select {
			case <-t.wake:
				continue
			case <-t.closing:
			case <-ctx.Done():
			}
			return
		}
		wait := t.attempt(ctx, d, failures)
		if wait == 0 {
			failures = 0
			continue
		}
		failures++
		if !t.pause(ctx, wait) {
			return
		}
	}
}

// pause waits; it returns false when there is no time for it.
func (t *target) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.closing:
	case <-ctx.Done():
	}
	return false
}

// attempt sends d, and returns when to try again, after so many failures in a row; 0:
// d is over.
func (t *target) attempt(ctx context.Context, d delivery, failures int) (wait time.Duration) {
	if time.Since(d.Event.Time) > oldest {
		dropped.WithLabelValues(t.host, "old").Inc()
		t.log.Error("a notification was not delivered within a day", "event", string(d.Event.Kind), "subscription", d.Event.Subscription)
		t.over(d)
		return 0
	}
	a, err := t.breaker.Execute(func() (answer, error) { return t.post(ctx, d) })
	switch {
	case err == nil:
		attempts.WithLabelValues(t.host, "accepted").Inc()
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return firstWait + rand.N(breakTime/4) // it was not tried
	case ctx.Err() != nil:
		return longestWait // it is over
	case errors.Is(err, errRefused):
		attempts.WithLabelValues(t.host, "refused").Inc()
		dropped.WithLabelValues(t.host, "refused").Inc()
		t.log.Error("a webhook does not take a notification", "event", string(d.Event.Kind), "error", err)
	default:
		attempts.WithLabelValues(t.host, "failed").Inc()
		t.log.Warn("a notification was not delivered: it is sent again", "event", string(d.Event.Kind), "error", err)
		most := min(firstWait<<min(failures, 16), longestWait)
		return max(min(a.wait, longestWait), rand.N(most)+time.Millisecond)
	}
	t.over(d)
	return 0
}

// over takes d out of the queue.
func (t *target) over(d delivery) {
	if err := t.queue.done(d.ID); err != nil {
		t.log.Error("a notification may be sent again after a restart", "error", err)
	}
	waiting.WithLabelValues(t.host).Set(float64(t.queue.len()))
}

// post sends d once. Its error tells nothing of the URL but the host.
func (t *target) post(ctx context.Context, d delivery) (answer, error) {
	body, err := d.body(t.conf.Format)
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", errRefused, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.conf.URL, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("%w: the URL cannot be used", errRefused)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "authpool")
	req.Header.Set(EventHeader, string(d.Event.Kind))
	req.Header.Set(IDHeader, d.ID)
	if !t.conf.Secret.Empty() {
		req.Header.Set(SignatureHeader, Sign(t.conf.Secret.Reveal(), time.Now(), body))
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return answer{}, bare(err)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, answerMost) // the status says all
	_ = resp.Body.Close()
	a := answer{status: resp.StatusCode}
	switch code := a.status; {
	case code >= 200 && code <= 299:
		return a, nil
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			a.wait = min(time.Duration(n), time.Hour/time.Second) * time.Second
		}
	case code >= 300 && code <= 399:
		return a, fmt.Errorf("%w: status %d; redirects are not followed: name where it leads to", errRefused, code)
	case code >= 400 && code <= 499 && code != http.StatusRequestTimeout && code != http.StatusTooEarly:
		return a, fmt.Errorf("%w: status %d", errRefused, code)
	}
	return a, fmt.Errorf("status %d", a.status)
}

// bare takes the method and the URL off an error of net/http.
func bare(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		if u.Timeout() {
			return errors.New("no answer in time")
		}
		err = u.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}

var (
	attempts = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_notifications_attempts_total",
		Help: "Notifications posted, by the webhook's host and how it went: accepted, refused, failed.",
	}, []string{"host", "result"})
	dropped = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "authpool_notifications_dropped_total",
		Help: "Notifications that were given up: the queue was full, too old, or the webhook refused them.",
	}, []string{"host", "why"})
	waiting = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "authpool_notifications_waiting",
		Help: "Notifications in the queue of a webhook.",
	}, []string{"host"})
	breakerOpen = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "authpool_notifications_breaker_open",
		Help: "1 while nothing is sent to a webhook, because it fails.",
	}, []string{"host"})
)
