package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/authpool/authpool/config"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/pool/notify"
	"github.com/authpool/authpool/pool/store"
	"github.com/authpool/authpool/ratelimit/usage"
)

// notificationsFolder holds in the state folder what webhooks are still to be told.
const notificationsFolder = "notifications"

// redisEvery is how often Redis' health is looked at for events.
const redisEvery = time.Second

// openNotifications begins to tell the webhooks of the config what s.events tells.
func (s *service) openNotifications(ctx context.Context) error {
	targets, err := notificationTargets(ctx, s.cfg)
	if err != nil {
		return err
	}
	if err := s.tellTargets(targets); err != nil {
		return err
	}
	s.onClose("notifications", func(ctx context.Context) error { return s.notifier.Load().Close(ctx) })
	return nil
}

// notificationTargets are the webhooks of a config. Their secrets are resolved here and
// nowhere else.
func notificationTargets(ctx context.Context, c *config.Config) ([]notify.Target, error) {
	targets := make([]notify.Target, len(c.Notifications))
	for i, n := range c.Notifications {
		targets[i] = notify.Target{
			URL: n.URL, Events: n.Events, Format: notificationFormat(n), Pin: n.PinSHA256, AllowPrivate: n.AllowPrivate,
		}
		if n.Secret == "" {
			continue
		}
		secret, err := resolve(ctx, n.Secret)
		if err == nil && secret.Empty() {
			err = errors.New("it is empty, and anybody could sign")
		}
		if err != nil {
			return nil, fmt.Errorf("notifications[%d].secret: %w", i, err)
		}
		targets[i].Secret = secret
	}
	return targets, nil
}

// tellTargets begins to tell them what s.events tells.
func (s *service) tellTargets(targets []notify.Target) error {
	folder := filepath.Join(s.dir.Path(), notificationsFolder)
	notifier, err := notify.Open(notify.Options{Folder: folder, Claim: s.claims.claim, Logger: s.log}, targets, &s.events)
	if err != nil {
		return err
	}
	s.targets = targets
	s.notifier.Store(notifier)
	return nil
}

// renewNotifications tells other webhooks from now on. What waits for one that is
// still there is sent by its successor; an event of the moment between is told to none.
func (s *service) renewNotifications(ctx context.Context, targets []notify.Target) error {
	before := s.targets
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	if err := s.notifier.Load().Close(ctx); err != nil {
		return err
	}
	err := s.tellTargets(targets)
	if err != nil {
		err = errors.Join(err, s.tellTargets(before))
	}
	return err
}

// renewTime is how long what is queued may take to be sent before others are told; the
// rest waits on the disk.
const renewTime = 200 * time.Millisecond

// claims let one process of a fleet tell of what all of them see: that a budget or a
// window has reached a level. The others see it within a second, and a process that
// was restarted sees it again.
type claims struct{ store atomic.Pointer[store.Store] }

const (
	// claimTime bounds one question to Redis.
	claimTime = 2 * time.Second
	// claimSlack is by how much processes may differ about a window's reset, which
	// some providers tell as a wait.
	claimSlack = 10 * time.Minute
	// claimMost is how long a claim is kept at most: beyond the longest budget.
	claimMost = 32 * 24 * time.Hour
)

// claim is for notify.Options. While Redis does not answer each process tells.
func (c *claims) claim(e event.Event) bool {
	s := c.store.Load()
	if e.Window == "" || e.Until.IsZero() || s == nil || !s.Healthy() {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), claimTime)
	defer cancel()
	resets := e.Until.Round(claimSlack)
	name := fmt.Sprintf("%s:%s:%d", e.Kind, e.Window, resets.Unix())
	first, err := s.Claim(ctx, e.Subscription, name, min(time.Until(resets.Add(claimSlack)), claimMost))
	return first || err != nil
}

func notificationFormat(n config.Notification) notify.Format {
	if n.Format == "" {
		return notify.JSON
	}
	return notify.Format(n.Format)
}

// watchRedis tells events when Redis is lost and when it is back, until close.
func (s *service) watchRedis() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tellRedis(ctx, s.db.Healthy, s.events.Emit)
	}()
	s.onClose("watch over redis", func(context.Context) error {
		stop()
		<-done
		return nil
	})
}

// tellRedis looks at Redis' health until ctx ends. A Redis that is away from the
// start is lost, too.
func tellRedis(ctx context.Context, healthy func() bool, emit func(event.Event)) {
	tick := time.NewTicker(redisEvery)
	defer tick.Stop()
	for was := true; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		is := healthy()
		switch {
		case was && !is:
			emit(event.Event{Kind: event.RedisLost, Text: "Redis does not answer: traffic goes on from memory, usage waits in the journal"})
		case is && !was:
			emit(event.Event{Kind: event.RedisBack, Text: "Redis answers again"})
		}
		was = is
	}
}

// usageAlarm is the event of what the recorder wants a person to know.
func usageAlarm(err error) event.Event {
	e := event.Event{Kind: event.UsageDoubtful, Text: err.Error()}
	switch {
	case errors.Is(err, usage.ErrNearlyFull):
		e.Kind = event.JournalFilling
	case errors.Is(err, usage.ErrJournalFull), errors.Is(err, syscall.ENOSPC):
		e.Kind = event.JournalFull
	case errors.Is(err, usage.ErrWaiting):
		e.Kind = event.UsageWaiting
	}
	return e
}
