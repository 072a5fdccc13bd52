// Package meter reads what a provider's answer says about itself while its bytes
// pass: tokens used, the model that served, the first content, an error inside
// a stream, and the terminal event. It only watches; it changes nothing.
package meter

// API is a dialect of answers: where its usage stands, what its stream events
// mean, and how it ends. The request side (proxy/provider) finds it by provider
// and path.
type API uint8

// The dialects. None means that an answer is never billable and not watched.
const (
	None                  API = iota
	AnthropicMessages         // POST /v1/messages, JSON and SSE
	AnthropicComplete         // POST /v1/complete (legacy): tells no usage
	OpenAIChat                // POST /v1/chat/completions and everything compatible
	OpenAICompletions         // POST /v1/completions
	OpenAIResponses           // POST /v1/responses, and /compact
	OpenAIEmbeddings          // POST /v1/embeddings
	OpenAIImages              // POST /v1/images/...
	OpenAITranscriptions      // POST /v1/audio/transcriptions and /translations
	OpenAISpeech              // POST /v1/audio/speech
	OpenAIOther               // billable, but tells no usage in its answer (videos, fine-tuning, ...)
	GeminiGenerate            // Gemini, Vertex and Code Assist: :generateContent, JSON
	GeminiStream              // the same: :streamGenerateContent, a JSON array that grows, or SSE with ?alt=sse
	GeminiEmbed               // Gemini and Vertex: :embedContent, :batchEmbedContents
	VertexPredict             // Vertex: :predict of embedding models
	BedrockInvoke             // Bedrock: /model/ID/invoke and /model/ID/invoke-with-response-stream
	BedrockConverse           // Bedrock: /model/ID/converse and /model/ID/converse-stream
	CohereChat                // Cohere: /v1/chat and /v2/chat
	CohereGenerate            // Cohere: /v1/generate (legacy)
	CohereEmbed               // Cohere: /v1/embed and /v2/embed
	Rerank                    // Cohere, Voyage, Together: /rerank
	OllamaChat                // Ollama: /api/chat and /api/generate, JSON and NDJSON
	OllamaEmbed               // Ollama: /api/embed and /api/embeddings
	MistralConversation       // Mistral: POST /v1/conversations..., JSON and SSE
	AnthropicBatchResults     // GET /v1/messages/batches/ID/results, one JSON text a line
	OpenAIBatchOutput         // GET /v1/files/ID/content of a batch's output, one JSON text a line
	OpenAIResponsesSocket     // WebSocket /v1/responses, for Socket alone as the next two are
	OpenAIRealtime            // WebSocket /v1/realtime
	GeminiLive                // WebSocket of Gemini's and Vertex' Live API
	OpenAIStoredResponse      // GET /v1/responses/ID, JSON and SSE, and POST /v1/responses/ID/cancel
)

// Socket tells whether a dialect is one of WebSockets.
func (a API) Socket() bool {
	return a == OpenAIResponsesSocket || a == OpenAIRealtime || a == GeminiLive
}

// Items tells whether an answer is free itself and shows finished requests, which
// it may show again and again, and each of which is billed once: see Options.Item.
func (a API) Items() bool {
	return a == AnthropicBatchResults || a == OpenAIBatchOutput || a == OpenAIStoredResponse
}
