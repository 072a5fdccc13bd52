package admin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/authpool/authpool/pool/credential"
)

// SubscriptionsPath lists the pool's subscriptions (GET) and adds one (POST). Below
// it, by id, one is told (GET), switched, rotated and removed.
const SubscriptionsPath = "/api/v1/subscriptions"

// SubscriptionPath is where one subscription is told and removed.
func SubscriptionPath(id string) string { return SubscriptionsPath + "/" + url.PathEscape(id) }

// The switches of a subscription. Enable, disable and drain are posted to below its
// path by their names; removing is what DELETE begins.
const (
	SwitchEnabled  = "enabled"
	SwitchDisabled = "disabled" // never offered
	SwitchDraining = "draining" // takes no new sessions
	SwitchRemoving = "removing" // draining, and gone once no session is on it
	SwitchRemoved  = "removed"  // gone, in the answer to DELETE alone
)

// The sources of a subscription.
const (
	SourceFile    = "file"    // the config file, or the environment
	SourceManaged = "managed" // added at run time, kept in Redis
)

// SubscriptionSettings are what an operator may say of a subscription at run time, with
// the keys, defaults and rules of the config file.
type SubscriptionSettings struct {
	Provider string               `json:"provider"`
	Scheme   string               `json:"scheme,omitempty"`   // in which form the secret is sent: api_key (default) or bearer
	Priority *int                 `json:"priority,omitempty"` // lower first; default 1
	Weight   *int                 `json:"weight,omitempty"`   // default 1
	Domain   string               `json:"domain,omitempty"`
	Labels   []string             `json:"labels,omitempty"`
	Models   []string             `json:"models,omitempty"`
	Limits   *SubscriptionLimits  `json:"limits,omitempty"`
	Budgets  []SubscriptionBudget `json:"budgets,omitempty"`
}

// SubscriptionLimits are those of the config file; one that is left out is none.
type SubscriptionLimits struct {
	RequestsPerMinute     *int64 `json:"requests_per_minute,omitempty"`
	InputTokensPerMinute  *int64 `json:"input_tokens_per_minute,omitempty"`
	OutputTokensPerMinute *int64 `json:"output_tokens_per_minute,omitempty"`
	Concurrent            *int64 `json:"concurrent,omitempty"`
	Sessions              *int64 `json:"sessions,omitempty"`
}

// SubscriptionBudget is one of the config file; at least one amount is there.
type SubscriptionBudget struct {
	Window   string   `json:"window"` // block, day, week or month
	CostUSD  *NanoUSD `json:"cost_usd,omitempty"`
	Tokens   *int64   `json:"tokens,omitempty"`
	Requests *int64   `json:"requests,omitempty"`
}

// SecretText is a secret on its way to authpool: JSON carries it, and nothing prints it.
type SecretText string

// Format implements fmt.Formatter.
func (SecretText) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "***") }

// LogValue implements slog.LogValuer.
func (SecretText) LogValue() slog.Value { return slog.StringValue("***") }

// NewSubscription is what SubscriptionsPath is posted.
type NewSubscription struct {
	ID string `json:"id"`
	SubscriptionSettings
	Credential SecretText `json:"credential"`
	Email      string     `json:"email,omitempty"` // whose it is; sealed as the credential is
	Note       string     `json:"note,omitempty"`  // likewise
}

// Rotation is what a rotation is posted: the secret from now on.
type Rotation struct {
	Credential SecretText `json:"credential"`
}

// SubscriptionRecord is what an operator manages of one subscription: what it was told to
// be, and why it is not where it cannot. How it is doing, StatusPath tells.
type SubscriptionRecord struct {
	ID     string `json:"id"`
	Source string `json:"source"` // SourceFile or SourceManaged
	// Version counts the changes at run time, and is the ETag; 0: there was none.
	Version int64  `json:"version"`
	Switch  string `json:"switch"` // enabled, disabled, draining or removing
	SubscriptionSettings
	Credential string     `json:"credential"` // where the secret is: env:NAME or file:PATH, or "sealed"
	Hint       string     `json:"hint"`       // of the secret; "" when it cannot be read
	Email      string     `json:"email"`      // this and Note are "" for a viewer
	Note       string     `json:"note"`
	Shadowed   bool       `json:"shadowed"` // the config file has a subscription of this id, which rules
	Reason     string     `json:"reason"`   // why it cannot be used whatever its switch says, one sentence; else ""
	Created    *time.Time `json:"created"`  // null for those of the config file
	Changed    *time.Time `json:"changed"`  // at run time, last; null: never
	State      string     `json:"state"`    // how it is, as StatusPath tells: in lists, and "" for what is shadowed
}

// RecordVersion implements Versioned.
func (r SubscriptionRecord) RecordVersion() int64 { return r.Version }

// Roster keeps what the pool consists of. It must be safe for concurrent use. An error
// that is a RefusedError is the operator's own; any other means that Redis did not
// answer. Where a version is named, another one refuses by a StaleError.
type Roster interface {
	// Subscriptions tells all, by id; a managed one that is shadowed stands behind the
	// one that rules.
	Subscriptions(ctx context.Context) ([]SubscriptionRecord, error)
	AddSubscription(ctx context.Context, n NewSubscription) (SubscriptionRecord, error)
	// SwitchSubscription sets a switch to one of SwitchEnabled, SwitchDisabled and
	// SwitchDraining; enabling ends the cooldowns, too.
	SwitchSubscription(ctx context.Context, id, to string, version int64) (SubscriptionRecord, error)
	RotateSubscription(ctx context.Context, id string, secret credential.Secret, version int64) (SubscriptionRecord, error)
	RemoveSubscription(ctx context.Context, id string, version int64) (SubscriptionRecord, error)
}

func (s *Server) subscriptionRoutes() []route {
	one := SubscriptionsPath + "/{id}"
	return []route{
		{"GET", SubscriptionsPath, Viewer, "List the subscriptions as they are managed", nil, []SubscriptionRecord{}, s.listSubscriptions},
		{"GET", one, Viewer, "Tell how a subscription is managed", nil, SubscriptionRecord{}, s.showSubscription},
		{"POST", SubscriptionsPath, Operator, "Add a subscription", NewSubscription{}, SubscriptionRecord{}, s.addSubscription},
		{"POST", one + "/enable", Operator, "Let a subscription serve, and end its cooldowns", nil, SubscriptionRecord{}, s.switchSubscription(SwitchEnabled)},
		{"POST", one + "/disable", Operator, "Let a subscription serve nobody", nil, SubscriptionRecord{}, s.switchSubscription(SwitchDisabled)},
		{"POST", one + "/drain", Operator, "Let a subscription take no new sessions", nil, SubscriptionRecord{}, s.switchSubscription(SwitchDraining)},
		{"POST", one + "/rotate", Operator, "Give a managed subscription another secret", Rotation{}, SubscriptionRecord{}, s.rotateSubscription},
		{"DELETE", one, Operator, "Remove a managed subscription once its sessions have ended", nil, SubscriptionRecord{}, s.removeSubscription},
	}
}

func (s *Server) listSubscriptions(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "cannot list the subscriptions", func(ctx context.Context) ([]SubscriptionRecord, error) {
		list, err := s.records(ctx)
		if list == nil {
			list = []SubscriptionRecord{}
		}
		return list, err
	})
}

func (s *Server) showSubscription(w http.ResponseWriter, r *http.Request) {
	carry(s, w, r, "cannot tell the subscription", func(ctx context.Context) (SubscriptionRecord, error) {
		list, err := s.records(ctx)
		if err != nil {
			return SubscriptionRecord{}, err
		}
		for _, one := range list {
			if one.ID == r.PathValue("id") {
				return one, nil
			}
		}
		return SubscriptionRecord{}, NoSubscription(r.PathValue("id"))
	})
}

// records are all of them. What tells of people is for operators.
func (s *Server) records(ctx context.Context) ([]SubscriptionRecord, error) {
	list, err := s.roster.Subscriptions(ctx)
	if roleOf(ctx) >= Operator {
		return list, err
	}
	list = slices.Clone(list)
	for i := range list {
		list[i].Email, list[i].Note = "", ""
	}
	return list, err
}

// NoSubscription refuses an id that nobody has.
func NoSubscription(id string) error {
	if len(id) > 64 {
		id = id[:64] + "…"
	}
	return &RefusedError{Status: http.StatusNotFound, Err: fmt.Errorf("there is no subscription %q", id)}
}

func (s *Server) addSubscription(w http.ResponseWriter, r *http.Request) {
	var n NewSubscription
	if !decode(w, r, &n) {
		return
	}
	carry(s, w, r, "the subscription may not have been added", func(ctx context.Context) (SubscriptionRecord, error) {
		return s.roster.AddSubscription(ctx, n)
	})
}

func (s *Server) switchSubscription(to string) http.HandlerFunc {
	failed := "the subscription may not be " + to
	if to == SwitchEnabled {
		failed = "enabled in this process only"
	}
	return func(w http.ResponseWriter, r *http.Request) {
		version, ok := ifMatch(w, r)
		if !ok {
			return
		}
		carry(s, w, r, failed, func(ctx context.Context) (SubscriptionRecord, error) {
			return s.roster.SwitchSubscription(ctx, r.PathValue("id"), to, version)
		})
	}
}

func (s *Server) rotateSubscription(w http.ResponseWriter, r *http.Request) {
	version, ok := ifMatch(w, r)
	if !ok {
		return
	}
	var n Rotation
	if !decode(w, r, &n) {
		return
	}
	carry(s, w, r, "the secret may not have been replaced", func(ctx context.Context) (SubscriptionRecord, error) {
		return s.roster.RotateSubscription(ctx, r.PathValue("id"), credential.NewSecret(string(n.Credential)), version)
	})
}

func (s *Server) removeSubscription(w http.ResponseWriter, r *http.Request) {
	version, ok := ifMatch(w, r)
	if !ok {
		return
	}
	carry(s, w, r, "the subscription may not be removing", func(ctx context.Context) (SubscriptionRecord, error) {
		return s.roster.RemoveSubscription(ctx, r.PathValue("id"), version)
	})
}
