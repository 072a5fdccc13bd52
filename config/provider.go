package config

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// builtin is a provider that needs no entry in the file.
type builtin struct {
	family  string // the dialect of its credential header, errors and limit headers
	baseURL string // empty: the host differs by region or resource and must be configured
	// example is what to configure then.
	example   string
	plaintext bool
	// tells: its streams tell their usage unasked, and it refuses requests that
	// ask for it.
	tells bool
}

// builtins are the providers of contract.md's routing list. Hosts are those of
// the vendors' own SDKs and documentation; agents' paths are appended whole, so
// none of them carries a version.
var builtins = map[string]builtin{
	"anthropic":   {family: "anthropic", baseURL: "https://api.anthropic.com"},
	"openai":      {family: "openai", baseURL: "https://api.openai.com"},
	"gemini":      {family: "gemini", baseURL: "https://generativelanguage.googleapis.com"},
	"vertex":      {family: "gemini", example: "https://us-east5-aiplatform.googleapis.com"},
	"bedrock":     {family: "bedrock", example: "https://bedrock-runtime.us-east-1.amazonaws.com"},
	"azure":       {family: "azure", example: "https://RESOURCE.openai.azure.com"},
	"cohere":      {family: "cohere", baseURL: "https://api.cohere.com"},
	"mistral":     {family: "openai", baseURL: "https://api.mistral.ai", tells: true}, // openai/openai-agents-python#442
	"groq":        {family: "openai", baseURL: "https://api.groq.com"},
	"deepseek":    {family: "openai", baseURL: "https://api.deepseek.com"},
	"xai":         {family: "openai", baseURL: "https://api.x.ai"},
	"openrouter":  {family: "openai", baseURL: "https://openrouter.ai"},
	"perplexity":  {family: "openai", baseURL: "https://api.perplexity.ai"},
	"together":    {family: "openai", baseURL: "https://api.together.xyz"},
	"fireworks":   {family: "openai", baseURL: "https://api.fireworks.ai"},
	"cerebras":    {family: "openai", baseURL: "https://api.cerebras.ai"},
	"huggingface": {family: "openai", baseURL: "https://router.huggingface.co"},
	"ollama":      {family: "ollama", baseURL: "http://127.0.0.1:11434", plaintext: true},
	"voyage":      {family: "voyage", baseURL: "https://api.voyageai.com"},
	"zai":         {family: "openai", baseURL: "https://api.z.ai"},
}

// reserved names are first path segments that route by themselves.
var reserved = []string{"v1", "v1beta", "v1alpha", "healthz"}

// BuiltinProviders lists the names of the providers that need no entry, sorted.
func BuiltinProviders() []string { return slices.Sorted(maps.Keys(builtins)) }

// ProviderByName gives a provider as it is after the file's overrides: with Type
// always set and BaseURL empty only when a built-in one has no host of its own
// and the file names none.
func (c *Config) ProviderByName(name string) (Provider, bool) {
	p, declared := c.Providers[name]
	b, known := builtins[name]
	if !known {
		return p, declared
	}
	if !declared {
		p.setDefaults()
	}
	p.Type = b.family
	if _, said := c.origin.places["providers."+name+".stream_usage"]; b.tells && !said {
		p.StreamUsage = "never"
	}
	if p.BaseURL == "" {
		p.BaseURL, p.AllowPlaintext = b.baseURL, p.AllowPlaintext || b.plaintext
	}
	return p, true
}

// ProvidersInUse are the names of the providers that have a subscription, sorted.
func (c *Config) ProvidersInUse() []string {
	names := map[string]bool{}
	for _, s := range c.Subscriptions {
		names[s.Provider] = true
	}
	return slices.Sorted(maps.Keys(names))
}

const baseURLAllowed = "https://host, a port and a path prefix allowed"

// hostName takes DNS names, and the brackets and colons of IPv6 literals.
var hostName = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$`)

// pathPrefix takes what needs no escaping, so that a prefix means the same to everyone.
var pathPrefix = regexp.MustCompile(`^(?:/[A-Za-z0-9._~@:+-]+)*$`)

func (v *validator) providers() {
	for _, name := range slices.Sorted(maps.Keys(v.Providers)) {
		p, path := v.Providers[name], "providers."+name
		b, known := builtins[name]
		switch {
		case slices.Contains(reserved, name):
			v.fault(path, "is a name that routes already", "another name than "+strings.Join(reserved, ", "))
		case !identifier.MatchString(name):
			v.fault(path, quoted(name)+" is no name", identifierAllowed)
		case known && p.Type != "" && p.Type != b.family:
			v.fault(path+".type", "cannot be changed for a built-in provider", "leave it out, or declare a provider of another name")
		case !known && p.Type == "":
			v.fault(path+".type", "is missing for a provider that is not built in"+suggest(name, BuiltinProviders()), "one of anthropic, openai, gemini, azure, bedrock, cohere, ollama, voyage")
		}
		if p.BaseURL != "" {
			v.baseURL(path+".base_url", p)
		} else if !known {
			v.fault(path+".base_url", "is missing for a provider that is not built in", baseURLAllowed)
		}
		v.paths(path+".paths", p.Paths)
	}
}

// pathPattern takes the pattern of a path: plain segments, in which * may stand.
var pathPattern = regexp.MustCompile(`^(?:/[A-Za-z0-9._~@:+*-]+)+$`)

const pathAllowed = "/ and plain segments, * for one segment or a part of one, a last /** for any number of them"

// methodNames are the methods that agents send.
var methodNames = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// paths judges the rules of a provider's paths, as far as they can be judged without the
// path manifest.
func (v *validator) paths(path string, rules []PathRule) {
	if len(rules) > maxList {
		v.fault(path, fmt.Sprintf("has %d rules", len(rules)), fmt.Sprintf("at most %d", maxList))
	}
	for i, r := range rules {
		at := fmt.Sprintf("%s[%d].", path, i)
		inner := strings.TrimSuffix(r.Path, "/**")
		switch {
		case r.Path == "/**":
		case !pathPattern.MatchString(r.Path) || dotSegment(r.Path) || strings.HasSuffix(inner, "."):
			v.fault(at+"path", quoted(r.Path)+" is no pattern of paths", pathAllowed)
		case strings.Contains(inner, "**"):
			v.fault(at+"path", quoted(r.Path)+" has ** before its end", pathAllowed)
		}
		for j, method := range r.Methods {
			field := fmt.Sprintf("%smethods[%d]", at, j)
			switch {
			case !slices.Contains(methodNames, method):
				v.fault(field, quoted(method)+" is no method"+suggest(strings.ToUpper(method), methodNames), "some of "+strings.Join(methodNames, ", "))
			case slices.Contains(r.Methods[:j], method):
				v.fault(field, quoted(method)+" stands here a second time", "each method once")
			}
		}
		for j, before := range rules[:i] {
			if strings.EqualFold(before.Path, r.Path) && (len(before.Methods) == 0 || slices.ContainsFunc(r.Methods, func(m string) bool { return slices.Contains(before.Methods, m) })) {
				v.fault(at+"path", fmt.Sprintf("%s is that of paths[%d] too, which comes first", quoted(r.Path), j), "each path and method once")
				break
			}
		}
	}
}

// baseURL judges a provider's base URL. The URL is repeated in no message that
// is about user information.
func (v *validator) baseURL(path string, p Provider) {
	u, err := url.Parse(p.BaseURL)
	switch {
	case err != nil:
		v.fault(path, "is not a URL", baseURLAllowed)
	case u.Scheme != "https" && u.Scheme != "http":
		v.fault(path, "does not begin with https://", baseURLAllowed)
	case u.User != nil:
		v.fault(path, "holds user information", baseURLAllowed+"; credentials belong under subscriptions")
	case !hostName.MatchString(u.Host) || !portInRange(u.Port()):
		v.fault(path, quoted(u.Host)+" is no host", baseURLAllowed)
	case strings.ContainsAny(p.BaseURL, "?#"):
		v.fault(path, "has a query or a fragment", baseURLAllowed)
	case !pathPrefix.MatchString(u.EscapedPath()) || dotSegment(u.Path):
		v.fault(path, quoted(u.EscapedPath())+" is no path prefix", "a path of plain segments without an end slash")
	case u.Scheme == "http" && !p.AllowPlaintext:
		v.fault(path, "would send the credential unencrypted", "https://, or allow_plaintext: true if that is meant")
	}
	if strings.HasSuffix(p.BaseURL, "/v1") {
		v.warn(path, fmt.Sprintf("ends in /v1: agents' paths are appended whole, so /v1/models becomes %s/v1/models; leave /v1 out unless the provider wants it twice", u.Path))
	}
}

func dotSegment(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}
