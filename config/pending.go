package config

import (
	"maps"
	"regexp"
	"slices"
)

// pendingKey is a key of contract.md that this version reads and checks but does
// not act on.
type pendingKey struct {
	path   string             // field path; [] stands for any index
	when   func(*Config) bool // the value expects something; nil: any value does
	refuse bool               // ignoring it would break a promise of security: a fault
	effect string             // what does not happen
}

// pendingKeys says aloud what is not done. Whoever builds a feature deletes its
// row. A row refuses where going on without it would let traffic take another
// way than the operator ordered; it warns where traffic is what it would be
// without the key.
var pendingKeys = []pendingKey{
	{
		path:   "intercept.other_hosts",
		when:   func(c *Config) bool { return c.Intercept.OtherHosts.Mode != "deny" },
		effect: "has no effect in this version: CONNECT to other hosts is refused",
	},
}

var index = regexp.MustCompile(`\[[0-9]+\]`)

func (v *validator) pending() {
	for _, path := range slices.Sorted(maps.Keys(v.origin.places)) {
		pattern := index.ReplaceAllString(path, "[]")
		for _, k := range pendingKeys {
			switch {
			case k.path != pattern || k.when != nil && !k.when(v.Config):
			case k.refuse:
				v.fault(path, k.effect, "leave it out")
			default:
				v.warn(path, k.effect)
			}
		}
	}
}
