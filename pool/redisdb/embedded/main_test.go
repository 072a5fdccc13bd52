package embedded

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testPassword = "correct horse battery staple"

// open starts a store and a client of it, and ends both with the test.
func open(t testing.TB, opts Options) (*Store, *redis.Client) {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.PasswordHash = sha256.Sum256([]byte(testPassword))
	s, err := Open(opts)
	if err != nil {
		t.Fatalf("cannot open the store: %v", err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s, newClient(t, s)
}

func newClient(t testing.TB, s *Store) *redis.Client {
	client := redis.NewClient(&redis.Options{
		Addr:                  "127.0.0.1:0", // a name would be looked up, even with a Dialer
		Dialer:                func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Dial(ctx) },
		Protocol:              2,
		MaxRetries:            -1,
		DialerRetries:         1,
		ContextTimeoutEnabled: true,
		DisableIdentity:       true,

		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(context.Background()); err != nil {
		t.Errorf("cannot close the store: %v", err)
	}
}
