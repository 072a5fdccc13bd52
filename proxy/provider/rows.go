package provider

import (
	"strings"
	"time"

	"github.com/authpool/authpool/ratelimit"
)

// classifierRow is one signal: how it is recognised and what it means. What is
// text stands in the public table (SIGNALS.md) and in `authpool
// explain-response`.
type classifierRow struct {
	name    string
	sign    string // what the answer looks like
	source  string // where that is known from
	when    func(*signs) bool
	verdict ratelimit.Verdict // without Wait, Row and Windows
	end     *ending           // nil: the answer states no end
}

// ending is how a row finds when the scope opens again.
type ending struct {
	text string
	wait func(*signs) time.Duration // negative: not stated
}

// Endings of rows.
var (
	asTold       = &ending{"as told", (*signs).wait}
	byDateInText = &ending{"the date in the text", untilDateInText}
	monthEnd     = &ending{"the month's end, UTC", func(s *signs) time.Duration {
		return until(nextMonth(s.clock(s.now)), s.clock(s.now))
	}}
	hourOrTold = &ending{"as told, else 1 h", orOne(time.Hour)}
	unifiedEnd = &ending{"the latest reset of the windows used up, at least as told", unifiedWait}
	codexEnd   = &ending{"resets_at, else the latest reset of the windows used up", codexWait}
	pacificDay = &ending{"midnight in California, at least as told", pacificMidnight}
)

// Outcomes of rows; the constants of ratelimit explain them.
var (
	toAgent  = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonRefused, Scope: ratelimit.ScopeRequest}
	notFound = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonNotFound, Scope: ratelimit.ScopeRequest}
	tooLarge = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonRequest, Scope: ratelimit.ScopeRequest}

	throttled      = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeModel}
	throttledAll   = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeDomain}
	throttledAside = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonThrottled, Scope: ratelimit.ScopeRequest}
	windowFull     = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonWindow, Scope: ratelimit.ScopeDomain}
	modelWindow    = ratelimit.Verdict{Signal: ratelimit.Limited, Reason: ratelimit.ReasonWindow, Scope: ratelimit.ScopeModel}

	noCredit      = ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonCredit, Scope: ratelimit.ScopeDomain}
	spendLimit    = ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonSpendLimit, Scope: ratelimit.ScopeDomain}
	ownSpendLimit = ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonSpendLimit, Scope: ratelimit.ScopeSubscription}
	noQuota       = ratelimit.Verdict{Signal: ratelimit.Quota, Reason: ratelimit.ReasonNoQuota, Scope: ratelimit.ScopeModel}

	noCapacity = ratelimit.Verdict{Signal: ratelimit.Overloaded, Reason: ratelimit.ReasonCapacity, Scope: ratelimit.ScopeProviderModel}
	failed     = ratelimit.Verdict{Signal: ratelimit.ServerError, Reason: ratelimit.ReasonUpstream, Scope: ratelimit.ScopeSubscription}

	// wrongPlace would be refused whoever asks from here; another subscription may be
	// let through what refuses with notFromHere.
	wrongPlace  = ratelimit.Verdict{Signal: ratelimit.ClientError, Reason: ratelimit.ReasonEgress, Scope: ratelimit.ScopeProvider}
	notFromHere = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonEgress, Scope: ratelimit.ScopeProvider}

	badCredential = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonCredential, Scope: ratelimit.ScopeSubscription}
	disabled      = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonPermission, Scope: ratelimit.ScopeSubscription}
	modelClosed   = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonPermission, Scope: ratelimit.ScopeModel}
	// forbiddenHere says nothing about other requests of the subscription.
	forbiddenHere = ratelimit.Verdict{Signal: ratelimit.Auth, Reason: ratelimit.ReasonPermission, Scope: ratelimit.ScopeRequest}
)

// Row is a row of the classifier's table, for people. Classify tells its name
// in Verdict.Row.
type Row struct {
	Name   string
	Sign   string // what the answer looks like
	Source string // where that is known from
	Until  string // how the end is found; empty when the answer states none
	// Verdict is what it means, without Wait, Row and Windows. A throttled
	// Verdict becomes a bare one where the answer does not say how long.
	Verdict ratelimit.Verdict
}

// Rows returns the classifier's table, in the order in which it is tried.
func Rows() []Row {
	list := make([]Row, len(rows))
	for i := range rows {
		r := &rows[i]
		list[i] = Row{Name: r.name, Sign: r.sign, Source: r.source, Verdict: r.verdict}
		if r.end != nil {
			list[i].Until = r.end.text
		}
	}
	return list
}

// Action is what authpool does when the row decides, for people.
func (r Row) Action() string {
	const elsewhere = "; tries another subscription"
	var closed string
	switch r.Verdict.Scope {
	case ratelimit.ScopeRequest:
		closed = "closes nothing"
	case ratelimit.ScopeModel:
		closed = "closes the model for all that share the limit"
	case ratelimit.ScopeSubscription:
		closed = "closes this subscription alone"
	default:
		closed = "closes the subscription and all that share its limits"
	}
	switch r.Verdict.Signal {
	case ratelimit.Limited:
		switch {
		case r.Verdict.Reason == ratelimit.ReasonRequest:
			return "gives it to the agent"
		case r.Verdict.Scope == ratelimit.ScopeRequest:
			return closed + elsewhere
		}
		return closed + " until then, else for 1 s and longer each time" + elsewhere
	case ratelimit.Quota:
		if r.Until == "" {
			return closed + " for 1 h" + elsewhere
		}
		return closed + " until then, else for 1 h" + elsewhere
	case ratelimit.Overloaded:
		return "closes no subscription; repeats once where that does no harm; where nearly all are refused, the model's requests wait and one at a time finds out"
	case ratelimit.Auth:
		switch r.Verdict.Scope {
		case ratelimit.ScopeProvider:
			return "closes nothing; tries one other subscription, and none for 1 min where that is refused, too"
		case ratelimit.ScopeRequest:
			return "gives it to the agent"
		case ratelimit.ScopeModel:
			return closed + " for 1 h" + elsewhere
		default:
			return "closes the subscription until its credential changes" + elsewhere
		}
	case ratelimit.ServerError:
		return "counts against the subscription's breaker; repeats once where that does no harm"
	default:
		return "gives it to the agent"
	}
}

// rows is the table. What is specific stands before what is general, and the
// first match decides. Codes are believed before types, types before statuses,
// and a message only where nothing else tells: providers quote requests in
// messages, so that a message closes a subscription only at its own provider and
// by how it begins.
var rows = []classifierRow{
	// Where the request comes from: no subscription's fault.
	{
		"blocked-page", `403 with a page instead of an error; 403, 429 or 503 with cf-mitigated: challenge, or a page or text by which a content delivery network blocks ("Sorry, you have been blocked", "Just a moment...", "error code: 1015")`, "anthropics/claude-code#30437, openai/codex#4284, run-llama/llama_index#16796, Cloudflare's documentation of challenges and 1xxx errors",
		(*signs).blockPage, notFromHere, nil,
	},
	{
		"ip-not-allowed", `401 or 403 whose text says that the IP is not authorized or not on the allowlist, or names a virtual network or firewall; reason API_KEY_IP_ADDRESS_BLOCKED`, "OpenAI's error code guide, googleapis error reasons, Microsoft Learn",
		(*signs).foreignAddress, notFromHere, nil,
	},
	{
		"anthropic-region", `403, type forbidden, "Request not allowed": the country that the request comes from`, "enricoros/big-AGI#485, anthropics/claude-quickstarts#32",
		func(s *signs) bool {
			return s.Family == Anthropic && s.Status == 403 && s.is("forbidden") && s.begins("request not allowed")
		}, wrongPlace, nil,
	},

	// Errors that look like one thing by their status and are another.
	{
		"anthropic-workspace-limit", `400, "You have reached your specified workspace API usage limits … regain access on DATE"`, "Anthropic's error reference",
		func(s *signs) bool {
			return s.Family == Anthropic && s.begins("you have reached your specified workspace ") && s.says("usage limit")
		}, ownSpendLimit, byDateInText,
	},
	{
		"anthropic-usage-limit", `400, "You have reached your specified API usage limits … regain access on DATE"`, "Anthropic's error reference",
		func(s *signs) bool {
			return s.Family == Anthropic && s.begins("you have reached your specified ") && s.says("usage limit")
		}, spendLimit, byDateInText,
	},
	{
		"anthropic-credit-balance", `400, "Your credit balance is too low"`, "anthropics/claude-code#4207",
		func(s *signs) bool { return s.Family == Anthropic && s.begins("your credit balance is too low") }, noCredit, nil,
	},
	{
		"anthropic-on-hold", "400 or 403, error_code organization_on_hold, claude_code_key_creator_not_member, cmek_key_disabled", "anthropic-sdk-typescript shared.d.ts",
		func(s *signs) bool {
			return s.is("organization_on_hold", "claude_code_key_creator_not_member", "cmek_key_disabled")
		}, disabled, nil,
	},
	{
		"anthropic-linked-organization", "402, error_code linked_organization_…: the agent's user profile, not the key", "anthropic-sdk-typescript shared.d.ts",
		func(s *signs) bool { return strings.HasPrefix(s.detail, "linked_organization_") }, toAgent, nil,
	},
	{
		"anthropic-storage-quota", "400, error_code storage_quota_exceeded: files alone", "anthropic-sdk-typescript shared.d.ts",
		func(s *signs) bool { return s.is("storage_quota_exceeded") }, toAgent, nil,
	},
	{
		"anthropic-spend-limit", "429, error_code enforced_spend_limit_reached, contract_spend_limit_reached", "anthropic-sdk-typescript shared.d.ts",
		func(s *signs) bool { return s.is("enforced_spend_limit_reached", "contract_spend_limit_reached") }, spendLimit, monthEnd,
	},
	{
		"anthropic-key-store", "503, error_code cmek_…: the customer's own key store, so this workspace alone", "anthropic-sdk-typescript shared.d.ts",
		func(s *signs) bool { return strings.HasPrefix(s.detail, "cmek_") }, failed, asTold,
	},
	{
		"anthropic-model-access", "403 permission_error whose text names the model", "Anthropic's error reference",
		func(s *signs) bool {
			return s.Family == Anthropic && s.Status == 403 && s.is("permission_error") && s.generates() && s.says("model")
		}, modelClosed, nil,
	},

	// Anthropic's subscriptions: a window is used up. A claim or window of one
	// family of models closes that alone.
	{
		"anthropic-window-model", "429, anthropic-ratelimit-unified-… rejected by a window of one family of models", "Claude Code's client",
		func(s *signs) bool { return s.Status == 429 && s.unifiedRejected() && s.unifiedModel() }, modelWindow, unifiedEnd,
	},
	{
		"anthropic-window", "429, anthropic-ratelimit-unified-status or a window's -status is rejected", "Claude Code's client",
		func(s *signs) bool { return s.Status == 429 && s.unifiedRejected() }, windowFull, unifiedEnd,
	},

	// ChatGPT plans.
	{
		"codex-credits", "x-codex-rate-limit-reached-type: …_credits_depleted", "openai/codex rate_limits.rs",
		func(s *signs) bool { return strings.HasSuffix(string(s.codexReached), "_credits_depleted") }, noCredit, nil,
	},
	{
		"codex-plan", "usage_not_included", "openai/codex api_bridge.rs",
		func(s *signs) bool { return s.is("usage_not_included") }, disabled, nil,
	},
	{
		"codex-window-model", "usage_limit_reached, x-codex-active-limit names one model's limit", "openai/codex rate_limits.rs",
		func(s *signs) bool { return s.is("usage_limit_reached") && s.codexModel() }, modelWindow, codexEnd,
	},
	{
		"codex-window", "usage_limit_reached", "openai/codex api_bridge.rs",
		func(s *signs) bool { return s.is("usage_limit_reached") }, windowFull, codexEnd,
	},

	// OpenRouter: 402 for three different things, told apart by limit_source.
	{
		"openrouter-in-flight", "402, metadata.limit_source openrouter_in_flight_budget", "OpenRouter's documentation of errors",
		func(s *signs) bool { return s.limitSource == "openrouter_in_flight_budget" }, throttledAll, asTold,
	},
	{
		"openrouter-key-limit", "402, metadata.limit_source openrouter_key_limit", "OpenRouter's documentation of errors",
		func(s *signs) bool { return s.limitSource == "openrouter_key_limit" }, ownSpendLimit, nil,
	},
	{
		"openrouter-moderation", "403 with metadata.reasons: the input was moderated", "OpenRouter's documentation of errors",
		func(s *signs) bool { return s.Status == 403 && s.moderated }, toAgent, nil,
	},

	// OpenAI: 429 for money; waiting does not help.
	{
		"openai-project-limit", "429, code project_spend_limit_exceeded", "OpenAI's error code guide",
		func(s *signs) bool { return s.is("project_spend_limit_exceeded") }, ownSpendLimit, nil,
	},
	{
		"openai-spend-limit", "429, code organization_spend_limit_exceeded, organization_usage_limit_exceeded, billing_hard_limit_reached", "OpenAI's error code guide",
		func(s *signs) bool {
			return s.is("organization_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached")
		}, spendLimit, nil,
	},
	{
		"openai-quota", "429, type or code insufficient_quota, credit_balance_exhausted, billing_not_active", "OpenAI's error code guide, Microsoft Learn",
		func(s *signs) bool {
			return s.is("insufficient_quota", "credit_balance_exhausted", "billing_not_active")
		}, noCredit, nil,
	},
	{
		"openai-region", "403, code unsupported_country_region_territory: where the request comes from, whatever the key", "OpenAI's error code guide",
		func(s *signs) bool { return s.is("unsupported_country_region_territory") }, wrongPlace, nil,
	},
	{
		"openai-socket-limit", "code websocket_connection_limit_reached: the connection is too old", "openai/codex",
		func(s *signs) bool { return s.is("websocket_connection_limit_reached") }, toAgent, nil,
	},
	{
		"openai-encrypted-content", "400, code invalid_encrypted_content: another organisation's reasoning, not a limit", "pydantic/pydantic-ai#4608",
		func(s *signs) bool { return s.is("invalid_encrypted_content") }, toAgent, nil,
	},
	{
		"azure-gateway-quota", `403, "Out of call volume quota" of an API gateway in front`, "Microsoft Learn, API Management's quota policy",
		func(s *signs) bool {
			return s.Family == Azure && s.Status == 403 && s.begins("out of call volume quota")
		}, windowFull, hourOrTold,
	},
	{
		"xai-credits", "403 whose text names credits", "xAI's console",
		func(s *signs) bool { return s.Provider == "xai" && s.Status == 403 && s.says("credits") }, noCredit, nil,
	},
	{
		"fireworks-suspended", "412 whose text says that the account is suspended", "Fireworks' error reference",
		func(s *signs) bool { return s.Provider == "fireworks" && s.Status == 412 && s.says("suspend") }, noCredit, nil,
	},

	// Gemini: 400 for a key that is none, 403 for a project that may not.
	{
		"gemini-key", `400, reason API_KEY_INVALID, or "API key expired"`, "googleapis error reasons",
		func(s *signs) bool {
			return s.is("API_KEY_INVALID") || s.Family == Gemini && s.Status == 400 && s.begins("api key expired")
		}, badCredential, nil,
	},
	{
		"gemini-disabled", "403, reason SERVICE_DISABLED, BILLING_DISABLED, CONSUMER_INVALID, CONSUMER_SUSPENDED, VALIDATION_REQUIRED, API_KEY_…_BLOCKED", "googleapis error reasons, gemini-cli googleQuotaErrors.ts",
		func(s *signs) bool {
			return s.is("SERVICE_DISABLED", "BILLING_DISABLED", "CONSUMER_INVALID", "CONSUMER_SUSPENDED", "VALIDATION_REQUIRED") ||
				strings.HasPrefix(s.reason, "API_KEY_") && strings.HasSuffix(s.reason, "_BLOCKED")
		}, disabled, nil,
	},
	{
		"gemini-region", `400 FAILED_PRECONDITION, "User location is not supported"`, "Gemini API troubleshooting guide",
		func(s *signs) bool {
			return s.Family == Gemini && s.Status == 400 && s.status == "FAILED_PRECONDITION" && s.says("location is not supported")
		}, wrongPlace, nil,
	},
	{
		"gemini-credits", "429, reason INSUFFICIENT_G1_CREDITS_BALANCE", "gemini-cli googleQuotaErrors.ts",
		func(s *signs) bool { return s.is("INSUFFICIENT_G1_CREDITS_BALANCE") }, noCredit, nil,
	},
	{
		"gemini-prepay", `429 RESOURCE_EXHAUSTED, "Your prepayment credits are depleted"`, "Gemini API billing guide",
		func(s *signs) bool {
			return s.Family == Gemini && s.Status == 429 && s.begins("your prepayment credits are depleted")
		}, noCredit, nil,
	},
	{
		"gemini-capacity", "429 or 503, reason MODEL_CAPACITY_EXHAUSTED", "gemini-cli googleQuotaErrors.ts",
		func(s *signs) bool { return s.is("MODEL_CAPACITY_EXHAUSTED") }, noCapacity, asTold,
	},
	{
		"gemini-no-quota", "429 whose text ends a quota with limit: 0: the project has none for this model", "gemini-cli googleQuotaErrors.ts",
		func(s *signs) bool {
			return s.Family == Gemini && s.Status == 429 && s.quotaIDs != "" && limitZero(s.message)
		}, noQuota, nil,
	},
	{
		"gemini-day", "429, a quotaId with PerDay or Daily", "gemini-cli googleQuotaErrors.ts, Gemini's rate limits guide",
		func(s *signs) bool {
			return s.Status == 429 && (strings.Contains(s.quotaIDs, "PerDay") || strings.Contains(s.quotaIDs, "Daily"))
		}, modelWindow, pacificDay,
	},
	{
		"gemini-quota-exhausted", "429, reason QUOTA_EXHAUSTED (Code Assist)", "gemini-cli googleQuotaErrors.ts",
		func(s *signs) bool { return s.Status == 429 && s.is("QUOTA_EXHAUSTED") }, modelWindow, hourOrTold,
	},
	{
		"vertex-shared-capacity", "429 RESOURCE_EXHAUSTED that names no quota and no delay: capacity that all projects share", "Vertex AI's dynamic shared quota",
		func(s *signs) bool {
			return s.Provider == "vertex" && s.Status == 429 && s.status == "RESOURCE_EXHAUSTED" &&
				s.quotaIDs == "" && s.reason == "" && !s.isTold
		}, noCapacity, nil,
	},
	{
		"gemini-cancelled", "499 CANCELLED: given up within Google", "google.rpc.Code",
		func(s *signs) bool { return s.Family == Gemini && s.Status == 499 }, failed, nil,
	},
	{
		"gemini-file", "403, no permission to access the File: somebody else's, told as a permission", "googleapis/python-genai#1218",
		func(s *signs) bool { return s.Status == 403 && s.says("permission to access the file") }, notFound, nil,
	},

	// Bedrock: exceptions by name, in the header x-amzn-errortype, in __type or
	// in a stream's frame.
	{
		"bedrock-credential", "403, UnrecognizedClientException, ExpiredTokenException, InvalidSignatureException", "AWS common errors",
		func(s *signs) bool {
			return s.exception("UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException")
		}, badCredential, nil,
	},
	{
		"bedrock-model-access", "403 AccessDeniedException whose text names the model", "aws-sdk-go-v2 bedrockruntime",
		func(s *signs) bool { return s.exception("AccessDeniedException") && s.generates() && s.says("model") }, modelClosed, nil,
	},
	{
		"bedrock-service-quota", "400 ServiceQuotaExceededException", "aws-sdk-go-v2 bedrockruntime",
		func(s *signs) bool { return s.exception("ServiceQuotaExceededException") }, throttled, asTold,
	},
	{
		"bedrock-day", "429 ThrottlingException, too many tokens per day", "aws-sdk-go-v2 bedrockruntime, re:Post",
		func(s *signs) bool { return s.exception("ThrottlingException") && s.says("per day") }, modelWindow, hourOrTold,
	},
	{
		"bedrock-not-ready", "429 ModelNotReadyException", "aws-sdk-go-v2 bedrockruntime",
		func(s *signs) bool { return s.exception("ModelNotReadyException") }, noCapacity, asTold,
	},
	{
		"bedrock-model-error", "424 ModelErrorException, ModelStreamErrorException", "aws-sdk-go-v2 bedrockruntime",
		func(s *signs) bool { return s.exception("ModelErrorException", "ModelStreamErrorException") }, failed, nil,
	},

	// Limits, from the request's own size to the provider's.
	{
		"request-too-large", "413, or request_too_large", "RFC 9110, Anthropic's error reference",
		func(s *signs) bool { return s.Status == 413 || s.is("request_too_large") }, tooLarge, nil,
	},
	{
		"openai-request-too-large", `429, "Request too large", or a Limit below what is Requested: this request is larger than the whole limit`, "OpenAI's and Groq's answers",
		func(s *signs) bool {
			return s.Status == 429 && (s.says("request too large") || requestedOverLimit(s.message))
		}, tooLarge, nil,
	},
	{
		"azure-high-demand", "429 whose text says high demand: the region's load", "Microsoft Learn",
		func(s *signs) bool {
			return s.Status == 429 && s.says("high demand") && s.upstream == "" && !s.says("rate limit")
		}, noCapacity, asTold,
	},
	{
		"throttled-beside", "429 to a count of tokens, a batch or a file: these have limits of their own", "Anthropic's rate limits guide",
		func(s *signs) bool { return s.Status == 429 && !s.generates() }, throttledAside, asTold,
	},
	{
		"throttled", "429", "RFC 6585; every provider",
		func(s *signs) bool { return s.Status == 429 }, throttled, asTold,
	},

	// No capacity: no subscription's fault, and another would not help.
	{
		"overloaded", "529, 503, 498, or overloaded_error, server_is_overloaded, compaction_unavailable, capacity_exceeded", "anthropic-sdk-typescript, openai/codex api_bridge.rs, Groq's error reference",
		func(s *signs) bool {
			return s.Status == 529 || s.Status == 503 || s.Status == 498 ||
				s.is("overloaded_error", "server_is_overloaded", "compaction_unavailable", "capacity_exceeded")
		}, noCapacity, asTold,
	},

	// The credential.
	{
		"unauthorized", "401, or 403 with authentication_error or invalid_api_key", "RFC 9110; every provider",
		func(s *signs) bool {
			return s.Status == 401 || s.is("authentication_error", "invalid_api_key") && s.Status == 403
		}, badCredential, nil,
	},
	{
		"oauth-revoked", `403, "OAuth token has been revoked"`, "Claude Code's client",
		func(s *signs) bool {
			return s.Family == Anthropic && s.Status == 403 && s.begins("oauth token has been revoked")
		}, badCredential, nil,
	},
	{
		"payment-required", "402, or billing_error", "RFC 9110; Anthropic, DeepSeek, OpenRouter, Together",
		func(s *signs) bool { return s.Status == 402 || s.is("billing_error") }, noCredit, nil,
	},
	{
		"forbidden", "403", "RFC 9110",
		func(s *signs) bool { return s.Status == 403 }, forbiddenHere, nil,
	},

	// The rest by its status alone.
	{
		"not-found", "404, 410", "RFC 9110",
		func(s *signs) bool { return s.Status == 404 || s.Status == 410 }, notFound, nil,
	},
	{
		"request-timeout", "408", "RFC 9110",
		func(s *signs) bool { return s.Status == 408 }, failed, asTold,
	},
	{
		"client-error", "any other 4xx", "RFC 9110",
		func(s *signs) bool { return s.Status < 500 }, toAgent, nil,
	},
	{
		"server-error", "any other 5xx, and errors in streams that nothing else tells", "RFC 9110",
		func(*signs) bool { return true }, failed, asTold,
	},
}

// generates tells whether the answer is to a call that a model runs for: others
// have limits and permissions of their own.
func (s *signs) generates() bool {
	return s.Endpoint == nil || s.Endpoint.Billable() && !s.Endpoint.API.Items()
}

// limitZero tells whether a message names a limit of zero: "…, limit: 0, …".
func limitZero(message string) bool {
	n, ok := numberAfter(message, "limit: ")
	return ok && n == 0
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
