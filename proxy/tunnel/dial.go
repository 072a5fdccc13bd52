package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/authpool/authpool/pool/reach"
)

// The kinds of ways to a host, for the metrics.
const (
	wayPublic  = "public"  // at a public address
	wayPrivate = "private" // at one that allow_private holds
	wayProxied = "proxied" // by the egress proxy, which knows the address
)

// localLook bounds the look-up of a name that the egress proxy will resolve: networks
// that have such a proxy often answer nothing about names outside.
const localLook = 2 * time.Second

func dialTCP(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}}
	return d.DialContext(ctx, "tcp", address.String())
}

// dial connects to h. Directly, the name is looked up once, each address is judged,
// and a judged one is connected to. Through the egress proxy it is the proxy that
// looks the name up: an address is judged before, and so is what the name means here,
// of which no address may be refused; a name that means nothing here is left to the
// proxy, and what it means there an instant later, too.
func (t *Tunnels) dial(ctx context.Context, r *Rules, h reach.Host, host string, port uint16) (conn net.Conn, way string, err error) {
	judge := func(a netip.Addr) error {
		if err := t.judge(r, a, port); err != nil {
			return &RefusedError{host, port, BadAddress, err.Error()}
		}
		return nil
	}
	if e := t.opts.Egress; e != nil && e.Proxied(h.Join(port)) {
		looking, cancel := context.WithTimeout(ctx, localLook)
		defer cancel()
		if addresses, err := t.to.Addresses(looking, h); err == nil {
			for _, a := range addresses {
				if err := judge(a); err != nil {
					return nil, "", err
				}
			}
		}
		conn, err = e.Dial(ctx, h.Join(port))
		return conn, wayProxied, err
	}
	conn, err = t.to.Connect(ctx, h, port, judge)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return nil, "", refused // the first of several
	}
	if err != nil {
		return nil, "", err
	}
	way = wayPublic
	if peer, ok := remote(conn); ok && reach.Of(peer) != reach.Public {
		way = wayPrivate
	}
	return conn, way, nil
}

// remote is the address at the other end.
func remote(conn net.Conn) (netip.Addr, bool) {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return tcp.AddrPort().Addr().Unmap(), true
}

// isOwn tells whether authpool listens at a and port.
func (t *Tunnels) isOwn(a netip.Addr, port uint16) bool {
	if t.opts.Own == nil {
		return false
	}
	return slices.ContainsFunc(t.opts.Own(), func(own netip.AddrPort) bool {
		return own.Port() == port && (own.Addr().Unmap() == a || own.Addr().IsUnspecified() && isHere(a))
	})
}

// isHere tells whether a is an address of this machine.
func isHere(a netip.Addr) bool {
	if reach.Of(a) == reach.Local {
		return true
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return true // nobody knows
	}
	return slices.ContainsFunc(addresses, func(one net.Addr) bool {
		network, ok := one.(*net.IPNet)
		if !ok {
			return false
		}
		here, ok := netip.AddrFromSlice(network.IP)
		return ok && here.Unmap() == a
	})
}
