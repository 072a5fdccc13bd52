package provider_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

const none = time.Duration(-1)

// vector is an answer, and what it means. The bodies are written for these
// tests, after the providers' documentation.
type vector struct {
	row     string
	family  provider.Family
	status  int
	headers []string
	body    string
	signal  ratelimit.Signal
	reason  ratelimit.Reason
	scope   ratelimit.Scope
	wait    time.Duration
}

func anthropicError(typ, message, detail string) string {
	return `{"type":"error","error":{"type":"` + typ + `","message":"` + message + `","details":{"error_code":"` + detail + `"}},"request_id":"req_1"}`
}

func openAIError(typ, code, message string) string {
	return `{"error":{"message":"` + message + `","type":"` + typ + `","param":null,"code":"` + code + `"}}`
}

func openRouterError(code, metadata string) string {
	return `{"error":{"code":` + code + `,"message":"m","metadata":` + metadata + `}}`
}

func geminiError(code, status, details string) string {
	return `{"error":{"code":` + code + `,"message":"m","status":"` + status + `","details":[` + details + `]}}`
}

var (
	anth = provider.Anthropic
	oai  = provider.OpenAI
	gem  = provider.Gemini
	azr  = provider.Azure
	bed  = provider.Bedrock
)

var vectors = []vector{
	{"ok", anth, 200, nil, `{"type":"message"}`, ratelimit.OK, ratelimit.ReasonNone, 0, 0},
	{"ok", oai, 204, nil, "", ratelimit.OK, ratelimit.ReasonNone, 0, 0},
	{"ok", oai, 307, []string{"Location", "https://elsewhere.example"}, "", ratelimit.OK, ratelimit.ReasonNone, 0, 0},
	{"ok", oai, 200, nil, `{"error":null,"id":"resp_1"}`, ratelimit.OK, ratelimit.ReasonNone, 0, 0},
	{"ok", oai, 200, nil, `{"id":"resp_1","error":{"code":"server_error"}}`, ratelimit.OK, ratelimit.ReasonNone, 0, 0}, // a stored answer

	// Anthropic
	{
		"anthropic-usage-limit", anth, 400, nil, anthropicError("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.", ""),
		ratelimit.Quota, ratelimit.ReasonSpendLimit, ratelimit.ScopeDomain, 8*24*time.Hour + 12*time.Hour,
	},
	{
		"anthropic-workspace-limit", anth, 400, nil, anthropicError("invalid_request_error", "You have reached your specified workspace API usage limits.", ""),
		ratelimit.Quota, ratelimit.ReasonSpendLimit, ratelimit.ScopeSubscription, none,
	},
	{
		"anthropic-credit-balance", anth, 400, nil, anthropicError("invalid_request_error", "Your credit balance is too low to access the Anthropic API.", ""),
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"anthropic-on-hold", anth, 403, nil, anthropicError("permission_error", "m", "organization_on_hold"),
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeSubscription, none,
	},
	{
		"anthropic-linked-organization", anth, 402, nil, anthropicError("billing_error", "m", "linked_organization_suspended"),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{
		"anthropic-storage-quota", anth, 400, nil, anthropicError("invalid_request_error", "m", "storage_quota_exceeded"),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{
		"anthropic-spend-limit", anth, 429, nil, anthropicError("rate_limit_error", "m", "enforced_spend_limit_reached"),
		ratelimit.Quota, ratelimit.ReasonSpendLimit, ratelimit.ScopeDomain, 8*24*time.Hour + 12*time.Hour,
	},
	{
		"anthropic-key-store", anth, 503, nil, anthropicError("api_error", "m", "cmek_key_unavailable"),
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none,
	},
	{
		"anthropic-key-store", anth, 503,
		[]string{"Retry-After", "7"},
		anthropicError("api_error", "m", "cmek_key_unavailable"),
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, 7 * time.Second,
	},
	{
		"anthropic-window", anth, 429,
		[]string{
			"anthropic-ratelimit-unified-status", "rejected", "anthropic-ratelimit-unified-representative-claim", "five_hour",
			"anthropic-ratelimit-unified-reset", "1795352400", "Retry-After", "60",
		},
		anthropicError("rate_limit_error", "m", ""),
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeDomain, time.Hour,
	},
	{
		"anthropic-window", anth, 429,
		[]string{
			"ANTHROPIC-RATELIMIT-UNIFIED-5H-STATUS", "rejected", "Anthropic-Ratelimit-Unified-5h-Reset", "2026-11-22T13:00:00Z",
			"anthropic-ratelimit-unified-7d-utilization", "1.02", "anthropic-ratelimit-unified-7d-reset", "2026-11-23T12:00:00Z",
			"anthropic-ratelimit-unified-7d_opus-utilization", "0.4", "anthropic-ratelimit-unified-7d_opus-reset", "2026-11-28T12:00:00Z",
		},
		"",
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeDomain, 24 * time.Hour,
	}, // the latest of those used up
	{
		"anthropic-window-model", anth, 429,
		[]string{
			"anthropic-ratelimit-unified-status", "rejected", "anthropic-ratelimit-unified-representative-claim", "seven_day_opus",
			"anthropic-ratelimit-unified-reset", "1795435200",
		},
		"",
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeModel, 24 * time.Hour,
	},
	{
		"anthropic-window-model", anth, 429,
		[]string{"anthropic-ratelimit-unified-status", "rejected", "anthropic-ratelimit-unified-7d_opus-status", "rejected"},
		"",
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeModel, none,
	},
	{
		"throttled", anth, 429,
		[]string{"Retry-After", "17", "anthropic-ratelimit-unified-status", "allowed"},
		anthropicError("rate_limit_error", "m", "ramp_limit_exceeded"),
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 17 * time.Second,
	},
	{
		"throttled", anth, 429, nil, anthropicError("rate_limit_error", "Error", ""),
		ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none,
	},
	{
		"throttled", anth, 429,
		[]string{
			"anthropic-ratelimit-requests-remaining", "0", "anthropic-ratelimit-requests-reset", "2026-11-22T12:00:09Z",
			"anthropic-ratelimit-tokens-remaining", "16000", "anthropic-ratelimit-tokens-reset", "2026-11-22T12:01:00Z",
		},
		"",
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 9 * time.Second,
	},
	{
		"throttled", anth, 429,
		[]string{"Date", "Sun, 22 Nov 2026 11:55:00 GMT", "anthropic-ratelimit-requests-remaining", "0", "anthropic-ratelimit-requests-reset", "2026-11-22T11:55:09Z"},
		"",
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 9 * time.Second,
	}, // by the provider's clock
	{
		"overloaded", anth, 529, nil, anthropicError("overloaded_error", "Overloaded", ""),
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"overloaded", anth, 503,
		[]string{"Retry-After", "3"},
		"<html>",
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, 3 * time.Second,
	},
	{
		"unauthorized", anth, 401, nil, anthropicError("authentication_error", "invalid x-api-key", ""),
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"oauth-revoked", anth, 403, nil, anthropicError("permission_error", "OAuth token has been revoked.", ""),
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"payment-required", anth, 402, nil, anthropicError("billing_error", "m", ""),
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"forbidden", anth, 403, nil, anthropicError("permission_error", "m", ""),
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest, none,
	},
	{
		"not-found", anth, 404, nil, anthropicError("not_found_error", "model: x", ""),
		ratelimit.ClientError, ratelimit.ReasonNotFound, ratelimit.ScopeRequest, none,
	},
	{
		"request-too-large", anth, 413, nil, "<html>too large</html>",
		ratelimit.Limited, ratelimit.ReasonRequest, ratelimit.ScopeRequest, none,
	},
	{
		"client-error", anth, 400, nil, anthropicError("invalid_request_error", "messages: at least one", ""),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{"client-error", anth, 409, nil, "", ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none},
	{
		"server-error", anth, 500, nil, anthropicError("api_error", "Internal server error", ""),
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none,
	},
	{
		"server-error", anth, 504, nil, anthropicError("timeout_error", "m", ""),
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none,
	},

	// Where the request comes from
	{
		"blocked-page", anth, 403,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<html>anything</html>",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"blocked-page", anth, 403,
		[]string{"Content-Type", "text/html", "CF-Mitigated", "challenge"},
		"",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"blocked-page", oai, 429,
		[]string{"cf-mitigated", "challenge", "Retry-After", "60"},
		"<html>",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"blocked-page", oai, 503,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<!DOCTYPE html>\n<html><head><title>Just a moment...</title>",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"blocked-page", oai, 429,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<html><title>Access denied | api.example used Cloudflare to restrict access</title>",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"blocked-page", oai, 403,
		[]string{"Content-Type", "text/plain"},
		"error code: 1020",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"blocked-page", gem, 503,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<title>ERROR</title><h1>503 ERROR</h1>Request blocked. We can't connect",
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	// Not what it looks like
	{
		"overloaded", oai, 503,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<html><h1>503 Service Temporarily Unavailable</h1></html>",
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"throttled", oai, 429,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<html>Too Many Requests</html>",
		ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none,
	},
	{
		"server-error", oai, 502,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		"<title>Just a moment...</title>",
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none,
	},
	{
		"forbidden", anth, 403,
		[]string{"Content-Type", "text/html; charset=UTF-8"},
		`{"type":"error","error":{"type":"permission_error","message":"no <title>Just a moment...</title> error code: 1020"}}`,
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest, none,
	},
	{
		"forbidden", oai, 403,
		[]string{"Content-Type", "text/plain"},
		"error code: 10200",
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest, none,
	},
	{
		"ip-not-allowed", anth, 403, nil, `{"type":"error","error":{"type":"permission_error","message":"Your IP address is not on the allowlist of this organization"}}`,
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"ip-not-allowed", oai, 401, nil, openAIError("invalid_request_error", "", "Your request IP does not match the configured IP allowlist"),
		ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"unauthorized", oai, 401, nil, openAIError("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-ship**"),
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"forbidden", anth, 403, nil, `{"type":"error","error":{"type":"forbidden","message":"m"}}`,
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest, none,
	},

	// OpenAI and ChatGPT
	{
		"openai-quota", oai, 429, nil, openAIError("insufficient_quota", "insufficient_quota", "You exceeded your current quota"),
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"openai-project-limit", oai, 429,
		[]string{"Retry-After", "5"},
		openAIError("insufficient_quota", "project_spend_limit_exceeded", "m"),
		ratelimit.Quota, ratelimit.ReasonSpendLimit, ratelimit.ScopeSubscription, none,
	},
	{
		"openai-region", oai, 403, nil, openAIError("request_forbidden", "unsupported_country_region_territory", "m"),
		ratelimit.ClientError, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"openai-request-too-large", oai, 429,
		[]string{"Retry-After", "5"},
		openAIError("tokens", "rate_limit_exceeded", "Request too large for gpt-x on tokens per min"),
		ratelimit.Limited, ratelimit.ReasonRequest, ratelimit.ScopeRequest, none,
	},
	{
		"openai-request-too-large", oai, 429, nil, openAIError("tokens", "rate_limit_exceeded", "on tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903. Please try again in 50s."),
		ratelimit.Limited, ratelimit.ReasonRequest, ratelimit.ScopeRequest, none,
	},
	{
		"throttled", oai, 429,
		[]string{"retry-after-ms", "250", "retry-after", "1"},
		openAIError("tokens", "rate_limit_exceeded", "m"),
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 250 * time.Millisecond,
	},
	{
		"throttled", oai, 429,
		[]string{"retry-after-ms", "0", "retry-after", "1"},
		"",
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, time.Second,
	},
	{
		"throttled", oai, 429,
		[]string{"Retry-After", "-5"},
		"",
		ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none,
	},
	{
		"throttled", oai, 429,
		[]string{
			"X-RateLimit-Remaining-Requests", "0", "X-RateLimit-Reset-Requests", "8.64s", "X-RateLimit-Remaining-Tokens", "0",
			"X-RateLimit-Reset-Tokens", "6m0s", "x-ratelimit-remaining-project-tokens", "5", "x-ratelimit-reset-project-tokens", "9h",
		},
		"",
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 6 * time.Minute,
	},
	{
		"throttled", oai, 429, nil, openAIError("requests", "rate_limit_exceeded", "Limit 3, Used 3, Requested 1. Please try again in 20ms."),
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 20 * time.Millisecond,
	},
	{"throttled", oai, 429, nil, openAIError("x", "slow_down", "m"), ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none},
	{
		"overloaded", oai, 503, nil, openAIError("service_unavailable_error", "slow_down", "m"),
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"overloaded", oai, 500, nil, openAIError("server_error", "server_is_overloaded", "m"),
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"openai-encrypted-content", oai, 400, nil, openAIError("invalid_request_error", "invalid_encrypted_content", "m"),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{
		"server-error", oai, 502, nil, "<html>bad gateway</html>",
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none,
	},
	{"request-timeout", oai, 408, nil, "", ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none},
	{
		"codex-window", oai, 429, nil, `{"error":{"type":"usage_limit_reached","message":"m","plan_type":"plus","resets_at":1795352400,"resets_in_seconds":1}}`,
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeDomain, time.Hour,
	},
	{
		"codex-window", oai, 429, nil, `{"error":{"type":"usage_limit_reached","resets_in_seconds":90}}`,
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeDomain, 90 * time.Second,
	},
	{
		"codex-window", oai, 429,
		[]string{
			"x-codex-active-limit", "codex", "x-codex-primary-used-percent", "100", "x-codex-primary-reset-after-seconds", "120",
			"x-codex-secondary-used-percent", "30", "x-codex-secondary-reset-at", "1795521600",
		},
		`{"error":{"type":"usage_limit_reached"}}`,
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeDomain, 2 * time.Minute,
	},
	{
		"codex-window-model", oai, 429,
		[]string{"x-codex-active-limit", "codex_bengalfox"},
		`{"error":{"type":"usage_limit_reached","resets_in_seconds":90}}`,
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeModel, 90 * time.Second,
	},
	{
		"codex-credits", oai, 429,
		[]string{"x-codex-rate-limit-reached-type", "workspace_member_credits_depleted"},
		`{"error":{"type":"usage_limit_reached"}}`,
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"codex-plan", oai, 429, nil, `{"error":{"type":"usage_not_included"}}`,
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeSubscription, none,
	},

	{
		"openai-spend-limit", oai, 429, nil, openAIError("insufficient_quota", "organization_spend_limit_exceeded", "m"),
		ratelimit.Quota, ratelimit.ReasonSpendLimit, ratelimit.ScopeDomain, none,
	},
	{
		"openai-socket-limit", oai, 400, nil, openAIError("invalid_request_error", "websocket_connection_limit_reached", "m"),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{
		"anthropic-model-access", anth, 403, nil, anthropicError("permission_error", "Your organization may not use this model.", ""),
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeModel, none,
	},

	// Bedrock
	{
		"bedrock-credential", bed, 403,
		[]string{"x-amzn-ErrorType", "UnrecognizedClientException:http://internal.amazon.com/coral/com.amazon.coral.service/"},
		`{"message":"The security token included in the request is invalid."}`,
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"bedrock-credential", bed, 403, nil, `{"__type":"com.amazon.coral.service#ExpiredTokenException","message":"m"}`,
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"bedrock-model-access", bed, 403,
		[]string{"X-Amzn-Errortype", "AccessDeniedException"},
		`{"message":"You don't have access to the model with the specified model ID."}`,
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeModel, none,
	},
	{
		"forbidden", bed, 403,
		[]string{"X-Amzn-Errortype", "AccessDeniedException"},
		`{"message":"User is not authorized to perform this action."}`,
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest, none,
	},
	{
		"bedrock-service-quota", bed, 400,
		[]string{"x-amzn-errortype", "ServiceQuotaExceededException"},
		`{"message":"m"}`,
		ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none,
	},
	{
		"bedrock-day", bed, 429,
		[]string{"x-amzn-errortype", "ThrottlingException"},
		`{"message":"Too many tokens per day, please wait before trying again."}`,
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeModel, time.Hour,
	},
	{
		"throttled", bed, 429,
		[]string{"x-amzn-errortype", "ThrottlingException"},
		`{"message":"Too many requests, please wait before trying again."}`,
		ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none,
	},
	{
		"bedrock-not-ready", bed, 429,
		[]string{"x-amzn-errortype", "ModelNotReadyException"},
		`{"message":"m"}`,
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"bedrock-model-error", bed, 424,
		[]string{"x-amzn-errortype", "ModelErrorException"},
		`{"message":"m","originalStatusCode":500}`,
		ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription, none,
	},
	{
		"client-error", bed, 400,
		[]string{"x-amzn-errortype", "ValidationException"},
		`{"message":"m"}`,
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},

	// Gemini
	{
		"gemini-region", gem, 400, nil, `{"error":{"code":400,"status":"FAILED_PRECONDITION","message":"User location is not supported for the API use."}}`,
		ratelimit.ClientError, ratelimit.ReasonEgress, ratelimit.ScopeProvider, none,
	},
	{
		"gemini-prepay", gem, 429, nil, `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Your prepayment credits are depleted."}}`,
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"gemini-no-quota", gem, 429, nil,
		`{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"Quota exceeded for metric: generate_requests, limit: 0, model: m","details":[{"violations":[{"quotaId":"GenerateRequestsPerDay"}]},{"retryDelay":"3s"}]}}`,
		ratelimit.Quota, ratelimit.ReasonNoQuota, ratelimit.ScopeModel, none,
	},
	{
		"gemini-quota-exhausted", gem, 429, nil, geminiError("429", "RESOURCE_EXHAUSTED", `{"reason":"QUOTA_EXHAUSTED","domain":"cloudcode-pa.googleapis.com"},{"retryDelay":"51820.6s"}`),
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeModel, 51820600 * time.Millisecond,
	},
	{
		"vertex-shared-capacity", gem, 429, nil, geminiError("429", "RESOURCE_EXHAUSTED", ""),
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"gemini-key", gem, 400, nil, geminiError("400", "INVALID_ARGUMENT", `{"reason":"API_KEY_INVALID"}`),
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"gemini-disabled", gem, 403, nil, geminiError("403", "PERMISSION_DENIED", `{"reason":"API_KEY_HTTP_REFERRER_BLOCKED"}`),
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeSubscription, none,
	},
	{
		"gemini-credits", gem, 429, nil, geminiError("429", "RESOURCE_EXHAUSTED", `{"reason":"INSUFFICIENT_G1_CREDITS_BALANCE"}`),
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"gemini-capacity", gem, 429, nil, geminiError("429", "RESOURCE_EXHAUSTED", `{"reason":"MODEL_CAPACITY_EXHAUSTED"}`),
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"gemini-day", gem, 429, nil, geminiError("429", "RESOURCE_EXHAUSTED", `{"violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel"}]},{"retryDelay":"12s"}`),
		ratelimit.Limited, ratelimit.ReasonWindow, ratelimit.ScopeModel, 20 * time.Hour,
	},
	{
		"gemini-file", gem, 403, nil, `{"error":{"code":403,"status":"PERMISSION_DENIED","message":"You do not have permission to access the File abc or it may not exist."}}`,
		ratelimit.ClientError, ratelimit.ReasonNotFound, ratelimit.ScopeRequest, none,
	},
	{
		"throttled", gem, 429, nil, "[" + geminiError("429", "RESOURCE_EXHAUSTED", `{"violations":[{"quotaId":"TokensPerMinute"}]},{"retryDelay":"34.07s"}`) + "]",
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 34070 * time.Millisecond,
	},

	// Azure
	{
		"throttled", azr, 429,
		[]string{"x-ratelimit-limit-tokens", "-1", "x-ratelimit-remaining-tokens", "-1", "x-ratelimit-reset-tokens", "0"},
		`{"error":{"code":"429","message":"Requests have exceeded token rate limit. Please retry after 37 seconds."}}`,
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, 37 * time.Second,
	},
	{
		"azure-high-demand", azr, 429, nil, `{"error":{"code":"429","message":"The system is currently experiencing high demand."}}`,
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"client-error", azr, 200, nil, ` { "error": { "message": "filtered", "type": null, "code": "content_filter", "status": 400 } }`,
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},

	// compatible providers
	{
		"overloaded", oai, 498, nil, openAIError("", "capacity_exceeded", "m"),
		ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel, none,
	},
	{
		"payment-required", oai, 402, nil, openAIError("unknown_error", "invalid_request_error", "Insufficient Balance"),
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"payment-required", oai, 402, nil, openRouterError("402", `{"limit_source":"openrouter_credits"}`),
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"openrouter-key-limit", oai, 402, nil, openRouterError("402", `{"limit_source":"openrouter_key_limit"}`),
		ratelimit.Quota, ratelimit.ReasonSpendLimit, ratelimit.ScopeSubscription, none,
	},
	{
		"openrouter-in-flight", oai, 402,
		[]string{"Retry-After", "4"},
		openRouterError("402", `{"limit_source":"openrouter_in_flight_budget"}`),
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeDomain, 4 * time.Second,
	},
	{
		"openrouter-moderation", oai, 403, nil, openRouterError("403", `{"reasons":["violence"],"flagged_input":"x"}`),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{
		"throttled", oai, 200, nil, openRouterError("429", `{"provider_name":"Google"}`),
		ratelimit.Limited, ratelimit.ReasonBare, ratelimit.ScopeModel, none,
	}, // an error inside a 200
	{
		"throttled", oai, 429,
		[]string{"X-RateLimit-Limit", "1", "X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "1795348860000"},
		openRouterError("429", `{}`),
		ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel, time.Minute,
	},
	{
		"forbidden", oai, 403, nil, openAIError("x", "x", "all credits are used up, says the agent"),
		ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest, none,
	},
	{
		"client-error", anth, 400, nil, anthropicError("invalid_request_error", "no such tool: Your credit balance is too low", ""),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	}, // the agent's words
	{
		"client-error", oai, 400, nil, openAIError("invalid_request_error", "x", "Your credit balance is too low"),
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
	{
		"xai-credits", oai, 403, nil, `{"code":"permission-denied","error":"Your team has used all available credits."}`,
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"fireworks-suspended", oai, 412, nil, `{"error":{"message":"Account x is suspended"}}`,
		ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeDomain, none,
	},
	{
		"unauthorized", oai, 401, nil, `{"detail":"Unauthorized"}`,
		ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription, none,
	},
	{
		"client-error", oai, 422, nil, `{"detail":[{"loc":["body"],"msg":"m"}]}`,
		ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest, none,
	},
}

func TestClassify(t *testing.T) {
	for _, test := range vectors {
		got := provider.Classify(provider.Answer{
			// Rows of one provider are named for it.
			Provider: strings.SplitN(test.row, "-", 2)[0],
			Family:   test.family, Status: test.status, Headers: pairs(test.headers...), Body: []byte(test.body),
		}, now)
		if got.Row != test.row || got.Signal != test.signal || got.Reason != test.reason || got.Scope != test.scope || got.Wait != test.wait {
			t.Errorf("%d %q %s:\ngot  %s %v %s %v %v\nwant %s %v %s %v %v", test.status, test.headers, test.body,
				got.Row, got.Signal, got.Reason, got.Scope, got.Wait, test.row, test.signal, test.reason, test.scope, test.wait)
		}
	}
}

func TestClassifyStreamFailures(t *testing.T) {
	tests := []struct {
		failure provider.Failure
		row     string
		signal  ratelimit.Signal
		wait    time.Duration
	}{
		{provider.Failure{Type: "overloaded_error", Message: "Overloaded"}, "overloaded", ratelimit.Overloaded, none},
		{provider.Failure{Type: "rate_limit_error"}, "throttled", ratelimit.Limited, none},
		{provider.Failure{Type: "api_error"}, "server-error", ratelimit.ServerError, none},
		{provider.Failure{Type: "authentication_error"}, "unauthorized", ratelimit.Auth, none},
		{provider.Failure{Type: "invalid_request_error"}, "client-error", ratelimit.ClientError, none},
		{provider.Failure{Code: "rate_limit_exceeded", Message: "Please try again in 5.289s."}, "throttled", ratelimit.Limited, 5289 * time.Millisecond},
		{provider.Failure{Code: "insufficient_quota"}, "openai-quota", ratelimit.Quota, none},
		{provider.Failure{Code: "usage_limit_reached"}, "codex-window", ratelimit.Limited, none},
		{provider.Failure{Code: "usage_limit_reached", ResetsAt: 1795352400}, "codex-window", ratelimit.Limited, time.Hour},
		{provider.Failure{Code: "usage_not_included"}, "codex-plan", ratelimit.Auth, none},
		{provider.Failure{Code: "context_length_exceeded"}, "client-error", ratelimit.ClientError, none},
		{provider.Failure{Code: "server_is_overloaded"}, "overloaded", ratelimit.Overloaded, none},
		{provider.Failure{Code: "server_error", Message: "The server had an error"}, "server-error", ratelimit.ServerError, none},
		{provider.Failure{Code: "429", Message: "rate limited"}, "throttled", ratelimit.Limited, none},
		{provider.Failure{Code: "502"}, "server-error", ratelimit.ServerError, none},
		{provider.Failure{Code: "400"}, "client-error", ratelimit.ClientError, none},
		{provider.Failure{Type: "throttlingException", Message: "Too many tokens"}, "throttled", ratelimit.Limited, none},
		{provider.Failure{Type: "validationException"}, "client-error", ratelimit.ClientError, none},
		{provider.Failure{Type: "serviceUnavailableException"}, "overloaded", ratelimit.Overloaded, none},
		{provider.Failure{Type: "modelStreamErrorException"}, "bedrock-model-error", ratelimit.ServerError, none},
		{provider.Failure{Type: "internalServerException"}, "server-error", ratelimit.ServerError, none},
		{provider.Failure{Type: "something_new"}, "server-error", ratelimit.ServerError, none},
		{provider.Failure{Type: "modelTimeoutException"}, "request-timeout", ratelimit.ServerError, none},
		{provider.Failure{Code: "something_new", Status: 429}, "throttled", ratelimit.Limited, none},
		{provider.Failure{Code: "something_new", Status: 200}, "server-error", ratelimit.ServerError, none},
		{provider.Failure{}, "server-error", ratelimit.ServerError, none},
	}
	for _, test := range tests {
		got := provider.Classify(provider.Answer{Status: 200, Failure: &test.failure}, now)
		if got.Row != test.row || got.Signal != test.signal || got.Wait != test.wait {
			t.Errorf("%+v: got %s %v %v, want %s %v %v", test.failure, got.Row, got.Signal, got.Wait, test.row, test.signal, test.wait)
		}
	}
}

// TestClassifyKeepsLimitsApart: what is not a generation has limits of its own.
func TestClassifyKeepsLimitsApart(t *testing.T) {
	for _, call := range [][2]string{{"POST", "/v1/messages/count_tokens"}, {"GET", "/v1/messages/batches/msgbatch_1/results"}} {
		c, err := provider.Inspect(&provider.Request{Provider: registry.Provider("anthropic"), Method: []byte(call[0]), Rest: []byte(call[1])})
		if err != nil {
			t.Fatal(err)
		}
		got := provider.Classify(provider.Answer{Family: anth, Endpoint: c.Endpoint, Status: 429, Headers: pairs("Retry-After", "3")}, now)
		if got.Row != "throttled-beside" || got.Scope != ratelimit.ScopeRequest || got.Wait != 3*time.Second {
			t.Errorf("%s: got %+v", call[1], got)
		}
	}
	c := inspect(t, "anthropic", "/v1/messages", "", "")
	if got := provider.Classify(provider.Answer{Family: anth, Endpoint: c.Endpoint, Status: 429}, now); got.Scope != ratelimit.ScopeModel {
		t.Errorf("got %+v", got)
	}
}

func TestClassifyReadsTruncatedBodies(t *testing.T) {
	body := openAIError("insufficient_quota", "insufficient_quota", "m")
	got := provider.Classify(provider.Answer{Status: 429, Body: []byte(body[:len(body)-2])}, now)
	if got.Row != "openai-quota" {
		t.Errorf("got row %s", got.Row)
	}
}

// Good answers and bad ones name the organisation, in whatever case; the verdict's is
// a copy.
func TestClassifyOrganisation(t *testing.T) {
	for _, tt := range []struct {
		header, want string
	}{
		{"anthropic-organization-id", "0f5c-1"},
		{"Anthropic-Organization-Id", "0f5c-1"},
		{"OPENAI-ORGANIZATION", "org-abc"},
		{"openai-project", ""},
		{"anthropic-organization", ""},
		{"x-organization-id", ""},
	} {
		for _, status := range []int{200, 204, 301, 400, 401, 429, 529} {
			value := []byte("0f5c-1")
			if strings.EqualFold(tt.header, "openai-organization") {
				value = []byte("org-abc")
			}
			a := provider.Answer{Status: status, Headers: func(yield func(name, value []byte) bool) { yield([]byte(tt.header), value) }}
			v := provider.Classify(a, now)
			clear(value)
			if string(v.Organisation) != tt.want {
				t.Errorf("%d, %s: %q, want %q", status, tt.header, v.Organisation, tt.want)
			}
		}
	}
	a := provider.Answer{Status: 200, Headers: pairs("openai-organization", "org-abc"), Failure: &provider.Failure{Type: "rate_limit_exceeded"}}
	if v := provider.Classify(a, now); string(v.Organisation) != "org-abc" || v.Signal != ratelimit.Limited {
		t.Errorf("an error inside a stream: %+v", v)
	}
}

func TestClassifyWindows(t *testing.T) {
	at := now.Add
	tests := []struct {
		name    string
		headers []string
		want    []ratelimit.Window
	}{
		{"none", []string{"Content-Type", "application/json"}, nil},
		{"Anthropic API key", []string{
			"anthropic-ratelimit-requests-limit", "50", "anthropic-ratelimit-requests-remaining", "40", "anthropic-ratelimit-requests-reset", "2026-11-22T12:00:30Z",
			"Anthropic-RateLimit-Input-Tokens-Limit", "40000", "Anthropic-RateLimit-Input-Tokens-Remaining", "0", "Anthropic-RateLimit-Input-Tokens-Reset", "2026-11-22T12:01:00Z",
		}, []ratelimit.Window{
			{Name: "requests", Kind: "bucket", Utilization: 0.2, Reset: at(30 * time.Second), Size: 50, Left: 40, Seen: now},
			{Name: "input_tokens", Kind: "bucket", Utilization: 1, Reset: at(time.Minute), Size: 40_000, Seen: now},
		}},
		{"Anthropic subscription", []string{
			"anthropic-ratelimit-unified-status", "allowed_warning", "anthropic-ratelimit-unified-reset", "1795352400", "anthropic-ratelimit-unified-fallback", "available",
			"anthropic-ratelimit-unified-5h-utilization", "0.5", "anthropic-ratelimit-unified-5h-reset", "1795352400", "anthropic-ratelimit-unified-5h-status", "allowed",
			"anthropic-ratelimit-unified-7d-utilization", "1.25", "anthropic-ratelimit-unified-7d-surpassed-threshold", "0.75",
			"anthropic-ratelimit-unified-overage-utilization", "0.1", "anthropic-ratelimit-unified-overage-status", "rejected",
		}, []ratelimit.Window{
			{Name: "5h", Kind: "provider", Utilization: 0.5, Status: "allowed", Reset: at(time.Hour), Seen: now},
			{Name: "7d", Kind: "provider", Utilization: 1.25, Seen: now},
		}},
		{"OpenAI", []string{
			"x-ratelimit-limit-requests", "500", "x-ratelimit-remaining-requests", "250", "x-ratelimit-reset-requests", "120ms",
			"x-ratelimit-remaining-tokens", "10", // without a limit there is no fraction
		}, []ratelimit.Window{
			{Name: "requests", Kind: "bucket", Utilization: 0.5, Reset: at(120 * time.Millisecond), Size: 500, Left: 250, Seen: now},
		}},
		{"Azure's -1", []string{"x-ratelimit-limit-tokens", "-1", "x-ratelimit-remaining-tokens", "-1", "x-ratelimit-reset-tokens", "0"}, nil},
		{"zero limit", []string{"x-ratelimit-limit-tokens", "0", "x-ratelimit-remaining-tokens", "0"}, nil},
		{
			"more left than the limit",
			[]string{"x-ratelimit-limit-tokens", "100", "x-ratelimit-remaining-tokens", "150"},
			[]ratelimit.Window{{Name: "tokens", Kind: "bucket", Size: 100, Left: 150, Seen: now}},
		},
		{"nonsense", []string{"anthropic-ratelimit-unified-5h-utilization", "NaN", "x-codex-primary-used-percent", "-3", "x-ratelimit-", "1", "anthropic-ratelimit-", "x"}, nil},
		{"Codex", []string{
			"X-Codex-Primary-Used-Percent", "42.5", "x-codex-primary-window-minutes", "300", "x-codex-primary-reset-at", "1795352400",
			"x-codex-secondary-used-percent", "100", "x-codex-secondary-window-minutes", "10080", "x-codex-secondary-reset-after-seconds", "60",
			"x-codex-bengalfox-primary-used-percent", "10", "x-codex-bengalfox-primary-window-minutes", "300",
		}, []ratelimit.Window{
			{Name: "5h", Kind: "provider", Utilization: 0.425, Reset: at(time.Hour), Seen: now},
			{Name: "7d", Kind: "provider", Utilization: 1, Reset: at(time.Minute), Seen: now},
			{Name: "codex-bengalfox_5h", Kind: "provider", Utilization: 0.1, Seen: now},
		}},
	}
	for _, test := range tests {
		got := provider.Classify(provider.Answer{Status: 200, Headers: pairs(test.headers...)}, now).Windows
		equal := slices.EqualFunc(got, test.want, func(a, b ratelimit.Window) bool {
			near := a.Utilization-b.Utilization < 1e-9 && b.Utilization-a.Utilization < 1e-9
			a.Utilization = b.Utilization
			return near && a == b
		})
		if !equal {
			t.Errorf("%s: got\n%+v\nwant\n%+v", test.name, got, test.want)
		}
	}
}

// TestClassifyBoundsWhatItKeeps of an answer with endless limits.
func TestClassifyBoundsWhatItKeeps(t *testing.T) {
	var headers []string
	for i := range 1000 {
		name := "x-ratelimit-limit-" + time.Duration(i).String()
		headers = append(headers, name, "2", "x-ratelimit-remaining-"+time.Duration(i).String(), "1")
	}
	if got := len(provider.Classify(provider.Answer{Status: 200, Headers: pairs(headers...)}, now).Windows); got > 16 {
		t.Errorf("%d windows were kept", got)
	}
}

func TestRepeatable(t *testing.T) {
	verdict := func(s ratelimit.Signal, r ratelimit.Reason, scope ratelimit.Scope) ratelimit.Verdict {
		return ratelimit.Verdict{Signal: s, Reason: r, Scope: scope}
	}
	var (
		limited  = verdict(ratelimit.Limited, ratelimit.ReasonThrottled, ratelimit.ScopeModel)
		server   = verdict(ratelimit.ServerError, ratelimit.ReasonUpstream, ratelimit.ScopeSubscription)
		overload = verdict(ratelimit.Overloaded, ratelimit.ReasonCapacity, ratelimit.ScopeProviderModel)
		reset    = verdict(ratelimit.Network, ratelimit.ReasonReset, ratelimit.ScopeSubscription)
		connect  = verdict(ratelimit.Network, ratelimit.ReasonConnect, ratelimit.ScopeSubscription)
		timeout  = verdict(ratelimit.Network, ratelimit.ReasonTimeout, ratelimit.ScopeSubscription)
		key      = verdict(ratelimit.Auth, ratelimit.ReasonCredential, ratelimit.ScopeSubscription)
	)
	plain, unsafe, again := provider.Call{}, provider.Call{Unsafe: true}, provider.Call{RetryCount: 1}
	tests := []struct {
		verdict ratelimit.Verdict
		call    *provider.Call
		attempt provider.Attempt
		want    bool
	}{
		{limited, &plain, provider.Attempt{}, true},
		{limited, &unsafe, provider.Attempt{Failures: 3}, true},
		{limited, &again, provider.Attempt{}, true},
		{limited, &plain, provider.Attempt{Content: true}, false},
		{verdict(ratelimit.Limited, ratelimit.ReasonRequest, ratelimit.ScopeRequest), &plain, provider.Attempt{}, false},
		{verdict(ratelimit.Quota, ratelimit.ReasonCredit, ratelimit.ScopeSubscription), &unsafe, provider.Attempt{}, true},
		{key, &unsafe, provider.Attempt{}, true},
		{verdict(ratelimit.Auth, ratelimit.ReasonPermission, ratelimit.ScopeRequest), &plain, provider.Attempt{}, false},
		{verdict(ratelimit.ClientError, ratelimit.ReasonRefused, ratelimit.ScopeRequest), &plain, provider.Attempt{}, false},
		{verdict(ratelimit.Auth, ratelimit.ReasonEgress, ratelimit.ScopeProvider), &plain, provider.Attempt{}, true},
		{verdict(ratelimit.ClientError, ratelimit.ReasonEgress, ratelimit.ScopeProvider), &plain, provider.Attempt{}, false},
		{verdict(ratelimit.OK, ratelimit.ReasonNone, ratelimit.ScopeRequest), &plain, provider.Attempt{}, false},
		{server, &plain, provider.Attempt{}, true},
		{overload, &plain, provider.Attempt{}, true},
		{reset, &plain, provider.Attempt{}, true},
		{connect, &plain, provider.Attempt{}, true},
		{server, &plain, provider.Attempt{Failures: 1}, false},
		{overload, &again, provider.Attempt{}, false},
		{server, &unsafe, provider.Attempt{}, false},
		{reset, &unsafe, provider.Attempt{}, false},
		{connect, &unsafe, provider.Attempt{}, true},
		{timeout, &plain, provider.Attempt{}, false},
		{verdict(ratelimit.Network, ratelimit.ReasonTLS, ratelimit.ScopeSubscription), &plain, provider.Attempt{}, false},
		{server, &plain, provider.Attempt{Content: true}, false},
	}
	for i, test := range tests {
		if got := provider.Repeatable(test.verdict, test.call, test.attempt); got != test.want {
			t.Errorf("%d: %+v, %+v, %+v: got %v", i, test.verdict, test.call, test.attempt, got)
		}
	}
}
