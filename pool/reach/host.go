package reach

import (
	"errors"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// Host is a host in the only spelling of it: a name in lower case without a dot at its
// end, or an IP address without a zone. Of two hosts that are equal by == the same is
// looked up and connected to.
type Host struct {
	Name string     // "": it is an address
	Addr netip.Addr // an IPv4-mapped one is of IPv4
}

// String is the name, or the address without brackets.
func (h Host) String() string {
	if h.Name != "" {
		return h.Name
	}
	return h.Addr.String()
}

// Join is host:port, with brackets where they are needed.
func (h Host) Join(port uint16) string {
	if h.Name != "" {
		return h.Name + ":" + strconv.Itoa(int(port))
	}
	return netip.AddrPortFrom(h.Addr, port).String()
}

var (
	errNoHost = errors.New("it is no host name and no IP address")
	errZone   = errors.New("it has a zone, which means something on one machine only")
	errNumber = errors.New("it is a number that some read as an IP address: write it as four decimal numbers without zeros before them")
)

const (
	maxName  = 253 // bytes of a name (RFC 1035, without the lengths)
	maxLabel = 63
)

// ParseHost reads the host of a request: a name of letters, digits, hyphens and
// underscores, an IPv4 address of four decimal numbers, or an IPv6 address, in brackets
// or without. Everything else is an error, above all what resolvers and libraries read
// as addresses in different ways: 0177.0.0.1, 127.1, 2130706433, 0x7f.1, fe80::1%eth0.
// Names in other alphabets come in their ASCII form (RFC 5890), as clients send them.
func ParseHost(text string) (Host, error) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		switch a, err := parseAddr(inner); {
		case errors.Is(err, errZone):
			return Host{}, errZone
		case !ok || err != nil || !strings.Contains(inner, ":"):
			return Host{}, errNoHost
		default:
			return Host{Addr: a}, nil
		}
	}
	if !strings.Contains(text, ":") {
		text = strings.TrimSuffix(text, ".")
	}
	switch a, err := parseAddr(text); {
	case err == nil:
		return Host{Addr: a}, nil
	case errors.Is(err, errZone):
		return Host{}, errZone
	}
	name := strings.ToLower(text)
	if !isName(name, "") {
		return Host{}, errNoHost
	}
	if last := name[strings.LastIndexByte(name, '.')+1:]; isNumber(last) {
		return Host{}, errNumber
	}
	return Host{Name: name}, nil
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return a, err
	case a.Zone() != "":
		return a, errZone
	}
	return a.Unmap(), nil
}

// isName tells whether name is one, in lower case; more are the characters that it may
// hold beside those of names.
func isName(name, more string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && strings.IndexByte(more, c) < 0 {
				return false
			}
		}
	}
	return true
}

// isNumber tells whether a last label makes inet_aton and the URL standard ("ends in a
// number") read a name as an IPv4 address.
func isNumber(label string) bool {
	if digits, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// Pattern is which hosts and ports a list permits.
type Pattern struct {
	deep   bool     // begins with "*.": any labels, but one at least, before the others
	labels []string // globs of one label each
	host   Host     // an address, or the zero Host
	// Port is the only one; 0: none is said.
	Port uint16
}

// ParsePattern reads a host as ParseHost does, or one with * and ?, perhaps with a
// port. "*." at the beginning stands for one label or several, so that *.example.com
// holds a.b.example.com and not example.com; any other * or ? stays within its label;
// * alone is every name. No * stands for an IP address. Names in other alphabets are
// taken.
func ParsePattern(text string) (Pattern, error) {
	var p Pattern
	host := text
	if at := strings.LastIndexByte(text, ':'); at >= 0 && (strings.Count(text, ":") == 1 || strings.HasSuffix(text[:at], "]")) {
		port, err := strconv.ParseUint(text[at+1:], 10, 16)
		if err != nil || port == 0 || text[at+1] == '0' {
			return p, errors.New("its port is no number from 1 to 65535")
		}
		host, p.Port = text[:at], uint16(port)
	}
	if !strings.ContainsAny(host, "*?") {
		if ascii, err := idna.Lookup.ToASCII(host); err == nil && ascii != host && !strings.ContainsAny(host, "[:") {
			host = ascii
		}
		h, err := ParseHost(host)
		if err != nil {
			return p, err
		}
		if h.Name != "" {
			p.labels = strings.Split(h.Name, ".")
		} else {
			p.host = h
		}
		return p, nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	labels := strings.Split(name, ".")
	for i, label := range labels {
		if ascii, err := idna.Lookup.ToASCII(label); err == nil && !strings.ContainsAny(label, "*?") {
			labels[i] = ascii
		}
	}
	name = strings.Join(labels, ".")
	switch {
	case !isName(name, "*?") || isNumber(labels[len(labels)-1]):
		return p, errNoHost
	case strings.ContainsAny(name, "0123456789") && strings.Trim(name, "0123456789.*?") == "":
		return p, errors.New("no * stands for an IP address: name each")
	}
	if labels[0] == "*" {
		p.deep, labels = true, labels[1:]
	}
	p.labels = labels
	return p, nil
}

// Has tells whether h is one of the hosts of p, whatever the port.
func (p Pattern) Has(h Host) bool {
	if h.Name == "" || p.host.Addr.IsValid() {
		return h == p.host && h.Addr.IsValid()
	}
	labels := strings.Split(h.Name, ".")
	over := len(labels) - len(p.labels)
	if over < 0 || (over > 0) != p.deep {
		return false
	}
	for i, glob := range p.labels {
		if ok, err := path.Match(glob, labels[over+i]); !ok || err != nil {
			return false
		}
	}
	return true
}

// Addr is the IP address that p is; the zero Addr for names.
func (p Pattern) Addr() netip.Addr { return p.host.Addr }
