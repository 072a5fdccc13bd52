package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/authpool/authpool/pool/reach"
)

// identifier is contract.md's form of subscription ids, and of what else names
// things in paths and keys.
var identifier = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

const identifierAllowed = "a-z, 0-9, _ and -, at most 63, beginning with a letter or digit"

var domainName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// Validate judges what the types alone cannot. Load has done so already; call it
// again after Override. The error is Faults.
func (c *Config) Validate() error {
	v := validator{Config: c}
	v.all()
	return v.faults.orNil()
}

// Warnings are sentences about what is accepted but probably not meant. They belong in the log at every start, at level
// warn, and in the output of `authpool check`.
func (c *Config) Warnings() []string {
	v := validator{Config: c}
	v.all()
	v.warnings.sort()
	texts := make([]string, len(v.warnings))
	for i, w := range v.warnings {
		texts[i] = w.String()
	}
	return texts
}

// validator collects faults and warnings about a Config.
type validator struct {
	*Config
	broken   Faults // what the decoder found; its fields are not judged again
	faults   Faults
	warnings Faults
}

func (v *validator) all() {
	v.listeners()
	v.redis(v.Redis)
	v.providers()
	v.subscriptions()
	v.rest()
}

// fault reports path, unless something is wrong there or around it already.
func (v *validator) fault(path, problem, allowed string) {
	for _, b := range v.broken {
		if within(path, b.Field) || within(b.Field, path) {
			return
		}
	}
	v.faults = append(v.faults, v.FaultAt(path, problem, allowed))
}

// FaultAt makes a fault about a field, such as a reference that does not
// resolve, with the place where the field was written.
func (c *Config) FaultAt(field, problem, allowed string) Fault {
	where := c.origin.at(field)
	return Fault{
		Origin: where.origin, Line: where.line, Column: where.column,
		Field: field, Problem: problem, Allowed: allowed,
	}
}

func (v *validator) wrong(path string, err error) {
	problem, allowed := split(err)
	v.fault(path, problem, allowed)
}

func (v *validator) warn(path, text string) {
	v.warnings = append(v.warnings, v.FaultAt(path, text, ""))
}

// within tells whether path is outer or lies in it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (outer == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}

func (v *validator) listeners() {
	if len(v.Listen) == 0 {
		v.fault("listen", "is empty", "host:port, unix:/path, or a list of them")
	}
	taken := map[string]string{}
	once := func(path, address string) {
		if first, ok := taken[address]; ok && !strings.HasSuffix(address, ":0") {
			v.fault(path, quoted(address)+" is the address of "+first+" too", "an address of its own")
		}
		taken[address] = path
	}
	for i, address := range v.Listen {
		path := fmt.Sprintf("listen[%d]", i)
		if file, ok := strings.CutPrefix(address, "unix:"); ok {
			if !filepath.IsAbs(file) || strings.Contains(file, "\x00") {
				v.fault(path, quoted(address)+" names no absolute path", "unix:/path")
			}
		} else {
			v.hostPort(path, address)
		}
		once(path, address)
		if !Loopback(address) {
			if v.Agents.Auth == "none" {
				v.fault("agents.auth", "is none, but "+quoted(address)+" can be reached from other machines", "token, or listen only on loopback and unix sockets")
			}
			if !v.TLS.Enabled() {
				v.warn(path, quoted(address)+" can be reached from other machines without TLS: agent tokens and prompts travel unencrypted")
			}
		}
	}
	v.unix()
	v.hostPort("admin.listen", v.Admin.Listen)
	once("admin.listen", v.Admin.Listen)
	if !Loopback(v.Admin.Listen) {
		v.warn("admin.listen", quoted(v.Admin.Listen)+" can be reached from other machines: the admin token travels unencrypted")
	}
	if v.Redis.Topology() == RedisEmbedded && v.Redis.Listen != "off" {
		once("redis.listen", v.Redis.Listen)
		if !Loopback(v.Redis.Listen) {
			v.warn("redis.listen", quoted(v.Redis.Listen)+" can be reached from other machines: its password travels unencrypted")
		}
	}
	for path, ref := range map[string]FileRef{"tls.cert": v.TLS.Cert, "tls.key": v.TLS.Key} {
		if ref == "" && (v.TLS.Cert != "" || v.TLS.Key != "") {
			v.fault(path, "is missing", "tls.cert and tls.key together")
		}
	}
}

// Loopback tells whether an address of contract.md's form can be reached only
// from this machine. A host name counts only when it is localhost.
func Loopback(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return host == "localhost"
}

func (v *validator) hostPort(path, address string) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" || !portInRange(port) || strings.ContainsAny(host, " /@\x00") {
		v.fault(path, quoted(address)+" is no address", "host:port")
	}
}

func portInRange(port string) bool {
	if port == "" {
		return true
	}
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}

func (v *validator) subscriptions() {
	seen := map[string]int{}
	for i, s := range v.Subscriptions {
		at := func(key string) string { return fmt.Sprintf("subscriptions[%d].%s", i, key) }
		if !identifier.MatchString(s.ID) {
			v.fault(at("id"), quoted(s.ID)+" is no id", identifierAllowed)
		} else if first, taken := seen[s.ID]; taken {
			v.fault(at("id"), fmt.Sprintf("%q is the id of subscriptions[%d] too", s.ID, first), "an id of its own")
		} else {
			seen[s.ID] = i
		}
		if s.Credential.Value == "" {
			v.fault(at("credential.value"), "is empty", refAllowed)
		}
		v.settings(s, at)
	}
}

// settings judges what a subscription says beside its id and the place of its
// secret; at gives the path of a key of it.
func (v *validator) settings(s Subscription, at func(key string) string) {
	v.subscriptionProvider(at("provider"), s.Provider)
	if s.Domain != "" && !domainName.MatchString(s.Domain) {
		v.fault(at("domain"), quoted(s.Domain)+" is no domain", "letters, digits, ., _ and -, at most 128")
	}
	for j, label := range s.Labels {
		field := at(fmt.Sprintf("labels[%d]", j))
		if !identifier.MatchString(label) {
			v.fault(field, quoted(label)+" is no label", identifierAllowed)
		} else if slices.Contains(s.Labels[:j], label) {
			v.fault(field, quoted(label)+" stands here a second time", "each label once")
		}
	}
	for j, glob := range s.Models {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			v.fault(at(fmt.Sprintf("models[%d]", j)), quoted(glob)+" is no glob", `a model name with *, ? or [a-z], such as "claude-*"`)
		}
	}
	windows := map[string]bool{}
	for j, b := range s.Budgets {
		if windows[b.Window] {
			v.fault(at(fmt.Sprintf("budgets[%d].window", j)), "stands here a second time", "one budget a window")
		}
		windows[b.Window] = true
		if b.CostUSD == 0 && b.Tokens == 0 && b.Requests == 0 && b.Window != "" {
			v.fault(at(fmt.Sprintf("budgets[%d]", j)), "limits nothing", "cost_usd, tokens or requests beside window")
		}
	}
}

func (v *validator) subscriptionProvider(path, name string) {
	p, known := v.ProviderByName(name)
	switch {
	case !known:
		names := BuiltinProviders()
		for declared := range v.Providers {
			names = append(names, declared)
		}
		v.fault(path, quoted(name)+" is no provider"+suggest(name, names), "a built-in one ("+strings.Join(BuiltinProviders(), ", ")+") or one declared under providers")
	case p.BaseURL == "" && builtins[name].example != "":
		v.fault(path, name+" has another host for each region or resource", "providers."+name+".base_url with yours, such as "+builtins[name].example)
	}
}

// The least that works: a journal has several segments, and what SDKs and
// agents send in their heads comes near 2 KiB.
const (
	leastJournal = 64 << 10
	leastHeader  = 4 << 10
)

// mostResetSoon is that of sessions.health: longer would hide a window that is
// spent for days.
const mostResetSoon = Duration(24 * time.Hour)

func (v *validator) rest() {
	if v.Journal.Max < leastJournal {
		v.fault("journal.max", v.Journal.Max.String()+" is too small", "at least "+Size(leastJournal).String())
	}
	if v.Sessions.Health.ResetSoon > mostResetSoon {
		v.fault("sessions.health.reset_soon", v.Sessions.Health.ResetSoon.String()+" is not soon", "at most "+mostResetSoon.String())
	}
	if v.LimitsHTTP.Header < leastHeader {
		v.fault("limits_http.header", v.LimitsHTTP.Header.String()+" is too small", "at least "+Size(leastHeader).String())
	}
	v.intercept()
	v.egress()
	if v.Audit.Stream && v.Redis.Topology() == RedisEmbedded {
		v.fault("audit.stream", "copies nothing out of reach of who can change the files, as the Redis is embedded", "a redis section, or leave it out")
	}
	v.notifications()
}

func (v *validator) intercept() {
	in := v.Intercept
	var private []netip.Prefix
	for i, text := range in.AllowPrivate {
		network, err := ParseNetwork(text)
		if err != nil {
			v.wrong(fmt.Sprintf("intercept.allow_private[%d]", i), err)
			continue
		}
		private = append(private, network)
	}
	if len(in.AllowPrivate) > 0 && in.OtherHosts.Mode == "deny" {
		v.warn("intercept.allow_private", "has no effect while other_hosts is deny")
	}
	for i, text := range in.OtherHosts.Hosts {
		path := fmt.Sprintf("intercept.other_hosts[%d]", i)
		host, err := reach.ParsePattern(text)
		if err != nil {
			v.fault(path, quoted(text)+" is no host glob: "+err.Error(), `a host name with * or ?, such as "*.example.com", or an address, and maybe a port`)
			continue
		}
		let := func(n netip.Prefix) bool { return n.Contains(host.Addr()) }
		if a := host.Addr(); a.IsValid() && reach.Of(a) != reach.Public && !slices.ContainsFunc(private, let) {
			v.warn(path, "is "+reach.Of(a).String()+" address, and nobody is let there without intercept.allow_private")
		}
	}
}

const networkAllowed = "an address or a network such as 10.1.0.0/16"

// ParseNetwork reads an element of intercept.allow_private: a network, or an address,
// which is the network of itself.
func ParseNetwork(text string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	if a, notAddress := netip.ParseAddr(text); notAddress == nil {
		network, err = netip.PrefixFrom(a, a.BitLen()), nil
		if a.Zone() != "" {
			return netip.Prefix{}, wrong{quoted(text) + " has a zone", networkAllowed}
		}
	}
	switch {
	case err != nil:
		return netip.Prefix{}, wrong{quoted(text) + " is no network", networkAllowed}
	case network.Addr().Is4In6():
		return netip.Prefix{}, wrong{quoted(text) + " is IPv4 in the form of IPv6", networkAllowed}
	case network != network.Masked():
		return netip.Prefix{}, wrong{quoted(text) + " has more bits than its length", network.Masked().String() + ", or the address alone"}
	}
	return network, nil
}

func (v *validator) unix() {
	if len(v.Unix.Agents) > 0 && !slices.ContainsFunc(v.Listen, func(a string) bool { return strings.HasPrefix(a, "unix:") }) {
		v.warn("unix.agents", "has no effect: no address of listen is a unix socket")
	}
	for _, uid := range slices.Sorted(maps.Keys(v.Unix.Agents)) {
		agent := v.Unix.Agents[uid]
		path := "unix.agents." + uid
		if n, err := strconv.ParseUint(uid, 10, 32); err != nil || strconv.FormatUint(n, 10) != uid {
			v.fault(path, quoted(uid)+" is no user's number", "a number such as 1000 (id -u NAME tells it)")
		}
		if !identifier.MatchString(agent) {
			v.fault(path, quoted(agent)+" is no agent's name", "1 to 63 of a-z, 0-9, _ and -, the first a letter or a digit")
		}
	}
}

func (v *validator) egress() {
	e := v.Egress
	if e.Proxy != "" {
		v.httpURL("egress.proxy", e.Proxy, false)
		if u, err := url.Parse(e.Proxy); err == nil && (u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "") {
			v.fault("egress.proxy", "has a path", "http://HOST:PORT or https://HOST:PORT")
		}
	} else {
		for key, said := range map[string]bool{"username": e.Username != "", "password": e.Password != "", "no_proxy": len(e.NoProxy) > 0} {
			if said {
				v.fault("egress."+key, "is for a proxy, and there is none", "egress.proxy beside it")
			}
		}
	}
	if strings.Contains(e.Username, ":") {
		v.fault("egress.username", "holds a colon", "a name; the password has a key of its own")
	}
	for i, host := range e.NoProxy {
		if strings.ContainsAny(host, ", /@") && !isNetwork(host) || host == "" {
			v.fault(fmt.Sprintf("egress.no_proxy[%d]", i), quoted(host)+" is no host", "a name such as .internal.example.com, an address, a network such as 10.0.0.0/8, or *")
		}
	}
}

func isNetwork(text string) bool {
	_, err := netip.ParsePrefix(text)
	return err == nil
}

// httpURL judges a URL that is not a provider's. It is not repeated: webhook
// URLs are often secrets themselves.
func (v *validator) httpURL(path, text string, secure bool) {
	u, err := url.Parse(text)
	switch {
	case err != nil || (u.Scheme != "https" && u.Scheme != "http") || !hostName.MatchString(u.Host) || !portInRange(u.Port()):
		v.fault(path, "is not a URL", "https://host/path")
	case u.User != nil:
		v.fault(path, "holds user information", "a URL without it")
	case secure && u.Scheme == "http" && !Loopback(net.JoinHostPort(u.Hostname(), "80")):
		v.fault(path, "would be sent unencrypted", "https://, or http:// on loopback")
	}
}
