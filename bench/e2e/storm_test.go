package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// stormTime is how long a storm rages: AUTHPOOL_STORM, else as long as shows that it works at all. Only what does not
// depend on the machine's speed is asserted of a short one.
func stormTime(t *testing.T) (d time.Duration, long bool) {
	t.Helper()
	text := os.Getenv("AUTHPOOL_STORM")
	if text == "" {
		return 12 * time.Second, false
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 2*time.Minute {
		t.Fatalf("AUTHPOOL_STORM is %q, want a duration of 2m or more", text)
	}
	return d, true
}

const (
	stormAgents = 200
	// stormWarmUp is how long the pool may run into limits that nobody has told it.
	stormWarmUp = time.Minute
)

// stormKeys are five subscriptions, each short of something else. Their rates are low, so that a slow machine uses them
// up, too.
var stormKeys = []stormKey{
	{subscription{"storm-a", simulator.Anthropic, "sk-ant-api03-storm-a"}, 72, 0, 0},
	{subscription{"storm-b", simulator.Anthropic, "sk-ant-api03-storm-b"}, 96, 200_000, 8_000},
	{subscription{"storm-c", simulator.Anthropic, "sk-ant-api03-storm-c"}, 0, 90_000, 0},
	{subscription{"storm-d", simulator.Anthropic, "sk-ant-api03-storm-d"}, 0, 0, 3_600},
	{subscription{"storm-e", simulator.Anthropic, "sk-ant-api03-storm-e"}, 60, 80_000, 4_000},
}

type stormKey struct {
	subscription
	rpm, itpm, otpm int // a minute; 0: no limit
}

// yaml is what the config says of its limits.
func (k stormKey) yaml() string {
	var list []string
	for name, n := range map[string]int{"requests": k.rpm, "input_tokens": k.itpm, "output_tokens": k.otpm} {
		if n > 0 {
			list = append(list, fmt.Sprintf("%s_per_minute: %d", name, n))
		}
	}
	return "{" + strings.Join(list, ", ") + "}"
}

// TestStorm: 200 agents ask all the time, far more than five subscriptions allow, and agents may wait. Nobody is told of
// a limit, nearly all of what is allowed is used, and the provider has hardly ever to refuse.
func TestStorm(t *testing.T) {
	for _, processes := range []int{1, 4} {
		for _, configured := range []bool{true, false} {
			name := fmt.Sprint(processes, " processes, limits found out")
			if configured {
				name = fmt.Sprint(processes, " processes, limits configured")
			}
			t.Run(name, func(t *testing.T) {
				if _, long := stormTime(t); !long {
					t.Parallel()
				}
				newStorm(t, processes, configured).rage()
			})
		}
	}
}

// storm is a provider that notes what becomes of every request, and the processes before it.
type storm struct {
	t        *testing.T
	provider *provider
	fleet    []*authpool

	mu       sync.Mutex
	arrivals []arrival
}

// arrival is one request at the provider.
type arrival struct {
	key, id string // id: the provider's
	at      time.Time
	status  int
	output  int // tokens that its answer has
}

func newStorm(t *testing.T, processes int, configured bool) *storm {
	t.Helper()
	s := &storm{t: t}
	var subs []subscription
	limits := map[string]string{}
	var keys []simulator.Key
	for _, k := range stormKeys {
		subs = append(subs, k.subscription)
		keys = append(keys, simulator.Key{Key: k.key, Provider: k.provider, RPM: k.rpm, ITPM: k.itpm, OTPM: k.otpm})
		if configured {
			limits[k.id] = k.yaml()
		}
	}
	sim, err := simulator.New(simulator.Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	s.provider = startHandler(t, sim, s.note(sim.Handler()))
	o := options{
		subscriptions: subs, upstream: s.provider.url, limits: limits,
		extra: "failover: {wait: 3m, deadline: 5m}\nlog: {level: warn}\n",
	}
	if processes > 1 {
		o.redis = startRedis(t).url()
	}
	for range processes {
		s.fleet = append(s.fleet, startAuthpool(t, o))
	}
	return s
}

// note remembers what becomes of every request.
func (s *storm) note(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := arrival{key: r.Header.Get("X-Api-Key"), at: time.Now()}
		a.output, _ = strconv.Atoi(strings.TrimPrefix(r.Header.Get("X-Simulate"), "tokens-"))
		noted := &notedAnswer{ResponseWriter: w}
		defer func() {
			a.status, a.id = noted.status, w.Header().Get("Request-Id")
			s.mu.Lock()
			defer s.mu.Unlock()
			s.arrivals = append(s.arrivals, a)
		}()
		handler.ServeHTTP(noted, r)
	})
}

// notedAnswer remembers an answer's status.
type notedAnswer struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (n *notedAnswer) WriteHeader(status int) {
	n.status = status
	n.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (n *notedAnswer) Unwrap() http.ResponseWriter { return n.ResponseWriter }

func (s *storm) rage() {
	t := s.t
	d, long := stormTime(t)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	begin := time.Now()
	var agents sync.WaitGroup
	for i := range stormAgents {
		agents.Go(func() { s.agent(ctx, i) })
	}
	agents.Wait()
	end := begin.Add(d)

	input := map[string]int64{}
	for _, e := range s.provider.Ledger() {
		input[e.RequestID] = e.Input
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := 0.0
	for _, k := range stormKeys {
		var spent [3]float64
		var first, last time.Time
		served, refused, late, lateRefused := 0, 0, 0, 0
		for _, a := range s.arrivals {
			if a.key != k.key || a.at.After(end) {
				continue
			}
			if first.IsZero() || a.at.Before(first) {
				first = a.at
			}
			if a.at.After(last) {
				last = a.at
			}
			warm := a.at.After(begin.Add(stormWarmUp))
			if warm {
				late++
			}
			if a.status == http.StatusTooManyRequests {
				refused++
				if warm {
					lateRefused++
				}
				continue
			}
			served++
			spent[0]++
			spent[1] += float64(input[a.id])
			spent[2] += float64(a.output)
		}
		share := 0.0
		for i, n := range [3]int{k.rpm, k.itpm, k.otpm} {
			if n > 0 {
				share = max(share, spent[i]/(float64(n)*(1+last.Sub(first).Minutes())))
			}
		}
		sum += share / float64(len(stormKeys))
		t.Logf("%s: %d served, %.1f %% of what its limits allow; %d refused; after %v %d of %d", k.id, served, 100*share, refused, stormWarmUp, lateRefused, late)
		if long && lateRefused > 1 && lateRefused*50 > late {
			t.Errorf("%s refused %d of %d requests after %v, want 2 %% at most", k.id, lateRefused, late, stormWarmUp)
		}
	}
	t.Logf("served %.1f %% of what the limits allow", 100*sum)
	if long && sum < 0.97 {
		t.Errorf("served %.1f %% of what the limits allow, want 97 %% at least", 100*sum)
	}
}

// agent asks one question after another.
func (s *storm) agent(ctx context.Context, number int) {
	dice := rand.New(rand.NewPCG(uint64(number), 11))
	a := s.fleet[number%len(s.fleet)]
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	for n := 0; ; n++ {
		text := strings.Repeat("ten bytes ", 20+int(dice.ExpFloat64()*380))
		body := fmt.Sprintf(`{"model":"claude-sonnet-4-5","max_tokens":500,"stream":%v,"messages":[{"role":"user","content":"%d %d %s"}]}`, n%2 == 0, number, n, text)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/v1/messages", strings.NewReader(body))
		if err != nil {
			s.t.Error(err)
			return
		}
		for name, value := range map[string]string{
			"Content-Type": "application/json", "X-Api-Key": a.token, "Anthropic-Version": "2023-06-01",
			"X-Authpool-Session": fmt.Sprint("storm-", number), "X-Simulate": fmt.Sprint("tokens-", 16+dice.IntN(49)),
		} {
			req.Header.Set(name, value)
		}
		resp, err := transport.RoundTrip(req)
		var answer []byte
		if err == nil {
			answer, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.t.Errorf("agent %d: %v", number, err)
			return
		case resp.StatusCode != http.StatusOK:
			s.t.Errorf("agent %d is answered %d: %s", number, resp.StatusCode, answer)
			return
		}
	}
}
