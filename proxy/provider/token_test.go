package provider_test

import (
	"encoding/base64"
	"slices"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

// TestAgentTokens has a row for each carrier of the contract.
func TestAgentTokens(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("session-1:apa_1"))
	tests := []struct {
		headers, query string
		want           []string
	}{
		{"Authorization: Bearer apa_1\r\n", "", []string{"apa_1"}},
		{"AUTHORIZATION: bearer  apa_1 \r\n", "", []string{"apa_1"}},
		{"authorization: Basic " + basic + "\r\n", "", []string{"apa_1"}},
		{"Proxy-Authorization: Basic " + basic + "\r\n", "", []string{"apa_1"}},
		{"Proxy-Authorization: Bearer apa_1\r\n", "", []string{"apa_1"}},
		{"X-Api-Key: apa_1\r\n", "", []string{"apa_1"}},
		{"api-key: apa_1\r\n", "", []string{"apa_1"}},
		{"x-goog-api-key: apa_1\r\n", "", []string{"apa_1"}},
		{"x-goog-api-key:\r\n", "", nil}, // Gemini CLI can send it empty
		{"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.apa_1, openai-beta.realtime-v1\r\n", "", []string{"apa_1"}},
		{"Authorization: AWS4-HMAC-SHA256 Credential=apa_1/20261122/us-east-1/bedrock/aws4_request, SignedHeaders=host, Signature=00\r\n", "", []string{"apa_1"}},
		{"", "alt=sse&key=apa_1", []string{"apa_1"}},
		{"", "KEY=apa%5F1", []string{"apa_1"}},
		{"", "X-Amz-Signature=00&X-Amz-Credential=apa_1%2F20261122%2Fus-east-1%2Fbedrock%2Faws4_request", []string{"apa_1"}},
		{"", "key=&key", nil},
		// All of them, in order, also the same twice.
		{"x-api-key: apa_1\r\nAccept: */*\r\nAuthorization: Bearer apa_2\r\nx-api-key: apa_1\r\n", "key=apa_3", []string{"apa_1", "apa_2", "apa_1", "apa_3"}},
		{"Authorization: Basic !!!\r\nAuthorization: Digest x\r\nAuthorization:\r\nAuthorization: Bearer\r\n", "", nil},
	}
	for _, test := range tests {
		var got []string
		for token := range provider.AgentTokens(provider.Headers(test.headers), []byte(test.query)) {
			got = append(got, string(token))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%q ?%s: got %q, want %q", test.headers, test.query, got, test.want)
		}
	}
	for range provider.AgentTokens(provider.Headers("x-api-key: 1\r\nx-api-key: 2\r\nsec-websocket-protocol: openai-insecure-api-key.3,openai-insecure-api-key.4\r\n"), []byte("key=5&key=6")) {
		break // stopping early must not go on
	}
}
