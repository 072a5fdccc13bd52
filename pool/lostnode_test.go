package pool_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

// TestLostNodeOfACluster: whatever of a session lies on it, its place or its binding,
// the session is served at once, and Redis learns of it when the node is back.
func TestLostNodeOfACluster(t *testing.T) {
	c := redistest.NewCluster(t, false)
	lost := c.Owner("{one}")
	db, err := redisdb.Open(t.Context(), redisdb.Options{URL: credential.NewSecret(c.URL()), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(context.Background()) })
	other := "two"
	for i := 0; c.Owner("{"+other+"}") == lost; i++ {
		other = fmt.Sprint("other-", i)
	}
	p := startWith(pool.Options{Wait: 2 * time.Second}, store.New(db.Client(), db.Client(), db, "authpool"),
		sub("one", limits(pool.Limits{Sessions: 20})), sub(other, limits(pool.Limits{Sessions: 20})))
	t.Cleanup(p.Close)
	serve(t, p, ask("before"), ok)

	lost.Pause()
	start := time.Now()
	used := map[string]int{}
	const sessions = 30
	for i := range sessions {
		id, _ := serve(t, p, ask(fmt.Sprint("s", i)), ok)
		used[id]++
	}
	// None waits for the node's time-out, were it only a second; the machine may be slow.
	if took := time.Since(start); took > sessions*time.Second/2 {
		t.Errorf("%d new sessions beside a frozen node took %v", sessions, took)
	}
	if used["one"] == 0 || used[other] == 0 {
		t.Errorf("the sessions went to %v", used)
	}
	eventually(t, inTime, "what lies on the other nodes is healthy", db.Healthy)
	lost.Resume()
	eventually(t, inTime, "all places and bindings are in Redis", func() bool {
		ctx := context.Background()
		places := db.Client().ZCard(ctx, "authpool:{one}:sessions").Val() + db.Client().ZCard(ctx, "authpool:{"+other+"}:sessions").Val()
		bindings := 0
		for i := range sessions {
			if db.Client().HGet(ctx, fmt.Sprintf("authpool:session:{anthropic/a/s%d}", i), "subscription").Val() != "" {
				bindings++
			}
		}
		return places == sessions+1 && bindings == sessions
	})
}
