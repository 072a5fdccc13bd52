package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/proxy/egress"
	"github.com/authpool/authpool/proxy/tunnel"
)

// The bounds of tunnels that are not the operator's to choose: more than a package
// manager opens, and two descriptors for each.
const (
	tunnelsPerAgent = 256
	mostTunnels     = 2048
)

// tunnelRulesFromConfig are those of intercept.
func tunnelRulesFromConfig(c *config.Config) (*tunnel.Rules, error) {
	in := c.Intercept
	policy := tunnel.Policy{
		All:       in.OtherHosts.Mode == "tunnel",
		Hosts:     in.OtherHosts.Hosts,
		Providers: providerHosts(c),
		Idle:      time.Duration(in.TunnelIdle),
		Total:     time.Duration(in.TunnelTotal),
	}
	for _, text := range in.AllowPrivate {
		network, err := config.ParseNetwork(text)
		if err != nil {
			return nil, fmt.Errorf("intercept.allow_private: %w", err)
		}
		policy.Private = append(policy.Private, network)
	}
	rules, err := tunnel.Read(policy)
	if err != nil {
		return nil, fmt.Errorf("intercept.other_hosts: %w", err)
	}
	return rules, nil
}

// regional are the hosts of built-in providers that have one for each region or
// resource.
var regional = []string{
	"*-aiplatform.googleapis.com", "aiplatform.googleapis.com", "aiplatform.*.rep.googleapis.com",
	"bedrock-runtime.*.amazonaws.com", "bedrock-runtime-fips.*.amazonaws.com", "*.bedrock-runtime.*.vpce.amazonaws.com", "bedrock-mantle.*.api.aws",
	"*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com",
}

// providerHosts are those of all providers, also the built-in ones' own where the config
// has others for them.
func providerHosts(c *config.Config) []string {
	hosts := append([]string(nil), regional...)
	add := func(base string) {
		if u, err := url.Parse(base); err == nil && u.Host != "" {
			hosts = append(hosts, u.Host)
		}
	}
	own := config.Default()
	for _, name := range config.BuiltinProviders() {
		if p, _ := own.ProviderByName(name); p.BaseURL != "" {
			add(p.BaseURL)
		}
	}
	for _, p := range c.Providers {
		add(p.BaseURL)
	}
	return hosts
}

// openTunnels makes the tunnels to other hosts; the proxy ends them.
func (s *service) openTunnels(dialer *egress.Dialer) (*tunnel.Tunnels, error) {
	rules, err := tunnelRulesFromConfig(s.cfg)
	if err != nil {
		return nil, err
	}
	return tunnel.New(tunnel.Options{
		Rules:    rules,
		PerAgent: tunnelsPerAgent,
		Most:     mostTunnels,
		Connect:  time.Duration(s.cfg.Timeouts.Connect),
		Own:      s.ownAddresses,
		Egress:   dialer,
		Audit:    s.audit,
		Log:      s.log,
	}), nil
}

// ownAddresses are those that this process listens on.
func (s *service) ownAddresses() []netip.AddrPort {
	var own []netip.AddrPort
	add := func(a net.Addr) {
		if tcp, ok := a.(*net.TCPAddr); ok {
			own = append(own, tcp.AddrPort())
		}
	}
	for _, l := range s.agentListeners {
		add(l.Addr())
	}
	add(s.adminListener.Addr())
	add(s.db.FrontAddr())
	return own
}
