// Package notify tells webhooks of events. Start at Open.
//
// An event goes through three stages, none of which those who emitted it wait for:
// quiet.go holds back what was told a moment ago, so that a flapping subscription
// does not become a flood; queue.go keeps what is to be sent to one target on the
// disk, so that a restart loses nothing; target.go sends it, in order and again
// until the receiver has accepted it. An event comes at least once: a receiver
// recognises a repetition by its id.
//
// A webhook's URL is a secret, as whoever has it may post to it: errors, logs and
// metrics name its host alone.
package notify

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/authpool/authpool/pool/event"
)

const (
	// room is how many events may wait to be looked at; that takes no network.
	room = 1024
	// flushTime is how long what is queued may take to be sent when a Notifier
	// closes. The rest stays on the disk for the next start.
	flushTime = 3 * time.Second
)

// Options say how a Notifier works.
type Options struct {
	// Folder holds the queues; it is made where it is missing. It must be this
	// process's alone.
	Folder string
	// Lookup resolves a name. Nil: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address with a port. Nil: net.Dialer.
	Dial func(ctx context.Context, address netip.AddrPort) (net.Conn, error)
	// Claim tells whether this process is the one of its fleet to tell of e, which it
	// is asked once, before anybody is told. It must return within a moment. Nil: it
	// always is.
	Claim func(e event.Event) bool
	// Logger gets what could not be told. Nil: slog.Default.
	Logger *slog.Logger
}

// Notifier brings the events of a bus to targets until Close. It is safe for
// concurrent use.
type Notifier struct {
	log     *slog.Logger
	host    string // of this process, for people with many
	targets []*target
	quiet   *quiet
	claim   func(event.Event) bool

	unsubscribe func()
	cancel      context.CancelFunc
	sorting     sync.WaitGroup
	sending     sync.WaitGroup
}

// Open reads what former processes could not send and begins to send it, and what
// bus tells from now on. The queues of targets that are not there any more are
// deleted. An error names the target's index or the folder.
func Open(opts Options, targets []Target, bus *event.Bus) (*Notifier, error) {
	n := &Notifier{log: opts.Logger, quiet: newQuiet(), claim: opts.Claim}
	if n.log == nil {
		n.log = slog.Default()
	}
	n.host, _ = os.Hostname() // without one it is empty
	if err := os.MkdirAll(opts.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder of notifications: %w", err)
	}
	for i, conf := range targets {
		t, err := newTarget(i, conf, opts, n.log)
		if err != nil {
			n.closeQueues()
			return nil, fmt.Errorf("notifications[%d]: %w", i, err)
		}
		for j, other := range n.targets {
			if other.queue.path == t.queue.path {
				t.queue.close()
				n.closeQueues()
				return nil, fmt.Errorf("notifications[%d]: is the target of notifications[%d]", i, j)
			}
		}
		n.targets = append(n.targets, t)
	}
	if err := n.forget(opts.Folder); err != nil {
		n.closeQueues()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	events, stop := bus.Subscribe("notifications", room)
	n.unsubscribe = stop
	n.sorting.Go(func() { n.sort(events) })
	for _, t := range n.targets {
		n.sending.Go(func() { t.run(ctx) })
	}
	return n, nil
}

// forget deletes the queues of targets that are not configured any more.
func (n *Notifier) forget(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("cannot read the folder of notifications: %w", err)
	}
	known := map[string]bool{}
	for _, t := range n.targets {
		known[filepath.Base(t.queue.path)] = true
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, queueSuffix) && !known[name] {
			if err := os.Remove(filepath.Join(folder, name)); err != nil {
				return fmt.Errorf("cannot delete the queue of a former target: %w", err)
			}
		}
	}
	return nil
}

func (n *Notifier) closeQueues() {
	for _, t := range n.targets {
		t.queue.close()
	}
}

// Close takes what was emitted before the call, tries for a few seconds, ctx at most,
// to send what is queued, and stops. What could not be sent stays for the next start.
func (n *Notifier) Close(ctx context.Context) error {
	n.unsubscribe()
	n.sorting.Wait()
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	for _, t := range n.targets {
		close(t.closing)
	}
	sent := make(chan struct{})
	go func() { n.sending.Wait(); close(sent) }()
	select {
	case <-sent:
	case <-ctx.Done():
	}
	n.cancel()
	<-sent
	n.closeQueues()
	return nil
}

// sort brings events into the queues of those who want them, until there are no
// more.
func (n *Notifier) sort(events <-chan event.Event) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case e, more := <-events:
			if !more {
				for _, h := range n.quiet.rest() {
					n.enqueue(h)
				}
				return
			}
			if n.wanted(e.Kind) && (n.claim == nil || n.claim(e)) && n.quiet.admit(time.Now(), e) {
				n.enqueue(told{Event: e})
			}
		case <-timer.C:
			for _, h := range n.quiet.due(time.Now()) {
				n.enqueue(h)
			}
		}
		if next, ok := n.quiet.next(); ok {
			timer.Reset(time.Until(next))
		}
	}
}

func (n *Notifier) wanted(k event.Kind) bool {
	for _, t := range n.targets {
		if t.wants(k) {
			return true
		}
	}
	return false
}

func (n *Notifier) enqueue(h told) {
	for _, t := range n.targets {
		if t.wants(h.Event.Kind) {
			t.enqueue(n.delivery(h))
		}
	}
}

// delivery is one event for one target.
func (n *Notifier) delivery(h told) delivery {
	id, _ := uuid.NewV7() // crypto/rand never fails
	return delivery{ID: id.String(), Host: n.host, Event: h.Event, Repeated: h.Repeated}
}

// Result is how a test went for one target.
type Result struct {
	Index  int    // of the target in the configuration
	Host   string // of its URL
	Status int    // of its answer; 0: there was none
	Err    error  // nil: it was accepted
	Took   time.Duration
}

// Test sends a test event of the kind to every target, or to the one of the index
// unless that is negative, whichever events it wants, at once and past its queue
// and breaker. It returns when all have answered or ctx ends; an index that does not
// exist has no result.
func (n *Notifier) Test(ctx context.Context, kind event.Kind, index int) []Result {
	results := make([]Result, 0, len(n.targets))
	for i, t := range n.targets {
		if index < 0 || i == index {
			results = append(results, Result{Index: i, Host: t.host})
		}
	}
	e := event.Event{
		Time: time.Now(), Kind: kind, Reason: "test",
		Text: "this is a test of notifications by an operator: nothing has happened",
	}
	var posting sync.WaitGroup
	for i := range results {
		r := &results[i]
		posting.Go(func() {
			began := time.Now()
			a, err := n.targets[r.Index].post(ctx, n.delivery(told{Event: e}))
			r.Status, r.Err, r.Took = a.status, err, time.Since(began)
		})
	}
	posting.Wait()
	return results
}
