// Package proxy takes agents' requests and brings them answers: the agents' HTTP
// lives here and nowhere lower.
//
// A request goes one way, and each step has a file: front.go (is the head
// unambiguous, who is asking), handler.go (which provider, which session),
// attempt.go (which subscription, and another one should it fail), relay.go (the
// answer on its way back, watched by tap and meter), finish.go (its end), bound.go
// (what it made that only its account has), record.go (what it used), refuse.go
// (authpool's own errors), explain.go (what is remembered of it). What only some
// meet stands beside: tries.go (the agent tries again and again), closed.go (the
// provider serves nobody), egress.go (it refuses where requests come from),
// disguised.go (an error with a good status), ping.go (a stream that waits for
// long), socket.go (a WebSocket, and its turns). Server starts and stops it all.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/proxy/agentconn"
	"github.com/authpool/authpool/proxy/explain"
	"github.com/authpool/authpool/proxy/h2"
	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/proxy/tunnel"
	"github.com/authpool/authpool/proxy/upstream"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Options are the limits of a Server; every one must be set.
type Options struct {
	Connections  int           // of agents, open at one time
	BodyLimit    int           // bytes of a request body, over it 413
	HeaderLimit  int           // bytes of a request head, over it 431
	ReplayLimit  int           // bytes of a request body up to which another subscription is tried
	Attempts     int           // how often a request may be sent to be executed
	Deadline     time.Duration // from a request's arrival to its last new attempt
	Hold         time.Duration // how long an answer without content yet is kept back for a failover
	Head         time.Duration // how long a request's head may take to arrive
	Idle         time.Duration // how long an answer or an upload may stand still
	WriteStall   time.Duration // how long an agent may accept nothing
	Isolate      bool          // keep agents from what others have made at providers
	DrainOnLeave bool          // read an answer to its end although the agent has left
	Intercept    bool          // open the TLS of CONNECT to providers' hosts; needs Deps.Authorities
	Ping         bool          // begin a stream that waits long for a subscription, and keep it alive by pings
}

// Recorder keeps usage; *usage.Recorder is one.
type Recorder interface {
	// Open says that an answer is under way and what it used so far. Opening an
	// id again replaces what was said before.
	Open(e usage.Event) error
	// Add records an answer's final usage. When it returns, the event outlives
	// the process.
	Add(e usage.Event) error
	// Void says that what was opened under id came to nothing.
	Void(id string) error
}

// Prices tells what tokens cost; *price.Table is one.
type Prices interface {
	// Cost returns nano-dollars, and false when the model is not known.
	Cost(provider, model string, t usage.Tokens, s usage.Service) (int64, bool)
	// Version names the table, so that a later correction of it can be told.
	Version() string
}

// Deps are what a Server works with.
type Deps struct {
	Providers *provider.Registry
	Pool      *pool.Pool
	Agents    *Agents
	Recorder  Recorder
	Prices    Prices
	Transport *upstream.Transport
	// Authorities sign for what agents send by HTTPS_PROXY.
	Authorities Authorities
	// Tunnels lead to hosts that are no provider's; nil: none does.
	Tunnels *tunnel.Tunnels
	Events  *event.Bus // nil: nobody hears of events
	Audit   *audit.Log // nil: nothing is written down
	Log     *slog.Logger
}

// Server is the data plane. It is safe for concurrent use.
type Server struct {
	opts     Options // as New got them: those that Configure does not change
	deps     Deps
	settings atomic.Pointer[settings]
	fast     *fasthttp.Server
	inside   *fasthttp.Server // of what CONNECT opens
	beside   *fasthttp.Server // of unix sockets where agents are known by their user

	insiders   insiders
	insideTLS  *tls.Config
	distrust   said
	pseudonym  string          // in Via
	relays     context.Context // of tunnels; ends with stopRelays
	stopRelays context.CancelFunc

	places    *agentconn.Places
	exchanges sync.Pool
	origins   sync.Map // *provider.Provider → upstream.Origin
	tries     tries
	egresses  egresses
	explained explain.Ring
	draining  atomic.Bool
	log       *slog.Logger

	pingAfter, pingEvery, farewellWait time.Duration // the constants, but in tests

	gate     sync.RWMutex // guards inFlight and conns against growing while they are waited for
	inFlight sync.WaitGroup
	conns    sync.WaitGroup // that CONNECT has opened
	stopped  bool           // Shutdown waits for the last requests: none may begin

	mu        sync.Mutex
	listeners []*agentconn.Listener
	h2        *h2.Server // nil: nobody has spoken it yet
	sockets   []*socket
	leaving   bool // the agents of sockets are told to go
}

// settings are what Configure can change. A request keeps those that it began with.
type settings struct {
	Options
	providers *provider.Registry
	prices    Prices
}

// Configure takes other settings over for the requests from now on; those under way go
// on with the ones that they began with. BodyLimit, HeaderLimit, Connections, Head, Idle
// and WriteStall stay what New got.
func (s *Server) Configure(opts Options, providers *provider.Registry, prices Prices) {
	opts.BodyLimit, opts.HeaderLimit, opts.Connections = s.opts.BodyLimit, s.opts.HeaderLimit, s.opts.Connections
	opts.Head, opts.Idle, opts.WriteStall = s.opts.Head, s.opts.Idle, s.opts.WriteStall
	s.settings.Store(&settings{opts, providers, prices})
	s.origins.Clear() // of providers that nobody asks any more
}

// keptBody is the largest request body whose memory fasthttp keeps for the next
// request on the connection; it would keep any.
const keptBody = 1 << 20

// New returns a Server that serves nothing yet.
func New(opts Options, deps Deps) *Server {
	fasthttp.SetBodySizePoolLimit(keptBody, keptBody) // one for the process
	s := &Server{opts: opts, deps: deps, log: deps.Log, pingAfter: pingAfter, pingEvery: pingEvery, farewellWait: farewellWait}
	s.settings.Store(&settings{opts, deps.Providers, deps.Prices})
	s.places = agentconn.NewPlaces(opts.Connections, func(why string) { connectionsTurnedAway.WithLabelValues(why).Inc() })
	s.exchanges.New = func() any { return newExchange(s) }
	s.insideTLS, s.pseudonym = s.newInsideTLS(), newPseudonym()
	s.relays, s.stopRelays = context.WithCancel(context.Background())
	s.fast, s.inside, s.beside = s.newFast(), s.newFast(), s.newFast()
	s.inside.ConnState = s.insiders.follow
	// Inside, CONNECT has shown whose the requests are; beside, a request without a token may be an agent's.
	s.fast.HeaderReceived, s.inside.HeaderReceived, s.beside.HeaderReceived = s.headReceived, knowExpect, knowExpect
	return s
}

// newFast returns the HTTP of the agents' connections.
func (s *Server) newFast() *fasthttp.Server {
	opts := &s.opts
	return &fasthttp.Server{
		Handler:                       s.handle,
		ErrorHandler:                  s.handleBroken,
		Name:                          "",
		NoDefaultServerHeader:         true,
		NoDefaultDate:                 true,
		NoDefaultContentType:          true,
		DisableHeaderNamesNormalizing: true,
		DisablePreParseMultipartForm:  true,
		MaxRequestBodySize:            opts.BodyLimit,
		ReadBufferSize:                opts.HeaderLimit,
		Concurrency:                   1 << 20,
		CloseOnShutdown:               true,
		// Without this an answer's end waits in its buffer for as long as the agent
		// has sent a part of its next request. It also frees HeaderLimit bytes for
		// each answer under way and each idle connection.
		ReduceMemoryUsage: true,
		Logger:            fastLogger{s.log},
	}
}

// Serve answers the agents that connect to ln until Shutdown, and returns nil
// then. With tlsConfig the agents speak TLS; nil is plain HTTP.
func (s *Server) Serve(ln net.Listener, tlsConfig *tls.Config) error {
	al, err := agentconn.Listen(ln, agentconn.Options{
		Head: s.opts.Head, ReadStall: s.opts.Idle, WriteStall: s.opts.WriteStall, TLS: tlsConfig, Places: s.places,
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		al.Stop()
		_ = al.Close() // nobody has connected
		return nil
	}
	s.listeners = append(s.listeners, al)
	s.mu.Unlock()
	if _, isUnix := ln.Addr().(*net.UnixAddr); isUnix && len(s.deps.Agents.users) > 0 {
		return s.beside.Serve(al)
	}
	return s.fast.Serve(al)
}

// enter counts a request in; false when none is begun any more.
func (s *Server) enter() bool {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.stopped {
		return false
	}
	s.inFlight.Add(1)
	return true
}

// Shutdown stops in the order that loses nothing: no new connections, every
// answer says `Connection: close`, answers under way and tunnels that are in use may end until ctx does,
// then the agents' connections are closed, which ends the upstream calls and
// records what they used so far. It returns when no request is left; the error
// is ctx's when answers had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	s.retireSockets()
	var tunnels sync.WaitGroup
	if s.deps.Tunnels != nil {
		tunnels.Go(func() { s.deps.Tunnels.Close(ctx) })
	}
	var going sync.WaitGroup
	if h2 := s.http2(false); h2 != nil {
		going.Go(func() { h2.Shutdown(ctx) })
	}
	var besides error
	going.Go(func() { besides = s.beside.ShutdownWithContext(ctx) })
	err := s.fast.ShutdownWithContext(ctx)
	going.Wait()
	if err == nil || errors.Is(err, net.ErrClosed) {
		err = besides
	}
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	listeners := s.listeners
	s.listeners = nil
	s.mu.Unlock()
	if err == nil {
		// No connection is left but those that were taken from fasthttp: for
		// answers to HTTP/1.0, and by CONNECT.
		if err = s.finishRequests(ctx); err == nil {
			err = s.insiders.wait(ctx)
		}
	}
	tunnels.Wait()
	s.takeLeave()
	// fasthttp goes on serving a connection that outlived its shutdown, so that
	// they are closed here, and what still comes from them is not begun.
	for _, l := range listeners {
		_ = l.Close()
		l.CloseConns()
	}
	_ = s.finishRequests(context.Background())
	s.stopRelays()
	s.conns.Wait()
	for _, l := range listeners {
		l.Stop()
	}
	return err
}

// finishRequests has no request begin any more and waits for those under way.
func (s *Server) finishRequests(ctx context.Context) error {
	s.gate.Lock()
	s.stopped = true
	s.gate.Unlock()
	done := make(chan struct{})
	go func() {
		s.inFlight.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fastLogger takes fasthttp's own messages, which are about broken connections.
type fastLogger struct{ log *slog.Logger }

// Printf implements fasthttp.Logger. The arguments can hold parts of a head, and
// so a token: they are not logged.
func (l fastLogger) Printf(format string, _ ...any) {
	l.log.Debug("connection failed", "what", format)
}
