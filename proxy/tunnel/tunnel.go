// Package tunnel carries what agents send through CONNECT to hosts that are no
// provider's: bytes that authpool neither reads nor changes. It decides to which hosts
// that may be (Permit), connects to them at addresses that were checked (Open), and
// relays within limits (Tunnel.Relay).
package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/proxy/egress"
)

// Policy says where tunnels may lead.
type Policy struct {
	// All permits every host and every port but 25; else Hosts are those that are
	// permitted, and none when it is empty.
	All bool
	// Hosts are names, globs of them and IP addresses, with a port or without (80 and
	// 443 then).
	Hosts []string
	// Private are addresses that may be connected to although they are private or this
	// machine's own.
	Private []netip.Prefix
	// Providers are the hosts of providers, with a port or without, and globs of them.
	// No tunnel leads there: what an agent sends to a provider is counted, and has the
	// pool's credential instead of its own.
	Providers []string
	// Idle ends a tunnel on which nothing has moved in either direction for this long,
	// Total one that is this old.
	Idle, Total time.Duration
}

// Options are what a Tunnels works with.
type Options struct {
	Policy   Policy
	PerAgent int // open tunnels of one agent
	Most     int // open tunnels in all
	// Connect bounds the look-up of a name and the connection, together.
	Connect time.Duration
	// Own are the addresses that authpool itself listens on; they are never connected
	// to, whatever Policy says. An unspecified address is all of this machine's.
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
type Tunnels struct{}

// New returns Tunnels that has none yet. An error is about the policy.
func New(o Options) (*Tunnels, error) { return &Tunnels{}, nil }

// Configure takes another policy over for the tunnels from now on. On an error nothing
// has changed.
func (t *Tunnels) Configure(p Policy) error { return nil }

// RefusedError says why a host is not tunnelled to. Its text is for the agent.
type RefusedError struct {
	Host   string // as the agent named it, at most 255 bytes
	Port   uint16
	Reason Reason
}

// Reason is why, from a closed list.
type Reason string

// The reasons.
const (
	BadHost     Reason = "bad_host"      // it is no host name and no plain IP address
	NotListed   Reason = "not_listed"    // the policy does not permit it
	Provider    Reason = "provider_host" // it is a provider's
	BadAddress  Reason = "bad_address"   // it is at an address that is never connected to, or not without allow_private
	TooMany     Reason = "too_many"      // the agent, or all, have as many tunnels open as they may
	Stopping    Reason = "stopping"      // authpool is stopping
	NotItsHello Reason = "other_name"    // the TLS inside names a host that the policy does not permit
)

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("authpool: no tunnel to %s:%d (%s)", e.Host, e.Port, e.Reason)
}

// Permit tells whether the policy permits a tunnel to host (without brackets) and
// port, before anything is looked up or connected to. The error is a *RefusedError.
func (t *Tunnels) Permit(host string, port uint16) error {
	return &RefusedError{host, port, NotListed}
}

// Open connects an agent to host and port. The error is a *RefusedError where that is
// not permitted (403; 429 for TooMany, 503 for Stopping), else the connection failed
// (502). Refusals are counted and audited here. Whoever gets a Tunnel calls Relay or
// Close.
func (t *Tunnels) Open(ctx context.Context, agent, host string, port uint16) (*Tunnel, error) {
	return nil, t.Permit(host, port)
}

// Close lets no tunnel begin any more. Those on which nothing moves are ended at once,
// the others when ctx ends. It returns when none is left.
func (t *Tunnels) Close(ctx context.Context) error { return nil }

// Tunnel is a connection to a host, made for an agent.
type Tunnel struct{}

// Relay copies between the agent and the host until both have ended, a limit is met,
// ctx ends or Close is called on Tunnels, and closes both. A side that ends its sending
// has that passed on, where the connections have CloseWrite.
//
// agent must read what the agent has sent behind its CONNECT first, and must have no
// deadlines of its own: Relay sets them.
func (t *Tunnel) Relay(ctx context.Context, agent net.Conn) Stats { return Stats{} }

// Close gives up a Tunnel that was not relayed. After Relay it does nothing.
func (t *Tunnel) Close() {}

// Stats is what became of a tunnel.
type Stats struct {
	Up, Down int64 // bytes from the agent, and to it
	Took     time.Duration
	End      End
}

// End is why a tunnel ended, from a closed list.
type End string

// The ends.
const (
	Done      End = "done"      // both sides have sent all
	Broken    End = "broken"    // a connection failed
	IdleLimit End = "idle"      // nothing moved
	TotalTime End = "total"     // it was old
	Stopped   End = "stopped"   // ctx ended, or authpool stopped
	Forbidden End = "forbidden" // see NotItsHello
)
