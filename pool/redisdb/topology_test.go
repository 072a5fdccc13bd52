package redisdb

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/redisdb/redistest"
)

// until waits for another process.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		if !pause(ctx, 20*time.Millisecond) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// keyOn returns a key whose slot a node serves.
func keyOn(t *testing.T, c *redistest.Cluster, node *redistest.Server) string {
	t.Helper()
	for i := range 100 {
		if key := fmt.Sprintf("authpool:{sub-%d}:now", i); c.Owner(key) == node {
			return key
		}
	}
	t.Fatal("a node of three serves none of 100 keys")
	return ""
}

func openCluster(t *testing.T, c *redistest.Cluster) *DB {
	t.Helper()
	db := open(t, Options{URL: credential.NewSecret(c.URL())})
	if !db.Healthy() || db.Mode() != "cluster" {
		t.Fatalf("healthy %t, mode %s", db.Healthy(), db.Mode())
	}
	return db
}

// within calls f with the deadline that a request has, and fails when it is not kept.
func within(t *testing.T, f func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := f(ctx)
	if took := time.Since(start); took > soon {
		t.Errorf("a call with 50 ms took %v", took)
	}
	return err
}

func set(db *DB, key string) func(context.Context) error {
	return func(ctx context.Context) error { return db.Client().HSet(ctx, key, "n", 1).Err() }
}

func TestCluster(t *testing.T) {
	c := redistest.NewCluster(t, false)
	ctx := t.Context()
	t.Run("keys are spread and scripts keep to their slot", func(t *testing.T) {
		db := openCluster(t, c)
		script := redis.NewScript(`redis.call('HINCRBY', KEYS[1], 'n', 1) return redis.call('HINCRBY', KEYS[2], 'n', 2)`)
		for i := range 30 {
			tag := fmt.Sprintf("authpool:{sub-%d}:", i)
			n, err := script.Run(ctx, db.Client(), []string{tag + "now", tag + "writers"}).Int()
			if n != 2 || err != nil {
				t.Fatalf("%s: %d, %v", tag, n, err)
			}
		}
		for i, node := range c.Nodes {
			if node.Client().DBSize(ctx).Val() == 0 {
				t.Errorf("no key lies on node %d", i)
			}
		}
		if err := script.Run(ctx, db.Client(), []string{"authpool:{a}:now", "authpool:{b}:now"}).Err(); err == nil {
			t.Error("a script over two slots was taken")
		}
		if !db.Healthy() {
			t.Error("an answer about one command made the cluster unhealthy")
		}
	})

	// The first call for a frozen node costs what its caller grants, the next ones
	// nothing, and the other nodes do not notice.
	t.Run("a frozen node takes its own slots with it only", func(t *testing.T) {
		db := openCluster(t, c)
		up := ups(db)
		frozen, well := keyOn(t, c, c.Nodes[1]), keyOn(t, c, c.Nodes[2])
		c.Nodes[1].Pause()
		if err := within(t, set(db, frozen)); err == nil {
			t.Error("a frozen node answered")
		}
		start := time.Now()
		for range 100 {
			if err := within(t, set(db, frozen)); !errors.Is(err, ErrAway) {
				t.Fatalf("for a node that is away: %v", err)
			}
			if err := set(db, well)(ctx); err != nil {
				t.Fatalf("for a node that is well: %v", err)
			}
		}
		if took := time.Since(start); took > soon {
			t.Errorf("200 calls beside a frozen node took %v", took)
		}
		err := within(t, func(ctx context.Context) error {
			_, err := db.Client().Pipelined(ctx, func(pipe redis.Pipeliner) error {
				if err := pipe.HGetAll(ctx, frozen).Err(); err != nil {
					return err
				}
				return pipe.HGetAll(ctx, well).Err()
			})
			return err
		})
		if !errors.Is(err, ErrAway) {
			t.Errorf("a pipeline over both: %v", err)
		}
		if !db.Healthy() || db.gates.away() != 1 {
			t.Errorf("one node of three is away: healthy %t, %d away", db.Healthy(), db.gates.away())
		}
		c.Nodes[1].Resume()
		await(t, up)
		if err := set(db, frozen)(ctx); err != nil {
			t.Errorf("the node is back: %v", err)
		}
	})

	t.Run("opened while a node is frozen", func(t *testing.T) {
		c.Nodes[0].Pause()
		defer c.Nodes[0].Resume()
		start := time.Now()
		db := open(t, Options{URL: credential.NewSecret(c.URL())})
		if took := time.Since(start); took > 3*soon {
			t.Errorf("opening took %v", took)
		}
		until(t, "the others are found", db.Healthy)
		// Looking at the frozen node first may have left a well one too little of the
		// first look's second: it is then asked again within moments.
		well := keyOn(t, c, c.Nodes[2])
		until(t, "a node that is well is used", func() bool { return set(db, well)(ctx) == nil })
	})

	t.Run("all nodes stop and come back", func(t *testing.T) {
		db := openCluster(t, c)
		up := ups(db)
		for _, node := range c.Nodes {
			key := keyOn(t, c, node)
			node.Stop()
			if err := within(t, set(db, key)); err == nil {
				t.Error("a stopped node answered")
			}
			if node != c.Nodes[2] != db.Healthy() {
				t.Errorf("healthy %t", db.Healthy())
			}
		}
		for _, node := range c.Nodes {
			node.Start()
		}
		await(t, up)
		until(t, "all slots are served", func() bool {
			for i := range 10 {
				if set(db, fmt.Sprintf("authpool:{sub-%d}:now", i))(ctx) != nil {
					return false
				}
			}
			return db.Healthy()
		})
	})
}

// The lost node never comes back: its replica serves its slots, and whoever waits for
// them is told.
func TestClusterFailOver(t *testing.T) {
	c := redistest.NewCluster(t, true)
	db := openCluster(t, c)
	up := ups(db)
	key := keyOn(t, c, c.Nodes[0])
	c.Nodes[0].Stop()
	if err := within(t, set(db, key)); err == nil {
		t.Error("a stopped node answered")
	}
	c.FailOver(0)
	await(t, up)
	until(t, "the replica is used", func() bool { return set(db, key)(t.Context()) == nil })

	// One that nobody calls is noticed, too, at the prober's beat.
	for len(up) > 0 {
		<-up
	}
	c.Nodes[1].Pause()
	c.FailOver(1)
	c.Nodes[1].Resume()
	poke(db.prober.hurry)
	await(t, up)
}

func TestSentinel(t *testing.T) {
	s := redistest.NewSentinels(t)
	db := open(t, Options{URL: credential.NewSecret(s.URL())})
	if !db.Healthy() || db.Mode() != "sentinel" {
		t.Fatalf("healthy %t, mode %s", db.Healthy(), db.Mode())
	}
	ctx := t.Context()
	if err := db.Client().Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Master.Client().Get(ctx, "k").Result(); v != "v" || err != nil {
		t.Errorf("the master has %q, %v", v, err)
	}
	up := ups(db)
	s.Master.Pause()
	if err := within(t, set(db, "n")); err == nil || db.Healthy() {
		t.Errorf("a frozen master: %v, healthy %t", err, db.Healthy())
	}
	s.FailOver()
	await(t, up)
	if err := set(db, "n")(ctx); err != nil {
		t.Errorf("after the fail-over: %v", err)
	}
	if n, err := s.Replica.Client().HGet(ctx, "n", "n").Int(); n != 1 || err != nil {
		t.Errorf("the new master has %d, %v", n, err)
	}
}

// A server that was restarted between two commands has failed none of them, and may
// have lost what it had.
func TestRestartIsNoticed(t *testing.T) {
	server := redistest.NewServer(t)
	db := open(t, Options{URL: credential.NewSecret(server.URL())})
	up := ups(db)
	poke(db.prober.hurry)
	server.Stop()
	server.Start()
	poke(db.prober.hurry)
	await(t, up)
	if !db.Healthy() && len(up) == 0 {
		await(t, up)
	}
}

// Sentinels may ask for a login that is not the master's.
func TestSentinelLogin(t *testing.T) {
	s := redistest.NewSentinels(t)
	if err := s.Sentinel.Client().Do(t.Context(), "ACL", "SETUSER", "default", "resetpass", ">theirs").Err(); err != nil {
		t.Fatal(err)
	}
	if db := open(t, Options{URL: credential.NewSecret(s.URL())}); db.Healthy() {
		t.Error("healthy without the sentinel's password")
	}
	if db := open(t, Options{URL: credential.NewSecret(s.URL() + "&sentinel_password=theirs")}); !db.Healthy() {
		t.Error("unhealthy with the sentinel's password")
	}
}
