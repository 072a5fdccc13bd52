// Package config describes what an operator can say to authpool: a YAML file
// goes in, plain checked data comes out. It starts nothing and resolves no
// secret; cmd/authpool turns the data into live objects.
//
// Start at Load. Parse walks the YAML tree beside the Go types (decode.go), so
// that every fault is found in one go and carries the place it was made;
// Validate then judges what the types alone cannot (validate.go). Schema gives
// the JSON Schema of the same types.
//
// The struct tags are the single truth for both: yaml is the key, jsonschema
// holds the rules (required, enum, minimum, maximum) that the decoder enforces
// and the schema repeats, jsonschema_description explains the key.
package config

import "time"

// Config is the whole file. The zero value is not usable; start from Default.
type Config struct {
	Listen        Addresses           `yaml:"listen" jsonschema_description:"Where agents reach the proxy: host:port or unix:/path, one or a list."`
	Unix          Unix                `yaml:"unix" jsonschema_description:"The unix: sockets of listen."`
	TLS           TLS                 `yaml:"tls" jsonschema_description:"Certificate for listeners that are not loopback."`
	Admin         Admin               `yaml:"admin" jsonschema_description:"Second listener: health, metrics, API."`
	Redis         Redis               `yaml:"redis" jsonschema_description:"Shared truth of several sidecars. Left out, a Redis is embedded."`
	StateDir      string              `yaml:"state_dir" jsonschema_description:"Folder of journal, snapshot and tokens. Relative to this file."`
	Providers     map[string]Provider `yaml:"providers" jsonschema_description:"Overrides of built-in providers, and providers of your own, by name."`
	Subscriptions []Subscription      `yaml:"subscriptions" jsonschema_description:"The credentials that agents share."`
	Agents        Agents              `yaml:"agents" jsonschema_description:"Who may use the proxy."`
	Sessions      Sessions            `yaml:"sessions" jsonschema_description:"How conversations stick to subscriptions."`
	Failover      Failover            `yaml:"failover" jsonschema_description:"What happens when a subscription cannot serve."`
	Timeouts      Timeouts            `yaml:"timeouts" jsonschema_description:"Limits on silence and slowness; idle and write_stall are renewed by progress."`
	LimitsHTTP    LimitsHTTP          `yaml:"limits_http" jsonschema_description:"What is accepted from agents at most."`
	Journal       Journal             `yaml:"journal" jsonschema_description:"The usage journal in the state folder."`
	Prices        FileRef             `yaml:"prices" jsonschema_description:"Price overrides, file:PATH, laid over the built-in table."`
	Intercept     Intercept           `yaml:"intercept" jsonschema_description:"Proxy mode: what happens to CONNECT."`
	Egress        Egress              `yaml:"egress" jsonschema_description:"How authpool itself reaches providers."`
	Notifications []Notification      `yaml:"notifications" jsonschema_description:"Webhooks told about events."`
	Sealing       Sealing             `yaml:"sealing" jsonschema_description:"How secrets that operators add at run time are kept."`
	Audit         Audit               `yaml:"audit" jsonschema_description:"The tamper-evident log in the state folder."`
	Log           Log                 `yaml:"log" jsonschema_description:"What is written to standard error."`
	Shutdown      Shutdown            `yaml:"shutdown" jsonschema_description:"What happens at SIGTERM."`

	origin origin
}

// Unix says who may connect to the unix: sockets of listen, and whose processes are
// agents there by their user alone, as the kernel tells it.
type Unix struct {
	Access string            `yaml:"access" jsonschema:"enum=owner,enum=group,enum=all" jsonschema_description:"Who may connect: owner (mode 0600), group (0660; the group is the one that files in the folder get), or all (0666)."`
	Agents map[string]string `yaml:"agents" jsonschema_description:"Agents by the number of their user, who need no token there. A token of another agent is refused. Linux and macOS tell the user."`
}

// TLS names a certificate chain and its key, both file: references; empty
// means that the listeners speak plain HTTP.
type TLS struct {
	Cert FileRef `yaml:"cert" jsonschema_description:"PEM certificate chain, file:PATH."`
	Key  FileRef `yaml:"key" jsonschema_description:"PEM private key, file:PATH."`
}

// Enabled tells whether a certificate is configured.
func (t TLS) Enabled() bool { return t.Cert != "" }

// Admin is the second listener.
type Admin struct {
	Listen string `yaml:"listen" jsonschema_description:"host:port of health, metrics and API."`
	Token  Ref    `yaml:"token" jsonschema_description:"Admin token, env:NAME, file:PATH or exec:/PROGRAM ARG…. Left out, one is made in the state folder."`
	Viewer Ref    `yaml:"viewer_token" jsonschema_description:"Token of who may read the API and change nothing, env:NAME, file:PATH or exec:/PROGRAM ARG…. Left out, one is made in the state folder."`
}

// Provider is one API family reached over HTTP.
type Provider struct {
	Type           string     `yaml:"type" jsonschema:"enum=anthropic,enum=openai,enum=gemini,enum=azure,enum=bedrock,enum=cohere,enum=ollama,enum=voyage" jsonschema_description:"Which API it speaks: gemini is Vertex AI's too, openai that of all that is compatible with it. Needed for a provider that is not built in; not allowed for one that is."`
	BaseURL        string     `yaml:"base_url" jsonschema_description:"Scheme and host, a path prefix allowed. Agents' paths are appended as they are."`
	AllowPlaintext bool       `yaml:"allow_plaintext" jsonschema_description:"Allow http:// in base_url. The credential then travels unencrypted."`
	Paths          []PathRule `yaml:"paths" jsonschema_description:"What some of its paths are, instead of what the built-in path manifest says. The first that matches counts."`
	StreamUsage    string     `yaml:"stream_usage" jsonschema:"enum=ask,enum=never" jsonschema_description:"ask: add include_usage to OpenAI streams that did not ask for it and take the extra chunk out again. never: leave such streams as they are, for a provider that refuses the question; they count as unknown unless they tell their usage unasked. Left out: ask, but for mistral, which tells and refuses."`
}

// PathRule says what some paths of a provider are.
type PathRule struct {
	Path    string   `yaml:"path" jsonschema:"required,pattern=^/" jsonschema_description:"The whole path behind base_url, in any case: * is one segment or a part of one, a last /** any number of segments."`
	Methods []string `yaml:"methods" jsonschema_description:"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS; left out, all."`
	Action  string   `yaml:"action" jsonschema:"required,enum=inject,enum=free,enum=bound,enum=local,enum=refuse" jsonschema_description:"inject: it gets a credential and is counted. free: it gets a credential and costs no tokens. bound: as inject, and what it makes belongs to the subscription and the agent. local: authpool answers 404 itself. refuse: authpool answers 403."`
}

// Subscription is one credential at one provider.
type Subscription struct {
	ID         string     `yaml:"id" jsonschema:"required,pattern=^[a-z0-9][a-z0-9_-]{0\\,62}$" jsonschema_description:"Name of the subscription in status, usage and Redis."`
	Provider   string     `yaml:"provider" jsonschema:"required" jsonschema_description:"A built-in provider or one declared under providers."`
	Credential Credential `yaml:"credential" jsonschema:"required" jsonschema_description:"The secret and the form in which it is sent."`
	Priority   int        `yaml:"priority" jsonschema:"minimum=0,maximum=1000000" jsonschema_description:"Lower first; the next tier serves when the tier before cannot."`
	Weight     int        `yaml:"weight" jsonschema:"minimum=1,maximum=1000000" jsonschema_description:"Share of new sessions within a tier."`
	Domain     string     `yaml:"domain" jsonschema_description:"Subscriptions of one domain share limits: no failover inside a limited one."`
	Labels     []string   `yaml:"labels" jsonschema_description:"Names by which agents are allowed to use it, beside its id; as ids are."`
	Models     []string   `yaml:"models" jsonschema_description:"Globs (* ? [a-z]) of models that it serves; none means all."`
	Limits     Limits     `yaml:"limits" jsonschema_description:"Limits that authpool keeps by itself; left out means none."`
	Budgets    []Budget   `yaml:"budgets" jsonschema_description:"What may be used per window, over all sidecars. From 80 % on new sessions go elsewhere while they can; at 100 % nothing is sent until the window is over."`
}

// Credential names a secret and its form on the wire.
type Credential struct {
	Type  string `yaml:"type" jsonschema:"enum=api_key,enum=bearer" jsonschema_description:"api_key: the provider's API key header. bearer: Authorization: Bearer."`
	Value Ref    `yaml:"value" jsonschema:"required" jsonschema_description:"env:NAME, file:PATH or exec:/PROGRAM ARG…. Never the secret itself."`
}

// Limits are ceilings of one subscription. Zero means no ceiling; a file cannot
// say zero.
type Limits struct {
	RequestsPerMinute     int64 `yaml:"requests_per_minute" jsonschema:"minimum=1"`
	InputTokensPerMinute  int64 `yaml:"input_tokens_per_minute" jsonschema:"minimum=1"`
	OutputTokensPerMinute int64 `yaml:"output_tokens_per_minute" jsonschema:"minimum=1"`
	Concurrent            int   `yaml:"concurrent" jsonschema:"minimum=1,maximum=1000000" jsonschema_description:"Requests in flight over all sidecars."`
	Sessions              int   `yaml:"sessions" jsonschema:"minimum=1,maximum=1000000" jsonschema_description:"Sessions bound at one time over all sidecars."`
}

// Budget is a ceiling on what is used within one window; zero is none, and one at
// least is there.
type Budget struct {
	Window   string `yaml:"window" jsonschema:"required,enum=block,enum=day,enum=week,enum=month" jsonschema_description:"block: five hours, as in status. The others are UTC's; a week begins on Monday."`
	CostUSD  USD    `yaml:"cost_usd"`
	Tokens   int64  `yaml:"tokens" jsonschema:"minimum=1" jsonschema_description:"Of all kinds, cached ones too."`
	Requests int64  `yaml:"requests" jsonschema:"minimum=1"`
}

// Agents says how agents are known and what they see of one another.
type Agents struct {
	Auth      string `yaml:"auth" jsonschema:"enum=token,enum=none" jsonschema_description:"token: every request needs an agent token. none: only on loopback or a unix socket."`
	Isolation string `yaml:"isolation" jsonschema:"enum=strict,enum=shared" jsonschema_description:"strict: agents cannot reach each other's files, batches and stored answers, nor list what all have. shared: they can."`
	Brake     Brake  `yaml:"brake" jsonschema_description:"What one agent may use within an hour, at each sidecar."`
}

// Sessions says how conversations stick.
type Sessions struct {
	IdleTimeout       Duration `yaml:"idle_timeout" jsonschema_description:"Frees the slot of a session that is silent this long."`
	Affinity          Duration `yaml:"affinity" jsonschema_description:"How long a session's last subscription stays its preference."`
	CacheWarm         Duration `yaml:"cache_warm" jsonschema_description:"How long after its last request a session is not moved, for its prompt cache."`
	Strategy          string   `yaml:"strategy" jsonschema:"enum=balanced,enum=drain_soonest,enum=priority,enum=least_used,enum=round_robin" jsonschema_description:"Who gets new sessions, within a tier. balanced: the best by health and load. drain_soonest: whose window ends soonest, so that nothing expires unused. priority: the first of the list until it cannot serve. least_used: of whose limits the least is spent. round_robin: all in turn, by weight."`
	Health            Health   `yaml:"health" jsonschema_description:"By what subscriptions are rated; status tells the parts of each."`
	Children          string   `yaml:"children" jsonschema:"enum=inherit,enum=spread" jsonschema_description:"inherit: a sub-agent's session goes where its parent went."`
	DrainOnDisconnect bool     `yaml:"drain_on_disconnect" jsonschema_description:"Read an answer to its end although the agent left, to count it exactly."`
	Brake             Brake    `yaml:"brake" jsonschema_description:"What one session may use within an hour, at each sidecar: stops an agent that runs away."`
}

// Health is the constants of the health of a subscription, 0 to 100: availability
// × headroom × soundness × swiftness. Each is of its own subscription; what they
// are is told by pool.Score.
type Health struct {
	ProbingPercent int      `yaml:"probing_percent" jsonschema:"minimum=1,maximum=100" jsonschema_description:"Availability while one request finds out whether it works again."`
	NearlyPercent  int      `yaml:"nearly_percent" jsonschema:"minimum=50,maximum=100" jsonschema_description:"From this use of a limit on new sessions go elsewhere while they can."`
	ResetSoon      Duration `yaml:"reset_soon" jsonschema_description:"A spent window that is reset in this time weighs half, and less the sooner. At most 24h."`
	SlowPercent    int      `yaml:"slow_percent" jsonschema:"minimum=100,maximum=10000" jsonschema_description:"A time to the first byte beyond this much of the provider's usual counts against it."`
	SessionPercent int      `yaml:"session_percent" jsonschema:"minimum=1,maximum=100" jsonschema_description:"Load of a session that has a place, where a request under way is 100."`
}

// Brake is a ceiling on what is used within the last hour. Zero means none; a file
// cannot say zero.
type Brake struct {
	RequestsPerHour int64 `yaml:"requests_per_hour" jsonschema:"minimum=1" jsonschema_description:"Only those that cost something."`
	TokensPerHour   int64 `yaml:"tokens_per_hour" jsonschema:"minimum=1" jsonschema_description:"Of all kinds, cached ones too."`
	CostUSDPerHour  USD   `yaml:"cost_usd_per_hour"`
}

// Failover bounds what one request may cost in attempts and time.
type Failover struct {
	Attempts   int      `yaml:"attempts" jsonschema:"minimum=1,maximum=20" jsonschema_description:"How often a provider may have begun to execute one request. What it refuses does not count; 1 turns failover off."`
	Deadline   Duration `yaml:"deadline" jsonschema_description:"No new attempt after this long, or after wait where that is longer."`
	Wait       Duration `yaml:"wait" jsonschema_description:"Longest wait for a subscription before the agent gets the refusal. Above one minute streams are kept alive by pings."`
	Hold       Duration `yaml:"hold" jsonschema_description:"Longest that the opening events of a stream, before content, are held back."`
	ReplayBody Size     `yaml:"replay_body" jsonschema_description:"Larger request bodies are attempted once."`
}

// Timeouts bounds how long each step of a request may take.
type Timeouts struct {
	Connect    Duration `yaml:"connect"`
	Head       Duration `yaml:"head" jsonschema_description:"An agent that has not sent the whole head of a request in this time, however slowly it comes, is let go: from its first byte on, and of a connection's first request from when that was opened, with the TLS handshake. A body has as long before it must come at 512 bytes a second."`
	FirstByte  Duration `yaml:"first_byte" jsonschema_description:"From the sent request to the answer's first byte."`
	Idle       Duration `yaml:"idle" jsonschema_description:"Silence within an answer, within a request's body, and of an agent's connection between two requests."`
	WriteStall Duration `yaml:"write_stall" jsonschema_description:"An agent that does not take a byte this long is let go."`
}

// LimitsHTTP bounds what agents may send.
type LimitsHTTP struct {
	Body        Size `yaml:"body"`
	Header      Size `yaml:"header" jsonschema_description:"Of all header lines together; there may be 128 at most."`
	Connections int  `yaml:"connections" jsonschema:"minimum=16,maximum=1000000" jsonschema_description:"Agents' connections open at one time. When there are as many, the oldest on which no agent token was shown gives way to a new one, else the new one gets 503."`
}

// Journal says how usage is kept until Redis has it.
type Journal struct {
	Sync SyncPolicy `yaml:"sync" jsonschema_description:"Longest time between writing and fsync, or always."`
	Max  Size       `yaml:"max" jsonschema_description:"Largest size on disk."`
	Keep Duration   `yaml:"keep" jsonschema_description:"How long applied segments are kept for replay."`
}

// Intercept is the policy of proxy mode.
type Intercept struct {
	Enabled      bool       `yaml:"enabled" jsonschema_description:"Open the TLS of CONNECT requests to provider hosts with the local CA."`
	OtherHosts   HostPolicy `yaml:"other_hosts" jsonschema_description:"deny, tunnel (every host and every port but 25), or a list of hosts that may be tunnelled to: names, globs (*.example.com has every name below example.com and not that itself), addresses; with a port, or for 80 and 443. Never a provider's."`
	AllowPrivate []string   `yaml:"allow_private" jsonschema_description:"Networks and addresses that other hosts may be at although they are private or this machine's own: 10.1.0.0/16. Link-local and metadata addresses count only one by one."`
	TunnelIdle   Duration   `yaml:"tunnel_idle" jsonschema_description:"Ends a tunnel to another host on which nothing has moved for this long."`
	TunnelTotal  Duration   `yaml:"tunnel_total" jsonschema_description:"Ends a tunnel to another host that is this old."`
}

// Egress is the way out to providers.
type Egress struct {
	Proxy    string   `yaml:"proxy" jsonschema_description:"http:// or https:// URL of a forward proxy that takes CONNECT. HTTPS_PROXY of authpool's own environment is not looked at."`
	Username string   `yaml:"username" jsonschema_description:"For the proxy."`
	Password Ref      `yaml:"password" jsonschema_description:"For the proxy: env:NAME, file:PATH or exec:/PROGRAM ARG…."`
	NoProxy  []string `yaml:"no_proxy" jsonschema_description:"Hosts that are reached without the proxy, as NO_PROXY has them: names with their subdomains, addresses, networks. Left out: those of the variable NO_PROXY. Loopback always is."`
	CAFile   string   `yaml:"ca_file" jsonschema_description:"PEM bundle trusted in addition to the system's, for providers and for an https:// proxy."`
}

// Notification is one webhook.
type Notification struct {
	URL          string   `yaml:"url" jsonschema:"required" jsonschema_description:"https:// (http:// on loopback only)."`
	Secret       Ref      `yaml:"secret" jsonschema_description:"Signing secret, env:NAME, file:PATH or exec:/PROGRAM ARG…."`
	Events       []string `yaml:"events" jsonschema:"required" jsonschema_description:"Event names such as subscription.limited, budget.80, or globs such as budget.*."`
	Format       string   `yaml:"format" jsonschema:"enum=json,enum=slack" jsonschema_description:"json (default) or slack."`
	PinSHA256    string   `yaml:"pin_sha256" jsonschema_description:"Base64 SHA-256 of the public key that the receiver's certificate or its issuer must have."`
	AllowPrivate bool     `yaml:"allow_private" jsonschema_description:"Allow addresses of private networks and of this machine."`
}

// Sealing says with what the secrets of managed subscriptions are encrypted.
type Sealing struct {
	Keyset Ref `yaml:"keyset" jsonschema_description:"Tink keyset in JSON (authpool keys new), env:NAME, file:PATH or exec:/PROGRAM ARG…; the same for all sidecars of a Redis. Left out, one is made in the state folder for the first secret."`
}

// Audit says where the audit log goes beside its files.
type Audit struct {
	Stream bool `yaml:"stream" jsonschema_description:"Copy its lines into a Redis stream, too: authpool:audit:{…}, about 100,000 lines for each sidecar. Needs a Redis that is not embedded."`
}

// Log says what goes to standard error.
type Log struct {
	Level  string `yaml:"level" jsonschema:"enum=debug,enum=info,enum=warn,enum=error"`
	Format string `yaml:"format" jsonschema:"enum=text,enum=json"`
}

// Shutdown bounds the wait for answers in flight.
type Shutdown struct {
	Grace Duration `yaml:"grace" jsonschema_description:"How long answers in flight may go on after SIGTERM."`
}

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		Listen: Addresses{"127.0.0.1:8787"},
		Unix:   Unix{Access: "owner"},
		Admin:  Admin{Listen: "127.0.0.1:8788"},
		Redis:  Redis{Prefix: "authpool", Listen: "127.0.0.1:8789"},
		Agents: Agents{Auth: "token", Isolation: "strict"},
		Sessions: Sessions{
			IdleTimeout: Duration(30 * time.Minute),
			Affinity:    Duration(720 * time.Hour),
			CacheWarm:   Duration(5 * time.Minute),
			Strategy:    "balanced",
			Health: Health{
				ProbingPercent: 50, NearlyPercent: 95, ResetSoon: Duration(time.Minute), SlowPercent: 200, SessionPercent: 25,
			},
			Children: "inherit",
		},
		Failover: Failover{
			Attempts:   3,
			Deadline:   Duration(time.Minute),
			Wait:       Duration(30 * time.Second),
			Hold:       Duration(2 * time.Second),
			ReplayBody: 32 << 20,
		},
		Timeouts: Timeouts{
			Connect:    Duration(5 * time.Second),
			Head:       Duration(30 * time.Second),
			FirstByte:  Duration(10 * time.Minute),
			Idle:       Duration(5 * time.Minute),
			WriteStall: Duration(time.Minute),
		},
		LimitsHTTP: LimitsHTTP{Body: 64 << 20, Header: 32 << 10, Connections: 8192},
		Journal: Journal{
			Sync: SyncPolicy{Interval: 50 * time.Millisecond},
			Max:  1 << 30,
			Keep: Duration(time.Hour),
		},
		Intercept: Intercept{
			Enabled: true, OtherHosts: HostPolicy{Mode: "deny"},
			TunnelIdle: Duration(10 * time.Minute), TunnelTotal: Duration(24 * time.Hour),
		},
		Log:      Log{Level: "info", Format: "text"},
		Shutdown: Shutdown{Grace: Duration(25 * time.Second)},
	}
}

// setDefaults fills a subscription before its keys are read.
func (s *Subscription) setDefaults() {
	s.Priority, s.Weight, s.Credential.Type = 1, 1, "api_key"
}

// setDefaults fills a provider before its keys are read.
func (p *Provider) setDefaults() { p.StreamUsage = "ask" }
