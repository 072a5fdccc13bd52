package config

// oneOrMany is a type that a file may write as one scalar or as a list of them.
type oneOrMany interface {
	setOne(string) error
	setMany([]string)
}

// Addresses are listener addresses, host:port or unix:/path. A file writes one
// or a list.
type Addresses []string

func (a *Addresses) setOne(text string) error { *a = Addresses{text}; return nil }
func (a *Addresses) setMany(texts []string)   { *a = texts }

// HostPolicy says what happens to hosts that are no provider's: Mode deny,
// tunnel, or list, with Hosts holding the globs of the list.
type HostPolicy struct {
	Mode  string
	Hosts []string
}

func (p *HostPolicy) setOne(text string) error {
	if text != "deny" && text != "tunnel" {
		return wrong{quoted(text) + " is not a policy", "deny, tunnel, or a list of host globs"}
	}
	*p = HostPolicy{Mode: text}
	return nil
}

func (p *HostPolicy) setMany(texts []string) { *p = HostPolicy{Mode: "list", Hosts: texts} }
