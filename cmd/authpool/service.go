package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/config/statedir"
	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/notify"
	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/proxy"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/ca"
	"github.com/authpool/authpool/proxy/tunnel"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit/price"
	"github.com/authpool/authpool/ratelimit/usage"
)

// service is one running authpool: all that stands between its listeners and
// Redis. newService opens it, start lets it serve, shutdown ends it.
type service struct {
	cfg   *config.Config // that it began with
	log   *slog.Logger
	level *slog.LevelVar // of log; nil: it has one for good

	current     atomic.Pointer[config.Config] // that is in force
	certificate atomic.Pointer[tls.Certificate]

	dir       *statedir.Dir
	events    event.Bus
	audit     *audit.Log
	notifier  atomic.Pointer[notify.Notifier]
	targets   []notify.Target // whom it tells
	claims    claims
	db        *redisdb.DB
	usage     *usage.Store
	recorder  *usage.Recorder
	pool      *pool.Pool
	agents    *agents.Book
	roster    *roster
	reloader  *reloader
	prices    *price.Table
	transport *upstream.Transport
	tunnels   *tunnel.Tunnels

	authorities *ca.Authorities // of proxy mode
	proxy       *proxy.Server
	admin       *admin.Server

	agentListeners []net.Listener
	adminListener  net.Listener

	started  atomic.Bool
	draining atomic.Bool
	serving  sync.WaitGroup
	failed   chan error // what ended a listener that should have gone on

	closers []closer // what open has done, in its order
}

// newService opens everything that cfg asks for, in the order in which each
// part needs the one before, and listens. On an error everything is closed
// again. Nothing is served before start.
func newService(ctx context.Context, cfg *config.Config, getenv func(string) string, log *slog.Logger) (*service, error) {
	s := &service{cfg: cfg, log: log, failed: make(chan error, len(cfg.Listen)+1)}
	s.current.Store(cfg)
	if err := s.open(ctx, getenv); err != nil {
		for _, c := range slices.Backward(s.closers) {
			err = errors.Join(err, c.close(ctx))
		}
		return nil, err
	}
	return s, nil
}

// closer undoes one step of open.
type closer struct {
	name  string        // for the log
	limit time.Duration // how long close may take
	close func(context.Context) error
}

func (s *service) onClose(name string, f func(context.Context) error) {
	s.closers = append(s.closers, closer{name, closeLimit, f})
}

// closeLimit bounds each step of a stop but the answers'. A Redis that does not
// answer gets no more: what was not flushed to it stays in the journal for the
// next start.
const closeLimit = 10 * time.Second

func (s *service) open(ctx context.Context, getenv func(string) string) error {
	path, err := statedir.Path(s.cfg.StateDir, getenv)
	if err != nil {
		return wrongUseError{err}
	}
	if s.dir, err = statedir.Open(path); err != nil {
		return err
	}
	s.onClose("state folder", func(context.Context) error { return s.dir.Close() })
	for _, note := range s.dir.Notes() {
		s.log.Warn("state folder repaired", "note", note)
	}
	if err := s.openAudit(); err != nil {
		return err
	}
	if err := s.listen(); err != nil {
		return err
	}
	if err := s.openNotifications(ctx); err != nil {
		return err
	}
	if err := s.openStore(ctx); err != nil {
		return err
	}
	return s.openServers(ctx, getenv)
}

// listen takes the addresses early: a port that is taken should be told before
// a journal is replayed.
func (s *service) listen() error {
	var taken []net.Listener
	s.onClose("listeners", func(context.Context) error {
		var errs []error
		for _, l := range taken {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) { // its server has closed it
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	for _, address := range s.cfg.Listen {
		l, err := listen(address, "--listen or the key listen", socketMode(s.cfg.Unix.Access))
		if err != nil {
			return err
		}
		taken = append(taken, l)
		s.agentListeners = append(s.agentListeners, l)
	}
	l, err := listen(s.cfg.Admin.Listen, "--admin or the key admin.listen", ownerOnly)
	if err != nil {
		return err
	}
	taken = append(taken, l)
	s.adminListener = l
	return nil
}

// openStore opens the journal, Redis and what brings one into the other. The
// journal comes first, because it holds what the embedded Redis was told since its
// last snapshot.
func (s *service) openStore(ctx context.Context) error {
	journal, err := openJournalFromConfig(s.cfg.Journal, s.dir, s.log)
	if err != nil {
		return err
	}
	s.onClose("journal", func(context.Context) error { return journal.Close() })
	if s.db, err = newRedisFromConfig(ctx, s.cfg.Redis, s.dir, journal.Writes(), s.log); err != nil {
		return err
	}
	s.onClose("redis", s.db.Close)
	s.watchRedis()
	s.usage = usage.NewStore(s.db.Client(), s.cfg.Redis.Prefix)
	s.recorder = startRecorder(ctx, journal, s.usage, s.db, &s.events, s.log)
	s.onClose("usage", s.closeRecorder)
	return nil
}

// openServers makes the pool and the two servers.
func (s *service) openServers(ctx context.Context, getenv func(string) string) error {
	var err error
	if s.prices, err = newPricesFromConfig(s.cfg); err != nil {
		return err
	}
	s.log.Info("prices", "version", s.prices.Version())
	for _, warning := range priceWarnings(s.cfg, s.prices) {
		s.log.Warn("config", "warning", warning)
	}
	providers, err := newProvidersFromConfig(s.cfg)
	if err != nil {
		return err
	}
	for _, warning := range pathWarnings(s.cfg, providers) {
		s.log.Warn("config", "warning", warning)
	}
	bindings := store.New(s.db.Client(), s.db.Durable(), s.db, s.cfg.Redis.Prefix)
	s.claims.store.Store(bindings)
	if s.cfg.Audit.Stream {
		stop := s.audit.CopyTo(bindings.AuditStream(s.audit.StreamName()), s.db.Healthy)
		s.onClose("audit stream", func(ctx context.Context) error { stop(ctx); return nil })
	}
	ledger := &spending{store: s.usage, recorder: s.recorder, healthy: s.db.Healthy}
	s.pool = newPoolFromConfig(s.cfg, bindings, ledger, &s.events, s.log)
	s.roster = newRoster(ctx, s.cfg, s.pool, bindings, s.recall("subscriptions"), s.dir, s.audit, s.log)
	s.pool.Start(ctx)
	s.onClose("pool", func(context.Context) error { s.pool.Close(); return nil })
	s.roster.start(ctx)
	s.onClose("subscriptions", func(context.Context) error { s.roster.close(); return nil })
	s.agents = agents.New(bindings, ledger, s.recall("agents"), s.log)
	s.agents.Start(ctx)
	s.onClose("agents", func(context.Context) error { s.agents.Close(); return nil })
	windows := startWindows(windowsDeps{status: s.pool.Status, healthy: s.db.Healthy, observe: s.usage.Observe}, s.log)
	s.onClose("windows", windows.close)
	dialer, roots, err := newEgressFromConfig(ctx, s.cfg, cmp.Or(getenv("NO_PROXY"), getenv("no_proxy")))
	if err != nil {
		return err
	}
	s.transport = newTransportFromConfig(s.cfg, dialer, roots)
	s.onClose("upstream connections", func(context.Context) error { s.transport.Close(); return nil })
	if s.authorities, err = ca.Open(filepath.Join(s.dir.Path(), authorityFolder), providers.Hosts()); err != nil {
		return err
	}
	for _, note := range s.authorities.Notes() {
		s.log.Warn("state folder repaired", "note", note)
	}
	if _, err := newTrust(s.dir.Path(), getenv); err != nil {
		s.log.Warn("agents of proxy mode may not trust authpool", "error", err)
	}
	if s.tunnels, err = s.openTunnels(dialer); err != nil {
		return err
	}
	s.proxy = proxy.New(proxyOptionsFromConfig(s.cfg), proxy.Deps{
		Authorities: s.authorities,

		Providers: providers,
		Pool:      s.pool,
		Agents:    newAgentsFromConfig(s.cfg, s.dir, s.agents),
		Recorder:  countedRecorder{s.recorder, s.pool, s.agents},
		Prices:    s.prices,
		Transport: s.transport,
		Tunnels:   s.tunnels,
		Events:    &s.events,
		Audit:     s.audit,
		Log:       s.log,
	})
	token, viewer, err := adminTokensFromConfig(ctx, s.cfg.Admin, s.dir)
	if err != nil {
		return err
	}
	sources := &sources{
		pool: s.pool, db: s.db, usage: s.usage, recorder: s.recorder, budgets: s.roster.budgets, log: s.log,
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(admin.NewCollector(sources, nil), newBuildMetric(), s.db)
	operate := audited{s.roster, notifications{s.notifier.Load}, sessions{s.pool, s.agents}, agentBook{s.agents, s.current.Load}, keys{s.roster}, s.audit}
	s.admin = admin.New(admin.Options{
		Token:    token,
		Viewer:   viewer,
		Ready:    s.ready,
		Status:   sources,
		Usage:    sources,
		Requests: s.proxy.Explained(),
		Roster:   operate,
		Notify:   operate,
		Sessions: operate,
		Sealer:   operate,
		Agents:   operate,
		Reloader: s,
		Refused:  s.auditStranger,
		Metrics:  prometheus.Gatherers{prometheus.DefaultGatherer, registry},
		Logger:   s.log,
	})
	s.onClose("admin", s.stopAdmin)
	// The last to be opened is the first to go.
	s.closers = append(s.closers, closer{"answers", time.Duration(s.cfg.Shutdown.Grace), s.stopAgents})
	return nil
}

// recall is where this machine keeps what was last known of records in Redis; the
// embedded one is never away.
func (s *service) recall(kind string) *recall.File {
	if s.db.Mode() == string(redisdb.Embedded) {
		return nil
	}
	return recall.New(filepath.Join(s.dir.Path(), "known."+kind), kind+" "+s.db.Place(), s.log)
}

// newBuildMetric tells the version as a metric.
func newBuildMetric() prometheus.Collector {
	b := readBuild()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "authpool_build_info", Help: "1, with what was built as labels.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	g.Set(1)
	return g
}

// The sentences of /readyz.
var (
	errStarting       = errors.New("starting")
	errStopping       = errors.New("stopping: answers under way may end, no new connection is accepted")
	errNoSubscription = errors.New("no subscription is enabled: set ANTHROPIC_API_KEY or OPENAI_API_KEY, or name subscriptions in the config; authpool status tells why one is disabled")
)

// ready is /readyz: listening with at least one enabled subscription. Redis
// away, or all subscriptions cooling, does not change it.
func (s *service) ready() error {
	switch {
	case s.draining.Load():
		return errStopping
	case !s.started.Load():
		return errStarting
	case !s.pool.Ready():
		return errNoSubscription
	default:
		return nil
	}
}

// start serves on all listeners. What ends one of them comes by failed.
func (s *service) start() error {
	certificate, err := loadCertificate(s.cfg.TLS)
	if err != nil {
		return err
	}
	var secure *tls.Config
	if certificate != nil {
		s.certificate.Store(certificate)
		secure = serverTLS(s.certificate.Load)
	}
	for i, l := range s.agentListeners {
		wire := secure
		if config.Loopback(s.cfg.Listen[i]) {
			wire = nil
		}
		s.serve("agents", l, func() error { return s.proxy.Serve(l, wire) }, "tls", wire != nil)
	}
	s.serve("admin", s.adminListener, func() error { return s.admin.Serve(s.adminListener) })
	if front := s.db.FrontAddr(); front != nil {
		s.log.Info("listening", "for", "redis-cli, read-only", "address", front.String())
	}
	s.started.Store(true)
	s.log.Info("ready", "subscriptions", len(s.cfg.Subscriptions), "redis", s.db.Mode(), "redis_ok", s.db.Healthy())
	return nil
}

func (s *service) serve(who string, l net.Listener, run func() error, more ...any) {
	s.log.Info("listening", append([]any{"for", who, "address", l.Addr().String()}, more...)...)
	s.serving.Go(func() {
		if err := run(); err != nil && !s.draining.Load() {
			s.failed <- fmt.Errorf("cannot go on listening for %s: %w", who, err)
		}
	})
}

// shutdown stops in the order that loses no usage, which is the reverse of
// open: /readyz says 503; no new connections, answers under way get the grace,
// the rest is cut and recorded as estimated; the journal is flushed to Redis;
// the embedded Redis is saved; the state folder is released.
func (s *service) shutdown(ctx context.Context) error {
	s.draining.Store(true)
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		began := time.Now()
		if err := s.closeOne(ctx, c); err != nil {
			s.log.Error("stopped", "what", c.name, "took", time.Since(began).Round(time.Millisecond), "error", err)
			errs = append(errs, err)
			continue
		}
		s.log.Info("stopped", "what", c.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return errors.Join(errs...)
}

func (s *service) closeOne(ctx context.Context, c closer) error {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	return c.close(ctx)
}

// stopAgents ends the data plane. Answers may end until ctx does.
func (s *service) stopAgents(ctx context.Context) error {
	err := s.proxy.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("answers were cut and their usage estimated")
		return nil // this is the order, not a fault
	}
	return err
}

// closeRecorder ends the usage. That Redis is away at a stop is no fault of the stop's:
// what it has not counted waits in the journal.
func (s *service) closeRecorder(ctx context.Context) error {
	err := s.recorder.Close(ctx)
	joined, _ := err.(interface{ Unwrap() []error }) //nolint:errorlint // what Close joins, and nothing below
	if pending, ok := errors.AsType[*usage.PendingError](err); ok && joined != nil && len(joined.Unwrap()) == 1 {
		s.log.Warn("Redis has not counted all usage: it waits in the journal for the next start", "events", pending.Events, "folder", pending.Folder, "error", pending.Err)
		return nil
	}
	return err
}

// stopAdmin ends the admin address and waits until no listener is served.
func (s *service) stopAdmin(ctx context.Context) error {
	err := s.admin.Shutdown(ctx)
	s.serving.Wait()
	return err
}

// agentAddress is the first address that agents connect to over TCP, as it is
// listened on (a port 0 has its number by then).
func (s *service) agentAddress() string {
	for _, l := range s.agentListeners {
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			return net.JoinHostPort(tcp.IP.String(), strconv.Itoa(tcp.Port))
		}
	}
	return ""
}
