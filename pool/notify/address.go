package notify

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/authpool/authpool/pool/reach"
)

// connectTime bounds the look-up of a target's name and the connection to it.
const connectTime = 5 * time.Second

// place is where a target may be.
type place uint8

const (
	public   place = iota // the internet's
	internal              // these and those of private networks and of this machine
	local                 // of this machine alone
)

// allows tells by its error why an address is not reached.
func (r place) allows(address netip.Addr) error {
	kind := reach.Of(address)
	switch {
	case r == local && kind != reach.Local:
		return fmt.Errorf("%s is not this machine, and the URL names it", address)
	case kind > reach.Local || address.Zone() != "":
		return fmt.Errorf("%s is an address that notifications are never sent to", address)
	case r == public && kind != reach.Public:
		return fmt.Errorf("%s is a private address: allow_private: true allows it", address)
	}
	return nil
}

// dialer connects to addresses that were judged.
type dialer struct {
	place place
	to    reach.Dialer
}

// DialContext is for http.Transport.
func (d *dialer) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	name, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	host, err := reach.ParseHost(name)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", name, err)
	}
	return d.to.Connect(ctx, host, uint16(port), d.place.allows) //nolint:gosec // a port
}
