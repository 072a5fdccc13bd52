package provider_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/provider"
)

const (
	anthropicKey = "sk-ant-api03-the-pool's"
	oauthToken   = "sk-ant-oat01-the-pool's"
	openAIKey    = "sk-proj-the-pool's"
)

func cred(scheme credential.Scheme, secret string) credential.Credential {
	return credential.Credential{Scheme: scheme, Secret: credential.NewSecret(secret)}
}

// head builds the upstream head of a request to a provider and returns its
// lines.
func head(t *testing.T, name string, h provider.Head, c credential.Credential) []string {
	t.Helper()
	if h.Method == nil {
		h.Method, h.Rest, h.Length = []byte("POST"), []byte("/v1/messages"), 2
	}
	text, err := registry.Provider(name).AppendHead(nil, &h, c)
	if err != nil {
		t.Fatal(err)
	}
	body, ok := strings.CutSuffix(string(text), "\r\n\r\n")
	if !ok || strings.Contains(body, "\r\n\r\n") {
		t.Fatalf("the head does not end with its one empty line: %q", text)
	}
	return strings.Split(body, "\r\n")
}

func TestHead(t *testing.T) {
	got := head(t, "gateway", provider.Head{
		Method: []byte("POST"), Rest: []byte("/v1/chat%2Fx"), Query: []byte("beta=true&key=apa_1"), Length: 42,
		Headers: provider.Headers("host: 127.0.0.1:8787\r\nContent-Type: application/json\r\nAuthorization: Bearer apa_1\r\n" +
			"X-stainless-OS:  Linux \r\ncontent-length: 17\r\nX-Repeated: 1\r\nuser-agent: a\r\nX-Repeated: 2\r\nEmpty:\r\n\r\n"),
	}, cred(credential.APIKey, openAIKey))
	want := []string{
		"POST /team/llm/v1/chat%2Fx?beta=true HTTP/1.1",
		"Host: gw.example:8443",
		"Content-Type: application/json",
		"X-stainless-OS: Linux",
		"X-Repeated: 1",
		"user-agent: a",
		"X-Repeated: 2",
		"Empty: ",
		"Authorization: Bearer " + openAIKey,
		"Content-Length: 42",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestHeadWithoutABody(t *testing.T) {
	got := head(t, "openai", provider.Head{Method: []byte("GET"), Rest: []byte("/v1/models"), Length: -1}, cred(credential.Bearer, openAIKey))
	if strings.Contains(strings.Join(got, "\n"), "Content-Length") {
		t.Errorf("a request without a body got a Content-Length: %q", got)
	}
}

// stripped are the names that must never leave towards a provider, with a value
// that shows where it came from.
var stripped = []string{
	"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-goog-api-key",
	"x-goog-user-project", "x-goog-iam-authorization-token", "openai-organization", "openai-project",
	"chatgpt-account-id", "x-organization-uuid", "anthropic-workspace-id", "anthropic-user-profile-id",
	"x-amz-security-token", "x-amz-date", "x-amz-content-sha256", "ocp-apim-subscription-key",
	"x-oai-attestation", "x-openai-authorization", "x-openai-actor-authorization", "x-claude-code-ide-authorization",
	"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect",
	"content-length", "host", "x-authpool-session", "x-authpool-anything",
	"sec-websocket-protocol", "sec-websocket-key", "x-original-url", "x-rewrite-url", "x-http-method-override",
	"x_api_key", "openai_organization",
}

func TestHeadStrips(t *testing.T) {
	const canary = "agent's-canary"
	for _, name := range stripped {
		for _, form := range []string{name, strings.ToUpper(name), mixed(name)} {
			for _, block := range []string{
				form + ": " + canary + "\r\n",
				form + ":" + canary + "\r\nAccept: */*\r\n" + form + ":\t" + canary + "\r\n",
				name + ": " + canary + "\r\n" + form + ": " + canary + "\r\n",
			} {
				for _, p := range []string{"anthropic", "openai", "gemini", "azure", "bedrock", "cohere", "ollama", "voyage"} {
					got := strings.Join(head(t, p, provider.Head{Headers: provider.Headers(block)}, cred(credential.APIKey, "pool's")), "\n")
					if strings.Contains(got, canary) {
						t.Errorf("%s: %q passed:\n%s", p, block, got)
					}
				}
			}
		}
	}
}

// mixed writes every other letter in upper case.
func mixed(name string) string {
	b := []byte(name)
	for i := range b {
		if i%2 == 1 {
			b[i] = bytes.ToUpper(b[i : i+1])[0]
		}
	}
	return string(b)
}

func TestHeadDropsWhatConnectionNames(t *testing.T) {
	got := strings.Join(head(t, "openai", provider.Head{Headers: provider.Headers(
		"X-Hop: canary\r\nConnection: keep-alive, x-HOP\r\nX-Other: canary\r\nconnection: X-Other\r\nX-Kept: 1\r\n")},
		cred(credential.APIKey, openAIKey)), "\n")
	if strings.Contains(got, "canary") || !strings.Contains(got, "X-Kept: 1") {
		t.Errorf("got\n%s", got)
	}
}

func TestHeadDropsWhatCouldEndAHeader(t *testing.T) {
	got := head(t, "openai", provider.Head{Headers: provider.Headers(
		"X-A: 1\rX-Api-Key: canary\r\nX-B: a\x00b\r\nBad Name: canary\r\nX-Api-Key : canary\r\nno colon\r\n: canary\r\nX-C: caf\xc3\xa9\r\n")},
		cred(credential.APIKey, openAIKey))
	text := strings.Join(got, "\n")
	if strings.Contains(text, "canary") || strings.ContainsAny(text, "\r\x00") || !strings.Contains(text, "X-C: caf\xc3\xa9") {
		t.Errorf("got\n%q", text)
	}
}

func TestHeadRefusesACredentialThatCouldEndAHeader(t *testing.T) {
	for _, secret := range []string{"", "a\r\nX: y", "a\nb", "a\x00b", "a\x7fb"} {
		h := provider.Head{Method: []byte("GET"), Rest: []byte("/"), Length: -1}
		_, err := registry.Provider("openai").AppendHead(nil, &h, cred(credential.APIKey, secret))
		var refusal *provider.Refusal
		if !errors.As(err, &refusal) || refusal.Code != provider.CodeBadCredential {
			t.Errorf("%q: got %v, want a refusal", secret, err)
		}
		if err != nil && secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the credential: %v", err)
		}
	}
}

// TestHeadInjects looks at the one credential form and its companions.
func TestHeadInjects(t *testing.T) {
	tests := []struct {
		name, provider string
		credential     credential.Credential
		headers        string
		want           []string // all lines behind Host but Content-Length
	}{
		{
			"api key", "anthropic", cred(credential.APIKey, anthropicKey), "authorization: Bearer apa_1\r\nx-api-key: apa_1\r\n",
			[]string{"anthropic-version: 2023-06-01", "x-api-key: " + anthropicKey},
		},
		{
			"api key as bearer", "anthropic", cred(credential.Bearer, anthropicKey), "",
			[]string{"anthropic-version: 2023-06-01", "Authorization: Bearer " + anthropicKey},
		},
		{
			"the agent's version stays", "anthropic", cred(credential.APIKey, anthropicKey), "Anthropic-Version: 2026-10-21\r\n",
			[]string{"Anthropic-Version: 2026-10-21", "x-api-key: " + anthropicKey},
		},
		{
			"oauth", "anthropic", cred(credential.Bearer, oauthToken), "anthropic-version: 2023-06-01\r\n",
			[]string{"anthropic-version: 2023-06-01", "anthropic-beta: oauth-2025-04-20", "Authorization: Bearer " + oauthToken},
		},
		{
			"oauth by its text", "anthropic", cred(credential.APIKey, oauthToken), "anthropic-version: 2023-06-01\r\n",
			[]string{"anthropic-version: 2023-06-01", "anthropic-beta: oauth-2025-04-20", "Authorization: Bearer " + oauthToken},
		},
		{
			"oauth beside other betas", "anthropic", cred(credential.Bearer, oauthToken), "anthropic-version: 1\r\nAnthropic-Beta: b-2, a-1\r\nX-After: 1\r\n",
			[]string{"anthropic-version: 1", "Anthropic-Beta: b-2, a-1,oauth-2025-04-20", "X-After: 1", "Authorization: Bearer " + oauthToken},
		},
		{
			"oauth is there", "anthropic", cred(credential.Bearer, oauthToken), "anthropic-version: 1\r\nanthropic-beta: oauth-2025-04-20,a-1\r\n",
			[]string{"anthropic-version: 1", "anthropic-beta: oauth-2025-04-20,a-1", "Authorization: Bearer " + oauthToken},
		},
		{
			"oauth in two lines", "anthropic", cred(credential.Bearer, oauthToken), "anthropic-beta: a-1\r\nanthropic-version: 1\r\nANTHROPIC-BETA: b-2\r\n",
			[]string{"anthropic-beta: a-1,b-2,oauth-2025-04-20", "anthropic-version: 1", "Authorization: Bearer " + oauthToken},
		},
		{
			"oauth with an empty list", "anthropic", cred(credential.Bearer, oauthToken), "anthropic-version: 1\r\nanthropic-beta:\r\n",
			[]string{"anthropic-version: 1", "anthropic-beta: oauth-2025-04-20", "Authorization: Bearer " + oauthToken},
		},
		{
			"api key for an oauth agent", "anthropic", cred(credential.APIKey, anthropicKey), "anthropic-version: 1\r\nanthropic-beta: a-1,oauth-2025-04-20 , b-2\r\n",
			[]string{"anthropic-version: 1", "anthropic-beta: a-1, b-2", "x-api-key: " + anthropicKey},
		},
		{
			"api key and oauth alone", "anthropic", cred(credential.APIKey, anthropicKey), "anthropic-version: 1\r\nanthropic-beta: oauth-2025-04-20\r\n",
			[]string{"anthropic-version: 1", "x-api-key: " + anthropicKey},
		},
		{
			"betas stay as sent", "anthropic", cred(credential.APIKey, anthropicKey), "anthropic-version: 1\r\nanthropic-beta: a-1 ,b-2\r\nanthropic-beta: c-3\r\n",
			[]string{"anthropic-version: 1", "anthropic-beta: a-1 ,b-2", "anthropic-beta: c-3", "x-api-key: " + anthropicKey},
		},
		{
			"openai", "openai", cred(credential.APIKey, openAIKey), "OpenAI-Beta: assistants=v2\r\nOpenAI-Organization: org-agent\r\n",
			[]string{"OpenAI-Beta: assistants=v2", "Authorization: Bearer " + openAIKey},
		},
		{
			"another family's headers stay", "openai", cred(credential.APIKey, openAIKey), "anthropic-beta: oauth-2025-04-20\r\n",
			[]string{"anthropic-beta: oauth-2025-04-20", "Authorization: Bearer " + openAIKey},
		},
		{"gemini", "gemini", cred(credential.APIKey, "AIza-pool"), "X-Goog-Api-Key:\r\n", []string{"x-goog-api-key: AIza-pool"}},
		{"gemini bearer", "gemini", cred(credential.Bearer, "ya29-pool"), "", []string{"Authorization: Bearer ya29-pool"}},
		{"azure", "azure", cred(credential.APIKey, "az-pool"), "Api-Key: apa_1\r\n", []string{"api-key: az-pool"}},
		{"vertex", "vertex", cred(credential.Bearer, "ya29-pool"), "Authorization: Bearer apa_1\r\nx-goog-user-project: agent\r\nanthropic-version: 1\r\n", []string{"anthropic-version: 1", "Authorization: Bearer ya29-pool"}},
		{"vertex express", "vertex", cred(credential.APIKey, "AIza-pool"), "", []string{"x-goog-api-key: AIza-pool"}},
		{
			"bedrock", "bedrock", cred(credential.APIKey, "bedrock-pool"),
			"Authorization: AWS4-HMAC-SHA256 Credential=apa_1/20261122/us-east-1/bedrock/aws4_request\r\nX-Amz-Date: 20261122T000000Z\r\nX-Amz-Security-Token: t\r\nX-Amzn-Bedrock-Trace: ENABLED\r\n",
			[]string{"X-Amzn-Bedrock-Trace: ENABLED", "Authorization: Bearer bedrock-pool"},
		},
		{"bedrock bearer", "bedrock", cred(credential.Bearer, "bedrock-pool"), "Authorization: Bearer apa_1\r\n", []string{"Authorization: Bearer bedrock-pool"}},
		{"cohere", "cohere", cred(credential.APIKey, "co-pool"), "Authorization: BEARER apa_1\r\nX-Client-Name: a\r\n", []string{"X-Client-Name: a", "Authorization: Bearer co-pool"}},
		{"ollama", "ollama", cred(credential.APIKey, "ol-pool"), "", []string{"Authorization: Bearer ol-pool"}},
		{"voyage", "voyage", cred(credential.APIKey, "vo-pool"), "", []string{"Authorization: Bearer vo-pool"}},
		{"azure bearer", "azure", cred(credential.Bearer, "entra"), "", []string{"Authorization: Bearer entra"}},
	}
	for _, test := range tests {
		got := head(t, test.provider, provider.Head{Headers: provider.Headers(test.headers)}, test.credential)
		want := append(slices.Clone(test.want), "Content-Length: 2")
		if !slices.Equal(got[2:], want) {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, strings.Join(got[2:], "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestHeadAcceptEncoding(t *testing.T) {
	tests := []struct {
		sent     string
		identity bool
		want     []string
	}{
		{"Accept-Encoding: gzip, deflate, br, zstd\r\n", false, []string{"Accept-Encoding: gzip, deflate, br, zstd"}},
		{"accept-encoding: gzip;q=1.0,BR\r\n", false, []string{"accept-encoding: gzip;q=1.0,BR"}},
		{"accept-encoding: gzip, dcb, *;q=0.1\r\n", false, []string{"accept-encoding: gzip"}},
		{"accept-encoding: dcb\r\n", false, []string{"accept-encoding: identity"}},
		{"", false, nil},
		{"", true, []string{"Accept-Encoding: identity"}},
		{"accept-encoding: gzip\r\nAccept-Encoding: br\r\n", true, []string{"Accept-Encoding: identity"}},
	}
	for _, test := range tests {
		var got []string
		for _, line := range head(t, "openai", provider.Head{Headers: provider.Headers(test.sent), Identity: test.identity}, cred(credential.APIKey, openAIKey)) {
			if strings.HasPrefix(strings.ToLower(line), "accept-encoding") {
				got = append(got, line)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%q, identity %v: got %q, want %q", test.sent, test.identity, got, test.want)
		}
	}
}

func TestHeadQuery(t *testing.T) {
	tests := []struct{ sent, want string }{
		{"", ""},
		{"beta=true", "?beta=true"},
		{"a=1&b=%20x&a=2&&c", "?a=1&b=%20x&a=2&&c"},
		{"key=canary", ""},
		{"key=canary&alt=sse", "?alt=sse"},
		{"alt=sse&KEY=canary", "?alt=sse"},
		{"a=1&Key=canary&b=2&key=canary", "?a=1&b=2"},
		{"%6bey=canary&a=1", "?a=1"},
		{"k%65y=canary;a=1;b=2", "?a=1;b=2"},
		{"a=1;key=canary&b=2", "?a=1&b=2"},
		{"access_token=canary&api-key=canary&api_key=canary&oauth_token=canary&x=y", "?x=y"},
		{"X-Amz-Signature=canary&x-amz-credential=canary&X-AMZ-Date=canary&versionId=3", "?versionId=3"},
		{"api-version=2024-10-21&keys=1&monkey=2", "?api-version=2024-10-21&keys=1&monkey=2"},
		{"key", ""},
	}
	for _, test := range tests {
		got := head(t, "openai", provider.Head{Method: []byte("GET"), Rest: []byte("/v1/x"), Query: []byte(test.sent), Length: -1}, cred(credential.APIKey, openAIKey))
		if want := "GET /v1/x" + test.want + " HTTP/1.1"; got[0] != want {
			t.Errorf("%q: got %q, want %q", test.sent, got[0], want)
		}
	}
}

// agentHeaders are what Claude Code sends, by number and kind.
const agentHeaders = "host: 127.0.0.1:8787\r\naccept: application/json\r\nx-api-key: apa_token\r\nX-Claude-Code-Session-Id: 0c1d6c3e-52a5-4f0f-9b5e-8dbb8d6d0001\r\n" +
	"anthropic-version: 2023-06-01\r\nanthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14\r\nx-app: cli\r\nuser-agent: claude-cli/2.1.330 (external, sdk-cli)\r\n" +
	"content-type: application/json\r\nx-stainless-lang: js\r\nx-stainless-retry-count: 0\r\naccept-encoding: gzip, deflate, br, zstd\r\nconnection: keep-alive\r\ncontent-length: 49000\r\n\r\n"

func BenchmarkAppendHead(b *testing.B) {
	dst := make([]byte, 0, 4096)
	h := provider.Head{Method: []byte("POST"), Rest: []byte("/v1/messages"), Query: []byte("beta=true"), Headers: provider.Headers(agentHeaders), Length: 2}
	p, c := registry.Provider("anthropic"), cred(credential.APIKey, anthropicKey)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = p.AppendHead(dst[:0], &h, c)
	}
}
