package provider

import (
	"bytes"
	"cmp"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Authority is a host and port to which a request was sent, in the one form in which
// two of them can be compared: a lower-case name without a dot at its end, or an
// address.
type Authority struct {
	Host string
	Port uint16
}

// String returns host:port, and addresses of IPv6 in brackets.
func (a Authority) String() string { return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))) }

// ParseAuthority reads `host`, `host:port` or `[v6]:port`; standard is the port of one
// without any, 0 if it must have one. ok is false when it is none.
func ParseAuthority(text string, standard uint16) (a Authority, ok bool) {
	host, port := text, ""
	if i := strings.LastIndexByte(text, ':'); i >= 0 && strings.IndexByte(text[i:], ']') < 0 {
		host, port = text[:i], text[i+1:]
		if port == "" {
			return Authority{}, false
		}
	}
	a.Port = standard
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || port[0] < '0' || port[0] > '9' {
			return Authority{}, false
		}
		a.Port = uint16(n)
	}
	if strings.HasPrefix(host, "[") != strings.Contains(host, ":") || strings.HasPrefix(host, "[") != strings.HasSuffix(host, "]") {
		return Authority{}, false
	}
	a.Host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if a.Port == 0 || a.Host == "" || len(a.Host) > 253 || strings.ContainsFunc(a.Host, notInHost) {
		return Authority{}, false
	}
	return a, true
}

// notInHost tells what stands in no name and no address (RFC 1123, RFC 4291).
func notInHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' && r != ':'
}

// authority is where the provider is reached.
func (p *Provider) authority() (Authority, bool) {
	standard := uint16(80)
	if p.TLS {
		standard = 443
	}
	return ParseAuthority(p.Host, standard)
}

// byAuthority finds providers by where they are reached, those with the longest Prefix
// first, and of those with the same the first by name.
func byAuthority(providers map[string]*Provider) map[Authority][]*Provider {
	at := make(map[Authority][]*Provider, len(providers))
	for _, p := range providers {
		if a, ok := p.authority(); ok {
			at[a] = append(at[a], p)
		}
	}
	for _, list := range at {
		slices.SortFunc(list, func(p, q *Provider) int {
			return cmp.Or(cmp.Compare(len(q.Prefix), len(p.Prefix)), strings.Compare(p.Name, q.Name))
		})
	}
	return at
}

// Serves tells whether a provider is reached at a.
func (r *Registry) Serves(a Authority) bool { return len(r.byAuthority[a]) > 0 }

// ServesHost tells whether a provider is reached at this host, at whatever port.
func (r *Registry) ServesHost(host string) bool { return r.hosts[host] }

// Hosts are the hosts at which providers are reached, in order.
func (r *Registry) Hosts() []string {
	hosts := make([]string, 0, len(r.hosts))
	for host := range r.hosts {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	return hosts
}

// RouteAt finds the provider of a request that was sent to a, at which one is reached,
// by the path as sent and without the query. Of several there it is the one with the
// longest prefix that the path begins with. Every error is a *Refusal.
func (r *Registry) RouteAt(a Authority, path []byte) (Target, error) {
	list := r.byAuthority[a]
	family := OpenAI
	if len(list) > 0 {
		family = list[0].Family
	}
	var buf [256]byte
	plain, ok := parsePath(buf[:0], path)
	if !ok {
		return Target{}, &Refusal{
			Status: 400, Code: CodeBadPath, Family: family,
			Message: "the path holds dot segments, backslashes or bytes that providers read differently; send the provider's plain path",
		}
	}
	for _, p := range list {
		rest, ok := bytes.CutPrefix(path, []byte(p.Prefix))
		if !ok || len(rest) == 0 || rest[0] != '/' {
			continue
		}
		if p.Prefix != "" {
			plain, _ = parsePath(buf[:0], rest) // a part of what is a path
		}
		if no := p.paths.forbids(&plain); no != nil {
			return Target{Provider: p}, forbidden(p.Family, &no.Endpoint)
		}
		return Target{p, rest}, nil
	}
	return Target{}, &Refusal{
		Status: 403, Code: CodeForbiddenPath, Family: family,
		Message: "this path of " + a.Host + " lies outside of every provider's base_url and gets no credential",
	}
}
