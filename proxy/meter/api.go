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
	None                 API = iota
	AnthropicMessages        // POST /v1/messages, JSON and SSE
	AnthropicComplete        // POST /v1/complete (legacy): tells no usage
	OpenAIChat               // POST /v1/chat/completions and everything compatible
	OpenAICompletions        // POST /v1/completions
	OpenAIResponses          // POST /v1/responses, and /compact
	OpenAIEmbeddings         // POST /v1/embeddings
	OpenAIImages             // POST /v1/images/...
	OpenAITranscriptions     // POST /v1/audio/transcriptions and /translations
	OpenAISpeech             // POST /v1/audio/speech
	OpenAIOther              // billable, but tells no usage in its answer (videos, fine-tuning, ...)
)
