// Package redistest gives tests a Redis to talk to: the embedded one of the
// product, and real redis-server processes on ports of the test's own, alone, as
// a cluster or behind sentinels, which it may stop, freeze, empty and start again.
//
// Each is the usual way in: it runs one suite on the embedded Redis, on a real
// server and on a cluster, because all have to behave alike. NewServer, NewCluster
// and NewSentinels are for tests of what happens while Redis is away, moves or has
// lost writes.
package redistest

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/authpool/authpool/pool/redisdb/embedded"
)

// RequireEnv is the environment variable that turns a missing redis-server from
// a skipped test into a failed one. CI sets it to 1.
const RequireEnv = "AUTHPOOL_REQUIRE_REDIS"

// Each runs suite as the subtests "embedded", "redis" and "cluster", each on an
// empty database. The first two have it to themselves; the cluster is shared by
// the whole test binary and emptied for each subtest, so suites must not run in
// parallel. Without redis-server on PATH the last two are skipped, or fail when
// RequireEnv is set.
//
// No database is told the time by the test: a suite that sets expiries takes times
// in the far future and reads them back with PEXPIRETIME.
func Each(t *testing.T, suite func(t *testing.T, client redis.UniversalClient)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { suite(t, Mini(t)) })
	t.Run("redis", func(t *testing.T) { suite(t, NewServer(t).Client()) })
	t.Run("cluster", func(t *testing.T) { suite(t, sharedCluster(t)) })
}

// Mini returns a client of an empty embedded Redis. Both end with the test.
func Mini(t testing.TB) redis.UniversalClient {
	t.Helper()
	store, err := embedded.Open(embedded.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("cannot open the embedded Redis: %v", err)
	}
	t.Cleanup(func() {
		if err := store.Close(context.Background()); err != nil {
			t.Errorf("cannot close the embedded Redis: %v", err)
		}
	})
	opts := options("127.0.0.1:0") // a name would be looked up, even with a Dialer
	opts.Dialer = func(ctx context.Context, _, _ string) (net.Conn, error) { return store.Dial(ctx) }
	return newClient(t, opts)
}

// options are a test's: everything is tried once and obeys its context, so that a
// test sees each failure at once and where it happened.
func options(addrs ...string) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs:                 addrs,
		Protocol:              2,
		MaxRetries:            -1,
		DialerRetries:         1,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,

		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// newClient returns a client that ends with the test.
func newClient(t testing.TB, opts *redis.UniversalOptions) redis.UniversalClient {
	client := redis.NewUniversalClient(opts)
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("cannot close the Redis client: %v", err)
		}
	})
	return client
}

// binary returns the path of redis-server, or skips or fails the test as
// RequireEnv says.
func binary(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err == nil {
		return path
	}
	if os.Getenv(RequireEnv) != "" {
		t.Fatalf("redis-server is not on PATH and %s is set: install Redis 7", RequireEnv)
	}
	t.Skipf("redis-server is not on PATH: install Redis 7 to run this test (%s=1 makes it fail instead)", RequireEnv)
	return ""
}
