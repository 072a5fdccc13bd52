package provider_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

func TestErrorsOfTheResponsesAPI(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{string(provider.ErrorEvent(nil, 429, "c", "m")), `{"type":"error","code":"rate_limit_exceeded","message":"authpool: m","param":null,"sequence_number":0}`},
		{string(provider.ErrorEvent([]byte("x"), 502, "c", `"`)), `x{"type":"error","code":"c","message":"authpool: \"","param":null,"sequence_number":0}`},
		{string(provider.FailedResponse(nil, "resp_1", 503, "c", "authpool: m")), `{"type":"response.failed","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"failed","output":[],"error":{"code":"server_is_overloaded","message":"authpool: m"}}}`},
	} {
		if test.got != test.want {
			t.Errorf("got %s, want %s", test.got, test.want)
		}
	}
}

func TestErrorBody(t *testing.T) {
	tests := []struct {
		family provider.Family
		status int
		want   string
	}{
		{anth, 400, `{"type":"error","error":{"type":"invalid_request_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 401, `{"type":"error","error":{"type":"authentication_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 403, `{"type":"error","error":{"type":"permission_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 404, `{"type":"error","error":{"type":"not_found_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 413, `{"type":"error","error":{"type":"request_too_large","message":"authpool: m"},"request_id":"r"}`},
		{anth, 426, `{"type":"error","error":{"type":"invalid_request_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 429, `{"type":"error","error":{"type":"rate_limit_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 502, `{"type":"error","error":{"type":"api_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 503, `{"type":"error","error":{"type":"overloaded_error","message":"authpool: m"},"request_id":"r"}`},
		{anth, 504, `{"type":"error","error":{"type":"timeout_error","message":"authpool: m"},"request_id":"r"}`},
		{oai, 400, `{"error":{"message":"authpool: m","type":"invalid_request_error","param":null,"code":"c"}}`},
		{oai, 401, `{"error":{"message":"authpool: m","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}`},
		{oai, 403, `{"error":{"message":"authpool: m","type":"invalid_request_error","param":null,"code":"c"}}`},
		{oai, 404, `{"error":{"message":"authpool: m","type":"invalid_request_error","param":null,"code":"c"}}`},
		{oai, 413, `{"error":{"message":"authpool: m","type":"invalid_request_error","param":null,"code":"c"}}`},
		{oai, 426, `{"error":{"message":"authpool: m","type":"invalid_request_error","param":null,"code":"c"}}`},
		{oai, 429, `{"error":{"message":"authpool: m","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}`},
		{oai, 502, `{"error":{"message":"authpool: m","type":"server_error","param":null,"code":"c"}}`},
		{azr, 503, `{"error":{"message":"authpool: m","type":"service_unavailable_error","param":null,"code":"server_is_overloaded"}}`},
		{oai, 504, `{"error":{"message":"authpool: m","type":"server_error","param":null,"code":"c"}}`},
		{gem, 400, `{"error":{"code":400,"message":"authpool: m","status":"INVALID_ARGUMENT"}}`},
		{gem, 401, `{"error":{"code":401,"message":"authpool: m","status":"UNAUTHENTICATED"}}`},
		{gem, 403, `{"error":{"code":403,"message":"authpool: m","status":"PERMISSION_DENIED"}}`},
		{gem, 404, `{"error":{"code":404,"message":"authpool: m","status":"NOT_FOUND"}}`},
		{gem, 413, `{"error":{"code":413,"message":"authpool: m","status":"INVALID_ARGUMENT"}}`},
		{gem, 426, `{"error":{"code":426,"message":"authpool: m","status":"FAILED_PRECONDITION"}}`},
		{gem, 429, `{"error":{"code":429,"message":"authpool: m","status":"RESOURCE_EXHAUSTED"}}`},
		{gem, 500, `{"error":{"code":500,"message":"authpool: m","status":"INTERNAL"}}`},
		{gem, 502, `{"error":{"code":502,"message":"authpool: m","status":"UNAVAILABLE"}}`},
		{gem, 504, `{"error":{"code":504,"message":"authpool: m","status":"DEADLINE_EXCEEDED"}}`},
		{provider.Bedrock, 429, `{"message":"authpool: m"}`},
		{provider.Cohere, 429, `{"message":"authpool: m"}`},
		{provider.Ollama, 429, `{"error":"authpool: m"}`},
		{provider.Voyage, 429, `{"detail":"authpool: m"}`},
	}
	for _, test := range tests {
		for _, message := range []string{"m", "authpool: m"} {
			if got := string(provider.ErrorBody(nil, test.family, test.status, "c", message, "r")); got != test.want {
				t.Errorf("%v %d: got %s, want %s", test.family, test.status, got, test.want)
			}
		}
	}
	if got, want := string(provider.ErrorBody([]byte("x"), anth, 400, "c", "m", "")), `x{"type":"error","error":{"type":"invalid_request_error","message":"authpool: m"}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestErrorHeader(t *testing.T) {
	for status, want := range map[int]string{
		400: "ValidationException", 401: "AccessDeniedException", 403: "AccessDeniedException", 404: "ResourceNotFoundException",
		413: "ValidationException", 426: "ValidationException", 429: "ThrottlingException", 500: "InternalServerException",
		502: "InternalServerException", 503: "ServiceUnavailableException", 504: "InternalServerException",
	} {
		if name, value := provider.ErrorHeader(provider.Bedrock, status); !strings.EqualFold(name, "x-amzn-errortype") || value != want {
			t.Errorf("%d: got %s: %s, want %s", status, name, value, want)
		}
	}
	for _, family := range []provider.Family{anth, oai, gem, azr, provider.Cohere, provider.Ollama, provider.Voyage} {
		if name, value := provider.ErrorHeader(family, 429); name != "" || value != "" {
			t.Errorf("%v: got %s: %s", family, name, value)
		}
	}
}

func TestErrorBodyEscapes(t *testing.T) {
	message := "authpool: \"quoted\" \\ \n\t\x00\x1f\x7f é 世 \u2028 \xff end"
	for _, family := range []provider.Family{anth, oai, gem} {
		var body struct{ Error struct{ Message string } }
		if err := json.Unmarshal(provider.ErrorBody(nil, family, 400, "c", message, "r"), &body); err != nil {
			t.Fatal(err)
		}
		if want := "authpool: \"quoted\" \\ \n\t\x00\x1f\x7f é 世 \u2028 \ufffd end"; body.Error.Message != want {
			t.Errorf("got %q, want %q", body.Error.Message, want)
		}
	}
}

// TestUsageLimitBody reads the body as an authpool behind this one would.
func TestUsageLimitBody(t *testing.T) {
	body := provider.UsageLimitBody(nil, `all "3" are limited`, now.Add(12*time.Minute))
	if got, want := string(body), `{"error":{"type":"usage_limit_reached","message":"authpool: all \"3\" are limited","resets_at":`+strconv.FormatInt(now.Add(12*time.Minute).Unix(), 10)+`}}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	v := provider.Classify(provider.Answer{Family: oai, Status: 429, Body: body}, now)
	if v.Signal != ratelimit.Limited || v.Reason != ratelimit.ReasonWindow || v.Wait != 12*time.Minute {
		t.Errorf("got %+v", v)
	}
}

// TestErrorsAreClassifiedAsMeant reads authpool's own errors as an authpool
// behind this one would.
func TestErrorsAreClassifiedAsMeant(t *testing.T) {
	for status, row := range map[int]string{
		400: "client-error", 401: "unauthorized", 403: "forbidden", 404: "not-found", 413: "request-too-large",
		426: "client-error", 429: "throttled", 502: "server-error", 503: "overloaded", 504: "server-error",
	} {
		for _, family := range []provider.Family{anth, oai, gem, azr, provider.Bedrock, provider.Cohere, provider.Ollama, provider.Voyage} {
			body := provider.ErrorBody(nil, family, status, "c", "m", "r")
			if got := provider.Classify(provider.Answer{Family: family, Status: status, Body: body}, now).Row; got != row {
				t.Errorf("%v %d: got %s, want %s", family, status, got, row)
			}
		}
	}
}
