package simulator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBody bounds a request's body, encoded and decoded; larger ones are answered 413.
	maxBody = 128 << 20
	// maxAccounts bounds the keys that an open simulator remembers.
	maxAccounts = 4096
)

// Options say what a simulator is like.
type Options struct {
	// Keys are the credentials it knows. Without any it is open: every credential is accepted, without limits.
	Keys []Key
	// Seed decides every answer, with the request.
	Seed int64
	// Pace is the time between two events of a stream; zero is as fast as possible.
	Pace time.Duration
	// Watch are strings that should never arrive; [Arrival] tells where one did.
	Watch []string
}

// Simulator is a running simulation. It is safe for concurrent use.
type Simulator struct {
	seed  int64
	pace  time.Duration
	watch []string
	open  bool

	faults   faultList
	ledger   ledger
	arrivals arrivalList

	ctx  context.Context // ends at Close
	stop context.CancelFunc

	mu       sync.Mutex // guards what follows
	accounts map[string]*account
	others   map[string]*account // by key: of the providers that are not simulated
	servers  map[*http.Server]bool
	closed   bool
	running  sync.WaitGroup // requests; added to under mu, so never after Close

	inFlight atomic.Int64
}

// New makes a simulator. It fails when a key is wrong, with every fault of all keys.
func New(o Options) (*Simulator, error) {
	if err := checkKeys(o.Keys); err != nil {
		return nil, fmt.Errorf("cannot make a simulator: %w", err)
	}
	s := &Simulator{
		seed: o.Seed, pace: o.Pace, watch: o.Watch, open: len(o.Keys) == 0,
		accounts: make(map[string]*account), others: make(map[string]*account), servers: make(map[*http.Server]bool),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	organisations := make(map[[2]string]*organisation)
	for _, k := range o.Keys {
		name := [2]string{k.Provider, k.Organisation}
		org := organisations[name]
		if org == nil || k.Organisation == "" {
			org = newOrganisation(k)
			organisations[name] = org
		}
		if a := newAccount(k, org); slices.Contains(simulated, k.Provider) {
			s.accounts[k.Provider+" "+k.Key] = a
		} else {
			s.others[k.Key] = a
		}
		for _, f := range k.Faults {
			s.faults.add(Injection{Key: k.Key, Fault: f})
		}
	}
	return s, nil
}

// Serve answers requests on ln until Close, and closes ln. It returns nil after Close, else why it ended.
func (s *Simulator) Serve(ln net.Listener) error {
	server := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.Join(errors.New("cannot serve: the simulator is closed"), ln.Close())
	}
	s.servers[server] = true
	s.mu.Unlock()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot serve on %s: %w", ln.Addr(), err)
	}
	return nil
}

// Close ends every answer and every Serve, and waits until no request is being answered. Where [Simulator.Handler]
// is mounted in another server, close that one first.
func (s *Simulator) Close() error {
	s.mu.Lock()
	s.closed = true
	servers := s.servers
	s.servers = nil
	s.mu.Unlock()
	s.stop()
	var err error
	for server := range servers {
		err = errors.Join(err, server.Close())
	}
	s.running.Wait()
	return err
}

// Ledger returns what was billed, oldest first.
func (s *Simulator) Ledger() []Entry { return s.ledger.list() }

// Arrivals returns the newest requests to the providers' endpoints, oldest first.
func (s *Simulator) Arrivals() []Arrival { return s.arrivals.list() }

// InFlight returns how many requests are being answered. It falls when a client leaves, even one that waits for a
// silent answer.
func (s *Simulator) InFlight() int { return int(s.inFlight.Load()) }

// Inject adds faults, in order, behind those that are there. It fails, adding none, when one is wrong.
func (s *Simulator) Inject(in ...Injection) error {
	for i, f := range in {
		if err := f.check(); err != nil {
			return fmt.Errorf("cannot add fault %d: %w", i, err)
		}
	}
	s.faults.add(in...)
	return nil
}

// ClearFaults removes all faults.
func (s *Simulator) ClearFaults() { s.faults.clear() }

// Handler returns the endpoints.
func (s *Simulator) Handler() http.Handler {
	mux := http.NewServeMux()
	for path, provider := range map[string]string{
		"/v1/messages": Anthropic, "/v1/messages/count_tokens": Anthropic, "/v1/chat/completions": OpenAI,
		"/v1/completions": OpenAI, "/v1/responses": OpenAI, "/v1/embeddings": OpenAI,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { s.provider(w, r, provider, s.spend) })
	}
	for _, version := range []string{"v1", "v1beta", "v1alpha"} {
		mux.HandleFunc("POST /"+version+"/models/{call...}", func(w http.ResponseWriter, r *http.Request) { s.provider(w, r, Gemini, s.gemini) })
	}
	for path, of := range map[string]struct {
		provider, endpoint string
		dialect            *socketDialect
	}{
		"/v1/responses": {OpenAI, "/v1/responses", &responsesSocket},
		"/v1/realtime":  {OpenAI, "/v1/responses", &realtimeSocket},
		"/ws/{service}": {Gemini, geminiStream, &liveSocket},
	} {
		serve := func(w http.ResponseWriter, r *http.Request, q *request) {
			s.serveSocket(w, r, q, of.endpoint, of.dialect)
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { s.provider(w, r, of.provider, serve) })
	}
	mux.HandleFunc("POST /model/{model}/{method}", func(w http.ResponseWriter, r *http.Request) { s.provider(w, r, Bedrock, s.bedrock) })
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) { s.provider(w, r, guess(r), s.models) })
	mux.HandleFunc("GET /ledger", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, s.Ledger()) })
	mux.HandleFunc("DELETE /ledger", func(w http.ResponseWriter, r *http.Request) {
		s.ledger.clear()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, s.Arrivals()) })
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, s.faults.list()) })
	mux.HandleFunc("POST /faults", s.postFaults)
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, r *http.Request) {
		s.ClearFaults()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.provider(w, r, guess(r), s.unknown) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		s.running.Add(1)
		s.mu.Unlock()
		defer s.running.Done()
		s.inFlight.Add(1)
		defer s.inFlight.Add(-1)
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// guess tells whose a request to a shared path is.
func guess(r *http.Request) string {
	if r.Header.Get("Anthropic-Version") != "" || r.Header.Get("X-Api-Key") != "" {
		return Anthropic
	}
	if r.Header.Get("X-Goog-Api-Key") != "" {
		return Gemini
	}
	return OpenAI
}

// request is what is known of a request before its endpoint looks at it.
type request struct {
	provider   string
	endpoint   string // names the dialect: the path, where the model is not in it
	model      string // where it is in the path
	id         string
	credential string
	account    *account
	body       []byte
	now        time.Time
}

// provider does what is the same at every endpoint of a provider: it reads the body, identifies the key,
// remembers the arrival, and sets the headers of every answer.
func (s *Simulator) provider(w http.ResponseWriter, r *http.Request, provider string, serve func(http.ResponseWriter, *http.Request, *request)) {
	q := &request{provider: provider, endpoint: r.URL.Path, id: requestID(provider), now: time.Now()}
	h := w.Header()
	switch provider {
	case Anthropic:
		h.Set("Request-Id", q.id)
	case Bedrock:
		h.Set("X-Amzn-Requestid", q.id)
	case OpenAI:
		h.Set("X-Request-Id", q.id)
		h.Set("Openai-Version", "2020-10-01")
		h.Set("Openai-Processing-Ms", "1")
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var carrier string
	carrier, q.credential = credential(r, provider)
	if q.account = s.account(provider, q.credential); q.account == nil {
		if c, value, a := s.other(r); a != nil {
			carrier, q.credential, q.account, serve = c, value, a, s.unknown
		}
	}
	key := ""
	if q.account != nil {
		key = q.credential
	}
	s.arrived(r, carrier, key, raw, q.now)
	if err == nil {
		q.body, err = decoded(raw, r.Header.Get("Content-Encoding"))
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		s.fail(w, r, provider, q.id, failureOf(provider, http.StatusRequestEntityTooLarge))
	case err != nil:
		f := failureOf(provider, http.StatusBadRequest)
		f.message = "The request body could not be read: " + err.Error()
		s.fail(w, r, provider, q.id, f)
	case q.account == nil:
		s.fail(w, r, provider, q.id, unauthorized(provider, q.credential))
	default:
		switch provider {
		case Anthropic:
			h.Set("Anthropic-Organization-Id", q.account.org)
		case OpenAI:
			h.Set("Openai-Organization", q.account.org)
		}
		serve(w, r, q)
	}
}

// credential returns the header that carries the provider's credential, and the credential.
func credential(r *http.Request, provider string) (carrier, value string) {
	if value = r.Header.Get("X-Api-Key"); provider == Anthropic && value != "" {
		return "X-Api-Key", value
	}
	if provider == Gemini {
		if value = r.URL.Query().Get("key"); value != "" {
			return "query key", value
		}
		return "X-Goog-Api-Key", r.Header.Get("X-Goog-Api-Key")
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return "Authorization", strings.TrimSpace(token)
	}
	return "", ""
}

// account finds a key's account, or makes one when the simulator is open. It returns nil for an unknown key.
func (s *Simulator) account(provider, key string) *account {
	if key == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[provider+" "+key]
	if a == nil && s.open && len(s.accounts) < maxAccounts {
		k := Key{Key: key, Provider: provider}
		a = newAccount(k, newOrganisation(k))
		s.accounts[provider+" "+key] = a
	}
	return a
}

// unauthorized is the 401 of a provider. OpenAI's repeats the key with its middle covered, as the real one does.
func unauthorized(provider, key string) failure {
	f := failureOf(provider, http.StatusUnauthorized)
	switch provider {
	case Gemini:
		f = failureOf(provider, http.StatusBadRequest)
		f.code, f.message = "API_KEY_INVALID", "API key not valid. Please pass a valid API key."
		return f
	case Bedrock:
		f.status = http.StatusForbidden
		return f
	case Anthropic:
		return f
	}
	if key == "" {
		f.code = ""
		f.message = "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth."
		return f
	}
	covered := strings.Repeat("*", len(key))
	if len(key) > 16 {
		covered = key[:8] + strings.Repeat("*", len(key)-12) + key[len(key)-4:]
	}
	f.message = "Incorrect API key provided: " + covered + ". You can find your API key at https://platform.openai.com/account/api-keys."
	return f
}

func decoded(raw []byte, encoding string) ([]byte, error) {
	if encoding == "" {
		return raw, nil
	}
	body, err := decodeBody(strings.NewReader(string(raw)), encoding)
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	err = errors.Join(err, body.Close())
	if len(out) > maxBody {
		return nil, &http.MaxBytesError{Limit: maxBody}
	}
	return out, err
}

func requestID(provider string) string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	if provider == Anthropic {
		return "req_01" + hex.EncodeToString(b[:])
	}
	return "req_" + hex.EncodeToString(b[:])
}

// other finds the account of a provider whose endpoints are not simulated, by whatever carries the credential.
func (s *Simulator) other(r *http.Request) (carrier, value string, a *account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range credentialHeaders {
		value = r.Header.Get(name)
		if name == "Authorization" {
			_, value, _ = strings.Cut(value, " ")
		}
		if s.others[value] != nil {
			return name, value, s.others[value]
		}
	}
	for _, name := range credentialQuery {
		if value = r.URL.Query().Get(name); s.others[value] != nil {
			return "query " + name, value, s.others[value]
		}
	}
	return "", "", nil
}

// unknown serves what is not simulated: the key's faults that are whole answers, else 404.
func (s *Simulator) unknown(w http.ResponseWriter, r *http.Request, q *request) {
	if fault := s.faults.next(q.account.key); fault != nil {
		if fault.Kind == RawAnswer {
			fault.play(w, r)
			return
		}
		if f, ok := fault.failure(q.provider, q.now); ok {
			s.fail(w, r, q.provider, q.id, f)
			return
		}
	}
	f := failureOf(q.provider, http.StatusNotFound)
	f.code, f.message = "", "Not found"
	if q.provider == OpenAI {
		f.message = fmt.Sprintf("Invalid URL (%s %s)", r.Method, r.URL.Path)
	}
	if p := q.account.provider; !slices.Contains(simulated, p) {
		f.message = fmt.Sprintf("simulator: nothing but faults is simulated of provider %q", p)
	}
	s.fail(w, r, q.provider, q.id, f)
}

// postFaults takes one injection or an array of them.
func (s *Simulator) postFaults(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err == nil {
		var in []Injection
		if text := strings.TrimSpace(string(body)); strings.HasPrefix(text, "[") {
			err = strictJSON(text, &in)
		} else {
			in = make([]Injection, 1)
			err = strictJSON(text, &in[0])
		}
		if err == nil {
			err = s.Inject(in...)
		}
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func strictJSON(text string, v any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("cannot decode the faults: %w", err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the reader has gone if this fails
}
