package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/event"
	"github.com/authpool/authpool/proxy/admin"
)

const (
	// auditFolder holds the audit log in the state folder.
	auditFolder = "audit"
	// auditRoom is how many events may wait to be handed on to it, which has a far
	// larger queue.
	auditRoom = 1024
)

// openAudit begins to write the audit log, in which s.events are, too.
func (s *service) openAudit() error {
	log, err := audit.Open(audit.Options{
		Dir: filepath.Join(s.dir.Path(), auditFolder), Logger: s.log,
		Failing: func(err error) {
			if err != nil {
				s.events.Emit(event.Event{Kind: event.AuditFailing, Text: "The audit log cannot be written: " + err.Error()})
			}
		},
	})
	if err != nil {
		return err
	}
	s.audit = log
	s.log.Info("audit log", "public_key", log.PublicKey())
	events, stop := s.events.Subscribe("audit", auditRoom)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range events {
			log.Event(&e)
		}
	}()
	s.onClose("audit log", func(context.Context) error {
		stop()
		<-done
		return log.Close()
	})
	return nil
}

// auditStart notes that the process serves, with which config.
func (s *service) auditStart(file string) {
	b := readBuild()
	fields := configFields(file)
	fields["version"], fields["commit"], fields["pid"] = b.Version, b.Commit, strconv.Itoa(os.Getpid())
	s.audit.Add(audit.Entry{Kind: audit.ServeStarted, Actor: audit.Operator, Fields: fields})
}

// auditStop notes why the process is about to end.
func (s *service) auditStop(why string) {
	s.audit.Add(audit.Entry{Kind: audit.ServeStopped, Actor: audit.Operator, Fields: map[string]string{"why": why}})
}

// auditReload notes that the config was read again, why, and what came of it.
func (s *service) auditReload(file, why string, changed []string, err error) {
	fields := configFields(file)
	fields["why"], fields["result"] = why, "unchanged"
	switch {
	case err != nil:
		fields["result"], fields["error"] = "refused", err.Error()
	case len(changed) > 0:
		fields["result"], fields["changed"] = "taken over", strings.Join(changed, ", ")
	}
	s.audit.Add(audit.Entry{Kind: audit.ConfigLoaded, Actor: audit.Operator, Fields: fields})
}

// auditStranger notes a request to the admin address without a token that may do what
// was asked for.
func (s *service) auditStranger(remote string, code admin.Code) {
	why := "admin_unauthorized"
	if code == admin.CodeRole {
		why = "admin_role"
	}
	s.audit.Refused(audit.Refusal{Code: why, Remote: remote})
}

// configFields name the config file and the SHA-256 of what is in it now; the
// environment is not written down, because keys are in it.
func configFields(file string) map[string]string {
	if file == "" {
		return map[string]string{"config": "environment"}
	}
	fields := map[string]string{"config": file}
	text, err := os.ReadFile(file)
	if err != nil {
		fields["error"] = err.Error()
		return fields
	}
	sum := sha256.Sum256(text)
	fields["sha256"] = hex.EncodeToString(sum[:])
	return fields
}

// audited writes down what the admin address is asked for and what came of it. It
// implements admin.Roster, admin.Notifier, admin.Sessions, admin.Agents and admin.Sealer.
type audited struct {
	roster   admin.Roster
	notifier admin.Notifier
	sessions admin.Sessions
	agents   admin.Agents
	sealer   admin.Sealer
	log      *audit.Log
}

// Subscriptions implements admin.Roster. Who only looks changes nothing.
func (a audited) Subscriptions(ctx context.Context) ([]admin.SubscriptionRecord, error) {
	return a.roster.Subscriptions(ctx)
}

// AddSubscription implements admin.Roster.
func (a audited) AddSubscription(ctx context.Context, n admin.NewSubscription) (admin.SubscriptionRecord, error) {
	done, err := a.roster.AddSubscription(ctx, n)
	a.noteSubscription(audit.SubscriptionsAdd, n.ID, done, err, map[string]string{"provider": n.Provider})
	return done, err
}

// SwitchSubscription implements admin.Roster.
func (a audited) SwitchSubscription(ctx context.Context, id, to string, version int64) (admin.SubscriptionRecord, error) {
	kind := audit.SubscriptionsEnable
	switch to {
	case admin.SwitchDisabled:
		kind = audit.SubscriptionsDisable
	case admin.SwitchDraining:
		kind = audit.SubscriptionsDrain
	}
	done, err := a.roster.SwitchSubscription(ctx, id, to, version)
	a.noteSubscription(kind, id, done, err, map[string]string{})
	return done, err
}

// RotateSubscription implements admin.Roster.
func (a audited) RotateSubscription(ctx context.Context, id string, secret credential.Secret, version int64) (admin.SubscriptionRecord, error) {
	done, err := a.roster.RotateSubscription(ctx, id, secret, version)
	a.noteSubscription(audit.SubscriptionsRotate, id, done, err, map[string]string{})
	return done, err
}

// RemoveSubscription implements admin.Roster.
func (a audited) RemoveSubscription(ctx context.Context, id string, version int64) (admin.SubscriptionRecord, error) {
	done, err := a.roster.RemoveSubscription(ctx, id, version)
	a.noteSubscription(audit.SubscriptionsRemove, id, done, err, map[string]string{})
	return done, err
}

func (a audited) noteSubscription(kind audit.Kind, id string, done admin.SubscriptionRecord, err error, fields map[string]string) {
	fields["subscription"] = id
	if err == nil && done.Version > 0 {
		fields["version"] = strconv.FormatInt(done.Version, 10)
	}
	a.note(kind, err, fields)
}

// RotateKeys implements admin.Sealer.
func (a audited) RotateKeys(ctx context.Context) (admin.KeysRotated, error) {
	done, err := a.sealer.RotateKeys(ctx)
	fields := map[string]string{}
	if err == nil {
		fields["keys"], fields["added"] = strconv.Itoa(done.Keys), strconv.FormatBool(done.Added)
		fields["resealed"], fields["left"] = strconv.Itoa(done.Resealed), strings.Join(slices.Sorted(maps.Keys(done.Failed)), " ")
	}
	a.note(audit.KeysRotate, err, fields)
	return done, err
}

// TestNotifications implements admin.Notifier.
func (a audited) TestNotifications(ctx context.Context, name string, target int) ([]admin.NotificationTest, error) {
	tests, err := a.notifier.TestNotifications(ctx, name, target)
	fields := map[string]string{"event": name}
	if target >= 0 {
		fields["target"] = strconv.Itoa(target)
	}
	accepted := 0
	for _, test := range tests {
		if test.OK {
			accepted++
		}
	}
	if err == nil {
		fields["accepted"] = fmt.Sprintf("%d of %d", accepted, len(tests))
	}
	a.note(audit.NotificationsSend, err, fields)
	return tests, err
}

// Sessions implements admin.Sessions. Who only looks changes nothing.
func (a audited) Sessions(ctx context.Context, q admin.SessionQuery) (admin.SessionList, error) {
	return a.sessions.Sessions(ctx, q)
}

// MoveSession implements admin.Sessions.
func (a audited) MoveSession(ctx context.Context, name admin.SessionName, to string) (admin.SessionMoved, error) {
	moved, err := a.sessions.MoveSession(ctx, name, to)
	a.note(audit.SessionsMove, err, map[string]string{"session": name.String(), "from": moved.From, "subscription": to})
	return moved, err
}

// ReleaseSession implements admin.Sessions.
func (a audited) ReleaseSession(ctx context.Context, name admin.SessionName) (admin.SessionReleased, error) {
	released, err := a.sessions.ReleaseSession(ctx, name)
	a.note(audit.SessionsRelease, err, map[string]string{"session": name.String(), "from": released.From})
	return released, err
}

// Rebalance implements admin.Sessions. Each move is also told of by an event.
func (a audited) Rebalance(ctx context.Context, dryRun bool) (admin.Rebalanced, error) {
	done, err := a.sessions.Rebalance(ctx, dryRun)
	if !dryRun {
		fields := map[string]string{"moved": strconv.Itoa(len(done.Moves) - done.Failed), "not_moved": strconv.Itoa(done.Failed)}
		a.note(audit.SessionsRebalance, err, fields)
	}
	return done, err
}

// Agents implements admin.Agents.
func (a audited) Agents(ctx context.Context) (admin.AgentList, error) { return a.agents.Agents(ctx) }

// Agent implements admin.Agents.
func (a audited) Agent(ctx context.Context, name string) (admin.Agent, error) {
	return a.agents.Agent(ctx, name)
}

// CreateAgent implements admin.Agents.
func (a audited) CreateAgent(ctx context.Context, agent admin.NewAgent) (admin.AgentCreated, error) {
	created, err := a.agents.CreateAgent(ctx, agent)
	a.note(audit.AgentsCreate, err, changeFields(agent.Name, agent.AgentChange))
	return created, err
}

// LimitAgent implements admin.Agents.
func (a audited) LimitAgent(ctx context.Context, name string, version int64, change admin.AgentChange) (admin.Agent, error) {
	changed, err := a.agents.LimitAgent(ctx, name, version, change)
	a.note(audit.AgentsLimit, err, changeFields(name, change))
	return changed, err
}

// RevokeAgent implements admin.Agents.
func (a audited) RevokeAgent(ctx context.Context, name string, version int64) (admin.AgentRevoked, error) {
	revoked, err := a.agents.RevokeAgent(ctx, name, version)
	a.note(audit.AgentsRevoke, err, map[string]string{"agent": name})
	return revoked, err
}

// changeFields tell what an operator wanted of an agent.
func changeFields(name string, change admin.AgentChange) map[string]string {
	fields := map[string]string{"agent": name}
	for what, value := range map[string]any{
		"expires": change.Expires, "providers": change.Providers, "models": change.Models,
		"subscriptions": change.Subscriptions, "budgets": change.Budgets,
	} {
		text, err := json.Marshal(value)
		if err != nil {
			panic("BUG: a change of an agent cannot be written: " + err.Error())
		}
		if string(text) != "null" {
			fields[what] = string(text)
		}
	}
	return fields
}

func (a audited) note(kind audit.Kind, err error, fields map[string]string) {
	fields["result"] = "done"
	if err != nil {
		fields["result"], fields["error"] = "failed", err.Error()
	}
	a.log.Add(audit.Entry{Kind: kind, Actor: audit.Operator, Fields: fields})
}
