package meter

import (
	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/ratelimit/usage"
)

// service is how an answer was served, as far as it has said so.
type service struct {
	usage.Service
	tiered bool // it names a tier
}

// read takes a name that an answer tells of its service. Null says nothing.
func (x *service) read(s slot, v *jsonscan.Value) {
	if v.Kind != jsonscan.String {
		return
	}
	switch s {
	case tier:
		x.Tier, x.tiered = tierNamed(v.Raw), true
	case speed:
		x.Fast = string(v.Raw) == "fast"
	case geo:
		x.US = string(v.Raw) == "us"
	default:
	}
}

// take takes over what a later event has told.
func (x *service) take(y *service) {
	if y.tiered {
		x.Tier, x.tiered = y.Tier, true
	}
	x.Fast = x.Fast || y.Fast
	x.US = x.US || y.US
}

// tierNamed returns the tier of a name as providers write it. Groq says
// on_demand for the usual one, Vertex puts it in front of every one that is paid
// by use; the Responses API says auto in its first events, before it has decided.
func tierNamed(name []byte) usage.Tier {
	switch string(name) {
	case "", "standard", "default", "on_demand", "auto", "ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED":
		return usage.TierStandard
	case "batch":
		return usage.TierBatch
	case "flex", "ON_DEMAND_FLEX":
		return usage.TierFlex
	case "priority", "ON_DEMAND_PRIORITY":
		return usage.TierPriority
	default:
		return usage.TierOther
	}
}
