package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/notify"
	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tunnel"
	"github.com/authpool/authpool/ratelimit/price"
)

// frozen are the keys that are settled when serve starts: a config that differs in one
// of them is refused as a whole. Whatever else there is changes while serving.
var frozen = []string{
	"listen", "unix", "tls", "admin", "redis", "state_dir", "agents.auth", "timeouts", "limits_http", "journal", "intercept.enabled",
	"egress", "sealing", "audit", "log.format", "shutdown",
}

// errFrozen is in the error of a config that changes what cannot change.
var errFrozen = errors.New("cannot change while serving")

// reloader takes a changed config over: all of it or nothing. It implements
// admin.Reloader.
type reloader struct {
	s    *service
	load func() (*config.Config, error)
	file string // "" when the config is the environment's

	mu  sync.Mutex // held from reading the config until it is taken over
	now *config.Config
	sum [sha256.Size]byte // of the files that were read last, whatever came of them

	kick chan string // holds one: why to look
	stop context.CancelFunc
	done sync.WaitGroup
}

// newReloader returns one for the config that the service has begun with.
func newReloader(s *service, load func() (*config.Config, error), file string) *reloader {
	r := &reloader{s: s, load: load, file: file, now: s.cfg, kick: make(chan string, 1)}
	r.sum = r.files(s.cfg)
	return r
}

// start looks at the config whenever one of its files changes, and when it is asked,
// until close.
func (r *reloader) start(ctx context.Context) {
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.done.Go(func() { r.run(ctx) })
}

// close ends that. A reload under way comes to its end.
func (r *reloader) close() {
	r.stop()
	r.done.Wait()
}

// ask has the config read again soon; why is a word for the log.
func (r *reloader) ask(why string) {
	select {
	case r.kick <- why:
	default:
	}
}

// settle is how long files are left alone after a change: an editor and a mounted
// Kubernetes volume make several at once.
const settle = 200 * time.Millisecond

func (r *reloader) run(ctx context.Context) {
	var (
		changes <-chan fsnotify.Event
		missed  <-chan error
		again   = func() {} // watches the folders of the config in force
	)
	if r.file != "" {
		watcher, err := fsnotify.NewWatcher()
		if err == nil {
			defer func() { _ = watcher.Close() }() // nothing is to be saved of it
			err = r.watch(watcher)
		}
		if err != nil {
			r.s.log.Warn("changes of the config file are not seen by themselves: SIGHUP and \"authpool reload\" tell of them", "error", err)
		} else {
			changes, missed = watcher.Events, watcher.Errors
			again = func() {
				if err := r.watch(watcher); err != nil {
					r.s.log.Warn("changes of a file of the config are not seen by themselves", "error", err)
				}
			}
		}
	}
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case why := <-r.kick:
			_, _ = r.reload(ctx, why) // what came of it is logged
			again()
		case <-changes:
			if settled == nil { // not put off by what follows: somebody may write there all the time
				settled = time.After(settle)
			}
		case err := <-missed: // most likely there was too much at once
			r.s.log.Debug("a change of files may have been missed", "error", err)
			if settled == nil {
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			if r.changed() {
				_, _ = r.reload(ctx, "the file changed")
			}
			again()
		}
	}
}

// watch looks at the folders of the config's files: a file that is replaced, or whose
// folder is swapped by a symlink, is another one. What a symlink leads to is looked at,
// too. Folders that are watched already, or no longer of use, do no harm.
func (r *reloader) watch(w *fsnotify.Watcher) error {
	r.mu.Lock()
	paths := r.paths(r.now)
	r.mu.Unlock()
	folders := map[string]bool{}
	for _, path := range paths {
		folders[filepath.Dir(path)] = true
		for _, link := range linksOn(path) { // a folder may be swapped, too
			folders[filepath.Dir(link)] = true
		}
		if there, err := filepath.EvalSymlinks(path); err == nil { // else it is gone, and comes back by its own folder
			folders[filepath.Dir(there)] = true
		}
	}
	for folder := range folders {
		if err := w.Add(folder); err != nil {
			return fmt.Errorf("cannot watch %s: %w", folder, err)
		}
	}
	return nil
}

// linksOn are the folders on the way to path that are symlinks.
func linksOn(path string) (links []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	for at := filepath.Dir(path); at != filepath.Dir(at); at = filepath.Dir(at) {
		if info, err := os.Lstat(at); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			links = append(links, at)
		}
	}
	return links
}

// paths are the files whose content is a part of the config.
func (r *reloader) paths(c *config.Config) []string {
	var paths []string
	if r.file != "" {
		paths = append(paths, r.file)
	}
	for _, ref := range []config.FileRef{c.Prices, c.TLS.Cert, c.TLS.Key} {
		if path := ref.File(); path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// files is a digest of them.
func (r *reloader) files(c *config.Config) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, path := range r.paths(c) {
		text, err := os.ReadFile(path)
		_, _ = fmt.Fprintf(h, "%q %d %v ", path, len(text), err != nil && !errors.Is(err, fs.ErrNotExist))
		_, _ = h.Write(text)
	}
	h.Sum(sum[:0])
	return sum
}

// changed tells whether the files are others than when they were last read.
func (r *reloader) changed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.files(r.now) != r.sum
}

// watchConfig has the config read again when that is asked for, until the service
// stops. level is what the log heeds.
func (s *service) watchConfig(ctx context.Context, r *reloader, level *slog.LevelVar) {
	s.reloader, s.level = r, level
	r.start(ctx)
	s.onClose("config", func(context.Context) error { r.close(); return nil })
}

// Reload implements admin.Reloader.
func (s *service) Reload(ctx context.Context) (admin.Reloaded, error) {
	if s.reloader == nil {
		return admin.Reloaded{}, &admin.RefusedError{Status: http.StatusConflict, Err: errors.New("this process was not given its config in a way that can be read again")}
	}
	return s.reloader.reload(ctx, "an operator asked for it")
}

// reload reads the config and takes it over. A wrong one changes nothing, and neither
// does one that says what the present one says.
func (r *reloader) reload(ctx context.Context, why string) (admin.Reloaded, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	done, err := r.take(ctx)
	r.s.auditReload(r.file, why, done.Changed, err)
	switch {
	case err != nil:
		r.s.log.Error("reload: the config stays as it is", "why", why, "error", err)
	case len(done.Changed) == 0:
		r.s.log.Info("reload: the config has not changed", "why", why)
	default:
		r.s.log.Info("reload: the config was taken over", "why", why, "changed", strings.Join(done.Changed, ", "))
	}
	return done, err
}

// fresh is a config, and what has to be made of it before anything is taken over.
type fresh struct {
	cfg         *config.Config
	providers   *provider.Registry
	prices      *price.Table
	targets     []notify.Target
	tunnels     *tunnel.Rules
	certificate *tls.Certificate
}

func (r *reloader) take(ctx context.Context) (admin.Reloaded, error) {
	cfg, err := r.load()
	if err != nil {
		r.sum = r.files(r.now)
		return admin.Reloaded{}, &admin.RefusedError{Status: http.StatusBadRequest, Err: err}
	}
	r.sum = r.files(cfg)
	f, err := r.prepare(ctx, cfg)
	if err != nil {
		return admin.Reloaded{}, &admin.RefusedError{Status: http.StatusBadRequest, Err: err}
	}
	changed := changedKeys(r.now, cfg)
	var stuck []string
	for _, key := range changed {
		if slices.ContainsFunc(frozen, func(f string) bool { return key == f || strings.HasPrefix(key, f+".") }) {
			stuck = append(stuck, key)
		}
	}
	if len(stuck) > 0 {
		return admin.Reloaded{}, &admin.RefusedError{Status: http.StatusConflict, Err: fmt.Errorf(
			"%s %w: restart authpool, or put it back; nothing was taken over", strings.Join(stuck, ", "), errFrozen)}
	}
	if f.prices.Version() != r.s.prices.Version() && !slices.Contains(changed, "prices") {
		changed = append(changed, "prices (the file's content)")
	}
	if old := r.s.certificate.Load(); old != nil && f.certificate != nil && !slices.EqualFunc(old.Certificate, f.certificate.Certificate, slices.Equal[[]byte]) {
		changed = append(changed, "tls (the files' content)")
	}
	done := admin.Reloaded{Changed: changed, Subscriptions: admin.ReloadedSubscriptions{Added: []string{}, Changed: []string{}, Removed: []string{}}}
	if len(changed) == 0 {
		done.Changed = []string{}
		return done, nil
	}
	if err := r.s.reconfigure(ctx, f, slices.Contains(changed, "notifications"), &done); err != nil {
		return admin.Reloaded{}, err
	}
	r.now = cfg
	for _, warning := range append(cfg.Warnings(), pathWarnings(cfg, f.providers)...) {
		r.s.log.Warn("config", "warning", warning)
	}
	return done, nil
}

// prepare makes everything of a config that can fail.
func (r *reloader) prepare(ctx context.Context, cfg *config.Config) (f fresh, err error) {
	f.cfg = cfg
	if f.providers, err = newProvidersFromConfig(cfg); err != nil {
		return f, err
	}
	if f.prices, err = newPricesFromConfig(cfg); err != nil {
		return f, err
	}
	if f.targets, err = notificationTargets(ctx, cfg); err != nil {
		return f, err
	}
	if f.tunnels, err = tunnelRulesFromConfig(cfg); err != nil {
		return f, err
	}
	if f.certificate, err = loadCertificate(cfg.TLS); err != nil {
		return f, err
	}
	// That there is one for another host does no harm, whatever becomes of the config.
	return f, r.s.authorities.Serve(f.providers.Hosts())
}

// reconfigure takes a config over that was prepared. Only the first step can fail, and
// then nothing has changed.
func (s *service) reconfigure(ctx context.Context, f fresh, notifies bool, done *admin.Reloaded) error {
	if notifies {
		if err := s.renewNotifications(ctx, f.targets); err != nil {
			return err
		}
	}
	s.level.Set(logLevel(f.cfg.Log))
	if f.certificate != nil {
		s.certificate.Store(f.certificate)
	}
	s.prices = f.prices
	s.pool.Configure(poolOptionsFromConfig(f.cfg))
	s.proxy.Configure(proxyOptionsFromConfig(f.cfg), f.providers, f.prices)
	s.tunnels.Configure(f.tunnels)
	changes := s.roster.configure(f.cfg)
	done.Subscriptions.Added = append(done.Subscriptions.Added, changes.Added...)
	done.Subscriptions.Changed = append(done.Subscriptions.Changed, changes.Changed...)
	done.Subscriptions.Removed = append(done.Subscriptions.Removed, changes.Removed...)
	s.current.Store(f.cfg)
	return nil
}

// changedKeys names the keys in which two configs differ: of a section its own, such as
// sessions.strategy.
func changedKeys(old, fresh *config.Config) []string {
	changed := differing("", reflect.ValueOf(old).Elem(), reflect.ValueOf(fresh).Elem())
	slices.Sort(changed)
	return changed
}

func differing(path string, a, b reflect.Value) []string {
	var keys []string
	for i := range a.NumField() {
		field := a.Type().Field(i)
		if !field.IsExported() || reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			continue
		}
		key := strings.TrimPrefix(path+"."+field.Tag.Get("yaml"), ".")
		if within := differingIn(key, a.Field(i), b.Field(i)); len(within) > 0 {
			keys = append(keys, within...)
			continue
		}
		keys = append(keys, key)
	}
	return keys
}

// differingIn looks into a section; nil for what is none.
func differingIn(key string, a, b reflect.Value) []string {
	if a.Kind() != reflect.Struct || a.NumField() == 0 || a.Type().Field(0).Tag.Get("yaml") == "" {
		return nil
	}
	return differing(key, a, b)
}
