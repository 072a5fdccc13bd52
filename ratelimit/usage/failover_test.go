package usage_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/ratelimit/usage"
)

// remote is a recorder that brings usage to a Redis as the product does.
type remote struct {
	t        *testing.T
	db       *redisdb.DB
	store    *usage.Store
	recorder *usage.Recorder
	alarms   *alarms
	added    map[string]int
}

func startRemote(t *testing.T, url string) *remote {
	t.Helper()
	db, err := redisdb.Open(t.Context(), redisdb.Options{URL: credential.NewSecret(url), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r := &remote{t: t, db: db, store: usage.NewStore(db.Client(), "authpool"), added: map[string]int{}}
	r.recorder, r.alarms = start(t, filepath.Join(t.TempDir(), "journal"), r.store)
	db.OnUp(r.recorder.Verify)
	return r
}

// add records n events of each subscription.
func (r *remote) add(n int, subs ...string) {
	r.t.Helper()
	for _, sub := range subs {
		add(r.t, r.recorder, sub, n)
		r.added[sub] += n
	}
}

// try lets the recorder send for a moment what it may not be able to.
func (r *remote) try() {
	ctx, cancel := context.WithTimeout(r.t.Context(), 50*time.Millisecond)
	defer cancel()
	r.recorder.Flush(ctx) //nolint:errcheck // see above
}

// wantAll waits until Redis has what was added, and then wants it in every sum
// exactly once, without an alarm.
func (r *remote) wantAll() {
	r.t.Helper()
	flush(r.t, r.recorder)
	eventually(r.t, r.recorder, func() bool {
		sums, err := r.store.Usage(r.t.Context(), usage.Query{By: usage.BySubscription}, epoch)
		if err != nil || len(sums) != len(r.added) {
			return false
		}
		for _, row := range sums {
			if row.Requests < int64(r.added[row.Key]) {
				return false
			}
		}
		return true
	})
	var want int64
	for _, n := range r.added {
		want += int64(n)
	}
	for _, by := range []usage.By{usage.BySubscription, usage.ByModel, usage.ByDay, usage.ByBlock, usage.ByAgent, usage.BySession} {
		rows, err := r.store.Usage(r.t.Context(), usage.Query{By: by}, epoch)
		var got usage.Counts
		for _, row := range rows {
			got.Add(row.Counts)
		}
		if err != nil || got.Requests != want || got.Output != 2*want || got.CostNanoUSD != 6*want {
			r.t.Errorf("by %s: %+v, %v; want %d requests", by, got, err, want)
		}
	}
	for sub, n := range r.added {
		month, err := r.db.Client().HGet(r.t.Context(), "authpool:{"+sub+"}:month:2096-02", "requests").Int()
		now, err2 := r.db.Client().HGet(r.t.Context(), "authpool:{"+sub+"}:now", "requests").Int()
		if month != n || now != n || err != nil || err2 != nil {
			r.t.Errorf("%s: the month has %d, its block %d, want %d", sub, month, now, n)
		}
	}
	r.alarms.want(r.t)
}

// subscriptionOn returns the id of a subscription that a node serves.
func subscriptionOn(t *testing.T, c *redistest.Cluster, node *redistest.Server) string {
	t.Helper()
	for i := range 100 {
		if sub := fmt.Sprint("team-", i); c.Owner("{"+sub+"}") == node {
			return sub
		}
	}
	t.Fatal("a node of three serves none of 100 subscriptions")
	return ""
}

// TestSlotMoves: a subscription's slot goes to another node, key by key, while its
// answers are counted.
func TestSlotMoves(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, false)
	r := startRemote(t, c.URL())
	sub, other := subscriptionOn(t, c, c.Nodes[0]), subscriptionOn(t, c, c.Nodes[1])
	r.add(30, sub, other)
	flush(t, r.recorder)
	steps := 0
	for _, to := range []*redistest.Server{c.Nodes[1], c.Nodes[2], c.Nodes[0]} {
		c.Move("{"+sub+"}", to, func(int) {
			steps++
			r.add(3, sub, other)
			r.try()
		})
		r.wantAll()
	}
	if steps < 12 {
		t.Errorf("the slot moved in %d steps", steps)
	}
}

// TestCountWaitsForItsSlot: each event is sent, again if need be, at every step of a
// move. It is counted in all sums or in none.
func TestCountWaitsForItsSlot(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, false)
	store := usage.NewStore(c.Client(), "authpool")
	next := int64(1)
	send := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		// Not all of the same day, so that some keys are new while the slot moves.
		res, err := store.Apply(ctx, batch(next, event(time.Duration(next)*time.Hour)))
		if err != nil {
			return false
		}
		next = res.Last + 1
		return true
	}
	mustSend := func() {
		t.Helper()
		for tries := 0; !send(); tries++ {
			if tries == 200 {
				t.Fatal("the slot does not move, and nothing is counted")
			}
		}
	}
	mustSend()
	from := slices.Index(c.Nodes, c.Owner("{team-a}"))
	for i := 1; i <= 3; i++ {
		c.Move("{team-a}", c.Nodes[(from+i)%3], func(int) { send() })
		mustSend()
	}
	for _, by := range []usage.By{usage.BySubscription, usage.ByModel, usage.ByDay, usage.ByBlock, usage.ByAgent, usage.BySession} {
		rows, err := store.Usage(t.Context(), usage.Query{By: by}, epoch)
		var got usage.Counts
		for _, row := range rows {
			got.Add(row.Counts)
		}
		if err != nil || got.Requests != next-1 {
			t.Errorf("by %s: %d requests, %v; want %d", by, got.Requests, err, next-1)
		}
	}
}

// TestReplicaTakesOver: a master is killed with writes that its replica has not
// received, first that of a subscription, then that of the list of all.
func TestReplicaTakesOver(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, true)
	r := startRemote(t, c.URL())
	subs := []string{subscriptionOn(t, c, c.Nodes[0]), subscriptionOn(t, c, c.Nodes[1]), subscriptionOn(t, c, c.Nodes[2])}
	r.add(20, subs...)
	flush(t, r.recorder)
	list := slices.Index(c.Nodes, c.Owner("authpool:subscriptions"))
	for _, i := range []int{(list + 1) % 3, list} {
		cutOff(t, c.Nodes[i], c.Nodes[i+3])
		r.add(40, subs...)
		r.add(7, fmt.Sprint("new-", i))
		flush(t, r.recorder)
		c.Nodes[i].Stop()
		r.add(5, subs[(i+1)%3]) // the other two are idle from now on
		r.try()
		c.Nodes[i+3].Resume()
		c.FailOver(i)
		r.wantAll()
	}
}

// cutOff freezes a replica and takes what it has not received yet away from it.
func cutOff(t *testing.T, master, replica *redistest.Server) {
	t.Helper()
	replica.Pause()
	if err := master.Client().Do(t.Context(), "CLIENT", "KILL", "TYPE", "replica").Err(); err != nil {
		t.Fatal(err)
	}
}

// TestNodeFreezes: what is of its slots waits, the rest is counted meanwhile.
func TestNodeFreezes(t *testing.T) {
	t.Parallel()
	c := redistest.NewCluster(t, false)
	r := startRemote(t, c.URL())
	frozen, well := subscriptionOn(t, c, c.Nodes[0]), subscriptionOn(t, c, c.Nodes[1])
	r.add(20, frozen, well)
	flush(t, r.recorder)
	c.Nodes[0].Pause()
	r.add(250, frozen, well)
	for deadline := time.Now().Add(30 * time.Second); r.recorder.Pending() != 250; r.try() {
		if time.Now().After(deadline) {
			t.Fatalf("%d events wait, want the 250 of the frozen node", r.recorder.Pending())
		}
	}
	wantCounted(t, r.db.Client(), well, 270)
	c.Nodes[0].Resume()
	r.wantAll()
}

// TestSentinelFailsOver: the same for a master that sentinels name, frozen and not
// killed, so that it still takes writes when it wakes.
func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	s := redistest.NewSentinels(t)
	r := startRemote(t, s.URL())
	r.add(20, "team-a", "team-idle")
	flush(t, r.recorder)
	cutOff(t, s.Master, s.Replica)
	r.add(120, "team-a", "team-idle", "team-new")
	flush(t, r.recorder)
	s.Master.Pause()
	r.add(5, "team-a")
	s.Replica.Resume()
	s.FailOver()
	s.Master.Resume()
	r.wantAll()
	if role, err := s.Replica.Client().Do(t.Context(), "ROLE").Slice(); err != nil || role[0] != "master" {
		t.Errorf("the role of the new master is %v, %v", role, err)
	}
	if n, err := s.Replica.Client().HGet(t.Context(), "authpool:{team-a}:month:2096-02", "requests").Int(); n != 145 || err != nil {
		t.Errorf("the new master has %d events, %v", n, err)
	}
}
