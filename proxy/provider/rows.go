package provider

import (
	"strings"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// classifierRow is one signal: how it is recognised and what it means.
type classifierRow struct {
	name    string
	when    func(*signs) bool
	verdict ratelimit.Verdict          // without Wait, Row and Windows
	wait    func(*signs) time.Duration // nil: the answer states no end
}

// Outcomes of rows; the constants of ratelimit explain them.
var (
	toAgent    = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonRefused, Scope: ratelimit.ScopeRequest}
	notFound   = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonNotFound, Scope: ratelimit.ScopeRequest}
	notAllowed = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonPermission, Scope: ratelimit.ScopeRequest}
	tooLarge   = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonRequest, Scope: ratelimit.ScopeRequest}

	throttled   = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel}
	windowFull  = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonWindow, Scope: ratelimit.ScopeSubscription}
	modelWindow = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonWindow, Scope: ratelimit.ScopeModel}

	noCredit   = ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonCredit, Scope: ratelimit.ScopeSubscription}
	spendLimit = ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonSpendLimit, Scope: ratelimit.ScopeSubscription}

	noCapacity = ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel}
	failed     = ratelimit.Verdict{Signal: ratelimit.ServerError, Reason: ratelimit.ReasonUpstream, Scope: ratelimit.ScopeSubscription}

	badCredential = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription}
	disabled      = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonPermission, Scope: ratelimit.ScopeSubscription}
	// forbidden says nothing about other requests of the subscription.
	forbiddenHere = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonPermission, Scope: ratelimit.ScopeRequest}
)

// rows is the table; each row names the source of its signal. What is
// specific stands before what is general, and the first match decides. Codes
// are believed before types, types before statuses, and a message only where
// nothing else tells: providers quote requests in messages, so that a message
// closes a subscription only at its own provider and by how it begins.
var rows = []classifierRow{
	// Errors that look like one thing by their status and are another.

	// Anthropic: 400 with the text "You have reached your specified (workspace)
	// API usage limits. You will regain access on DATE".
	{"anthropic-usage-limit", func(s *signs) bool {
		return s.Family == Anthropic && s.begins("you have reached your specified ") && s.says("usage limit")
	}, spendLimit, untilDateInText},
	// Anthropic: 400 "Your credit balance is too low" (anthropics/claude-code#4207).
	{"anthropic-credit-balance", func(s *signs) bool {
		return s.Family == Anthropic && s.begins("your credit balance is too low")
	}, noCredit, nil},
	// Anthropic: 400 or 403 error_codes that close a whole organisation
	// (anthropic-sdk-typescript shared.d.ts).
	{"anthropic-on-hold", func(s *signs) bool {
		return s.is("organization_on_hold", "claude_code_key_creator_not_member", "cmek_key_disabled")
	}, disabled, nil},
	// Anthropic: about the agent's own user profile, not about the key.
	{"anthropic-linked-organization", func(s *signs) bool {
		return strings.HasPrefix(s.detail, "linked_organization_")
	}, toAgent, nil},
	// Anthropic: file storage is full; other calls go on.
	{"anthropic-storage-quota", func(s *signs) bool { return s.is("storage_quota_exceeded") }, toAgent, nil},
	// Anthropic: 429 without an end; the tier's limit reopens with the month
	// (shared.d.ts).
	{"anthropic-spend-limit", func(s *signs) bool {
		return s.is("enforced_spend_limit_reached", "contract_spend_limit_reached")
	}, spendLimit, func(s *signs) time.Duration { return until(nextMonth(s.clock(s.now)), s.clock(s.now)) }},
	// Anthropic: 503 of the customer's own key store: this workspace alone is
	// closed.
	{"anthropic-key-store", func(s *signs) bool { return strings.HasPrefix(s.detail, "cmek_") }, failed, orOne(time.Minute)},

	// Anthropic's subscriptions: a window is used up. A claim or window of one
	// family of models closes that alone (Claude Code's client).
	{"anthropic-window-model", func(s *signs) bool { return s.Status == 429 && s.unifiedRejected() && s.unifiedModel() }, modelWindow, unifiedWait},
	{"anthropic-window", func(s *signs) bool { return s.Status == 429 && s.unifiedRejected() }, windowFull, unifiedWait},

	// ChatGPT plans (openai/codex api_bridge.rs, rate_limits.rs).
	{"codex-credits", func(s *signs) bool { return strings.HasSuffix(string(s.codexReached), "_credits_depleted") }, noCredit, nil},
	{"codex-plan", func(s *signs) bool { return s.is("usage_not_included") }, disabled, nil},
	{"codex-window-model", func(s *signs) bool {
		return s.is("usage_limit_reached") && s.codexModel()
	}, modelWindow, codexWait},
	{"codex-window", func(s *signs) bool { return s.is("usage_limit_reached") }, windowFull, codexWait},

	// OpenRouter: 402 for three different things, told apart by limit_source
	// (OpenRouter's documentation of errors).
	{
		"openrouter-in-flight", func(s *signs) bool { return s.limitSource == "openrouter_in_flight_budget" },
		ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeSubscription},
		(*signs).wait,
	},
	{"openrouter-key-limit", func(s *signs) bool { return s.limitSource == "openrouter_key_limit" }, spendLimit, nil},
	// OpenRouter: 403 with reasons is its moderation of the input.
	{"openrouter-moderation", func(s *signs) bool { return s.Status == 403 && s.moderated }, toAgent, nil},

	// OpenAI: 429 for money; waiting does not help (openai error codes guide,
	// Microsoft Learn).
	{"openai-spend-limit", func(s *signs) bool {
		return s.is("organization_spend_limit_exceeded", "project_spend_limit_exceeded",
			"organization_usage_limit_exceeded", "billing_hard_limit_reached")
	}, spendLimit, nil},
	{"openai-quota", func(s *signs) bool {
		return s.is("insufficient_quota", "credit_balance_exhausted", "billing_not_active")
	}, noCredit, nil},
	// OpenAI: 403 by where the request comes from, whatever the key.
	{"openai-region", func(s *signs) bool { return s.is("unsupported_country_region_territory") }, notAllowed, nil},
	// xAI: 403 when the team's credits are used up.
	{"xai-credits", func(s *signs) bool {
		return s.Provider == "xai" && s.Status == 403 && s.says("credits")
	}, noCredit, nil},
	// Fireworks: 412 when the account is suspended for billing.
	{"fireworks-suspended", func(s *signs) bool {
		return s.Provider == "fireworks" && s.Status == 412 && s.says("suspend")
	}, noCredit, nil},

	// Gemini: 400 for a key that is none, 403 for a project that may not
	// (googleapis error reasons; gemini-cli googleQuotaErrors.ts).
	{"gemini-key", func(s *signs) bool {
		return s.is("API_KEY_INVALID") || s.Family == Gemini && s.Status == 400 && s.begins("api key expired")
	}, badCredential, nil},
	{"gemini-disabled", func(s *signs) bool {
		return s.is("SERVICE_DISABLED", "BILLING_DISABLED", "CONSUMER_INVALID", "CONSUMER_SUSPENDED", "VALIDATION_REQUIRED") ||
			strings.HasPrefix(s.reason, "API_KEY_") && strings.HasSuffix(s.reason, "_BLOCKED")
	}, disabled, nil},
	{"gemini-credits", func(s *signs) bool { return s.is("INSUFFICIENT_G1_CREDITS_BALANCE") }, noCredit, nil},
	{"gemini-capacity", func(s *signs) bool { return s.is("MODEL_CAPACITY_EXHAUSTED") }, noCapacity, (*signs).wait},
	{"gemini-day", func(s *signs) bool {
		return s.Status == 429 && (strings.Contains(s.quotaIDs, "PerDay") || strings.Contains(s.quotaIDs, "Daily"))
	}, modelWindow, pacificMidnight},
	// Gemini: somebody else's file, told as a permission (python-genai#1218).
	{"gemini-file", func(s *signs) bool { return s.Status == 403 && s.says("permission to access the file") }, notFound, nil},

	// Limits, from the request's own size to the provider's.
	{"request-too-large", func(s *signs) bool { return s.Status == 413 || s.is("request_too_large") }, tooLarge, nil},
	// OpenAI, Groq: 429 for one request that is larger than the whole limit.
	{"openai-request-too-large", func(s *signs) bool {
		return s.Status == 429 && (s.says("request too large") || requestedOverLimit(s.message))
	}, tooLarge, nil},
	// Azure: 429 that is the region's load (Microsoft Learn).
	{"azure-high-demand", func(s *signs) bool {
		return s.Status == 429 && s.says("high demand") && s.upstream == "" && !s.says("rate limit")
	}, noCapacity, (*signs).wait},
	// Counting tokens, batches and files have limits of their own
	// (Anthropic's rate limits guide): nothing else is closed by them.
	{
		"throttled-beside", func(s *signs) bool {
			return s.Status == 429 && s.Endpoint != nil && (!s.Endpoint.Billable() || s.Endpoint.API.Items())
		},
		ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeRequest},
		(*signs).wait,
	},
	{"throttled", func(s *signs) bool { return s.Status == 429 }, throttled, (*signs).wait},

	// No capacity: no subscription's fault, and another would not help.
	// Anthropic 529, and in streams; OpenAI 503 server_is_overloaded, slow_down;
	// Groq 498 capacity_exceeded; Gemini 503.
	{"overloaded", func(s *signs) bool {
		return s.Status == 529 || s.Status == 503 || s.Status == 498 ||
			s.is("overloaded_error", "server_is_overloaded", "compaction_unavailable", "capacity_exceeded")
	}, noCapacity, (*signs).wait},

	// The credential.
	{"unauthorized", func(s *signs) bool {
		return s.Status == 401 || s.is("authentication_error", "invalid_api_key") && s.Status == 403
	}, badCredential, nil},
	{"oauth-revoked", func(s *signs) bool {
		return s.Family == Anthropic && s.Status == 403 && s.begins("oauth token has been revoked")
	}, badCredential, nil},
	{"payment-required", func(s *signs) bool { return s.Status == 402 || s.is("billing_error") }, noCredit, nil},
	{"forbidden", func(s *signs) bool { return s.Status == 403 }, forbiddenHere, nil},

	// The rest by its status alone.
	{"not-found", func(s *signs) bool { return s.Status == 404 || s.Status == 410 }, notFound, nil},
	{"request-timeout", func(s *signs) bool { return s.Status == 408 }, failed, (*signs).wait},
	{"client-error", func(s *signs) bool { return s.Status < 500 }, toAgent, nil},
	{"server-error", func(*signs) bool { return true }, failed, (*signs).wait},
}

// untilDateInText waits for the date that a message names.
func untilDateInText(s *signs) time.Duration {
	if t, ok := dateInText(s.message); ok {
		return until(t, s.clock(s.now))
	}
	return s.wait()
}

// orOne waits as told, else for d.
func orOne(d time.Duration) func(*signs) time.Duration {
	return func(s *signs) time.Duration {
		if s.isTold {
			return s.told
		}
		return d
	}
}

// unifiedRejected tells whether a usage window of an Anthropic subscription
// refused the request.
func (s *signs) unifiedRejected() bool {
	if string(s.unifiedStatus) == "rejected" {
		return true
	}
	for i := range s.list[:s.count] {
		if s.list[i].kind == windowLimit && string(s.list[i].status) == "rejected" {
			return true
		}
	}
	return false
}

// unifiedModel tells whether only windows of one family of models refused. The
// representative claim says so, else the windows' names do.
func (s *signs) unifiedModel() bool {
	if len(s.unifiedClaim) > 0 {
		return strings.HasPrefix(string(s.unifiedClaim), "seven_day_")
	}
	rejected := false
	for i := range s.list[:s.count] {
		w := &s.list[i]
		if w.kind != windowLimit || !w.exhausted() {
			continue
		}
		if !strings.Contains(w.name, "_") {
			return false
		}
		rejected = true
	}
	return rejected
}

// unifiedWait waits for the latest reset of the windows that are used up, and
// not less than retry-after says.
func unifiedWait(s *signs) time.Duration {
	wait := s.wait()
	if d, ok := ParseWait(string(s.unifiedReset), s.clock(s.now)); ok && d > 0 {
		wait = max(wait, d)
	}
	if d, ok := s.exhaustedWait(s.now, windowLimit); ok {
		wait = max(wait, d)
	}
	return wait
}

// codexModel tells whether the limit that refused is one model's own.
func (s *signs) codexModel() bool {
	switch string(s.codexActive) {
	case "", "codex", "premium":
		return false
	}
	return true
}

// codexWait waits for the reset that the error names, else for that of the
// windows that are used up.
func codexWait(s *signs) time.Duration {
	for _, text := range [...]string{s.resetsAt, s.resetsIn} {
		if d, ok := ParseWait(text, s.clock(s.now)); ok && d > 0 {
			return d
		}
	}
	if d, ok := s.exhaustedWait(s.now, codexLimit); ok {
		return d
	}
	return s.wait()
}

// pacificMidnight waits for the day's end in California, when Gemini's daily
// quotas reopen, and not less than told: the stated delay can be too short.
func pacificMidnight(s *signs) time.Duration {
	clock := s.clock(s.now)
	// UTC-8 the year round: in summer an hour late, which one probe costs less
	// than a time zone database.
	pacific := clock.In(time.FixedZone("PST", -8*60*60))
	midnight := time.Date(pacific.Year(), pacific.Month(), pacific.Day()+1, 0, 0, 0, 0, pacific.Location())
	return max(s.wait(), until(midnight, clock))
}

// requestedOverLimit tells whether a message says that the request alone wants
// more than the limit: "Limit 7000, Used 0, Requested ~12903".
func requestedOverLimit(message string) bool {
	limit, ok1 := numberAfter(message, "Limit ")
	requested, ok2 := numberAfter(message, "Requested ")
	return ok1 && ok2 && requested > limit
}

func numberAfter(message, word string) (float64, bool) {
	_, after, ok := strings.Cut(message, word)
	if !ok {
		return 0, false
	}
	n, _ := number(strings.TrimPrefix(after, "~"))
	return n, n >= 0
}
