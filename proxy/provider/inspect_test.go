package provider_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/provider"
)

// inspect reads a POST to a provider.
func inspect(t testing.TB, name, rest, headers, body string) provider.Call {
	t.Helper()
	c, err := provider.Inspect(&provider.Request{
		Provider: registry.Provider(name), Agent: "default", Method: []byte("POST"), Rest: []byte(rest),
		Headers: provider.Headers(headers), Body: []byte(body),
	})
	if err != nil {
		t.Fatalf("%s %s: %v", rest, body, err)
	}
	return c
}

func TestInspectEndpoints(t *testing.T) {
	tests := []struct {
		provider, method, rest string
		name                   string
		api                    meter.API
		shape                  provider.Family
		unsafe                 bool
	}{
		{"anthropic", "POST", "/v1/messages", "messages", meter.AnthropicMessages, provider.Anthropic, false},
		{"anthropic", "POST", "/v1/%6Dessages", "messages", meter.AnthropicMessages, provider.Anthropic, false},
		{"anthropic", "POST", "//v1//messages/", "messages", meter.AnthropicMessages, provider.Anthropic, false},
		{"anthropic", "POST", "/v1/messages/count_tokens", "messages/count_tokens", meter.None, provider.Anthropic, false},
		{"anthropic", "POST", "/v1/messages/batches", "messages/batches", meter.None, provider.Anthropic, true},
		{"anthropic", "GET", "/v1/messages/batches", "messages/batches", meter.None, provider.Anthropic, false},
		{"anthropic", "DELETE", "/v1/files/file_1", "resource", meter.None, provider.Anthropic, false},
		{"anthropic", "PUT", "/v1/files/file_1", "resource", meter.None, provider.Anthropic, true},
		{"anthropic", "POST", "/v1/complete", "complete", meter.AnthropicComplete, provider.Anthropic, false},
		{"anthropic", "POST", "/v1/files", "files", meter.None, provider.Anthropic, true},
		{"anthropic", "POST", "/v1/brand/new", "other", meter.OpenAIOther, provider.Anthropic, true},
		{"openai", "POST", "/v1/chat/completions", "chat/completions", meter.OpenAIChat, provider.OpenAI, false},
		{"openai", "GET", "/v1/chat/completions/chatcmpl-1", "resource", meter.None, provider.OpenAI, false},
		{"openai", "POST", "/v1/completions", "completions", meter.OpenAICompletions, provider.OpenAI, false},
		{"openai", "POST", "/v1/responses", "responses", meter.OpenAIResponses, provider.OpenAI, false},
		{"openai", "POST", "/v1/responses/compact", "responses/compact", meter.OpenAIResponses, provider.OpenAI, false},
		{"openai", "POST", "/v1/responses/input_tokens", "responses/input_tokens", meter.None, provider.OpenAI, false},
		{"openai", "POST", "/v1/responses/resp_1/cancel", "responses/cancel", meter.OpenAIStoredResponse, provider.OpenAI, true},
		{"openai", "GET", "/v1/responses/resp_1", "responses/stored", meter.OpenAIStoredResponse, provider.OpenAI, false},
		{"openai", "HEAD", "/v1/responses/resp_1", "resource", meter.None, provider.OpenAI, false},
		{"openai", "DELETE", "/v1/responses/resp_1", "resource", meter.None, provider.OpenAI, false},
		{"openai", "GET", "/v1/responses/resp_1/input_items", "resource", meter.None, provider.OpenAI, false},
		{"openai", "GET", "/v1/responses", "responses", meter.None, provider.OpenAI, false},
		{"azure", "GET", "/openai/responses/resp_1", "responses/stored", meter.OpenAIStoredResponse, provider.OpenAI, false},
		{"azure", "GET", "/openai/v1/responses/resp_1", "responses/stored", meter.OpenAIStoredResponse, provider.OpenAI, false},
		{"azure", "POST", "/openai/v1/responses/resp_1/cancel", "responses/cancel", meter.OpenAIStoredResponse, provider.OpenAI, true},
		{"openai", "POST", "/v1/embeddings", "embeddings", meter.OpenAIEmbeddings, provider.OpenAI, false},
		{"openai", "POST", "/v1/moderations", "moderations", meter.None, provider.OpenAI, false},
		{"openai", "POST", "/v1/images/edits", "images", meter.OpenAIImages, provider.OpenAI, false},
		{"openai", "POST", "/v1/audio/speech", "audio/speech", meter.OpenAISpeech, provider.OpenAI, false},
		{"openai", "POST", "/v1/audio/transcriptions", "audio/transcriptions", meter.OpenAITranscriptions, provider.OpenAI, false},
		{"openai", "POST", "/v1/batches", "batches", meter.None, provider.OpenAI, true},
		{"openai", "POST", "/v1/fine_tuning/jobs", "fine_tuning", meter.OpenAIOther, provider.OpenAI, true},
		{"openai", "POST", "/v1/threads/thread_1/runs", "threads/runs", meter.OpenAIOther, provider.OpenAI, true},
		{"openai", "POST", "/v1/threads/thread_1/messages", "threads", meter.None, provider.OpenAI, true},
		{"groq", "POST", "/openai/v1/chat/completions", "chat/completions", meter.OpenAIChat, provider.OpenAI, false},
		{"groq", "POST", "/chat/completions", "chat/completions", meter.OpenAIChat, provider.OpenAI, false},
		{"openrouter", "POST", "/api/v1/messages", "messages", meter.AnthropicMessages, provider.Anthropic, false},
		{"gemini", "POST", "/v1beta/openai/chat/completions", "chat/completions", meter.OpenAIChat, provider.OpenAI, false},
		{"azure", "POST", "/openai/deployments/My-GPT/chat/completions", "chat/completions", meter.OpenAIChat, provider.OpenAI, false},
		{"azure", "POST", "/openai/v1/responses", "responses", meter.OpenAIResponses, provider.OpenAI, false},
	}
	for _, test := range tests {
		c, err := provider.Inspect(&provider.Request{Provider: registry.Provider(test.provider), Method: []byte(test.method), Rest: []byte(test.rest)})
		if err != nil {
			t.Fatal(err)
		}
		if c.Endpoint.Name != test.name || c.Endpoint.API != test.api || c.Endpoint.Billable() != (test.api != meter.None) || c.Shape != test.shape || c.Unsafe != test.unsafe {
			t.Errorf("%s %s at %s: got %q, API %d, shape %v, unsafe %v", test.method, test.rest, test.provider, c.Endpoint.Name, c.Endpoint.API, c.Shape, c.Unsafe)
		}
	}
}

// TestManifest has the paths of every API that is not OpenAI's or Anthropic's
// own, and what a path means at one provider and not at another.
func TestManifest(t *testing.T) {
	const (
		project = "/v1/projects/p-1/locations/us-east5/"
		arn     = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3A"
	)
	type want struct {
		name         string
		api          meter.API
		shape        provider.Family
		model        string
		stream       bool
		conversation bool
	}
	tests := []struct {
		provider, rest string
		want
	}{
		{"gemini", "/v1beta/models/gemini-x:generateContent", want{"generateContent", meter.GeminiGenerate, provider.Gemini, "gemini-x", false, true}},
		{"gemini", "/v1/models/gemini-x:streamGenerateContent", want{"streamGenerateContent", meter.GeminiStream, provider.Gemini, "gemini-x", true, true}},
		{"gemini", "/v1internal:streamGenerateContent", want{"streamGenerateContent", meter.GeminiStream, provider.Gemini, "", true, true}},
		{"gemini", "/v1internal:countTokens", want{"countTokens", meter.None, provider.Gemini, "", false, true}},
		{"gemini", "/v1internal:loadCodeAssist", want{"v1internal", meter.None, provider.Gemini, "", false, false}},
		{"gemini", "/v1beta/tunedModels/mine:generateContent", want{"generateContent", meter.GeminiGenerate, provider.Gemini, "mine", false, true}},
		{"gemini", "/v1alpha/dynamic/d1:streamGenerateContent", want{"streamGenerateContent", meter.GeminiStream, provider.Gemini, "d1", true, true}},
		{"gemini", "/v1beta/models/gemini-x:countTokens", want{"countTokens", meter.None, provider.Gemini, "gemini-x", false, true}},
		{"gemini", "/v1beta/models/e-1:embedContent", want{"embedContent", meter.GeminiEmbed, provider.Gemini, "e-1", false, false}},
		{"gemini", "/v1beta/models/e-1:batchEmbedContents", want{"batchEmbedContents", meter.GeminiEmbed, provider.Gemini, "e-1", false, false}},
		{"gemini", "/v1beta/models/gemini-x:batchGenerateContent", want{"batchGenerateContent", meter.OpenAIOther, provider.Gemini, "gemini-x", false, false}},
		{"gemini", "/v1beta/models/imagen-4:predict", want{"predict", meter.VertexPredict, provider.Gemini, "imagen-4", false, false}},
		{"gemini", "/v1beta/models/veo-3:predictLongRunning", want{"predictLongRunning", meter.OpenAIOther, provider.Gemini, "veo-3", false, false}},
		{"gemini", "/v1beta/models/gemini-x:inventedToday", want{"other", meter.OpenAIOther, provider.Gemini, "gemini-x", false, false}},
		{"gemini", "/v1beta/cachedContents", want{"other", meter.OpenAIOther, provider.Gemini, "", false, false}},
		{"gemini", "/upload/v1beta/files", want{"files", meter.None, provider.Gemini, "", false, false}},
		{"gemini", "/v1beta/batches/b1:cancel", want{"batches", meter.None, provider.Gemini, "", false, false}},
		{"gemini", "/v1beta/openai/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"vertex", project + "publishers/google/models/gemini-x:generateContent", want{"generateContent", meter.GeminiGenerate, provider.Gemini, "gemini-x", false, true}},
		{"vertex", "/v1beta1/publishers/google/models/gemini-x:streamGenerateContent", want{"streamGenerateContent", meter.GeminiStream, provider.Gemini, "gemini-x", true, true}},
		{"vertex", project + "publishers/google/models/e-1:predict", want{"predict", meter.VertexPredict, provider.Gemini, "e-1", false, false}},
		{"vertex", project + "publishers/google/models/p-1:serverStreamingPredict", want{"serverStreamingPredict", meter.OpenAIOther, provider.Gemini, "p-1", true, false}},
		{"vertex", project + "publishers/google/models/veo:fetchPredictOperation", want{"fetchPredictOperation", meter.None, provider.Gemini, "veo", false, false}},
		{"vertex", project + "publishers/anthropic/models/claude-x@20250219:rawPredict", want{"rawPredict", meter.AnthropicMessages, provider.Anthropic, "claude-x@20250219", false, true}},
		{"vertex", project + "publishers/anthropic/models/claude-x@20250219:streamRawPredict", want{"streamRawPredict", meter.AnthropicMessages, provider.Anthropic, "claude-x@20250219", true, true}},
		{"vertex", project + "publishers/anthropic/models/count-tokens:rawPredict", want{"rawPredict/count-tokens", meter.None, provider.Anthropic, "", false, true}},
		{"vertex", project + "publishers/mistralai/models/mistral-x:rawPredict", want{"rawPredict", meter.OpenAIChat, provider.OpenAI, "mistral-x", false, true}},
		{"vertex", project + "publishers/mistralai/models/mistral-x:streamRawPredict", want{"streamRawPredict", meter.OpenAIChat, provider.OpenAI, "mistral-x", true, true}},
		{"vertex", project + "endpoints/123:generateContent", want{"generateContent", meter.GeminiGenerate, provider.Gemini, "123", false, true}},
		{"vertex", project + "endpoints/openapi/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"vertex", project + "endpoints/123/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"vertex", project + "operations/1:wait", want{"operations", meter.None, provider.Gemini, "", false, false}},
		{"vertex", project + "trainingPipelines", want{"other", meter.OpenAIOther, provider.Gemini, "", false, false}},

		{"bedrock", "/model/us.amazon.nova-lite-v1%3A0/converse", want{"converse", meter.BedrockConverse, provider.Bedrock, "us.amazon.nova-lite-v1:0", false, true}},
		{"bedrock", "/model/us.amazon.nova-lite-v1:0/converse-stream", want{"converse-stream", meter.BedrockConverse, provider.Bedrock, "us.amazon.nova-lite-v1:0", true, true}},
		{"bedrock", "/model/anthropic.claude-v2:1/invoke", want{"invoke", meter.BedrockInvoke, provider.Bedrock, "anthropic.claude-v2:1", false, true}},
		{"bedrock", "/model/anthropic.claude-v2:1/invoke-with-response-stream", want{"invoke-with-response-stream", meter.BedrockInvoke, provider.Bedrock, "anthropic.claude-v2:1", true, true}},
		{"bedrock", arn + "inference-profile%2Fus.anthropic.claude-x/converse", want{"converse", meter.BedrockConverse, provider.Bedrock, "us.anthropic.claude-x", false, true}},
		{"bedrock", "/model/arn:aws:bedrock:us-east-1::foundation-model/meta.llama/invoke", want{"invoke", meter.BedrockInvoke, provider.Bedrock, "meta.llama", false, true}},
		{"bedrock", arn + "application-inference-profile%2Fabc/converse", want{"converse", meter.BedrockConverse, provider.Bedrock, "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", false, true}},
		{"bedrock", "/model/anthropic.claude-v2:1/count-tokens", want{"count-tokens", meter.None, provider.Bedrock, "anthropic.claude-v2:1", false, false}},
		{"bedrock", "/async-invoke", want{"async-invoke", meter.OpenAIOther, provider.Bedrock, "", false, false}},
		{"bedrock", "/guardrail/g1/version/1/apply", want{"guardrail", meter.OpenAIOther, provider.Bedrock, "", false, false}},
		{"bedrock", "/openai/v1/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"bedrock", "/v1/responses", want{"responses", meter.OpenAIResponses, provider.OpenAI, "", false, true}},
		{"bedrock", "/anthropic/v1/messages", want{"messages", meter.AnthropicMessages, provider.Anthropic, "", false, true}},
		{"bedrock", "/anthropic/v1/messages/count_tokens", want{"messages/count_tokens", meter.None, provider.Anthropic, "", false, true}},

		{"azure", "/openai/deployments/My-GPT/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "My-GPT", false, true}},
		{"azure", "/openai/deployments/My-GPT/extensions/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "My-GPT", false, true}},
		{"azure", "//openai/deployments/My-GPT/completions", want{"completions", meter.OpenAICompletions, provider.OpenAI, "My-GPT", false, true}},
		{"azure", "/openai/deployments/My-E/embeddings", want{"embeddings", meter.OpenAIEmbeddings, provider.OpenAI, "My-E", false, false}},
		{"azure", "/openai/deployments/My-W/audio/transcriptions", want{"audio", meter.OpenAITranscriptions, provider.OpenAI, "My-W", false, false}},
		{"azure", "/models/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"azure", "/openai/responses", want{"responses", meter.OpenAIResponses, provider.OpenAI, "", false, true}},
		{"azure", "/anthropic/v1/messages", want{"messages", meter.AnthropicMessages, provider.Anthropic, "", false, true}},
		{"azure", "/providers/cohere/v2/rerank", want{"rerank", meter.Rerank, provider.OpenAI, "", false, false}},

		{"cohere", "/v1/chat", want{"chat", meter.CohereChat, provider.Cohere, "", false, true}},
		{"cohere", "/v2/chat", want{"chat", meter.CohereChat, provider.Cohere, "", false, true}},
		{"cohere", "/v1/generate", want{"generate", meter.CohereGenerate, provider.Cohere, "", false, true}},
		{"cohere", "/v2/embed", want{"embed", meter.CohereEmbed, provider.Cohere, "", false, false}},
		{"cohere", "/v2/rerank", want{"rerank", meter.Rerank, provider.Cohere, "", false, false}},
		{"cohere", "/v1/tokenize", want{"tokenize", meter.None, provider.Cohere, "", false, false}},
		{"cohere", "/v1/classify", want{"other", meter.OpenAIOther, provider.Cohere, "", false, false}},
		{"cohere", "/compatibility/v1/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"openai", "/v1/chat", want{"other", meter.OpenAIOther, provider.OpenAI, "", false, false}},
		{"openai", "/v1/embed", want{"other", meter.OpenAIOther, provider.OpenAI, "", false, false}},

		{"ollama", "/api/chat", want{"api/chat", meter.OllamaChat, provider.Ollama, "", true, true}},
		{"ollama", "/api/generate", want{"api/generate", meter.OllamaChat, provider.Ollama, "", true, true}},
		{"ollama", "/api/embed", want{"api/embed", meter.OllamaEmbed, provider.Ollama, "", false, false}},
		{"ollama", "/api/embeddings", want{"api/embeddings", meter.OllamaEmbed, provider.Ollama, "", false, false}},
		{"ollama", "/api/show", want{"api/show", meter.None, provider.Ollama, "", false, false}},
		{"ollama", "/v1/embeddings", want{"embeddings", meter.OpenAIEmbeddings, provider.OpenAI, "", false, false}},
		{"ollama", "/v1/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},
		{"ollama", "/v1/messages", want{"messages", meter.AnthropicMessages, provider.Anthropic, "", false, true}},
		{"local-vllm", "/api/chat", want{"api/chat", meter.OllamaChat, provider.Ollama, "", true, true}},

		{"voyage", "/v1/embeddings", want{"embeddings", meter.OpenAIEmbeddings, provider.Voyage, "", false, false}},
		{"voyage", "/v1/multimodalembeddings", want{"multimodalembeddings", meter.OpenAIEmbeddings, provider.Voyage, "", false, false}},
		{"voyage", "/v1/contextualizedembeddings", want{"contextualizedembeddings", meter.OpenAIEmbeddings, provider.Voyage, "", false, false}},
		{"voyage", "/v1/rerank", want{"rerank", meter.Rerank, provider.Voyage, "", false, false}},

		{"groq", "/v1/rerank", want{"rerank", meter.Rerank, provider.OpenAI, "", false, false}},                                           // Together
		{"groq", "/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},                       // Perplexity, DeepSeek
		{"groq", "/async/chat/completions", want{"async/chat/completions", meter.OpenAIOther, provider.OpenAI, "", false, true}},          // Perplexity
		{"groq", "/search", want{"search", meter.OpenAIOther, provider.OpenAI, "", false, false}},                                         // Perplexity
		{"groq", "/api/paas/v4/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},           // Z.ai
		{"groq", "/api/coding/paas/v4/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},    // Z.ai
		{"groq", "/api/anthropic/v1/messages", want{"messages", meter.AnthropicMessages, provider.Anthropic, "", false, true}},            // Z.ai
		{"groq", "/inference/v1/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},          // Fireworks
		{"groq", "/novita/v3/openai/chat/completions", want{"chat/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},      // Hugging Face
		{"groq", "/v1/fim/completions", want{"fim/completions", meter.OpenAIChat, provider.OpenAI, "", false, true}},                      // Mistral
		{"groq", "/v1/conversations", want{"conversations", meter.MistralConversation, provider.OpenAI, "", false, false}},                // Mistral
		{"groq", "/v1/conversations/conv_1", want{"conversations", meter.MistralConversation, provider.OpenAI, "", false, false}},         // Mistral
		{"groq", "/v1/conversations/conv_1/restart", want{"conversations", meter.MistralConversation, provider.OpenAI, "", false, false}}, // Mistral
		{"groq", "/v1/tokenize-text", want{"tokenize-text", meter.None, provider.OpenAI, "", false, false}},                               // xAI
		{"openrouter", "/api/v1/messages/count_tokens", want{"messages/count_tokens", meter.None, provider.Anthropic, "", false, true}},
	}
	for _, test := range tests {
		c := inspect(t, test.provider, test.rest, "", "")
		got := want{c.Endpoint.Name, c.Endpoint.API, c.Shape, c.Model, c.Stream, c.Endpoint.Conversation}
		if got != test.want {
			t.Errorf("%s %s: got %+v, want %+v", test.provider, test.rest, got, test.want)
		}
		if c.Batch != "" {
			t.Errorf("%s %s: has the batch %q", test.provider, test.rest, c.Batch)
		}
	}
}

// TestInspectBatchResults: of what is fetched, only the results of batches tell
// usage that was not told before.
func TestInspectBatchResults(t *testing.T) {
	tests := []struct {
		provider, method, rest string
		api                    meter.API
		batch                  string
	}{
		{"anthropic", "GET", "/v1/messages/batches/msgbatch_1/results", meter.AnthropicBatchResults, "msgbatch_1"},
		{"anthropic", "GET", "/v1/messages/batches/msgbatch_1", meter.None, ""},
		{"anthropic", "HEAD", "/v1/messages/batches/msgbatch_1/results", meter.None, ""},
		{"anthropic", "GET", "/v1/files/file_1/content", meter.None, ""},
		{"openai", "GET", "/v1/files/file-1/content", meter.OpenAIBatchOutput, "file-1"},
		{"openai", "GET", "/v1/files/a%2Bb%20c/content", meter.OpenAIBatchOutput, "h-"},
		{"openai", "GET", "/v1/files/file-1", meter.None, ""},
		{"openai", "GET", "/v1/containers/cntr_1/files/cfile_1/content", meter.None, ""},
		{"openai", "GET", "/v1/batches/batch_1", meter.None, ""},
		{"openai", "GET", "/v1/responses/resp_1", meter.OpenAIStoredResponse, "resp_1"},
		{"openai", "GET", "/v1/responses/resp_1/input_items", meter.None, ""},
		{"groq", "GET", "/openai/v1/files/file_1/content", meter.OpenAIBatchOutput, "file_1"},
		{"azure", "GET", "/openai/files/file-1/content", meter.OpenAIBatchOutput, "file-1"},
		{"ollama", "GET", "/api/tags", meter.None, ""},
		{"gemini", "GET", "/v1beta/models/gemini-x", meter.None, ""},
	}
	for _, test := range tests {
		c, err := provider.Inspect(&provider.Request{Provider: registry.Provider(test.provider), Method: []byte(test.method), Rest: []byte(test.rest)})
		if err != nil {
			t.Fatal(err)
		}
		if c.Endpoint.API != test.api || !strings.HasPrefix(c.Batch, test.batch) || (c.Batch == "") != (test.batch == "") || c.Model != "" || c.Unsafe || c.Session.ID != "" {
			t.Errorf("%s %s at %s: got API %d, %+v", test.method, test.rest, test.provider, c.Endpoint.API, c)
		}
	}
}

func TestInspectModel(t *testing.T) {
	long := strings.Repeat("m", 200)
	tests := []struct{ provider, rest, body, want string }{
		{"anthropic", "/v1/messages", `{"model":"claude-sonnet-5"}`, "claude-sonnet-5"},
		{"anthropic", "/v1/messages", ` {"messages":[{"role":"user","content":"\"model\":\"no\"","model":"no"}],"model" : "yes" } `, "yes"},
		{"openai", "/v1/chat/completions", `{"mod\u0065l":"gpt\u002d6"}`, "gpt-6"},
		{"openai", "/v1/chat/completions", `{"model":"a\u0000b\u00e9"}`, "a?b??"},
		{"openai", "/v1/chat/completions", `{"model":"` + long + `"}`, long[:128]},
		{"openai", "/v1/chat/completions", `{"model":7}`, ""},
		{"openai", "/v1/chat/completions", `{"model":"x"`, ""},
		{"openai", "/v1/chat/completions", `{"model":"x"} trailing`, ""},
		{"openai", "/v1/chat/completions", `[{"model":"x"}]`, ""},
		{"openai", "/v1/chat/completions", ``, ""},
		{"gemini", "/v1beta/models/gemini-2.5-Pro:streamGenerateContent", `{"contents":[]}`, "gemini-2.5-Pro"},
		{"gemini", "/v1beta/tunedModels/mine:generateContent", ``, "mine"},
		{"azure", "/openai/deployments/My-GPT/chat/completions", `{"messages":[]}`, "My-GPT"},
		{"azure", "/openai/deployments/My-GPT/chat/completions", `{"model":"gpt-6","messages":[]}`, "My-GPT"},
		{"gemini", "/v1beta/models/e-1:embedContent", `{"model":"models/e-1"}`, "e-1"},
		{"bedrock", "/model/openai.gpt-oss/invoke", `{"model":"other"}`, "openai.gpt-oss"},
		{"vertex", "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict", `{"model":"claude-x"}`, "claude-x"},
		{"azure", "/openai/deployments/My-GPT/chat/completions", `not JSON`, "My-GPT"},
	}
	for _, test := range tests {
		if got := inspect(t, test.provider, test.rest, "", test.body).Model; got != test.want {
			t.Errorf("%s %s: got model %q, want %q", test.rest, test.body, got, test.want)
		}
	}
}

func TestInspectForm(t *testing.T) {
	form := "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\nContent-Type: audio/wav\r\n\r\n\x00\xff--\r\n\r\nname=\"model\"\r\n" +
		"--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-2\r\n--b\r\nContent-Disposition: form-data; name=\"stream\"\r\n\r\ntrue\r\n--b--\r\n"
	c := inspect(t, "openai", "/v1/audio/transcriptions", "Content-Type: multipart/form-data; boundary=\"b\"\r\n", form)
	if c.Model != "whisper-2" || !c.Stream {
		t.Errorf("got model %q, stream %v", c.Model, c.Stream)
	}
	if c := inspect(t, "azure", "/openai/deployments/My-W/audio/transcriptions", "Content-Type: multipart/form-data; boundary=b\r\n", form); c.Model != "My-W" {
		t.Errorf("got model %q, want the one of the path", c.Model)
	}
	for _, broken := range []string{"", "--b", "--b\r\n\r\n", "no form"} {
		c := inspect(t, "openai", "/v1/audio/transcriptions", "Content-Type: multipart/form-data; boundary=b\r\n", broken)
		if c.Model != "" {
			t.Errorf("%q: got model %q", broken, c.Model)
		}
	}
}

func TestInspectFacts(t *testing.T) {
	c := inspect(t, "openai", "/v1/responses", "X-Stainless-Retry-Count: 2\r\n",
		`{"model":"m","stream":true,"max_output_tokens":1234,"background":true,"metadata":{"stream":false}}`)
	if !c.Stream || c.MaxTokens != 1234 || c.RetryCount != 2 || !c.Unsafe {
		t.Errorf("got %+v", c)
	}
	c = inspect(t, "openai", "/v1/responses", "X-Stainless-Retry-Count: -1\r\n", `{"stream":false,"max_tokens":-5,"background":false}`)
	if c.Stream || c.MaxTokens != 0 || c.RetryCount != 0 || c.Unsafe {
		t.Errorf("got %+v", c)
	}
	for header, want := range map[string]int{"attempt=1; max=3": 0, "attempt=3; max=3": 2, "attempt=2": 1, "attempt=0": 0, "attempt=": 0, "max=3": 0} {
		if c := inspect(t, "bedrock", "/model/m/converse", "amz-sdk-request: "+header+"\r\n", `{}`); c.RetryCount != want {
			t.Errorf("%s: the count is %d, want %d", header, c.RetryCount, want)
		}
	}
	for body, stream := range map[string]bool{`{}`: true, `{"stream":true}`: true, `{"stream":false}`: false, `not JSON`: true} {
		if c := inspect(t, "ollama", "/api/chat", "", body); c.Stream != stream {
			t.Errorf("ollama, %s: got stream %v", body, c.Stream)
		}
	}
	for _, body := range []string{`{"conversation":"conv_1"}`, `{"conversation":{"id":"conv_1"}}`, `{"thread":{"type":"continue","previous_message_id":"msg_1"}}`} {
		if !inspect(t, "openai", "/v1/responses", "", body).Unsafe {
			t.Errorf("%s: may be repeated, but its effect stays at the provider", body)
		}
	}
}

func TestInspectRefusesDuplicates(t *testing.T) {
	for field, body := range map[string]string{
		"model":                        `{"model":"a","x":1,"model":"a"}`,
		"stream":                       `{"stream":true,"str\u0065am":false}`,
		"stream_options":               `{"stream_options":{},"stream_options":null}`,
		"stream_options.include_usage": `{"stream_options":{"include_usage":true,"include_usage":false}}`,
		"metadata":                     `{"metadata":{"user_id":"a"},"metadata":{"user_id":"b"}}`,
	} {
		_, err := provider.Inspect(&provider.Request{
			Provider: registry.Provider("openrouter"), Method: []byte("POST"), Rest: []byte("/api/v1/messages"), Body: []byte(body),
		})
		var refusal *provider.Refusal
		if !errors.As(err, &refusal) || refusal.Status != 400 || !strings.Contains(refusal.Message, `"`+field+`"`) || refusal.Family != provider.Anthropic {
			t.Errorf("%s: got %v", body, err)
		}
	}
	inspect(t, "openai", "/v1/chat/completions", "", `{"messages":[{"model":1,"model":2}],"tools":[{"stream":1,"stream":2}],"temperature":1,"temperature":1}`)
}

func TestInspectSeals(t *testing.T) {
	for _, test := range []struct {
		provider, rest, body string
		want                 bool
	}{
		{"openai", "/v1/responses", `{"store":false,"include":["file_search_call.results","reasoning.encrypted_content"]}`, true},
		{"openai", "/v1/responses", `{"store":false,"include":[],"input":"reasoning.encrypted_content"}`, false},
		{"openai", "/v1/responses", `{"include":null,"tools":[{"type":"web_search_preview"}]}`, false},
		{"openai", "/v1/responses", `{"context_management":[{"type":"compaction","compact_threshold":1000}]}`, true},
		{"openai", "/v1/responses/compact", `{"input":[]}`, true},
		{"openai", "/v1/responses/compact", "", true},
		{"anthropic", "/v1/messages", `{"tools":[{"type":"web_search_20250305","name":"web_search"}]}`, true},
		{"anthropic", "/v1/messages", `{"tools":[{"type":"custom","name":"web_search_it"}]}`, false},
		{"anthropic", "/v1/messages", `{"context_management":{"edits":[{"type":"clear_thinking_20251015"},{"type":"compact_20260112"}]}}`, true},
		{"anthropic", "/v1/messages", `{"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]}}`, false},
		{"anthropic", "/v1/messages", `{"messages":[{"role":"user","content":[{"include":["reasoning.encrypted_content"]}]}]}`, false},
	} {
		if got := inspect(t, test.provider, test.rest, "", test.body).Seals; got != test.want {
			t.Errorf("%s %s: %v", test.rest, test.body, got)
		}
	}
}

func TestInspectPins(t *testing.T) {
	tests := []struct {
		rest, body   string
		ids          []string
		organisation bool
	}{
		{"/v1/responses/resp_1/input_items", "", []string{"resp_1"}, false},
		{"/v1/vector_stores/vs_1/files/file-2", "", []string{"vs_1", "file-2"}, false},
		{"/v1/messages/batches/msgbatch_1/results", "", []string{"msgbatch_1"}, false},
		{"/v1/responses", `{"previous_response_id":"resp_1","prompt":{"id":"pmpt_1"},"conversation":"conv_1"}`, []string{"resp_1", "pmpt_1", "conv_1"}, false},
		{"/v1/responses", `{"conversation":{"id":"conv_1"},"previous_response_id":null}`, []string{"conv_1"}, false},
		{"/v1/messages", `{"container":"container_1"}`, []string{"container_1"}, false},
		{"/v1/messages", `{"container":{"id":"container_1","skills":[]}}`, []string{"container_1"}, false},
		{
			"/v1/messages", `{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"file_1"}},{"type":"container_upload","file_id":"file_2"},{"type":"tool_result","content":[{"source":{"file_id":"file_3"}}]}]}]}`,
			[]string{"file_1", "file_2", "file_3"},
			false,
		},
		{"/v1/messages", `{"messages":[{"role":"assistant","content":[{"type":"tool_use","input":{"file_id":"file_1"}}]}]}`, nil, false},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]}`, []string{"file-1"}, false},
		{
			"/v1/responses", `{"input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]},{"type":"item_reference","id":"rs_1"},{"id":"msg_2","type":"item_reference"},{"id":"msg_3","type":"message"}]}`,
			[]string{"file-1", "rs_1", "msg_2"},
			false,
		},
		{
			"/v1/responses", `{"tools":[{"type":"file_search","vector_store_ids":["vs_1","vs_2"]},{"type":"code_interpreter","container":"cntr_1"},{"container":{"type":"auto","file_ids":["file-9"]}}]}`,
			[]string{"vs_1", "vs_2", "cntr_1", "file-9"},
			false,
		},
		{"/v1/responses", `{"input":[{"type":"reasoning","encrypted_content":"gAAAA"}]}`, nil, true},
		{"/v1/responses", `{"input":[{"type":"reasoning","encrypted_content":null},{"type":"reasoning","encrypted_content":""}]}`, nil, false},
		{"/v1/responses", `{"input":[{"type":"compaction","id":"cmp_1"}]}`, nil, true},
		{"/v1/messages", `{"messages":[{"role":"assistant","content":[{"type":"compaction","content":"x"}]}]}`, nil, true},
		{"/v1/messages", `{"messages":[{"role":"assistant","content":[{"type":"web_search_tool_result","content":[{"encrypted_content":"E"}]}]}]}`, nil, true},
		{"/v1/messages", `{"messages":[{"role":"user","content":"encrypted_content compaction file_1"}]}`, nil, false},
		{"/v1/responses", `{"previous_response_id":"has space"}`, nil, false},
		{"/v1/files/0191e7a0-5b1c-7c3e-9d2a-0123456789ab/url", "", []string{"0191e7a0-5b1c-7c3e-9d2a-0123456789ab"}, false}, // Mistral
		{"/v1/responses/compact", "", nil, false},
		{
			"/v1/responses", `{"tools":[{"vector_store_ids":["vs_1","vs_1","vs_2","vs_3","vs_4","vs_5","vs_6","vs_7","vs_8","vs_9"]}]}`,
			[]string{"vs_1", "vs_2", "vs_3", "vs_4", "vs_5", "vs_6", "vs_7", "vs_8"},
			false,
		},
	}
	for _, test := range tests {
		got := inspect(t, "openai", test.rest, "", test.body).Pins
		if !reflect.DeepEqual(got, provider.Pins{IDs: test.ids, Organisation: test.organisation}) {
			t.Errorf("%s %s: got %+v, want %v %v", test.rest, test.body, got, test.ids, test.organisation)
		}
	}
}

func TestInspectPinsOfGoogle(t *testing.T) {
	for _, test := range []struct {
		rest, body string
		ids        []string
	}{
		{"/v1beta/files/abc-1", "", []string{"files/abc-1"}},
		{"/v1beta/files/abc-1:download", "", []string{"files/abc-1"}},
		{"/v1beta/files%2Fabc-1", "", []string{"files/abc-1"}},
		{"/v1beta/models/veo-3/operations/xy1", "", []string{"operations/xy1"}},
		{"/v1beta/fileSearchStores/s-1/documents/d-1", "", []string{"fileSearchStores/s-1"}},
		{"/v1/projects/p/locations/l/cachedContents/77", "", []string{"cachedContents/77"}},
		{"/v1beta/tunedModels/mine-1:generateContent", `{}`, []string{"tunedModels/mine-1"}},
		{"/v1beta/models/gemini-x:generateContent", `{"contents":[]}`, nil},
		{"/v1beta/files", `{}`, nil},
		{
			"/v1beta/models/m:generateContent", `{"cachedContent":"cachedContents\/c-1","contents":[{"parts":[{"fileData":{"mimeType":"x","fileUri":"https://generativelanguage.googleapis.com/v1beta/files/f-1"}},{"file_data":{"file_uri":"https://h/v1beta/files/f-2"}},{"text":"files/f-3"}]}]}`,
			[]string{"cachedContents/c-1", "files/f-1", "files/f-2"},
		},
		{"/v1beta/models/m:generateContent", `{"contents":[{"parts":[{"fileData":{"fileUri":"https://www.youtube.com/watch?v=files"}},{"fileData":{"fileUri":"gs://bucket/files/a"}}]}]}`, nil},
		{"/v1beta/interactions", `{"previous_interaction_id":"v1_x","input":"y"}`, []string{"interactions/v1_x"}},
		{"/v1beta/interactions/v1_x", "", []string{"interactions/v1_x"}},
	} {
		if got := inspect(t, "gemini", test.rest, "", test.body).Pins.IDs; !slices.Equal(got, test.ids) {
			t.Errorf("%s %s: got %q, want %q", test.rest, test.body, got, test.ids)
		}
	}
}

// encoders compress a body in each form that can be read.
var encoders = map[string]func(string) string{
	"gzip": func(s string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return b.String()
	},
	"deflate": func(s string) string {
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return b.String()
	},
	"br": func(s string) string {
		var b bytes.Buffer
		w := brotli.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return b.String()
	},
	"ZSTD": func(s string) string {
		w, _ := zstd.NewWriter(nil)
		defer w.Close()
		return string(w.EncodeAll([]byte(s), nil))
	},
}

func TestInspectCompressed(t *testing.T) {
	body := `{"messages":[{"role":"user","content":"` + strings.Repeat("long ", 20000) + `"}],"model":"m-1","stream":true,"prompt_cache_key":"k-1"}`
	for coding, encode := range encoders {
		headers := "Content-Encoding: " + coding + "\r\n"
		c := inspect(t, "openai", "/v1/chat/completions", headers, encode(body))
		if c.Model != "m-1" || !c.Stream || c.Session.ID != "k-1" {
			t.Errorf("%s: got %+v", coding, c)
		}
		if !c.Patch.Empty() {
			t.Errorf("%s: a compressed body was patched", coding)
		}
		broken := encode(body)
		c = inspect(t, "openai", "/v1/chat/completions", headers, broken[:len(broken)/2])
		if c.Model != "" || c.Session.Source != "hash" {
			t.Errorf("%s: half a body told %+v", coding, c)
		}
	}
	for _, coding := range []string{"snappy", "gzip, br"} {
		c := inspect(t, "openai", "/v1/chat/completions", "Content-Encoding: "+coding+"\r\n", body)
		if c.Model != "" || !c.Patch.Empty() {
			t.Errorf("%s: got %+v", coding, c)
		}
	}
	if c := inspect(t, "openai", "/v1/chat/completions", "Content-Encoding: identity\r\n", body); c.Model != "m-1" {
		t.Errorf("identity: got %+v", c)
	}
}

func TestInspectBoundsCompressedBodies(t *testing.T) {
	bomb := encoders["gzip"](`{"model":"m","x":"` + strings.Repeat("a", 65<<20) + `"}`)
	if c := inspect(t, "openai", "/v1/chat/completions", "Content-Encoding: gzip\r\n", bomb); c.Model != "" {
		t.Errorf("more than the bound was read: %+v", c.Model)
	}
}

func TestInspectAsksForUsage(t *testing.T) {
	tests := []struct{ body, want string }{
		{`{"model":"m","stream":true}`, `{"model":"m","stream":true,"stream_options":{"include_usage":true}}`},
		{"{ \"stream\" : true \n} \n", "{ \"stream\" : true \n,\"stream_options\":{\"include_usage\":true}} \n"},
		{`{"stream_options":{},"stream":true}`, `{"stream_options":{"include_usage":true},"stream":true}`},
		{`{"stream":true,"stream_options":{"include_obfuscation":{"a":[1]}}}`, `{"stream":true,"stream_options":{"include_obfuscation":{"a":[1]},"include_usage":true}}`},
		{`{"stream":true,"stream_options":{"include_usage":false,"x":1}}`, `{"stream":true,"stream_options":{"include_usage":true,"x":1}}`},
		{`{"stream":true,"stream_options":{"include_usage":null}}`, `{"stream":true,"stream_options":{"include_usage":true}}`},
		{`{"stream":true,"stream_options":null}`, `{"stream":true,"stream_options":{"include_usage":true}}`},
		// Left alone: asked already, no stream, or wrong.
		{`{"stream":true,"stream_options":{"include_usage":true}}`, ""},
		{`{"stream":false}`, ""},
		{`{"model":"m"}`, ""},
		{`{"stream":"true"}`, ""},
		{`{"stream":true,"stream_options":7}`, ""},
		{`{"stream":true,"stream_options":[]}`, ""},
		{`{"stream":true,"stream_options":{"include_usage":"no"}}`, ""},
		{`{"stream":true`, ""},
	}
	for _, test := range tests {
		for _, rest := range []string{"/v1/chat/completions", "/v1/completions"} {
			c := inspect(t, "openai", rest, "", test.body)
			if got := patched(c.Patch, test.body); got != test.want {
				t.Errorf("%s: got %s, want %s", test.body, got, test.want)
			}
		}
	}
	const deployment = "/openai/deployments/d/chat/completions"
	for _, azure := range []struct {
		rest, query string
		want        bool
	}{
		{deployment, "api-version=2024-09-01-preview", true},
		{deployment, "x=y&API-Version=2024-10-21", true},
		{deployment, "api-version=2024-08-01-preview", false},
		{deployment, "x=y&api%2Dversion=2023-07-01-preview", false},
		{deployment, "api-version", false},
		{deployment, "", false},
		{"/openai/v1/chat/completions", "", true},
		{"/openai/v1/chat/completions", "api-version=preview", true},
		{"/models/chat/completions", "api-version=2024-05-01-preview", true},
	} {
		c, err := provider.Inspect(&provider.Request{
			Provider: registry.Provider("azure-asking"), Method: []byte("POST"), Rest: []byte(azure.rest), Query: []byte(azure.query), Body: []byte(`{"stream":true}`),
		})
		if err != nil || c.Patch.Empty() == azure.want {
			t.Errorf("%+v: asks for usage: %v, %v", azure, !c.Patch.Empty(), err)
		}
	}
	for _, other := range [][2]string{{"openai", "/v1/responses"}, {"anthropic", "/v1/messages"}, {"gateway", "/v1/chat/completions"}, {"ollama", "/api/chat"}, {"vertex", "/v1/projects/p/locations/l/publishers/mistralai/models/m:streamRawPredict"}} {
		if c := inspect(t, other[0], other[1], "", `{"stream":true}`); !c.Patch.Empty() {
			t.Errorf("%s%s: was asked for usage", other[0], other[1])
		}
	}
}

// patched is the body as it goes upstream; empty when nothing changes.
func patched(p provider.Patch, body string) string {
	if p.Empty() {
		return ""
	}
	before, after := p.Split([]byte(body))
	text := string(before) + p.Insert + string(after)
	if p.Length(len(body)) != len(text) {
		return "the length is wrong: " + text
	}
	return text
}

func FuzzInspect(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","stream":true}`, `{"stream":true,"stream_options":{"a":1}}`, `{"stream":true,"stream_options":{"include_usage":false}}`,
		`{"stream":true,"messages":[{"role":"user","content":[{"text":"x","type":"text"}]}],"metadata":{"user_id":"{\"session_id\":\"s\"}"}}`,
		`{"stream":true,"stream_options":null}`, `{"input":[{"type":"item_reference","id":"rs_1"}],"stream":true}`, `{}`, `[`, `"`, `{"stream":true}x`,
	} {
		f.Add(seed, "")
	}
	f.Add("\x1f\x8b", "gzip")
	f.Fuzz(func(t *testing.T, body, coding string) {
		if strings.ContainsAny(coding, "\r\n") {
			return
		}
		c, err := provider.Inspect(&provider.Request{
			Provider: registry.Provider("openai"), Agent: "a", Method: []byte("POST"), Rest: []byte("/v1/chat/completions"),
			Headers: provider.Headers("Content-Encoding: " + coding + "\r\n"), Body: []byte(body),
		})
		for name, rest := range map[string]string{
			"gemini": "/v1beta/models/m:generateContent", "bedrock": "/model/m/converse", "cohere": "/v1/chat", "ollama": "/api/chat",
		} {
			other, otherErr := provider.Inspect(&provider.Request{
				Provider: registry.Provider(name), Agent: "a", Method: []byte("POST"), Rest: []byte(rest),
				Headers: provider.Headers("Content-Encoding: " + coding + "\r\n"), Body: []byte(body),
			})
			if (otherErr == nil) != (err == nil) || err == nil && (other.Session.ID == "" || !other.Patch.Empty()) {
				t.Fatalf("%s: got %+v, %v", name, other, otherErr)
			}
		}
		if err != nil {
			if !json.Valid([]byte(body)) && coding == "" {
				t.Fatalf("a body that is not JSON was refused: %v", err)
			}
			return
		}
		if c.Session.ID == "" || len(c.Session.ID) > 128 || len(c.Model) > 128 {
			t.Fatalf("got %+v", c)
		}
		text := patched(c.Patch, body)
		if text == "" {
			return
		}
		var sent struct {
			StreamOptions struct {
				IncludeUsage bool `json:"include_usage"`
			} `json:"stream_options"`
		}
		if err := json.Unmarshal([]byte(text), &sent); err != nil && !strings.Contains(err.Error(), "cannot unmarshal") {
			t.Fatalf("%s became %s: %v", body, text, err)
		}
		before, _ := c.Patch.Split([]byte(body))
		if again := text[:len(before)] + body[len(before):len(before)+c.Patch.Delete] + text[len(before)+len(c.Patch.Insert):]; again != body {
			t.Fatalf("without the patch %s is not %s", text, body)
		}
		if inspect(t, "openai", "/v1/chat/completions", "", text).Patch != (provider.Patch{}) {
			t.Fatalf("%s does not ask for usage", text)
		}
	})
}

// FuzzManifest reads any path that is routed at every provider: what it names
// can stand in a Redis key, and to know a path costs no panic.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{
		"/v1beta/models/m:generateContent", "/v1/projects/p/locations/l/publishers/anthropic/models/m@1:rawPredict",
		"/v1/projects/p/locations/l/endpoints/1:predict", "/v1/publishers/x/models/:", "/model/arn%3Aaws%3A%3A%3Aa%2Fb%2Fc/invoke",
		"/model//converse", "/model/m/n/o/count-tokens/converse", "/openai/deployments/d/chat/completions", "/deployments//embeddings",
		"/v1/messages/batches/b%20c/results", "/v1/files//content", "/v1/responses/a%20b", "/v1/responses//cancel", "/api/chat", "/v2/chat", "/:", "/models/:", "/v1:",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		for _, name := range []string{"anthropic", "openai", "gemini", "azure", "bedrock", "cohere", "ollama", "voyage"} {
			target, err := registry.Route([]byte("/"+name+path), nil)
			if err != nil {
				continue
			}
			for _, method := range []string{"POST", "GET", "DELETE"} {
				c, err := provider.Inspect(&provider.Request{Provider: target.Provider, Agent: "a", Method: []byte(method), Rest: target.Rest})
				if refusal, ok := errors.AsType[*provider.Refusal](err); ok && refusal.Endpoint != nil && !refusal.Endpoint.Action.Sends() {
					continue
				}
				if err != nil || c.Endpoint == nil || !c.Endpoint.Action.Sends() {
					t.Fatalf("%s %s at %s: %+v, %v", method, path, name, c, err)
				}
				if c.Model != provider.CleanModel([]byte(c.Model)) || c.Batch != provider.CleanSession([]byte(c.Batch)) ||
					(c.Batch != "") != c.Endpoint.API.Items() {
					t.Fatalf("%s %s at %s: got model %q, batch %q of API %d", method, path, name, c.Model, c.Batch, c.Endpoint.API)
				}
			}
		}
	})
}

func BenchmarkInspect(b *testing.B) {
	for name, size := range map[string]int{"2KB": 2 << 10, "200KB": 200 << 10} {
		line := `{"type":"text","text":"` + strings.Repeat(`Some words of code, \"quoted\", in a line\n`, 20) + `"},`
		body := `{"model":"claude-x","stream":true,"system":"You help.","messages":[{"role":"user","content":[` +
			strings.Repeat(line, size/len(line)+1) + `{"type":"text","text":"hi"}]}]}`
		r := provider.Request{
			Provider: registry.Provider("anthropic"), Agent: "default", Method: []byte("POST"), Rest: []byte("/v1/messages"),
			Headers: provider.Headers(agentHeaders), Body: []byte(body),
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := provider.Inspect(&r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
