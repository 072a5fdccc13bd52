package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Dialer connects to what a name means at that moment, and to no other address than
// one that was judged: the name is looked up once, so that one that means something
// else an instant later gains nothing. It is safe for concurrent use.
type Dialer struct {
	// Lookup resolves a name. Nil: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address. Nil: net.Dialer.
	Dial func(ctx context.Context, address netip.AddrPort) (net.Conn, error)
}

const (
	// mostAddresses of a name are tried. Who answers with more means no good.
	mostAddresses = 16
	// stagger is how long one address is tried alone (RFC 8305, section 8).
	stagger = 250 * time.Millisecond
)

// Addresses are those of h, without duplicates, in the resolver's order.
func (d *Dialer) Addresses(ctx context.Context, h Host) ([]netip.Addr, error) {
	if h.Name == "" {
		return []netip.Addr{h.Addr}, nil
	}
	lookup := d.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	found, err := lookup(ctx, h.Name)
	if err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	for _, a := range found[:min(len(found), mostAddresses)] {
		if a = a.Unmap(); !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("%s has no address", h.Name)
	}
	return addresses, nil
}

// Connect connects to h at one of the addresses that judge returns no error for. When
// it lets none through, the error is what it said; else it is what came of those.
func (d *Dialer) Connect(ctx context.Context, h Host, port uint16, judge func(netip.Addr) error) (net.Conn, error) {
	addresses, err := d.Addresses(ctx, h)
	if err != nil {
		return nil, err
	}
	var let []netip.Addr
	var errs []error
	for _, a := range addresses {
		if err := judge(a); err != nil {
			errs = append(errs, err)
			continue
		}
		let = append(let, a)
	}
	if len(let) == 0 {
		return nil, errors.Join(errs...)
	}
	return d.race(ctx, alternate(let), port)
}

// alternate orders addresses so that both families come soon, the resolver's choice
// first (RFC 8305, section 4).
func alternate(addresses []netip.Addr) []netip.Addr {
	var first, second, out []netip.Addr
	for _, a := range addresses {
		if a.Is4() == addresses[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	for i := range max(len(first), len(second)) {
		out = append(out, first[min(i, len(first)):min(i+1, len(first))]...)
		out = append(out, second[min(i, len(second)):min(i+1, len(second))]...)
	}
	return out
}

// race tries one address after the other, the next when one has failed or has been
// silent for a while. It leaves nothing behind.
func (d *Dialer) race(ctx context.Context, addresses []netip.Addr, port uint16) (net.Conn, error) {
	dial := d.Dial
	if dial == nil {
		dial = func(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address.String())
		}
	}
	type result struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(addresses))
	silent := time.NewTimer(stagger)
	defer silent.Stop()
	pending := 0
	next := func() {
		a := netip.AddrPortFrom(addresses[0], port)
		addresses = addresses[1:]
		pending++
		go func() {
			conn, err := dial(ctx, a)
			results <- result{conn, err}
		}()
		silent.Reset(stagger)
	}
	next()
	var won net.Conn
	var errs []error
	for pending > 0 {
		select {
		case r := <-results:
			pending--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
			case won != nil:
				_ = r.conn.Close() // the race is over
			default:
				won = r.conn
				cancel()
			}
			if won == nil && len(addresses) > 0 && ctx.Err() == nil {
				next()
			}
		case <-silent.C:
			if won == nil && len(addresses) > 0 {
				next()
			}
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, errors.Join(errs...)
}
