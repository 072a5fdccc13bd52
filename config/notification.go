package config

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/authpool/authpool/pool/reach"
)

// events are the names that a notification's globs choose from.
var events = []string{
	"subscription.limited", "subscription.disabled", "subscription.broken", "subscription.recovered", "subscription.enabled",
	"budget.50", "budget.80", "budget.95", "budget.100", "budget.burning",
	"window.50", "window.80", "window.95", "window.100", "window.burning",
	"credential.failing", "credential.expiring", "credential.restored",
	"provider.overloaded", "provider.down", "provider.egress", "provider.recovered",
	"pool.exhausted", "session.moved", "session.released", "redis.lost", "redis.back", "journal.filling", "journal.full", "usage.waiting", "usage.doubtful", "audit.failing",
	"notifications.test",
}

// Events returns the names of all events.
func Events() []string { return slices.Clone(events) }

var eventGlob = regexp.MustCompile(`^[a-z0-9.*]{1,64}$`)

func (v *validator) notifications() {
	for i, n := range v.Notifications {
		at := fmt.Sprintf("notifications[%d].", i)
		v.httpURL(at+"url", n.URL, true)
		v.notificationAddress(at+"url", n)
		if slices.ContainsFunc(v.Notifications[:i], func(o Notification) bool { return o.URL == n.URL && o.Format == n.Format }) {
			v.fault(at+"url", "stands here a second time", "one entry with the events of both")
		}
		for j, glob := range n.Events {
			if !eventGlob.MatchString(glob) || !slices.ContainsFunc(events, func(name string) bool {
				ok, _ := path.Match(glob, name) // the pattern above allows no malformed one
				return ok
			}) {
				v.fault(fmt.Sprintf("%sevents[%d]", at, j), quoted(glob)+" is no event", "names or globs of: "+strings.Join(events, ", "))
			}
		}
		if len(n.Events) == 0 {
			v.fault(at+"events", "is empty", "a list of event names")
		}
		if n.PinSHA256 != "" {
			if sum, err := base64.StdEncoding.DecodeString(n.PinSHA256); err != nil || len(sum) != sha256.Size {
				v.fault(at+"pin_sha256", "is no SHA-256 in base64", "the 44 characters that openssl dgst -sha256 -binary | base64 gives of the public key")
			}
		}
	}
}

// notificationAddress judges an address that stands in the URL itself. What a name
// leads to is judged when it is sent to, by package notify, whose list is longer.
func (v *validator) notificationAddress(at string, n Notification) {
	u, err := url.Parse(n.URL)
	if err != nil || Loopback(net.JoinHostPort(u.Hostname(), "443")) {
		return
	}
	address, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return
	}
	switch kind := reach.Of(address); {
	case kind > reach.Local || address.Zone() != "":
		v.fault(at, "is at an address that notifications are never sent to", "the address of a receiver")
	case kind != reach.Public && !n.AllowPrivate:
		v.fault(at, "is at a private address", "allow_private: true, if that is meant")
	}
}
