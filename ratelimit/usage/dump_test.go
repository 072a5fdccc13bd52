package usage_test

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
)

// tb is what testing.TB and rapid.T have in common.
type tb interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// onEveryNode calls f with each node that holds keys.
func onEveryNode(t tb, client redis.UniversalClient, f func(node redis.Cmdable) error) {
	t.Helper()
	var err error
	if cluster, ok := client.(*redis.ClusterClient); ok {
		err = cluster.ForEachMaster(context.Background(), func(_ context.Context, node *redis.Client) error { return f(node) })
	} else {
		err = f(client)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// empty takes everything out of a database.
func empty(t tb, client redis.UniversalClient) {
	t.Helper()
	onEveryNode(t, client, func(node redis.Cmdable) error { return node.FlushAll(context.Background()).Err() })
}

// dump reads every hash of a subscription but its writers, without the prefix,
// with expiry times.
func dump(t tb, client redis.UniversalClient, sub string) (hashes map[string]map[string]string, expiry map[string]int64) {
	t.Helper()
	ctx := context.Background()
	family := "authpool:{" + sub + "}:"
	hashes, expiry = map[string]map[string]string{}, map[string]int64{}
	var mu sync.Mutex // a cluster's nodes are asked at the same time
	var keys []string
	onEveryNode(t, client, func(node redis.Cmdable) error {
		some, err := node.Keys(ctx, "authpool:*").Result()
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, some...)
		return err
	})
	var err error
	for _, key := range keys {
		name, ok := strings.CutPrefix(key, family)
		if !ok || name == "blocks" || name == "writers" {
			continue
		}
		if strings.HasPrefix(name, "batch:") {
			// What it holds is the Store's own affair.
			if expiry[name], err = client.Do(ctx, "PEXPIRETIME", key).Int64(); err != nil {
				t.Fatal(key, err)
			}
			continue
		}
		if hashes[name], err = client.HGetAll(ctx, key).Result(); err != nil {
			t.Fatal(key, err)
		}
		if expiry[name], err = client.Do(ctx, "PEXPIRETIME", key).Int64(); err != nil {
			t.Fatal(key, err)
		}
	}
	return hashes, expiry
}

// near is by how many milliseconds an expiry may be off: miniredis keeps the time
// that is left and not the instant.
const near = 60_000

// equalsModel compares all that Redis holds of a subscription with the model.
func equalsModel(t tb, client redis.UniversalClient, sub string, m *model) {
	t.Helper()
	hashes, expiry := dump(t, client, sub)
	if diff := cmp.Diff(m.hashes, hashes); diff != "" {
		t.Fatalf("the hashes differ (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(m.expiry, expiry, cmp.Comparer(func(a, b int64) bool { return max(a-b, b-a) < near })); diff != "" {
		t.Fatalf("the expiry times differ (-want +got):\n%s", diff)
	}
	var want []string
	for _, start := range m.blocks {
		want = append(want, strconv.FormatInt(start, 10))
	}
	got, err := client.ZRange(context.Background(), "authpool:{"+sub+"}:blocks", 0, -1).Result()
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("the blocks are %v, %v; want %v", got, err, want)
	}
	writers, err := client.HGetAll(context.Background(), "authpool:{"+sub+"}:writers").Result()
	if err != nil {
		t.Fatal(err)
	}
	for writer, done := range m.done {
		last, rest, _ := strings.Cut(writers[writer], ":")
		_, lives, _ := strings.Cut(rest, ":")
		if last != strconv.FormatInt(done, 10) || lives != m.lives[writer] {
			t.Fatalf("the entry of writer %s is %q; want number %d, lives %s", writer, writers[writer], done, m.lives[writer])
		}
	}
	if len(writers) != len(m.done) {
		t.Fatalf("the writers are %v, want %v", slices.Collect(maps.Keys(writers)), slices.Collect(maps.Keys(m.done)))
	}
}
