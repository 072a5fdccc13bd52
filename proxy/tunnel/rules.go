package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/authpool/authpool/pool/reach"
)

// Policy says where tunnels may lead.
type Policy struct {
	// All permits every host and every port but 25, by which spam is sent; else Hosts
	// are those that are permitted, and none when it is empty.
	All bool
	// Hosts are patterns (reach.ParsePattern): names, globs of them and IP addresses.
	// Without a port it is 80 and 443.
	Hosts []string
	// Private are addresses that may be connected to although they are private or this
	// machine's own. Those of the link and of metadata services must be named one by
	// one.
	Private []netip.Prefix
	// Providers are patterns of providers' hosts. No tunnel leads there, by any port:
	// what an agent sends to a provider is counted, and has the pool's credential
	// instead of its own. Of an IP address and of localhost it is the port that is
	// said, or 80 and 443, since other services may be there.
	Providers []string
	// Idle ends a tunnel on which nothing has moved in either direction for this long,
	// Total one that is this old.
	Idle, Total time.Duration
}

// Rules are a Policy that was read. They are immutable.
type Rules struct {
	all         bool
	hosts       []reach.Pattern
	private     []netip.Prefix
	providers   []reach.Pattern
	metadata    bool // one of the metadata services may be connected to
	idle, total time.Duration
}

// Read reads a policy. The error is about one of its patterns.
func Read(p Policy) (*Rules, error) {
	read := &Rules{all: p.All, private: p.Private, idle: p.Idle, total: p.Total}
	for list, to := range map[*[]string]*[]reach.Pattern{&p.Hosts: &read.hosts, &p.Providers: &read.providers} {
		for _, text := range *list {
			pattern, err := reach.ParsePattern(text)
			if err != nil {
				return nil, fmt.Errorf("cannot use the host %q: %w", text, err)
			}
			*to = append(*to, pattern)
		}
	}
	read.metadata = slices.ContainsFunc(p.Private, func(n netip.Prefix) bool {
		return n.IsSingleIP() && reach.Of(n.Addr()) == reach.Metadata
	})
	return read, nil
}

// metadataNames lead to a cloud's metadata service where the resolver is the cloud's;
// behind an egress proxy nobody else would look: Google's three, Amazon's, Alibaba's,
// Tencent's and Azure's.
var metadataNames = []string{
	"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
	"metadata.aliyun.com", "metadata.tencentyun.com", "metadata.azure.internal",
}

const smtp = 25

// permit reads a host and tells whether a tunnel may lead there, as far as that can be
// told by its name.
func (r *Rules) permit(host string, port uint16) (reach.Host, error) {
	refuse := func(reason Reason, text string) (reach.Host, error) {
		return reach.Host{}, &RefusedError{host, port, reason, text}
	}
	h, err := reach.ParseHost(host)
	switch {
	case err != nil:
		return refuse(BadHost, err.Error())
	case port == 0:
		return refuse(BadHost, "there is no such port")
	case r.isProvider(h, port):
		return refuse(ProviderHost, "it is a provider's host, which is reached through authpool itself, at its own port")
	case r.all && port == smtp:
		return refuse(NotListed, "of this port, intercept.other_hosts would have to name the host")
	case !r.all && !r.isListed(h, port):
		return refuse(NotListed, "intercept.other_hosts does not permit it")
	case !r.metadata && slices.Contains(metadataNames, h.Name):
		return refuse(BadAddress, "it tells machines their credentials")
	}
	return h, nil
}

func web(port uint16) bool { return port == 80 || port == 443 }

func (r *Rules) isListed(h reach.Host, port uint16) bool {
	return slices.ContainsFunc(r.hosts, func(one reach.Pattern) bool {
		return (one.Port == port || one.Port == 0 && web(port)) && one.Has(h)
	})
}

func (r *Rules) isProvider(h reach.Host, port uint16) bool {
	shared := h.Name == "" || h.Name == "localhost"
	return slices.ContainsFunc(r.providers, func(one reach.Pattern) bool {
		return (!shared || one.Port == port || one.Port == 0 && web(port)) && one.Has(h)
	})
}

// judge tells by its error why an address is not connected to.
func (t *Tunnels) judge(r *Rules, a netip.Addr, port uint16) error {
	kind := reach.Of(a)
	let := slices.ContainsFunc(r.private, func(n netip.Prefix) bool {
		return n.Contains(a) && (kind < reach.Metadata || kind == reach.Metadata && n.IsSingleIP())
	})
	switch {
	case a.Zone() != "":
		return fmt.Errorf("an address with a zone is never connected to")
	case t.isOwn(a, port):
		return fmt.Errorf("it is authpool itself")
	case kind == reach.Never:
		return fmt.Errorf("it is at %s address, which is never connected to", kind)
	case kind == reach.Metadata && !let:
		return fmt.Errorf("it is at %s address, which intercept.allow_private would have to name alone", kind)
	case kind != reach.Public && !let:
		return fmt.Errorf("it is at %s address, which intercept.allow_private does not hold", kind)
	}
	return nil
}
