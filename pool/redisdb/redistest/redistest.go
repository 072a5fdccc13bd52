// Package redistest gives tests a Redis to talk to: miniredis inside the
// process, and a real redis-server that the test starts on a port of its own
// and may stop, empty and start again.
//
// Each is the usual way in: it runs one suite on both, because the embedded
// mode (miniredis) and a real server have to behave alike. Server is for tests
// of what happens while Redis is away or has lost writes.
package redistest

import (
	"os"
	"os/exec"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// RequireEnv is the environment variable that turns a missing redis-server from
// a skipped test into a failed one. CI sets it to 1.
const RequireEnv = "AUTHPOOL_REQUIRE_REDIS"

// Each runs suite as the subtests "miniredis" and "redis", each on an empty
// database of its own that ends with the subtest. Without redis-server on PATH
// the second one is skipped, or fails when RequireEnv is set.
//
// Neither database is told the time by the test: a suite that sets expiries
// takes times in the far future and reads them back with PEXPIRETIME.
func Each(t *testing.T, suite func(t *testing.T, client redis.UniversalClient)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) { suite(t, Mini(t)) })
	t.Run("redis", func(t *testing.T) { suite(t, NewServer(t).Client()) })
}

// Mini returns a client of an empty miniredis. Both end with the test.
func Mini(t testing.TB) redis.UniversalClient {
	t.Helper()
	return newClient(t, miniredis.RunT(t).Addr())
}

// newClient returns a client for tests: it tries everything once and obeys its
// context, so that a test sees each failure at once and where it happened.
func newClient(t testing.TB, addr string) redis.UniversalClient {
	client := redis.NewClient(&redis.Options{
		Addr:                  addr,
		MaxRetries:            -1,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,
	})
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
