// Package tunnel carries what agents send through CONNECT to hosts that are no
// provider's: bytes that authpool neither reads nor changes.
//
// In the order in which a tunnel meets it: Tunnels.Permit judges host and port by the
// rules (rules.go), Tunnels.Open connects to an address that was judged, too
// (dial.go), Tunnel.Relay copies within limits (relay.go) and looks at the name in the
// first TLS message (hello.go).
//
// What it cannot see: what is inside TLS, so that on a content network a permitted
// name may lead to another site of it by the Host header alone, as it may with plain
// HTTP; and an encrypted server name (ECH), of which it sees the outer one. Where that
// matters, permit few hosts, and none that anybody can put a site on.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/pool/reach"
	"github.com/authpool/authpool/proxy/egress"
)

// Options are what a Tunnels works with.
type Options struct {
	Rules    *Rules
	PerAgent int // open tunnels of one agent
	Most     int // open tunnels in all
	// Connect bounds the look-up of a name and the connection, together.
	Connect time.Duration
	// Own are the addresses that authpool itself listens on; they are never connected
	// to, whatever Rules say. An unspecified address is all of this machine's. Nil:
	// there are none.
	Own func() []netip.AddrPort
	// Egress is the company's forward proxy; nil: there is none.
	Egress *egress.Dialer
	// Lookup resolves a name. Nil: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address. Nil: net.Dialer.
	Dial  func(ctx context.Context, address netip.AddrPort) (net.Conn, error)
	Audit *audit.Log // nil: nothing is written down
	Log   *slog.Logger
}

// Tunnels are the open tunnels of a process. It is safe for concurrent use.
type Tunnels struct {
	opts  Options
	rules atomic.Pointer[Rules]
	to    reach.Dialer

	cut    context.Context // ends when tunnels are cut
	cutAll context.CancelFunc

	mu       sync.Mutex
	stopping bool
	agents   map[string]int // open tunnels of each that has any
	open     map[*Tunnel]struct{}
	slots    sync.WaitGroup // of open ones; grows under mu while not stopping
	taken    int
}

// New returns Tunnels that has none yet.
func New(o Options) *Tunnels {
	t := &Tunnels{
		opts: o, to: reach.Dialer{Lookup: o.Lookup, Dial: o.Dial},
		agents: make(map[string]int), open: make(map[*Tunnel]struct{}),
	}
	if t.to.Dial == nil {
		t.to.Dial = dialTCP
	}
	t.rules.Store(o.Rules)
	t.cut, t.cutAll = context.WithCancel(context.Background())
	return t
}

// Configure takes other rules over for the tunnels from now on. Those that are open
// keep theirs.
func (t *Tunnels) Configure(r *Rules) { t.rules.Store(r) }

// RefusedError says why a host is not tunnelled to. Its text is for the agent.
type RefusedError struct {
	Host   string // as the agent named it
	Port   uint16
	Reason Reason

	text string // behind "authpool: no tunnel to host:port: "
}

// Reason is why, from a closed list.
type Reason string

// The reasons.
const (
	BadHost      Reason = "bad_host"       // it is no host name and no plain IP address
	NotListed    Reason = "not_listed"     // the rules do not permit it
	ProviderHost Reason = "provider_host"  // it is a provider's
	BadAddress   Reason = "bad_address"    // it is at an address that is never connected to, or not without allow_private
	TooMany      Reason = "too_many"       // the agent, or all, have as many tunnels open as they may
	Stopping     Reason = "stopping"       // authpool is stopping
	BadHello     Reason = "bad_tls_server" // the TLS inside names a host that CONNECT could not have named; only told by End
)

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("authpool: no tunnel to %+q port %d: %s", e.Host[:min(len(e.Host), maxShown)], e.Port, e.text)
}

// UnreachableError says that a host was permitted and not connected to. Its text is for
// the agent, and tells nothing of the network here that the agent has not said; what it
// wraps does.
type UnreachableError struct {
	Host string
	Port uint16

	err error
}

// Error implements error.
func (e *UnreachableError) Error() string {
	text := e.err.Error()
	if dns, ok := errors.AsType[*net.DNSError](e.err); ok {
		text = dns.Err
	} else if op, ok := errors.AsType[*net.OpError](e.err); ok {
		text = op.Err.Error()
	}
	return fmt.Sprintf("authpool: cannot connect to %+q port %d: %s", e.Host[:min(len(e.Host), maxShown)], e.Port, text)
}

// Unwrap is for errors.As.
func (e *UnreachableError) Unwrap() error { return e.err }

// maxShown is how much of what an agent sent as a host is repeated.
const maxShown = 255

// Permit tells whether the rules permit a tunnel to host (with brackets or without)
// and port, before anything is looked up or connected to. The error is a
// *RefusedError. Open asks it, too.
func (t *Tunnels) Permit(host string, port uint16) error {
	_, err := t.rules.Load().permit(host, port)
	return err
}

// Open connects an agent to host and port. The error is a *RefusedError where that is
// not permitted (403; 429 for TooMany, 503 for Stopping), else an *UnreachableError
// (502). Refusals are counted and written into the audit log here. Whoever gets a
// Tunnel calls Relay or Close.
func (t *Tunnels) Open(ctx context.Context, agent, host string, port uint16) (*Tunnel, error) {
	tunnel, err := t.connect(ctx, agent, host, port)
	if err != nil {
		t.noteRefusal(agent, err)
		return nil, err
	}
	return tunnel, nil
}

func (t *Tunnels) connect(ctx context.Context, agent, host string, port uint16) (*Tunnel, error) {
	r := t.rules.Load()
	h, err := r.permit(host, port)
	if err != nil {
		return nil, err
	}
	if reason, text := t.take(agent); reason != "" {
		return nil, &RefusedError{host, port, reason, text}
	}
	ctx, cancel := context.WithTimeout(ctx, t.opts.Connect)
	defer cancel()
	defer context.AfterFunc(t.cut, cancel)()
	conn, kind, err := t.dial(ctx, r, h, host, port)
	if err != nil {
		t.give(agent)
		if _, refused := errors.AsType[*RefusedError](err); !refused {
			err = &UnreachableError{host, port, err}
		}
		return nil, err
	}
	return t.begin(r, agent, h, port, conn, kind), nil
}

// take takes a slot for an agent, or tells why there is none.
func (t *Tunnels) take(agent string) (Reason, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.stopping:
		return Stopping, "authpool is stopping"
	case t.agents[agent] >= t.opts.PerAgent:
		return TooMany, fmt.Sprintf("you have %d open, which is the most", t.opts.PerAgent)
	case t.taken >= t.opts.Most:
		return TooMany, fmt.Sprintf("%d are open, which is the most", t.opts.Most)
	}
	t.agents[agent]++
	t.taken++
	t.slots.Add(1)
	return "", ""
}

// give gives a slot back.
func (t *Tunnels) give(agent string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.agents[agent]--; t.agents[agent] == 0 {
		delete(t.agents, agent)
	}
	t.taken--
	t.slots.Done()
}

// Close lets no tunnel begin any more. Those on which nothing moves are ended at once,
// the others when ctx ends. It returns when none is left.
func (t *Tunnels) Close(ctx context.Context) {
	t.mu.Lock()
	t.stopping = true
	for tunnel := range t.open {
		tunnel.drain()
	}
	t.mu.Unlock()
	done := make(chan struct{})
	go func() {
		t.slots.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	t.cutAll() // all that is still there
	<-done
}
