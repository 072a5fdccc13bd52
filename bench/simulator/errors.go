package simulator

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// failure is an error answer: a status, the provider's body, and what its headers say about waiting.
type failure struct {
	status  int
	kind    string // error.type
	code    string // OpenAI's error.code; Anthropic's error.details.error_code
	message string
	param   string
	extra   string // further fields of OpenAI's error object, with a leading comma
	retry   time.Duration
	header  map[string]string
}

// body writes the failure as the provider would.
func (f failure) body(provider, requestID string) string {
	switch provider {
	case Gemini:
		return f.geminiBody()
	case Bedrock:
		return `{"message":` + quote(f.message) + `}`
	case OpenAI:
		return fmt.Sprintf("{\n    \"error\": {\n        \"message\": %s,\n        \"type\": %s,\n        \"param\": %s,\n        \"code\": %s%s\n    }\n}\n",
			quote(f.message), quote(f.kind), quoteOrNull(f.param), quoteOrNull(f.code), f.extra)
	}
	details := ""
	if f.code != "" {
		details = `"details":{"error_code":` + quote(f.code) + `},`
	}
	return fmt.Sprintf(`{"type":"error","error":{%s"type":%s,"message":%s},"request_id":%s}`,
		details, quote(f.kind), quote(f.message), quote(requestID))
}

func quoteOrNull(s string) string {
	if s == "" {
		return "null"
	}
	return quote(s)
}

// fail writes an error answer.
func (s *Simulator) fail(w http.ResponseWriter, r *http.Request, provider, requestID string, f failure) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	for name, value := range f.header {
		h.Set(name, value)
	}
	if provider == Bedrock {
		h.Set("X-Amzn-Errortype", f.kind+":http://internal.amazon.com/coral/com.amazon.bedrock/")
	}
	if f.retry > 0 && (provider == Anthropic || provider == OpenAI) {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(f.retry.Seconds()))))
		if provider == OpenAI {
			h.Set("Retry-After-Ms", strconv.FormatInt(int64(math.Ceil(float64(f.retry)/1e6)), 10))
		}
	}
	if provider == Anthropic {
		switch {
		case f.status == 401 || f.status == 403 || f.status == 400 || f.status == 404:
			h.Set("X-Should-Retry", "false")
		case f.status >= 429:
			h.Set("X-Should-Retry", "true")
		}
	}
	out := start(w, r, f.status)
	if _, err := out.Write([]byte(f.body(provider, requestID))); err == nil {
		_ = out.close() // the client has gone if this fails, and nothing is owed to it
	}
}

// failureOf is the answer of a provider for a bare status.
func failureOf(provider string, status int) failure {
	table := failures[provider]
	f, ok := table[status]
	switch {
	case !ok && status < 500:
		f = table[400]
	case !ok:
		f = table[500]
	}
	f.status = status
	return f
}

// failures are by provider, and by status.
var failures = map[string]map[int]failure{
	Anthropic: anthropicFailures, OpenAI: openaiFailures, Gemini: geminiFailures, Bedrock: bedrockFailures,
}

var anthropicFailures = map[int]failure{
	400: {kind: "invalid_request_error", message: "messages: invalid request"},
	401: {kind: "authentication_error", message: "invalid x-api-key"},
	402: {kind: "billing_error", message: "There is a problem with this organization's billing."},
	403: {kind: "permission_error", message: "Your API key does not have permission to use the specified resource."},
	404: {kind: "not_found_error", message: "model: not found"},
	413: {kind: "request_too_large", message: "Request exceeds the maximum size"},
	429: {kind: "rate_limit_error", message: "This request would exceed your account's rate limit. Please try again later."},
	500: {kind: "api_error", message: "Internal server error"},
	503: {kind: "api_error", message: "Service unavailable"},
	504: {kind: "timeout_error", message: "Request timed out"},
	529: {kind: "overloaded_error", message: "Overloaded"},
}

var openaiFailures = map[int]failure{
	400: {kind: "invalid_request_error", message: "Invalid request."},
	401: {kind: "invalid_request_error", code: "invalid_api_key", message: "Incorrect API key provided."},
	403: {kind: "invalid_request_error", code: "model_not_found", message: "Project does not have access to this model."},
	404: {kind: "invalid_request_error", code: "model_not_found", message: "The model does not exist or you do not have access to it."},
	413: {kind: "invalid_request_error", message: "Request body is too large."},
	429: {kind: "requests", code: "rate_limit_exceeded", message: "Rate limit reached."},
	500: {kind: "server_error", message: "The server had an error while processing your request. Sorry about that!"},
	502: {kind: "server_error", message: "Bad gateway."},
	503: {kind: "service_unavailable_error", code: "server_is_overloaded", message: "The server is currently overloaded with other requests. Please retry later."},
	504: {kind: "server_error", message: "Gateway timeout."},
}

// usedUp is the answer to a subscription whose window is used up; its headers say which one.
func usedUp(provider string, reset time.Time) failure {
	f := failureOf(provider, 429)
	switch provider {
	case Gemini:
		return geminiQuota("generate_requests_per_model_per_day", "GenerateRequestsPerDayPerProjectPerModel", "x", 1000)
	case Bedrock:
		f.message = "Too many tokens per day, please wait before trying again."
	case OpenAI:
		f.kind, f.code, f.message = "usage_limit_reached", "", "The usage limit has been reached"
		f.extra = `, "plan_type": "pro", "resets_at": ` + epoch(reset)
	}
	return f
}

// limited is the answer to a key that is at its limit.
func limited(provider, org, model string, r refusal, now time.Time) failure {
	if r.window {
		f := usedUp(provider, now.Add(r.wait))
		f.retry = r.wait
		return f
	}
	f := failureOf(provider, 429)
	switch provider {
	case Bedrock:
		f.message = "Too many " + r.what + ", please wait before trying again."
		return f
	case Gemini:
		metric := map[bool]string{true: "requests", false: "input_token_count"}[r.what == "requests"]
		f = geminiQuota("generate_content_paid_tier_"+metric, "GenerateContentPaidTierPerMinutePerProjectPerModel", model, r.limit)
	}
	f.retry = r.wait
	switch provider {
	case Gemini:
		f.message += "\nPlease retry in " + seconds(r.wait) + "s."
		return f
	case Anthropic:
		f.message = fmt.Sprintf("This request would exceed your organization's (%s) rate limit of %d %s per minute (model: %s).", org, r.limit, r.what, model)
		return f
	}
	unit, name := "requests", "requests per min (RPM)"
	if r.what != "requests" {
		unit, name = "tokens", "tokens per min (TPM)"
	}
	f.kind = unit
	if r.tooLarge {
		f.retry = 0
		f.message = fmt.Sprintf("Request too large for %s in organization %s on %s: Limit %d, Requested %d. The input or output tokens must be reduced in order to run successfully.", model, org, name, r.limit, r.requested)
		return f
	}
	f.message = fmt.Sprintf("Rate limit reached for %s in organization %s on %s: Limit %d, Used %d, Requested %d. Please try again in %s.", model, org, name, r.limit, r.used, r.requested, goDuration(r.wait))
	return f
}

// failure is the answer of a fault that fails at the head; ok is false for the other kinds.
func (f *Fault) failure(provider string, now time.Time) (answer failure, ok bool) {
	retry := time.Duration(f.RetryAfter * float64(time.Second))
	switch f.Kind {
	case Status:
		answer = failureOf(provider, f.Status)
	case RateLimit:
		answer = failureOf(provider, 429)
	case Overloaded:
		answer = overloaded(provider)
	case Window:
		answer = usedUp(provider, now.Add(retry))
		switch reset := epoch(now.Add(retry)); provider {
		case Anthropic:
			answer.header = map[string]string{
				"Anthropic-Ratelimit-Unified-Status":               "rejected",
				"Anthropic-Ratelimit-Unified-Reset":                reset,
				"Anthropic-Ratelimit-Unified-Representative-Claim": "five_hour",
				"Anthropic-Ratelimit-Unified-5h-Status":            "rejected",
				"Anthropic-Ratelimit-Unified-5h-Reset":             reset,
				"Anthropic-Ratelimit-Unified-5h-Utilization":       "1.0",
			}
		case OpenAI:
			answer.header = map[string]string{
				"X-Codex-Primary-Used-Percent":   "100.0",
				"X-Codex-Primary-Window-Minutes": "300",
				"X-Codex-Primary-Reset-At":       reset,
			}
		}
	case Quota:
		switch provider {
		case Gemini:
			answer = failureOf(provider, 429)
			answer.message = "Your prepayment credits are depleted. Please go to AI Studio to manage your project and billing."
		case Bedrock:
			answer = failureOf(provider, 400)
			answer.kind, answer.message = "ServiceQuotaExceededException", "Your account has reached its service quota."
		case Anthropic:
			answer = failureOf(provider, 400)
			answer.message = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."
		case OpenAI:
			answer = failureOf(provider, 429)
			answer.kind, answer.code = "insufficient_quota", "insufficient_quota"
			answer.message = "You exceeded your current quota, please check your plan and billing details."
		}
	default:
		return failure{}, false
	}
	answer.retry = retry
	return answer, true
}

func overloaded(provider string) failure {
	if provider == Anthropic {
		return failureOf(provider, 529)
	}
	return failureOf(provider, 503)
}

// goDuration writes a duration as OpenAI does: 6m0s, 1.5s, 12ms.
func goDuration(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
