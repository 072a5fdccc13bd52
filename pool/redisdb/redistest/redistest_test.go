package redistest_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/redisdb/redistest"
)

func TestEachIsEmptyAndRunsScripts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		ctx := t.Context()
		if n := client.DBSize(ctx).Val(); n != 0 {
			t.Fatalf("a new database holds %d keys", n)
		}
		got, err := redis.NewScript(`return redis.call('INCRBY', KEYS[1], ARGV[1])`).Run(ctx, client, []string{"n"}, 41).Int()
		if err != nil || got != 41 {
			t.Fatalf("got %d, %v; want 41", got, err)
		}
	})
}

func TestServerLosesWhatWasNotSaved(t *testing.T) {
	s := redistest.NewServer(t)
	ctx := t.Context()
	client := s.Client()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(client.Set(ctx, "saved", 1, 0).Err())
	must(client.Save(ctx).Err())
	must(client.Set(ctx, "lost", 1, 0).Err())
	s.Stop()
	if err := client.Ping(ctx).Err(); err == nil {
		t.Fatal("a stopped server answered")
	}
	s.Start()
	keys, err := client.Keys(ctx, "*").Result()
	must(err)
	if len(keys) != 1 || keys[0] != "saved" {
		t.Fatalf("after a crash the server holds %q, want only what was saved", keys)
	}
}

func TestServerPaused(t *testing.T) {
	s := redistest.NewServer(t)
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var timeout net.Error
	if err := s.Client().Ping(ctx).Err(); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("a paused server gave %v, want a time-out", err)
	}
	s.Resume()
	if err := s.Client().Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestClusterMovesAndFailsOver(t *testing.T) {
	c := redistest.NewCluster(t, true)
	ctx, client := t.Context(), c.Client()
	add := func() {
		t.Helper()
		if err := client.Incr(ctx, "{sub}:n").Err(); err != nil {
			t.Fatal(err)
		}
	}
	add()
	from := c.Owner("{sub}:n")
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	calls := 0
	c.Move("{sub}:n", to, func(int) { calls++; add() })
	if c.Owner("{sub}:n") != to || calls != 2 {
		t.Fatalf("the slot has not moved, or without %d calls", calls)
	}
	add()
	i := slices.Index(c.Nodes, to)
	to.Pause()
	if c.FailOver(i) != c.Owner("{sub}:n") {
		t.Fatal("the replica has not taken over")
	}
	to.Resume()
	if err := c.Owner("{sub}:n").Client().Incr(ctx, "{sub}:n").Err(); err != nil {
		t.Fatal(err)
	}
	to.Stop()
	to.Start()
	c.Nodes[i].Stop()
}

func TestSentinelsFailOver(t *testing.T) {
	s := redistest.NewSentinels(t)
	if err := s.Replica.Client().Set(t.Context(), "k", "v", 0).Err(); !redis.IsReadOnlyError(err) {
		t.Fatalf("the replica took a write: %v", err)
	}
	s.Master.Stop()
	s.FailOver()
	if err := s.Replica.Client().Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestEachReachesTheWholeDatabase(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		ctx := t.Context()
		for i := range 30 {
			if err := client.Set(ctx, strconv.Itoa(i), i, 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if keys, size := client.Keys(ctx, "*").Val(), client.DBSize(ctx).Val(); len(keys) != 30 || size != 30 {
			t.Errorf("%d keys are listed, %d counted, of 30", len(keys), size)
		}
		if err := client.FlushAll(ctx).Err(); err != nil || client.DBSize(ctx).Val() != 0 {
			t.Errorf("after a flush %d keys are left, %v", client.DBSize(ctx).Val(), err)
		}
	})
}
