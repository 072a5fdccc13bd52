package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/ratelimit/usage"
)

// TestConfigKnowsTheEvents holds the config's names equal to the kinds.
func TestConfigKnowsTheEvents(t *testing.T) {
	var kinds []string
	for _, k := range event.Kinds() {
		kinds = append(kinds, string(k))
	}
	if names := config.Events(); !slices.Equal(names, kinds) {
		t.Errorf("config.Events() are\n%v\nthe kinds are\n%v", names, kinds)
	}
}

func TestRedisLostAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up atomic.Bool
		var told []event.Kind
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			tellRedis(ctx, up.Load, func(e event.Event) { told = append(told, e.Kind) })
		}()
		time.Sleep(10 * time.Second) // away from the start
		up.Store(true)
		time.Sleep(10 * time.Second)
		up.Store(false)
		time.Sleep(10 * time.Second)
		stop()
		<-done
		if want := []event.Kind{event.RedisLost, event.RedisBack, event.RedisLost}; !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
	})
}

func TestUsageAlarmsAreEvents(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind event.Kind
	}{
		{usage.ErrNearlyFull, event.JournalFilling},
		{usage.ErrJournalFull, event.JournalFull},
		{syscall.ENOSPC, event.JournalFull},
		{usage.ErrWaiting, event.UsageWaiting},
		{usage.ErrLost, event.UsageDoubtful},
		{usage.ErrFenced, event.UsageDoubtful},
		{usage.ErrGap, event.UsageDoubtful},
	} {
		e := usageAlarm(fmt.Errorf("7 events of team-a: %w", c.err))
		if e.Kind != c.kind || e.Text == "" {
			t.Errorf("%v is %s %q, want %s", c.err, e.Kind, e.Text, c.kind)
		}
	}
}
