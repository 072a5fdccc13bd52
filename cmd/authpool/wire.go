package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/embedded"
	"github.com/authpool/authpool/proxy"
	"github.com/authpool/authpool/proxy/egress"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit/price"
	"github.com/authpool/authpool/ratelimit/usage"
)

// authorityFolder holds the certificate authority of proxy mode in the state folder.
const authorityFolder = "ca"

// snapshotFile is the embedded Redis' snapshot in the state folder.
const snapshotFile = "redis.snapshot"

// newRedisFromConfig opens the Redis that c names. Its secrets are resolved
// here and nowhere else. The embedded one keeps in writes what must not be lost
// between snapshots.
func newRedisFromConfig(ctx context.Context, c config.Redis, dir *statedir.Dir, writes embedded.WriteLog, log *slog.Logger) (*redisdb.DB, error) {
	opts := redisOptions(c)
	opts.Logger = log
	switch ref, isRef := c.URLRef(); {
	case isRef:
		url, err := resolve(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("redis.url: %w", err)
		}
		opts.URL = url
	case c.URL != "":
		opts.URL = credential.NewSecret(c.URL)
	}
	if c.Password != "" {
		password, err := resolve(ctx, c.Password)
		if err != nil {
			return nil, fmt.Errorf("redis.password: %w", err)
		}
		opts.Password = password
	}
	opts.Embedded = embedded.Options{
		Snapshot:     filepath.Join(dir.Path(), snapshotFile),
		Log:          writes,
		Listen:       c.Listen,
		PasswordHash: sha256.Sum256([]byte(dir.RedisPassword())),
		Logger:       log,
	}
	return redisdb.Open(ctx, opts)
}

// redisOptions are what c says without its secrets.
func redisOptions(c config.Redis) redisdb.Options {
	return redisdb.Options{
		Mode:      redisdb.Mode(c.Mode), // empty: what the URL and the addresses say
		Addresses: c.Addresses,
		Master:    c.Master,
		Username:  c.Username,
		Prefix:    c.Prefix,
	}
}

// newPricesFromConfig loads the price table, with the operator's overrides.
func newPricesFromConfig(c *config.Config) (*price.Table, error) {
	path := c.Prices.File()
	if path == "" {
		return price.New(), nil
	}
	table, err := price.Load(path)
	if err != nil {
		return nil, wrongUseError{fmt.Errorf("prices: %w", err)}
	}
	return table, nil
}

// priceWarnings are about prices that nothing can cost: their provider is none of
// c's, which is most likely a slip. One file may still serve several configs.
func priceWarnings(c *config.Config, prices *price.Table) []string {
	var warnings []string
	for _, name := range prices.Providers() {
		if _, known := c.ProviderByName(name); !known {
			warnings = append(warnings, fmt.Sprintf("prices: %s has prices, but is no provider: use the name that subscriptions have under provider", name))
		}
	}
	return warnings
}

// newProvidersFromConfig makes the routes: all built-in providers, so that a
// request to one without a subscription is told so in its own shape, and the
// declared ones.
func newProvidersFromConfig(c *config.Config) (*provider.Registry, error) {
	names := config.BuiltinProviders()
	for name := range c.Providers {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	options := make([]provider.Options, 0, len(names))
	for _, name := range names {
		p, _ := c.ProviderByName(name)
		family, err := provider.ParseFamily(p.Type)
		if err != nil {
			return nil, fmt.Errorf("providers.%s: %w", name, err)
		}
		options = append(options, provider.Options{
			Name:           name,
			Family:         family,
			BaseURL:        baseURL(name, p),
			AllowPlaintext: p.AllowPlaintext,
			AskUsage:       p.StreamUsage == "ask",
			Paths:          pathsFromConfig(p.Paths),
		})
	}
	registry, err := provider.NewRegistry(options)
	if faults := pathFaults(c, err); len(faults) > 0 {
		return nil, wrongUseError{faults}
	}
	return registry, err
}

func pathsFromConfig(list []config.PathRule) []provider.PathRule {
	rules := make([]provider.PathRule, len(list))
	for i, r := range list {
		rules[i] = provider.PathRule{Path: r.Path, Methods: r.Methods, Action: r.Action}
	}
	return rules
}

// pathFaults are the faults of rules of paths in err, with the places where they were
// written; nil when err is about something else, too.
func pathFaults(c *config.Config, err error) (faults config.Faults) {
	for _, one := range joined(err) {
		fault, ok := errors.AsType[*provider.PathError](one)
		if !ok {
			return nil
		}
		faults = append(faults, pathFault(c, fault))
	}
	return faults
}

// joined takes the errors apart that errors.Join has put together, however deep.
func joined(err error) []error {
	switch e := err.(type) { //nolint:errorlint // it is looked at level by level
	case nil:
		return nil
	case interface{ Unwrap() []error }:
		var list []error
		for _, one := range e.Unwrap() {
			list = append(list, joined(one)...)
		}
		return list
	case interface{ Unwrap() error }:
		return joined(e.Unwrap())
	default:
		return []error{err}
	}
}

func pathFault(c *config.Config, e *provider.PathError) config.Fault {
	return c.FaultAt(fmt.Sprintf("providers.%s.paths[%d].%s", e.Provider, e.Index, e.Key), e.Problem, e.Allowed)
}

// pathWarnings are about rules that let agents reach what is refused without them.
func pathWarnings(c *config.Config, providers *provider.Registry) []string {
	notes := providers.PathNotes()
	warnings := make([]string, len(notes))
	for i, note := range notes {
		warnings[i] = pathFault(c, note).String()
	}
	return warnings
}

// baseURL is where a provider is reached. A built-in one whose host differs by
// region has none until the config names it; no subscription can use it then
// (the config's check sees to that), and its routes only say so. The name that
// stands for it cannot resolve (RFC 2606).
func baseURL(name string, p config.Provider) string {
	if p.BaseURL == "" {
		return "https://" + name + ".invalid"
	}
	return p.BaseURL
}

// subscriptionFromConfig describes a subscription to the pool, but for its credential.
func subscriptionFromConfig(s config.Subscription) pool.Subscription {
	budgets := make([]pool.Budget, len(s.Budgets))
	for i, b := range s.Budgets {
		budgets[i] = pool.Budget{
			Period: usage.Period(b.Window), CostNanoUSD: int64(b.CostUSD), Tokens: b.Tokens, Requests: b.Requests,
		}
	}
	return pool.Subscription{
		ID:       s.ID,
		Provider: s.Provider,
		Domain:   s.Domain,
		Priority: s.Priority,
		Weight:   s.Weight,
		Labels:   s.Labels,
		Models:   s.Models,
		Limits: pool.Limits{
			RequestsPerMinute:     int(s.Limits.RequestsPerMinute),
			InputTokensPerMinute:  int(s.Limits.InputTokensPerMinute),
			OutputTokensPerMinute: int(s.Limits.OutputTokensPerMinute),
			Concurrent:            s.Limits.Concurrent,
			Sessions:              s.Limits.Sessions,
		},
		Budgets: budgets,
	}
}

func healthFromConfig(h config.Health) pool.Health {
	part := func(percent int) float64 { return float64(percent) / 100 }
	return pool.Health{
		Probing: part(h.ProbingPercent), Nearly: part(h.NearlyPercent), ResetSoon: time.Duration(h.ResetSoon),
		Slow: part(h.SlowPercent), SessionLoad: part(h.SessionPercent),
	}
}

func brakeFromConfig(b config.Brake) pool.Brake {
	return pool.Brake{Requests: b.RequestsPerHour, Tokens: b.TokensPerHour, CostNanoUSD: int64(b.CostUSDPerHour)}
}

// newPoolFromConfig makes the pool; nothing runs in it yet, and the roster gives it its
// subscriptions.
func newPoolFromConfig(c *config.Config, bindings pool.Bindings, ledger pool.Ledger, events *event.Bus, log *slog.Logger) *pool.Pool {
	opts := poolOptionsFromConfig(c)
	opts.Whole, opts.Ledger, opts.Events, opts.Logger = c.Redis.Topology() == config.RedisEmbedded, ledger, events, log
	return pool.New(opts, nil, bindings)
}

// poolOptionsFromConfig are the settings of the pool that can change while it serves.
func poolOptionsFromConfig(c *config.Config) pool.Options {
	return pool.Options{
		Wait:        time.Duration(c.Failover.Wait),
		IdleTimeout: time.Duration(c.Sessions.IdleTimeout),
		Affinity:    time.Duration(c.Sessions.Affinity),
		CacheWarm:   time.Duration(c.Sessions.CacheWarm),

		Strategy:       pool.Strategy(c.Sessions.Strategy),
		Health:         healthFromConfig(c.Sessions.Health),
		SpreadChildren: c.Sessions.Children == "spread",
		SessionBrake:   brakeFromConfig(c.Sessions.Brake),
		AgentBrake:     brakeFromConfig(c.Agents.Brake),
	}
}

// defaultAgent is who shows the token of the state folder.
const defaultAgent = "default"

// newAgentsFromConfig knows the tokens that agents may show, and those of the book.
func newAgentsFromConfig(c *config.Config, dir *statedir.Dir, book *agents.Book) *proxy.Agents {
	if c.Agents.Auth == "none" {
		return proxy.NoAgents().Of(book)
	}
	users := make(map[uint32]string, len(c.Unix.Agents))
	for uid, agent := range c.Unix.Agents {
		if n, err := strconv.ParseUint(uid, 10, 32); err == nil { // as the config was checked
			users[uint32(n)] = agent
		}
	}
	return proxy.NewAgents(map[string]string{defaultAgent: dir.AgentToken()}).Of(book).Users(users)
}

// The bounds of upstream connections that are not the operator's to choose.
const (
	upstreamKeepAlive = 90 * time.Second
	upstreamIdle      = 256      // unused connections kept for each origin
	upstreamHead      = 16 << 10 // bytes of an answer's head; every answer under way holds a buffer of this size
)

// newEgressFromConfig is the way out, and by whose certificates it is trusted; nil for
// the system's. noProxy is the variable NO_PROXY.
func newEgressFromConfig(ctx context.Context, c *config.Config, noProxy string) (*egress.Dialer, *x509.CertPool, error) {
	e := c.Egress
	roots, err := egress.RootCAs(e.CAFile)
	if err != nil {
		return nil, nil, wrongUseError{fmt.Errorf("egress.ca_file: %w", err)}
	}
	opts := egress.Options{
		Proxy: e.Proxy, Username: e.Username, NoProxy: e.NoProxy, Connect: time.Duration(c.Timeouts.Connect), RootCAs: roots,
	}
	if len(e.NoProxy) == 0 {
		opts.NoProxy = []string{noProxy}
	}
	if e.Password != "" {
		if opts.Password, err = resolve(ctx, e.Password); err != nil {
			return nil, nil, fmt.Errorf("egress.password: %w", err)
		}
	}
	dialer, err := egress.New(opts)
	if err != nil {
		return nil, nil, wrongUseError{fmt.Errorf("egress.proxy: %w", err)}
	}
	return dialer, roots, nil
}

// newTransportFromConfig opens no connection yet.
func newTransportFromConfig(c *config.Config, dialer *egress.Dialer, roots *x509.CertPool) *upstream.Transport {
	return upstream.New(upstream.Options{
		Connect:   time.Duration(c.Timeouts.Connect),
		FirstByte: time.Duration(c.Timeouts.FirstByte),
		Idle:      time.Duration(c.Timeouts.Idle),
		KeepAlive: upstreamKeepAlive,
		MaxIdle:   upstreamIdle,
		HeadLimit: upstreamHead,
		RootCAs:   roots,
		Dial:      dialer.Dial,
	})
}

func proxyOptionsFromConfig(c *config.Config) proxy.Options {
	return proxy.Options{
		Connections: c.LimitsHTTP.Connections,
		Head:        time.Duration(c.Timeouts.Head),
		BodyLimit:   int(c.LimitsHTTP.Body),
		HeaderLimit: int(c.LimitsHTTP.Header),
		ReplayLimit: int(c.Failover.ReplayBody),
		Attempts:    c.Failover.Attempts,
		// Who is let wait longer must not get a limit that is met after the wait.
		Deadline:     time.Duration(max(c.Failover.Deadline, c.Failover.Wait)),
		Hold:         time.Duration(c.Failover.Hold),
		Idle:         time.Duration(c.Timeouts.Idle),
		WriteStall:   time.Duration(c.Timeouts.WriteStall),
		Isolate:      c.Agents.Isolation == "strict",
		DrainOnLeave: c.Sessions.DrainOnDisconnect,
		Intercept:    c.Intercept.Enabled,
		Ping:         time.Duration(c.Failover.Wait) > time.Minute,
	}
}

// adminTokensFromConfig are the configured tokens of the admin address, else the state
// folder's.
func adminTokensFromConfig(ctx context.Context, c config.Admin, dir *statedir.Dir) (operator, viewer credential.Secret, err error) {
	one := func(key string, ref config.Ref, made string) (credential.Secret, error) {
		if ref == "" {
			return credential.NewSecret(made), nil
		}
		token, err := resolve(ctx, ref)
		if err == nil && token.Empty() {
			err = errors.New("it is empty, and an empty token lets nobody in")
		}
		if err != nil {
			return credential.Secret{}, fmt.Errorf("%s: %w", key, err)
		}
		return token, nil
	}
	if operator, err = one("admin.token", c.Token, dir.AdminToken()); err != nil {
		return operator, viewer, err
	}
	if viewer, err = one("admin.viewer_token", c.Viewer, dir.ViewerToken()); err != nil {
		return operator, viewer, err
	}
	if operator.Reveal() == viewer.Reveal() {
		err = errors.New("admin.viewer_token: it is admin.token too, which may do everything: who may only read needs another one")
	}
	return operator, viewer, err
}
