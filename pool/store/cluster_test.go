package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/redisdb"
	"github.com/authpool/authpool/pool/redisdb/redistest"
	"github.com/authpool/authpool/pool/store"
)

// TestLostNode: what lies on the other nodes of a cluster goes on, also for calls
// about many keys, and for those of a replica that takes over and knows no scripts.
func TestLostNode(t *testing.T) {
	c := redistest.NewCluster(t, true)
	db, err := redisdb.Open(ctx, redisdb.Options{URL: credential.NewSecret(c.URL()), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close(ctx) }()
	s := store.New(db.Client(), db.Client(), db, "authpool")
	var subs []string // one on each node
	for i := 0; len(subs) < 3; i++ {
		if sub := fmt.Sprint("sub-", i); c.Owner("{"+sub+"}") == c.Nodes[len(subs)] {
			subs = append(subs, sub)
		}
	}
	lost := 0
	if c.Owner("authpool:events") == c.Nodes[0] {
		lost = 1 // it is not about the hints here
	}

	watching, stop := context.WithCancel(ctx)
	events := make(chan store.Event, 64)
	var wg sync.WaitGroup
	wg.Go(func() { s.Watch(watching, func(e store.Event) { events <- e }) })
	defer wg.Wait()
	defer stop()
	<-events // the connection is new

	all := func() (cooldowns []string, counts []int64, shares []int, bound []string, failed bool) {
		var cool []store.Cooldown
		var bindings []store.Binding
		var requests []store.ShareRequest
		for _, sub := range subs {
			cool = append(cool, store.Cooldown{Subscription: sub, Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Minute})
			bindings = append(bindings, store.Binding{Session: sub, Subscription: sub}) // the same tag, so the same node
			requests = append(requests, store.ShareRequest{Subscription: sub, Limit: 5, Want: 5})
			_, _ = s.Reserve(ctx, sub, "session", 1, time.Minute)
		}
		err1 := s.Cool(ctx, cool)
		list, err2 := cooldownsOf(s, subs...)
		for _, c := range list {
			cooldowns = append(cooldowns, c.Subscription)
		}
		counts, err3 := s.Counts(ctx, subs)
		got, err4 := s.Shares(ctx, "process", requests)
		for _, share := range got {
			shares = append(shares, share.Granted)
		}
		bound, err5 := s.Keep(ctx, bindings, time.Hour)
		failures := 0
		for _, err := range []error{err1, err2, err3, err4, err5} {
			if err != nil {
				failures++
			}
		}
		if failures != 0 && failures != 5 {
			t.Errorf("%v, %v, %v, %v, %v", err1, err2, err3, err4, err5)
		}
		return cooldowns, counts, shares, bound, failures > 0
	}
	check := func(when string, without int) {
		t.Helper()
		cooldowns, counts, shares, bound, failed := all()
		if failed != (without >= 0) || !s.Healthy() {
			t.Errorf("%s: failed %t, healthy %t", when, failed, s.Healthy())
		}
		for i, sub := range subs {
			known := slices.Contains(cooldowns, sub) && counts[i] == 1 && shares[i] == 5 && bound[i] == sub
			unknown := !slices.Contains(cooldowns, sub) && counts[i] == store.Unknown && shares[i] == store.Unknown && bound[i] == ""
			if i == without && !unknown || i != without && !known {
				t.Errorf("%s: %s: cooldowns %v, counts %v, shares %v, bound %v", when, sub, cooldowns, counts, shares, bound)
			}
		}
	}
	check("all there", -1)
	up := make(chan struct{}, 16)
	db.OnUp(func() { up <- struct{}{} })
	c.Nodes[lost].Stop()
	check("a node is lost", lost)
	c.FailOver(lost)
	<-up
	eventually(t, func() bool { _, _, _, _, failed := all(); return !failed })
	check("its replica serves", -1)

	// A hint from any node reaches who listens at another.
	for len(events) > 0 {
		<-events
	}
	if err := s.Cool(ctx, []store.Cooldown{{Subscription: subs[lost], Closure: store.ClosesDomain, State: "cooling", Reason: "window", Wait: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(15 * time.Second)
	for {
		select {
		case e := <-events:
			if e.State == subs[lost] {
				return
			}
		case <-deadline:
			t.Fatal("no hint came")
		}
	}
}
