package main

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/proxy"
)

// The ways in which agents reach authpool.
const (
	modeBaseURL = "base-url" // they are told its address as the providers'
	modeProxy   = "proxy"    // they are told its address as their HTTP(S) proxy
)

// modes are all of them, for completion and for who gives another.
var modes = []string{modeBaseURL, modeProxy}

// way is how one agent reaches authpool, and as whom.
type way struct {
	mode    string
	base    string // authpool's address as a URL, without a path
	agent   string // whom the token belongs to
	token   string
	session string // that all its requests are to be of; empty: those it tells of itself
	trust   trust  // of proxy mode
	uses    []string
	secrets []string // variables of the environment that hold authpool's own secrets
}

// newWay finds the way to the authpool of cfg, whose state folder is dir, at base.
func newWay(p *program, cfg *config.Config, dir, mode, base string) (way, error) {
	// Clients want some key; with `auth: none` any will do.
	w := way{mode: mode, base: base, agent: proxy.AnonymousAgent, token: "anonymous", secrets: cfg.SecretVariables()}
	for _, s := range cfg.Subscriptions {
		w.uses = append(w.uses, s.Provider)
	}
	var err error
	if cfg.Agents.Auth == "token" {
		w.agent = defaultAgent
		if w.token, err = stateToken(dir, statedir.AgentTokenFile); err != nil {
			return w, err
		}
	}
	if mode == modeProxy {
		if !cfg.Intercept.Enabled {
			return w, errors.New("intercept.enabled is false, so there is no proxy mode: set it to true, or use --mode base-url")
		}
		w.trust, err = newTrust(dir, p.getenv)
	}
	return w, err
}

// agentBaseURL is the first address that agents can reach over TCP.
func agentBaseURL(cfg *config.Config) (string, error) {
	for _, address := range cfg.Listen {
		if strings.HasPrefix(address, "unix:") {
			continue
		}
		scheme := "http://"
		if cfg.TLS.Enabled() && !config.Loopback(address) {
			scheme = "https://"
		}
		return scheme + dialable(address), nil
	}
	return "", errors.New("agents reach authpool over TCP only: add a host:port to listen")
}

// clientVariables are what the clients of a provider read (which client reads which is
// listed in the README).
var clientVariables = []struct {
	provider string
	usual    bool // it is one of those that serve finds subscriptions of in the environment
	keys     []string
	base     string // variable of the base URL; empty: there is none that most clients know
	path     string // what stands behind authpool's address in it
	former   string // an older name of base, which some clients heed before it; replaced where it is set
}{
	// Both of Anthropic's are set, so that neither can hold a key of the operator.
	{provider: "anthropic", usual: true, keys: []string{"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"}, base: "ANTHROPIC_BASE_URL"},
	{provider: "openai", usual: true, keys: []string{"OPENAI_API_KEY", "CODEX_API_KEY"}, base: "OPENAI_BASE_URL", path: "/v1", former: "OPENAI_API_BASE"},
	{provider: "gemini", usual: true, keys: []string{"GEMINI_API_KEY"}, base: "GOOGLE_GEMINI_BASE_URL"},
	{provider: "azure", keys: []string{"AZURE_OPENAI_API_KEY"}},
	{provider: "bedrock", keys: []string{"AWS_BEARER_TOKEN_BEDROCK"}, base: "AWS_ENDPOINT_URL_BEDROCK_RUNTIME", path: "/bedrock"},
	{provider: "cerebras", keys: []string{"CEREBRAS_API_KEY"}},
	{provider: "cohere", keys: []string{"CO_API_KEY", "COHERE_API_KEY"}},
	{provider: "deepseek", keys: []string{"DEEPSEEK_API_KEY"}},
	{provider: "fireworks", keys: []string{"FIREWORKS_API_KEY"}},
	{provider: "groq", keys: []string{"GROQ_API_KEY"}},
	{provider: "huggingface", keys: []string{"HF_TOKEN"}},
	{provider: "mistral", keys: []string{"MISTRAL_API_KEY"}},
	{provider: "openrouter", keys: []string{"OPENROUTER_API_KEY"}},
	{provider: "perplexity", keys: []string{"PERPLEXITY_API_KEY"}},
	{provider: "together", keys: []string{"TOGETHER_API_KEY"}},
	{provider: "voyage", keys: []string{"VOYAGE_API_KEY"}},
	{provider: "xai", keys: []string{"XAI_API_KEY"}},
	{provider: "zai", keys: []string{"ZAI_API_KEY"}},
}

// baseVariable matches the variables that send clients somewhere else than to a
// provider's own host.
var baseVariable = regexp.MustCompile(`^(` +
	`(ANTHROPIC|ANTHROPIC_BEDROCK|ANTHROPIC_VERTEX|ANTHROPIC_FOUNDRY|OPENAI|GOOGLE_GEMINI|GOOGLE_VERTEX|GEMINI|GROQ|DEEPSEEK|XAI|OPENROUTER|TOGETHER|FIREWORKS|CEREBRAS)_BASE_URL|` +
	`OPENAI_API_BASE|CO_API_URL|AWS_ENDPOINT_URL(_BEDROCK_RUNTIME)?)$`)

// credentialVariable matches the variables that hold an operator's credentials: those
// that serve reads subscriptions from, and those that the clients of the built-in
// providers take their keys or logins from.
var credentialVariable = regexp.MustCompile(`^(` +
	`(ANTHROPIC|OPENAI|GEMINI)_API_KEY(_[0-9]+)?|` +
	`(ANTHROPIC|OPENAI)_ADMIN_KEY|ANTHROPIC_(AUTH_TOKEN|FOUNDRY_API_KEY)|CLAUDE_CODE_OAUTH_TOKEN|CODEX_API_KEY|` +
	`GOOGLE_(API_KEY|GENERATIVE_AI_API_KEY|APPLICATION_CREDENTIALS)|` +
	`AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|BEARER_TOKEN_BEDROCK|WEB_IDENTITY_TOKEN_FILE)|` +
	`AZURE_(API_KEY|OPENAI_API_KEY|OPENAI_AD_TOKEN|CLIENT_SECRET|FEDERATED_TOKEN_FILE)|` +
	`(CO|COHERE|MISTRAL|GROQ|DEEPSEEK|XAI|OPENROUTER|PERPLEXITY|PPLX|TOGETHER|FIREWORKS|CEREBRAS|VOYAGE|ZAI|Z_AI|ZHIPU|ZHIPUAI|OLLAMA|HUGGINGFACE)_API_KEY|` +
	`HF_TOKEN|HUGGING_FACE_HUB_TOKEN|HUGGINGFACEHUB_API_TOKEN|` +
	`AUTHPOOL_ADMIN_TOKEN|REDISCLI_AUTH)$`)

// variables are what an agent needs in its environment, and what must not be in it.
func (w way) variables(p *program) []variable {
	var vars []variable
	for _, c := range clientVariables {
		// Whoever is sent elsewhere by no base URL gets a key only when authpool has one
		// for it, and is there to put it in.
		if !c.usual && (w.mode == modeBaseURL && c.base == "" || !slices.Contains(w.uses, c.provider)) {
			continue
		}
		if c.base != "" && w.mode == modeBaseURL {
			vars = append(vars, variable{name: c.base, value: w.base + c.path})
			if c.former != "" && p.getenv(c.former) != "" { // else it would lead our token elsewhere
				vars = append(vars, variable{name: c.former, value: w.base + c.path})
			}
		}
		for _, name := range c.keys {
			vars = append(vars, variable{name: name, value: w.key()})
		}
	}
	if w.mode == modeProxy {
		vars = append(vars, w.proxyVariables()...)
		vars = append(vars, noProxy(p)...)
		vars = append(vars, w.trustVariables()...)
	} else if proxied(p) {
		vars = append(vars, noProxy(p)...)
	}
	return append(vars, w.unset(p, vars)...)
}

// key is what clients take for a provider's: the token, and where it has to say so the
// session behind it. In proxy mode the proxy's user name does.
func (w way) key() string {
	if w.mode == modeBaseURL && w.session != "" {
		return w.token + "." + w.session
	}
	return w.token
}

// proxyVariables name authpool as the proxy. Clients read either case; ALL_PROXY is for
// those that look at it first.
func (w way) proxyVariables() []variable {
	address := w.proxyURL()
	var vars []variable
	for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"} {
		vars = append(vars, variable{name: name, value: address}, variable{name: strings.ToLower(name), value: address})
	}
	// Node looks at the variables when it is told to (from 22.21 and 24 on).
	return append(vars, variable{name: "NODE_USE_ENV_PROXY", value: "1"})
}

// proxyURL says who asks as the user name: a session, else the agent, which names none.
func (w way) proxyURL() string {
	u, err := url.Parse(w.base)
	if err != nil {
		panic("BUG: " + err.Error()) // config has checked the address
	}
	user := w.session
	if user == "" {
		user = w.agent
	}
	u.User = url.UserPassword(user, w.token)
	return u.String()
}

// trustVariables name the files of authorities: for what adds to the system's, and for
// what replaces them.
func (w way) trustVariables() []variable {
	var vars []variable
	for _, name := range []string{"NODE_EXTRA_CA_CERTS", "DENO_CERT"} {
		vars = append(vars, variable{name: name, value: w.trust.own})
	}
	for _, name := range []string{
		"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO", "PIP_CERT",
		"AWS_CA_BUNDLE", "CODEX_CA_CERTIFICATE", "NIX_SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "npm_config_cafile",
	} {
		vars = append(vars, variable{name: name, value: w.trust.whole})
	}
	return vars
}

// proxied tells whether the environment names a proxy.
func proxied(p *program) bool {
	return slices.ContainsFunc([]string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"},
		func(name string) bool { return p.getenv(name) != "" })
}

// noProxy keeps clients from sending requests for the loopback address to a proxy, which
// several of them do, and what the environment says beside.
func noProxy(p *program) []variable {
	hosts := noProxyHosts(p)
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	value := strings.Join(hosts, ",")
	return []variable{{name: "NO_PROXY", value: value}, {name: "no_proxy", value: value}}
}

func noProxyHosts(p *program) []string {
	list := p.getenv("NO_PROXY")
	if list == "" {
		list = p.getenv("no_proxy")
	}
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// unset takes out of the environment what vars does not replace: the operator's own
// credentials, authpool's secrets and, in proxy mode, base URLs, which would lead past
// the proxy. In the order of their names.
func (w way) unset(p *program, vars []variable) []variable {
	var own []variable
	for _, pair := range p.environ {
		name, _, _ := strings.Cut(pair, "=")
		switch {
		case slices.ContainsFunc(vars, func(v variable) bool { return v.name == name }):
		case credentialVariable.MatchString(name), slices.Contains(w.secrets, name),
			w.mode == modeProxy && baseVariable.MatchString(name):
			own = append(own, variable{name: name, unset: true})
		}
	}
	slices.SortFunc(own, func(a, b variable) int { return strings.Compare(a.name, b.name) })
	return slices.Compact(own)
}
