package agents_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/authpool/authpool/pool/agents"
	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// health is of a Redis that a test takes away.
type health struct{ away atomic.Bool }

func (h *health) Healthy() bool { return !h.away.Load() }

// quiet is a Ledger that knows of nothing.
type quiet struct{}

func (quiet) AgentDays(_ context.Context, days []usage.AgentDay) ([]usage.Counts, error) {
	return make([]usage.Counts, len(days)), nil
}

// sidecar starts a Book as another process of the fleet has it.
func sidecar(t *testing.T, client redis.UniversalClient) (*agents.Book, *health) {
	t.Helper()
	h := &health{}
	s := store.New(client, client, h, "authpool")
	watch, cancel := context.WithCancel(context.Background())
	book := agents.New(s, quiet{}, (*recall.File)(nil), slog.New(slog.DiscardHandler))
	book.Start(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Watch(watch, func(store.Event) {}) }()
	t.Cleanup(func() { book.Close(); cancel(); <-done })
	return book, h
}

func hash(token string) *[sha256.Size]byte {
	h := sha256.Sum256([]byte(token))
	return &h
}

// await waits until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("not in time: " + what)
		}
	}
}

func TestFleetKnowsAgents(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		ctx := t.Context()
		one, _ := sidecar(t, client)
		two, away := sidecar(t, client)
		wanted := agents.Agent{ID: "bob", Rights: agents.Rights{Models: []string{"claude-*"}}}
		_, secret, err := one.Create(ctx, wanted)
		if err != nil {
			t.Fatal(err)
		}
		token := secret.Reveal()
		if !strings.HasPrefix(token, "apa_") || len(token) != len("apa_")+43 {
			t.Errorf("a token of %d characters", len(token))
		}
		if _, _, err := two.Create(ctx, wanted); !errors.Is(err, agents.ErrExists) {
			t.Errorf("a second one of that name: %v", err)
		}
		if one.ByHash(hash(token)) == nil {
			t.Error("who made it does not know it at once")
		}
		await(t, "the other process hears of it", func() bool { return two.ByHash(hash(token)) != nil })
		if e := two.ByHash(hash(token)); e.ID != "bob" || !e.MayModel("claude-x") || e.MayModel("gpt-x") || e.MayModel("") || !e.MayProvider("openai") {
			t.Errorf("it knows %v %+v", e.Agent, e.Rights)
		}
		if two.ByHash(hash(token+"x")) != nil || two.ByHash(hash("")) != nil {
			t.Error("another token is bob's")
		}
		for _, key := range client.Keys(ctx, "*").Val() {
			for _, value := range client.HGetAll(ctx, key).Val() {
				if strings.Contains(value, token) || strings.Contains(value, token[4:]) {
					t.Errorf("%s holds the token", key)
				}
			}
		}

		changed, err := two.Change(ctx, "bob", 1, false, func(a *agents.Agent) error { a.Models = nil; return nil })
		if err != nil || changed.Version != 2 {
			t.Fatal(changed, err)
		}
		if _, err := one.Change(ctx, "bob", 1, false, func(*agents.Agent) error { return nil }); !errors.Is(err, agents.ErrVersion) {
			t.Errorf("a change of what was changed meanwhile: %v", err)
		}
		await(t, "the change is known", func() bool { return one.ByHash(hash(token)).MayModel("gpt-x") })

		// While Redis is away, what was known last holds.
		away.away.Store(true)
		_ = two.Refresh(ctx) // a look that began before has ended then
		if err := one.Remove(ctx, "bob", 0); err != nil {
			t.Fatal(err)
		}
		if one.ByHash(hash(token)) != nil || two.ByHash(hash(token)) == nil {
			t.Error("who revoked it still knows it, or who cannot know of that does not")
		}
		if list, fresh := two.List(ctx); fresh || len(list) != 1 {
			t.Errorf("without Redis: %v, %t", list, fresh)
		}
		away.away.Store(false)
		await(t, "the end is known", func() bool { return two.ByHash(hash(token)) == nil })
		if err := two.Remove(ctx, "bob", 0); !errors.Is(err, agents.ErrUnknown) {
			t.Errorf("removed twice: %v", err)
		}
		if _, err := two.Change(ctx, "bob", 0, false, func(*agents.Agent) error { return nil }); !errors.Is(err, agents.ErrUnknown) {
			t.Errorf("a change of none: %v", err)
		}
	})
}

// TestChangesAtOnce: of those who change one agent at the same time, none undoes what
// another did.
func TestChangesAtOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		ctx := t.Context()
		one, _ := sidecar(t, client)
		two, _ := sidecar(t, client)
		if _, _, err := one.Create(ctx, agents.Agent{ID: "bob"}); err != nil {
			t.Fatal(err)
		}
		add := func(book *agents.Book, name string) error {
			_, err := book.Change(ctx, "bob", 0, false, func(a *agents.Agent) error {
				a.Providers = append(append([]string{}, a.Providers...), name)
				return nil
			})
			return err
		}
		errs := make(chan error, 2)
		go func() { errs <- add(one, "openai") }()
		go func() { errs <- add(two, "anthropic") }()
		if err := errors.Join(<-errs, <-errs); err != nil {
			t.Fatal(err)
		}
		if err := one.Refresh(ctx); err != nil {
			t.Fatal(err)
		}
		if e := one.ByID("bob"); len(e.Providers) != 2 || e.Version != 3 {
			t.Errorf("%v %q", e.Agent, e.Providers)
		}
	})
}

// TestUnreadableRecord: nobody is let through by what cannot be read, and nothing is
// written over it.
func TestUnreadableRecord(t *testing.T) {
	client := redistest.Mini(t)
	ctx := t.Context()
	s := store.New(client, client, &health{}, "authpool")
	for id, text := range map[string]string{
		"default": "{", "bob": `{"hash":"AAAA","created":1}`, "ann": `{"created":1,"budgets":[{"window":"hour","tokens":1}]}`,
	} {
		if _, err := s.PutAgent(ctx, store.AgentRecord{ID: id, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	book, _ := sidecar(t, client)
	for _, id := range []string{"default", "bob", "ann"} {
		if e := book.ByID(id); e == nil || !e.Unreadable {
			t.Errorf("%s: %v", id, e)
		}
		if _, err := book.Change(ctx, id, 0, true, func(*agents.Agent) error { return nil }); !errors.Is(err, agents.ErrUnreadable) {
			t.Errorf("%s was changed: %v", id, err)
		}
	}
	if err := book.Remove(ctx, "ann", 0); err != nil {
		t.Error(err)
	}
}

// An agent is revoked and made anew while somebody changes it: the token that was revoked
// stays so, and the change is of the new one.
func TestChangeBringsBackNoRevokedToken(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		ctx := t.Context()
		one, _ := sidecar(t, client)
		two, _ := sidecar(t, client)
		_, revoked, err := one.Create(ctx, agents.Agent{ID: "bob"})
		if err != nil {
			t.Fatal(err)
		}
		var token string
		changed, err := one.Change(ctx, "bob", 0, false, func(a *agents.Agent) error {
			if token == "" { // it was read, and is about to be written
				if err := two.Remove(ctx, "bob", 0); err != nil {
					return err
				}
				_, secret, err := two.Create(ctx, agents.Agent{ID: "bob"})
				if err != nil {
					return err
				}
				token = secret.Reveal()
			}
			a.Models = []string{"claude-*"}
			return nil
		})
		if err != nil || len(changed.Models) != 1 {
			t.Fatalf("%v, %v", changed, err)
		}
		for _, book := range []*agents.Book{one, two} {
			if err := book.Refresh(ctx); err != nil {
				t.Fatal(err)
			}
			if book.ByHash(hash(revoked.Reveal())) != nil {
				t.Error("the revoked token is bob's again")
			}
			if e := book.ByHash(hash(token)); e == nil || e.MayModel("gpt-x") {
				t.Errorf("the new one is known as %v", e)
			}
		}
		// Who has seen the first version changes nothing of the new ones.
		if _, err := one.Change(ctx, "bob", 1, false, func(*agents.Agent) error { return nil }); !errors.Is(err, agents.ErrVersion) {
			t.Errorf("by the former version: %v", err)
		}
	})
}
