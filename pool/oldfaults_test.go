package pool_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// oldFaults are those that reviews found in the pool that authpool succeeds, and the
// tests that keep each from coming back, by file from the top of the repository.
var oldFaults = []struct {
	fault string
	tests map[string][]string
}{
	{"races: two processes bind one session, or exceed a cap together", map[string][]string{
		"pool/linear_test.go": {"TestLinear"},
		"pool/fleet_test.go":  {"TestFleetBindsOneSessionToOneSubscription", "TestFleetKeepsTheCapOfSessions", "TestFleetKeepsTheCapOfConcurrency"},
		"pool/apply_test.go":  {"TestApplyWhileServing"},
	}},
	{"orphans: entries of an index outlive their sessions, or the process that made them", map[string][]string{
		"pool/linear_test.go":       {"TestLinear"},
		"pool/fleet_test.go":        {"TestOrphanReservationEnds"},
		"pool/session_list_test.go": {"TestIdleSessionsEndByThemselves"},
		"pool/move_test.go":         {"TestMoveCutAnywhere"},
	}},
	{"FIFO eviction: the oldest session is forgotten though it is in use, or that of another", map[string][]string{
		"pool/pool_test.go":         {"TestMemoryOfSessionsIsBounded"},
		"pool/session_list_test.go": {"TestNobodyPushesOutTheSessionsOfOthers"},
	}},
	{"colliding ids: two sessions are taken for one", map[string][]string{
		"pool/pool_test.go":              {"TestSessionsOfOtherAgentsAreOtherSessions"},
		"pool/oldfaults_test.go":         {"TestOldFaultCollidingIDs"},
		"proxy/provider/session_test.go": {"TestSessionHash", "TestOldFaultIDsThatCleanToTheSame"},
	}},
	{"NaN: a health that is no number wins, or spreads", map[string][]string{
		"pool/health_test.go":    {"TestRateIsClampedWhateverComes", "TestLatencyIsFinite"},
		"pool/oldfaults_test.go": {"TestOldFaultNaN"},
	}},
	{"stale caches: a process goes on with what another has changed", map[string][]string{
		"pool/move_test.go":  {"TestFleetFollowsWithinASecond"},
		"pool/fleet_test.go": {"TestFleetFollowsASessionThatMoved", "TestLimitMetByOneProcessClosesForAll"},
	}},
	{"malformed keys: ids with colons are cut at the wrong place", map[string][]string{
		"pool/oldfaults_test.go":         {"TestOldFaultMalformedKeys"},
		"proxy/provider/session_test.go": {"TestCleanSession"},
	}},
	{"silent fallback: a request is served by a subscription that may not, instead of being refused", map[string][]string{
		"pool/pool_test.go":     {"TestNoSubscription", "TestPinnedStaysInItsDomain", "TestDisabledSubscriptionIsNeverOffered"},
		"pool/resource_test.go": {"TestOwnedIsServedByItsOwnerAlone"},
		"pool/apply_test.go":    {"TestAgentsUseWhatTheyMay"},
	}},
	{"hanging webhook: a receiver that does not answer holds everything up", map[string][]string{
		"pool/notify/notify_test.go": {"TestAnswers", "TestReceiverThatIsAway", "TestClose"},
	}},
	{"ids that nothing is left of once they are cleaned", map[string][]string{
		"proxy/provider/session_test.go": {"TestOldFaultIDsThatCleanToNothing"},
	}},
	{"zero limits: no limit is taken for a limit of nothing, or divides by it", map[string][]string{
		"pool/oldfaults_test.go":      {"TestOldFaultZeroLimits"},
		"config/load_test.go":         {"TestFaultsCarryPlaceFieldAndAdvice"},
		"config/subscription_test.go": {"TestParseSubscriptionHasTheFaultsOfTheFile"},
	}},
}

// The tests that oldFaults names are there.
func TestOldFaultsAreTested(t *testing.T) {
	for _, f := range oldFaults {
		for file, names := range f.tests {
			text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(file)))
			if err != nil {
				t.Errorf("%s: %v", f.fault, err)
				continue
			}
			for _, name := range names {
				if !regexp.MustCompile(`(?m)^func ` + name + `\(t \*testing\.T\)`).Match(text) {
					t.Errorf("%s: %s has no test %s", f.fault, file, name)
				}
			}
		}
	}
}

// Agent and session change places, or are the same at another provider: these are
// four sessions.
func TestOldFaultCollidingIDs(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		other := sub("two")
		other.Provider = "openai"
		pools, _ := fleet(t, client, 1, pool.Options{}, sub("one"), other)
		at := func(provider string) func(*pool.Request) {
			return func(r *pool.Request) { r.Provider = provider }
		}
		for _, r := range []*pool.Request{
			ask("a", agent("b")), ask("b", agent("a")), ask("a", agent("b"), at("openai")), ask("a-b", agent("a")), ask("b", agent("a-a")),
		} {
			if _, source := serve(t, pools[0], r, ok); source != pool.SourceNew {
				t.Errorf("%s/%s/%s: %s, want it to be new", r.Provider, r.Agent, r.Session, source)
			}
		}
		if n := len(members(client, "one")); n != 4 {
			t.Errorf("%d sessions hold a place on one, want 4", n)
		}
	})
}

// What a provider tells of its windows may be no number. The subscription is rated all
// the same, goes on serving, and is not preferred for it.
func TestOldFaultNaN(t *testing.T) {
	for _, n := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, math.MaxFloat64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(pool.Options{}, sub("odd"), sub("plain"))
				defer p.Close()
				for range 3 {
					v := used(n, time.Hour)
					v.Windows = append(v.Windows, ratelimit.Window{Name: "requests", Kind: "bucket", Utilization: n, Size: n, Left: n, Reset: time.Now().Add(time.Minute), Seen: time.Now()})
					l, err := p.Acquire(t.Context(), ask("", func(r *pool.Request) { r.Owner = "odd" }))
					if err != nil {
						break // it says that it is used up
					}
					l.FirstByte(time.Duration(math.MaxInt64))
					l.Verdict(v)
					l.Done(usage.Tokens{Input: 1})
				}
				for _, s := range p.Status() {
					if h := float64(s.Health); !(h >= 0 && h <= 100) {
						t.Errorf("%s has health %v", s.ID, h)
					}
				}
				placed := map[string]int{}
				for i := range 40 {
					id, _ := serve(t, p, ask(fmt.Sprint("s", i)), ok)
					placed[id]++
				}
				if placed["plain"] == 0 {
					t.Errorf("all sessions go to %v", placed)
				}
			})
		})
	}
}

// Models have colons in their names, and cooldowns of models are fields of a hash.
func TestOldFaultMalformedKeys(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		const name = "eu.anthropic.claude-x:v2:0"
		pools, _ := fleet(t, client, 2, pool.Options{}, sub("one"))
		serve(t, pools[0], ask("s", model(name)), ratelimit.Verdict{
			Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel, Wait: time.Hour,
		})
		eventually(t, inTime, "the model's cooldown is known to the other process", func() bool {
			_, known := pools[1].Status()[0].CooldownModels[name]
			return known
		})
		if n := len(pools[1].Status()[0].CooldownModels); n != 1 {
			t.Errorf("%d models are limited, want 1", n)
		}
		for _, other := range []string{"eu.anthropic.claude-x", "eu.anthropic.claude-x:v2", "v2:0", "0"} {
			serve(t, pools[1], ask("s", model(other)), ok)
		}
		// Nor does a session's name end where a hash tag does, or a key.
		s := store.New(client, client, &health{}, "authpool")
		for _, session := range []string{"anthropic/a/x:y", "anthropic/a/x", "anthropic/a/x:subscription", "anthropic/a/{x}"} {
			if bound, err := s.Bind(t.Context(), session, "", "one-"+session, "", time.Hour); err != nil || bound != "one-"+session {
				t.Errorf("Bind(%q) = %q, %v", session, bound, err)
			}
		}
	})
}

// Where no limit is configured there is none.
func TestOldFaultZeroLimits(t *testing.T) {
	redistest.Each(t, func(t *testing.T, client redis.UniversalClient) {
		pools, _ := fleet(t, client, 1, pool.Options{}, sub("one", limits(pool.Limits{})))
		var leases []*pool.Lease
		for i := range 50 {
			l, err := pools[0].Acquire(t.Context(), ask(fmt.Sprint("s", i), func(r *pool.Request) { r.Bytes = 100_000 }))
			if err != nil {
				t.Fatalf("request %d: %v", i, err)
			}
			leases = append(leases, l)
		}
		if s := pools[0].Status()[0]; s.State != pool.StateReady || s.Health <= 0 || s.InFlight != len(leases) {
			t.Errorf("%+v", s)
		}
		for _, l := range leases {
			l.Verdict(ok)
			l.Done(usage.Tokens{Input: 1_000_000})
		}
	})
}
