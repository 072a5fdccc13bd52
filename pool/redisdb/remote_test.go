package redisdb

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/redisdb/redistest"
)

// soon is far above what a call may take that does not wait, and far below any
// time-out of the library that it could have waited for.
const soon = 2500 * time.Millisecond

func TestServerStopsAndComesBack(t *testing.T) {
	server := redistest.NewServer(t)
	db := open(t, Options{URL: credential.NewSecret(server.URL())})
	ctx := t.Context()
	if !db.Healthy() || db.Mode() != "single" {
		t.Fatalf("healthy %t, mode %s", db.Healthy(), db.Mode())
	}
	up := ups(db)
	for range 2 {
		if err := db.Client().Set(ctx, "k", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
		server.Stop()
		start := time.Now()
		if err := db.Client().Get(ctx, "k").Err(); err == nil {
			t.Error("a stopped Redis answered")
		}
		if db.Healthy() {
			t.Error("healthy after a failed call")
		}
		for range 100 {
			if err := db.Client().Get(ctx, "k").Err(); !errors.Is(err, ErrAway) {
				t.Fatalf("got %v while away", err)
			}
		}
		if took := time.Since(start); took > soon {
			t.Errorf("101 calls to a stopped Redis took %v", took)
		}
		server.Start()
		await(t, up)
		if !db.Healthy() {
			t.Error("unhealthy when told that Redis is back")
		}
	}
}

func TestOpenWhileAway(t *testing.T) {
	server := redistest.NewServer(t)
	server.Stop()
	start := time.Now()
	db := open(t, Options{URL: credential.NewSecret(server.URL())})
	if took := time.Since(start); took > 3*soon {
		t.Errorf("opening took %v", took)
	}
	if db.Healthy() {
		t.Error("healthy without a Redis")
	}
	up := ups(db)
	server.Start()
	await(t, up)
	if err := db.Client().Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}

// A Redis that accepts and never answers costs the one call that finds out 50 ms,
// not the library's 5 s, and the next ones nothing.
func TestFrozenServer(t *testing.T) {
	server := redistest.NewServer(t)
	db := open(t, Options{URL: credential.NewSecret(server.URL())})
	up := ups(db)
	server.Pause()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := db.Client().Get(ctx, "k").Err(); err == nil {
		t.Error("a frozen Redis answered")
	}
	if took := time.Since(start); took > soon {
		t.Errorf("a call with 50 ms took %v", took)
	}
	if err := db.Client().Get(t.Context(), "k").Err(); !errors.Is(err, ErrAway) {
		t.Errorf("the next call: %v", err)
	}
	server.Resume()
	await(t, up)
	if err := db.Client().Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Error(err)
	}
}

// The same for a connection that has never been answered on: the library says
// hello there first.
func TestSilentListener(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p, err := Options{Addresses: []string{listener.Addr().String()}}.plan()
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewUniversalClient(p.universal())
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := client.Ping(ctx).Err(); err == nil {
		t.Error("silence counts as an answer")
	}
	if took := time.Since(start); took > soon {
		t.Errorf("a call with 50 ms took %v", took)
	}
}

// A replica answers every PING and refuses every write. It must not be taken for
// healthy between two writes.
func TestReplicaIsAway(t *testing.T) {
	server := redistest.NewServer(t)
	db := open(t, Options{URL: credential.NewSecret(server.URL())})
	ctx := t.Context()
	up := ups(db)
	if err := server.Client().SlaveOf(ctx, "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := db.Client().Set(ctx, "k", "v", 0).Err(); !redis.IsReadOnlyError(err) {
		t.Fatalf("got %v", err)
	}
	// Wait until the prober has been refused twice.
	for deadline := time.Now().Add(30 * time.Second); ; {
		stats, err := server.Client().Info(ctx, "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(stats, "cmdstat_setrange:")
		line, _, _ = strings.Cut(line, "\r\n")
		if _, rejected, ok := strings.Cut(line, "rejected_calls="); ok && rejected[0] >= '2' {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the prober does not try writes: %q", line)
		}
	}
	if db.Healthy() {
		t.Error("a replica counts as healthy")
	}
	select {
	case <-up:
		t.Error("a replica counts as back")
	default:
	}
	if err := server.Client().SlaveOf(ctx, "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	await(t, up)
	if n, err := db.Client().DBSize(ctx).Result(); n != 0 || err != nil {
		t.Errorf("the probes left %d keys, %v", n, err)
	}
}

func TestOffset(t *testing.T) {
	server := redistest.NewServer(t)
	db := open(t, Options{URL: credential.NewSecret(server.URL())})
	if off := db.Offset(); off.Abs() > time.Second || off == 0 {
		t.Errorf("the clock of this machine is %v off itself", off)
	}
}

func TestUnknownPasswordIsAway(t *testing.T) {
	server := redistest.NewServer(t)
	if err := server.Client().ConfigSet(t.Context(), "requirepass", "right").Err(); err != nil {
		t.Fatal(err)
	}
	if db := open(t, Options{URL: credential.NewSecret(server.URL()), Password: credential.NewSecret("wrong")}); db.Healthy() {
		t.Error("healthy with a wrong password")
	}
	if db := open(t, Options{URL: credential.NewSecret(server.URL()), Password: credential.NewSecret("right")}); !db.Healthy() {
		t.Error("unhealthy with the right password")
	}
}

func TestEmbedded(t *testing.T) {
	db := open(t, Options{})
	if !db.Healthy() || db.Mode() != "embedded" || db.Offset() != 0 || db.FrontAddr() != nil {
		t.Errorf("healthy %t, mode %s, offset %v, front %v", db.Healthy(), db.Mode(), db.Offset(), db.FrontAddr())
	}
	if err := db.Client().Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Error(err)
	}
}
