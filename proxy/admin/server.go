package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/ratelimit/usage"
)

// StatusSource tells how the subscriptions and the store are. It must be safe
// for concurrent use and answer without Redis too, with what is known.
type StatusSource interface {
	Status(ctx context.Context) (Status, error)
}

// UsageSource adds usage up. Rows come in the order in which they are to be
// shown. It must be safe for concurrent use.
type UsageSource interface {
	Usage(ctx context.Context, q usage.Query) ([]UsageRow, error)
}

// RefusedError is an error that says what is wrong with a request.
type RefusedError struct {
	Status int   // of the answer, 4xx
	Err    error // one sentence
}

// Error implements error.
func (r *RefusedError) Error() string { return r.Err.Error() }

// Unwrap returns the cause.
func (r *RefusedError) Unwrap() error { return r.Err }

// Refused hears of requests without a token (CodeToken), or with one that may not do
// what was asked for (CodeRole), by the address that they came from.
type Refused func(remote string, code Code)

// Options says what a Server serves. All fields but Viewer, Refused and Logger are
// required.
type Options struct {
	Token    credential.Secret   // the operator's; an empty one lets nobody in
	Viewer   credential.Secret   // of who may only read; likewise
	Ready    func() error        // nil: /readyz is 200; else the sentence that it answers 503 with
	Status   StatusSource        // for StatusPath
	Usage    UsageSource         // for UsagePath
	Requests RequestSource       // for RequestsPath
	Roster   Roster              // for SubscriptionsPath
	Notify   Notifier            // for NotificationsTestPath
	Sessions Sessions            // for SessionsPath and what is below it
	Reloader Reloader            // for ReloadPath
	Agents   Agents              // for AgentsPath and what is below it
	Sealer   Sealer              // for KeysRotatePath
	Metrics  prometheus.Gatherer // for /metrics
	Refused  Refused             // nil: nobody hears of it
	Logger   *slog.Logger        // nil: slog.Default()
}

// The bounds of one admin request: an answer that takes longer than writeTimeout means that Redis hangs.
const (
	readTimeout    = 10 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	sourceTimeout  = 20 * time.Second // what a source may take, below writeTimeout so that the error still gets out
	maxScrapes     = 4
)

// Server is the admin address. Make one with New.
type Server struct {
	http     *http.Server
	status   StatusSource
	usage    UsageSource
	requests RequestSource
	roster   Roster
	notify   Notifier
	sessions Sessions
	reloader Reloader
	agents   Agents
	sealer   Sealer
	log      *slog.Logger
	openAPI  []byte
}

// New returns a Server that is not listening yet.
func New(o Options) *Server {
	s := &Server{status: o.Status, usage: o.Usage, requests: o.Requests, roster: o.Roster, notify: o.Notify, sessions: o.Sessions, reloader: o.Reloader, agents: o.Agents, sealer: o.Sealer, log: o.Logger}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.http = &http.Server{
		Handler:           s.routes(o),
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers on l until Shutdown and then returns nil. It may be called for
// several listeners.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve the admin address %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops listening, waits for answers under way until ctx ends, and
// closes what is left.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("cannot finish the admin requests under way: %w", err), s.http.Close())
	}
	return nil
}

func (s *Server) routes(o Options) http.Handler {
	door := newDoorkeeper(o.Token, o.Viewer, o.Refused)
	api := http.NewServeMux()
	table := s.table()
	s.openAPI = document(table)
	for _, one := range table {
		api.Handle(one.method+" "+one.path, door.atLeast(one.role, bounded(one)))
	}
	api.Handle("/", elsewhere(api, table))

	mux := http.NewServeMux()
	open := func(path string, h http.Handler) {
		mux.Handle("GET "+path, bodiless(h))
		mux.Handle(path, notAllowed([]string{http.MethodGet, http.MethodHead}))
	}
	open("/healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok") }))
	open("/readyz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			plain(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		plain(w, http.StatusOK, "ok")
	}))
	open("/metrics", promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // one failing collector must not hide the others
		MaxRequestsInFlight: maxScrapes,
		Timeout:             sourceTimeout,
	}))
	mux.Handle("/", door.known(api))
	return guardBrowsers(mux)
}

// table is all operations of the API.
func (s *Server) table() []route {
	return slices.Concat(
		[]route{
			{"GET", OpenAPIPath, Viewer, "Describe this API", nil, object{}, s.serveOpenAPI},
			{"GET", StatusPath, Viewer, "Tell how the subscriptions and Redis are", nil, Status{}, s.serveStatus},
			{"GET", UsagePath, Viewer, "Add up what was used", nil, []UsageRow{}, s.serveUsage},
			{"GET", RequestsPath, Viewer, "List the last requests", nil, []explain.Request{}, s.serveRequests},
			{"GET", RequestsPath + "/{id}", Viewer, "Tell why a request went where it went", nil, explain.Request{}, s.serveRequest},
			{"POST", NotificationsTestPath, Operator, "Send a test to the webhooks", nil, []NotificationTest{}, s.testNotifications},
		},
		s.subscriptionRoutes(),
		s.sessionRoutes(),
		s.reloadRoutes(),
		s.agentRoutes(),
		s.keysRoutes(),
	)
}

func (s *Server) serveStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), sourceTimeout)
	defer cancel()
	status, err := s.status.Status(ctx)
	if err != nil {
		s.fail(w, "cannot read the status", err)
		return
	}
	status.normalise()
	writeJSON(w, status)
}

func (s *Server) serveUsage(w http.ResponseWriter, r *http.Request) {
	query, err := ParseQuery(r.URL.Query(), time.Now())
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), sourceTimeout)
	defer cancel()
	rows, err := s.usage.Usage(ctx, query)
	if err != nil {
		s.fail(w, "cannot read the usage", err)
		return
	}
	if rows == nil {
		rows = []UsageRow{}
	}
	for i := range rows {
		rows[i].Units = orEmpty(rows[i].Units)
	}
	if !query.Since.IsZero() {
		w.Header().Set(SinceHeader, query.Since.Format(time.RFC3339))
	}
	if !query.Until.IsZero() {
		w.Header().Set(UntilHeader, query.Until.Format(time.RFC3339))
	}
	writeJSON(w, rows)
}

// fail answers with a 503: every error of a source means that the store did
// not answer. The cause goes to the log and, since the caller is the operator,
// to the caller.
func (s *Server) fail(w http.ResponseWriter, what string, err error) {
	s.log.Warn("cannot answer an admin request", "request", what, "error", err)
	problem(w, http.StatusServiceUnavailable, what+": "+err.Error())
}

// elsewhere answers what no route does: 405 where the path has other methods, else
// 404.
func elsewhere(api *http.ServeMux, table []route) http.Handler {
	methods := []string{http.MethodHead} // as GET serves it
	for _, one := range table {
		if !slices.Contains(methods, one.method) {
			methods = append(methods, one.method)
		}
	}
	slices.Sort(methods)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range methods {
			if _, pattern := api.Handler(&http.Request{Method: method, URL: r.URL, Host: r.Host}); pattern != "/" && pattern != "" {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) > 0 {
			notAllowed(allowed).ServeHTTP(w, r)
			return
		}
		coded(w, http.StatusNotFound, CodeNoOperation, "there is nothing at this path: GET "+OpenAPIPath+" describes what there is")
	})
}

// notAllowed answers that the path has other methods.
func notAllowed(methods []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allow := strings.Join(methods, ", ")
		w.Header().Set("Allow", allow)
		problem(w, http.StatusMethodNotAllowed, "this path takes "+allow)
	})
}

// bounded refuses a body where none is wanted, and a precondition where none is heeded.
func bounded(one route) http.Handler {
	var h http.Handler = one.serve
	if one.body == nil {
		h = bodiless(h)
	}
	if one.method != http.MethodGet && !one.versioned() {
		h = unconditional(h)
	}
	return h
}

// unconditional refuses what is only to be done to a certain version, rather than do it
// to any.
func unconditional(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-Match") != "" {
			problem(w, http.StatusBadRequest, "If-Match: this is not done to a version: leave it out")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bodiless refuses a body before a byte of it is read.
func bodiless(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			problem(w, http.StatusRequestEntityTooLarge, "this takes no request body")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func plain(w http.ResponseWriter, status int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, line) // the peer is gone when this fails
}

func writeJSON(w http.ResponseWriter, v any) { write(w, http.StatusOK, "application/json", v) }

func write(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("BUG: an answer of the admin API cannot be encoded: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the peer is gone when this fails
}
