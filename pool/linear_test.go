package pool_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// Eight processes, which are this test's binary once more, serve, move and release
// the same sessions, let them expire, and take subscriptions in and out, on one real
// Redis; one of them is killed. What must be true at every instant is looked at all
// the time, and at the end all of them must agree.
const (
	linearProcesses     = 8
	linearSessions      = 30
	linearSubscriptions = 6
	linearPlaces        = 4  // limits.sessions: there are more sessions than places
	linearAtOnce        = 12 // limits.concurrent: more ask at once, and each process can have a part
	linearIdle          = 1500 * time.Millisecond
	linearLimited       = 4 * time.Second
	linearTime          = 10 * time.Second // AUTHPOOL_LINEAR names another
	// linearSlack is for a machine that is busy.
	linearSlack = 5 * time.Second
)

// linearOrder is what a process is told by its parent.
type linearOrder struct {
	Addrs []string
	Seed  uint64
	Lasts time.Duration
}

// linearNews is what a process tells its parent.
type linearNews struct {
	What    string // moved, released, unsure: Redis did not answer to a binding, done, at, wrong
	Session string `json:",omitempty"`
	To      string `json:",omitempty"`
}

func linearSubs(n int) (subs []pool.Subscription) {
	for i := range n {
		subs = append(subs, sub(fmt.Sprint("l", i), limits(pool.Limits{Sessions: linearPlaces, Concurrent: linearAtOnce})))
	}
	return subs
}

// linearBindings tells of bindings whose answer was not heard: they may have been made.
type linearBindings struct {
	*store.Store
	tell func(linearNews)
}

func (b linearBindings) Bind(ctx context.Context, session, expect, sub, parent string, affinity time.Duration) (string, error) {
	bound, err := b.Store.Bind(ctx, session, expect, sub, parent, affinity)
	if err != nil {
		b.tell(linearNews{What: "unsure", Session: session, To: sub})
	}
	return bound, err
}

func (b linearBindings) Unbind(ctx context.Context, session string) (string, error) {
	former, err := b.Store.Unbind(ctx, session)
	if err != nil {
		b.tell(linearNews{What: "unsure", Session: session})
	}
	return former, err
}

// linearProcess is one of the eight.
type linearProcess struct {
	pool   *pool.Pool
	client redis.UniversalClient // to count what is under way
	tell   func(linearNews)
}

// TestLinearProcess is one of the processes of TestLinear.
func TestLinearProcess(t *testing.T) {
	text := os.Getenv("AUTHPOOL_LINEAR_PROCESS")
	if text == "" {
		t.Skip("it is a part of TestLinear")
	}
	var order linearOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	tell := func(n linearNews) {
		mu.Lock()
		defer mu.Unlock()
		if err := out.Encode(n); err != nil {
			t.Error(err)
		}
	}
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: order.Addrs, Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	defer func() { _ = client.Close() }()
	bus := &event.Bus{}
	events, stop := bus.Subscribe("linear", 100_000)
	var told sync.WaitGroup
	told.Go(func() {
		for e := range events {
			switch e.Kind {
			case event.SessionMoved:
				tell(linearNews{What: "moved", Session: e.Session, To: e.Subscription})
			case event.SessionReleased:
				tell(linearNews{What: "released", Session: e.Session})
			default:
			}
		}
	})
	bindings := linearBindings{store.New(client, client, &health{}, "authpool"), tell}
	p := pool.New(pool.Options{IdleTimeout: linearIdle, Wait: 200 * time.Millisecond, Events: bus, Logger: slog.New(slog.DiscardHandler)},
		linearSubs(linearSubscriptions), bindings)
	p.Start(t.Context())
	one := &linearProcess{p, client, tell}
	end := time.Now().Add(order.Lasts)
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			dice := rand.New(rand.NewPCG(order.Seed, i))
			for time.Now().Before(end) {
				one.step(dice)
			}
		})
	}
	wg.Wait()
	tell(linearNews{What: "done"})
	in := bufio.NewScanner(os.Stdin)
	in.Scan() // all are done
	p.Apply(linearSubs(linearSubscriptions))
	// Who has moved where in the first round is known to all in the second. Each
	// subscription has room for all of these.
	for round := range 2 {
		for i := range linearPlaces {
			session := fmt.Sprint("x", i)
			if id := one.settle(session); round == 1 && id != "" {
				tell(linearNews{What: "at", Session: session, To: id})
			}
		}
		tell(linearNews{What: "done"})
		in.Scan()
	}
	p.Close()
	stop()
	told.Wait()
}

// step does something at random.
func (l *linearProcess) step(dice *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	key := pool.SessionKey{Provider: "anthropic", Agent: "a", Session: fmt.Sprint("x", dice.IntN(linearSessions))}
	some := fmt.Sprint("l", dice.IntN(linearSubscriptions))
	switch n := dice.IntN(100); {
	case n < 64:
		l.serve(ctx, key.Session, time.Duration(dice.IntN(20))*time.Millisecond, ok)
	case n < 72:
		l.serve(ctx, key.Session, 0, limited(time.Duration(100+dice.IntN(200))*time.Millisecond))
	case n < 74:
		l.serve(ctx, key.Session, 0, limited(linearLimited)) // too long for a session to wait
	case n < 84:
		_, err := l.pool.Move(ctx, pool.Move{Session: key, To: some, Why: "test"})
		l.judge("move", err)
	case n < 92:
		_, err := l.pool.ReleaseSession(ctx, key)
		l.judge("release", err)
	case n < 95:
		l.pool.Apply(linearSubs(linearSubscriptions - dice.IntN(2)))
	default:
		time.Sleep(time.Duration(dice.Int64N(int64(linearIdle / 2)))) // some places end
	}
}

// judge tells of an error that nobody may get.
func (l *linearProcess) judge(what string, err error) {
	_, unavailable := errors.AsType[*pool.UnavailableError](err)
	_, refused := errors.AsType[*pool.MoveError](err)
	switch {
	case err == nil, unavailable, refused, errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
	case errors.Is(err, pool.ErrNoSession), errors.Is(err, pool.ErrNoSuchSubscription):
	default:
		l.tell(linearNews{What: "wrong", Session: what + ": " + err.Error()})
	}
}

// serve makes a request, and counts over all processes how many are under way.
func (l *linearProcess) serve(ctx context.Context, session string, takes time.Duration, v ratelimit.Verdict) (id string, source pool.Source) {
	lease, err := l.pool.Acquire(ctx, ask(session))
	if err != nil {
		l.judge("request", err)
		return "", ""
	}
	id = lease.Subscription().ID
	busy := "test:{" + id + "}:busy"
	if n, err := l.client.Incr(context.Background(), busy).Result(); err == nil {
		if n > linearAtOnce {
			l.tell(linearNews{What: "wrong", Session: fmt.Sprintf("%d requests are under way at once, %d may be", n, linearAtOnce), To: id})
		}
		time.Sleep(takes)
		l.client.Decr(context.Background(), busy)
	}
	lease.Verdict(v)
	lease.Done(usage.Tokens{Input: 1})
	return id, lease.Source()
}

// settle returns where a session is served when nobody moves it.
func (l *linearProcess) settle(session string) (id string) {
	var source pool.Source
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if id, source = l.serve(context.Background(), session, 0, ok); source == pool.SourceBound {
			return id
		}
	}
	l.tell(linearNews{What: "wrong", Session: fmt.Sprintf("%s is served by none that it sticks to, but %q (%s)", session, id, source)})
	return ""
}

func TestLinear(t *testing.T) {
	t.Run("redis", func(t *testing.T) {
		server := redistest.NewServer(t)
		linear(t, server.Client(), server.Addr())
	})
	t.Run("cluster", func(t *testing.T) {
		cluster := redistest.NewCluster(t, false)
		linear(t, cluster.Client(), cluster.Addrs()...)
	})
}

// linearWatch is what the parent sees.
type linearWatch struct {
	t      *testing.T
	client redis.UniversalClient

	mu     sync.Mutex
	told   map[linearNews]int // by the processes
	seen   map[linearNews]int // in Redis
	at     map[string]map[string]bool
	looks  int
	astray map[string]time.Time // a place whose session is elsewhere, since when
}

func linear(t *testing.T, client redis.UniversalClient, addrs ...string) {
	lasts := linearTime
	if text := os.Getenv("AUTHPOOL_LINEAR"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		lasts = d
	}
	w := &linearWatch{
		t: t, client: client,
		told: map[linearNews]int{}, seen: map[linearNews]int{}, at: map[string]map[string]bool{}, astray: map[string]time.Time{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	sub := client.Subscribe(ctx, "authpool:events")
	if _, err := sub.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	hints := sub.Channel(redis.WithChannelSize(100_000))
	watching.Go(func() {
		for m := range hints {
			w.hint(m.Payload)
		}
	})
	watching.Go(func() {
		for ctx.Err() == nil {
			w.look()
			time.Sleep(10 * time.Millisecond)
		}
	})

	type child struct {
		cmd  *exec.Cmd
		in   io.WriteCloser
		done chan struct{} // gets one for each "done"
		over chan struct{}
	}
	var children []*child
	for i := range linearProcesses {
		order := linearOrder{addrs, uint64(i), lasts}
		if i == 0 {
			order.Lasts = lasts / 2 // it is killed then
		}
		text, err := json.Marshal(order)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLinearProcess$") //nolint:gosec // this very program
		cmd.Env = append(os.Environ(), "AUTHPOOL_LINEAR_PROCESS="+string(text))
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		c := &child{cmd, in, make(chan struct{}, 2), make(chan struct{})}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(c.over)
			w.listen(i, out, c.done)
		}()
		children = append(children, c)
	}
	await := func(c *child, what string) {
		select {
		case <-c.done:
		case <-c.over:
			t.Errorf("a process has ended before it was %s", what)
		case <-time.After(lasts + time.Minute):
			t.Errorf("a process is not %s", what)
		}
	}
	await(children[0], "done")
	time.Sleep(200 * time.Millisecond) // its last events are told
	_ = children[0].cmd.Process.Kill() // its places stay behind
	<-children[0].over                 // and its pipes are read
	_ = children[0].cmd.Wait()         // killed
	for _, c := range children[1:] {
		await(c, "done")
	}
	time.Sleep(linearLimited + time.Second) // nobody moves because of it any more
	for range 2 {
		for _, c := range children[1:] {
			_, _ = io.WriteString(c.in, "settle\n")
		}
		for _, c := range children[1:] {
			await(c, "settled")
		}
		time.Sleep(time.Second) // by then all have heard
	}
	w.agree()
	for _, c := range children[1:] {
		_, _ = io.WriteString(c.in, "end\n")
		<-c.over
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("a process: %v", err)
		}
	}
	eventually(t, linearIdle+20*time.Second, "all places have ended", func() bool { return w.look() == 0 })
	cancel()
	_ = sub.Close()
	watching.Wait()
	w.compare()
}

// listen takes in what a process tells.
func (w *linearWatch) listen(process int, out io.Reader, done chan<- struct{}) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var n linearNews
		if json.Unmarshal(lines.Bytes(), &n) != nil {
			if text := lines.Text(); strings.Contains(text, "_test.go") || strings.HasPrefix(text, "panic") {
				w.t.Errorf("process %d: %s", process, text)
			}
			continue
		}
		n.Session = strings.TrimPrefix(n.Session, "anthropic/a/")
		switch n.What {
		case "done":
			done <- struct{}{}
		case "wrong":
			w.t.Errorf("process %d: %s %s", process, n.Session, n.To)
		case "at":
			w.mu.Lock()
			if w.at[n.Session] == nil {
				w.at[n.Session] = map[string]bool{}
			}
			w.at[n.Session][n.To] = true
			w.mu.Unlock()
		default:
			w.mu.Lock()
			w.told[n]++
			w.mu.Unlock()
		}
	}
}

// hint notes a change of a binding, as the script that made it has published it.
func (w *linearWatch) hint(payload string) {
	kind, rest, _ := strings.Cut(payload, " ")
	to, session, _ := strings.Cut(rest, " ")
	if kind != "session" {
		return
	}
	n := linearNews{What: "moved", Session: strings.TrimPrefix(session, "anthropic/a/"), To: to}
	if to == "" {
		n.What = "released"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[n]++
}

// look looks at all places, and returns how many there are: never more than allowed,
// and none whose session is elsewhere, unless it is about to end.
func (w *linearWatch) look() (places int) {
	ctx := context.Background()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	for i := range linearSubscriptions {
		id := fmt.Sprint("l", i)
		now := time.Now()
		held, err := w.client.ZRangeByScore(ctx, "authpool:{"+id+"}:sessions", &redis.ZRangeBy{Min: fmt.Sprint("(", now.UnixMilli()+1), Max: "+inf"}).Result()
		if err != nil {
			continue
		}
		if places += len(held); len(held) > linearPlaces {
			w.t.Errorf("%d sessions hold a place on %s, %d may: %v", len(held), id, linearPlaces, held)
		}
		holds := map[string]bool{}
		for _, session := range held {
			place := id + " " + session
			bound, err := w.client.HGet(ctx, "authpool:session:{"+session+"}", "subscription").Result()
			if err != nil && !errors.Is(err, redis.Nil) || bound == id {
				continue
			}
			holds[place] = true
			since, known := w.astray[place]
			if !known {
				w.astray[place] = now
			} else if now.Sub(since) > linearIdle+linearSlack {
				w.t.Errorf("for %v session %s has had a place on %s, and is bound to %q", now.Sub(since), session, id, bound)
				w.astray[place] = now
			}
		}
		for place := range w.astray {
			if strings.HasPrefix(place, id+" ") && !holds[place] {
				delete(w.astray, place)
			}
		}
	}
	return places
}

// agree compares where the processes serve the sessions, and where Redis has them.
func (w *linearWatch) agree() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.at) == 0 {
		w.t.Error("no process has told where sessions are")
	}
	for session, at := range w.at {
		bound := w.client.HGet(context.Background(), "authpool:session:{anthropic/a/"+session+"}", "subscription").Val()
		if len(at) != 1 || !at[bound] {
			w.t.Errorf("session %s is served by %v, and is bound to %q", session, at, bound)
		}
	}
}

// compare looks for changes of bindings that nobody has told of.
func (w *linearWatch) compare() {
	w.mu.Lock()
	defer w.mu.Unlock()
	moved, released, silent, unsure := 0, 0, 0, 0
	for n, times := range w.seen {
		if n.What == "moved" {
			moved += times
		} else {
			released += times
		}
		maybe := w.told[linearNews{What: "unsure", Session: n.Session, To: n.To}]
		unsure += maybe
		if told := w.told[n]; times > told+maybe {
			silent += times - told - maybe
			w.t.Errorf("session %s was %s %s %d times, and %d events tell of it (%d answers of Redis were not heard)", n.Session, n.What, n.To, times, told, maybe)
		}
	}
	w.t.Logf("%d moves and %d releases, %d of them silent; %d answers of Redis were not heard; looked %d times", moved, released, silent, unsure, w.looks)
	if moved == 0 || released == 0 {
		w.t.Error("nothing has happened")
	}
}
