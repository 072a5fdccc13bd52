package reach_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/authpool/authpool/pool/reach"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNobody = errors.New("nobody is there")

// wire is a net where some addresses answer at once, some late and some never.
type wire struct {
	names   []string // what every name means
	answers map[string]time.Duration

	mu      sync.Mutex
	dialled []string
	open    int
}

type fakeConn struct {
	net.Conn
	w    *wire
	peer string
}

func (c fakeConn) Close() error { c.w.count(-1); return nil }

func (w *wire) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
}

func (w *wire) dialer() *reach.Dialer {
	return &reach.Dialer{
		Lookup: func(context.Context, string) (out []netip.Addr, _ error) {
			for _, a := range w.names {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		},
		Dial: func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			w.mu.Lock()
			w.dialled = append(w.dialled, a.String())
			w.mu.Unlock()
			late, ok := w.answers[a.Addr().String()]
			if !ok {
				return nil, errNobody
			}
			select {
			case <-time.After(late):
				w.count(1)
				return fakeConn{w: w, peer: a.Addr().String()}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
}

// Addresses of both families are tried in turns; one that is silent holds the others up
// for 250 ms and no longer, and one that refuses does not at all.
func TestRace(t *testing.T) {
	const never = time.Hour
	f := func(what string, w *wire, winner string, took time.Duration, dialled ...string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			c, err := w.dialer().Connect(t.Context(), reach.Host{Name: "h.example"}, 443, func(netip.Addr) error { return nil })
			if winner == "" {
				if !errors.Is(err, errNobody) {
					t.Errorf("%s: %v", what, err)
				}
			} else if err != nil || c.(fakeConn).peer != winner || w.open != 1 {
				t.Fatalf("%s: %v, %v, %d are open", what, c, err, w.open)
			}
			if time.Since(began) != took || !slices.Equal(w.dialled, dialled) {
				t.Errorf("%s: dialled %q in %s, want %q in %s", what, w.dialled, time.Since(began), dialled, took)
			}
		})
	}
	f("all at once", &wire{names: []string{"2600::1", "1.1.1.1"}, answers: map[string]time.Duration{"2600::1": 0, "1.1.1.1": 0}}, "2600::1", 0, "[2600::1]:443")
	f("the first is silent", &wire{names: []string{"2600::1", "2600::2", "1.1.1.1"}, answers: map[string]time.Duration{"2600::1": never, "1.1.1.1": time.Second}},
		"1.1.1.1", 1250*time.Millisecond, "[2600::1]:443", "1.1.1.1:443", "[2600::2]:443")
	f("the first refuses", &wire{names: []string{"2600::1", "1.1.1.1"}, answers: map[string]time.Duration{"1.1.1.1": 0}}, "1.1.1.1", 0, "[2600::1]:443", "1.1.1.1:443")
	f("the second is better", &wire{names: []string{"1.1.1.1", "1.0.0.1"}, answers: map[string]time.Duration{"1.1.1.1": time.Second, "1.0.0.1": 100 * time.Millisecond}}, "1.0.0.1", 350*time.Millisecond, "1.1.1.1:443", "1.0.0.1:443")
	f("both at one moment", &wire{names: []string{"1.1.1.1", "1.0.0.1"}, answers: map[string]time.Duration{"1.1.1.1": never, "1.0.0.1": 0}}, "1.0.0.1", 250*time.Millisecond, "1.1.1.1:443", "1.0.0.1:443")
	f("nobody", &wire{names: []string{"1.1.1.1", "2600::1", "1.1.1.1", "::ffff:1.1.1.1"}}, "", 0, "1.1.1.1:443", "[2600::1]:443")
}

// The caller's patience ends the race, and nothing is left of it.
func TestRaceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{names: []string{"1.1.1.1", "1.0.0.1"}, answers: map[string]time.Duration{"1.1.1.1": time.Hour, "1.0.0.1": time.Hour}}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := w.dialer().Connect(ctx, reach.Host{Name: "h.example"}, 443, func(netip.Addr) error { return nil }); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// Of a name with very many addresses some are tried.
func TestManyAddresses(t *testing.T) {
	w := &wire{}
	for i := range 200 {
		w.names = append(w.names, netip.AddrFrom4([4]byte{1, 1, 1, byte(i)}).String())
	}
	if _, err := w.dialer().Connect(t.Context(), reach.Host{Name: "h.example"}, 443, func(netip.Addr) error { return nil }); !errors.Is(err, errNobody) || len(w.dialled) != 16 {
		t.Errorf("%d dialled, %v", len(w.dialled), err)
	}
}
