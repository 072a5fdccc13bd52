package provider

import "github.com/authpool/authpool/proxy/meter"

// posted are the known paths of POST requests, from the providers' SDKs and API
// references. Of several rows that match the first counts. Paths that hold a
// model and a method are in google.go and bedrock.go.
var posted = []served{
	// Anthropic
	row("messages", Endpoint{API: meter.AnthropicMessages, Conversation: true}),
	row("messages/count_tokens", Endpoint{Conversation: true, anthropic: true}),
	row("messages/batches/**", Endpoint{Creates: true, anthropic: true}),
	row("complete", Endpoint{API: meter.AnthropicComplete, Conversation: true}),
	row("sessions/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("agents/completions", Endpoint{API: meter.OpenAIChat, Conversation: true}), // Mistral
	row("agents/**", Endpoint{Creates: true}),
	row("environments/**", Endpoint{Creates: true}),
	row("vaults/**", Endpoint{Creates: true}),
	row("memory_stores/**", Endpoint{Creates: true}),
	row("event_logging/**", Endpoint{}), // telemetry of Claude Code

	// Azure: the deployment stands in the path
	row("deployments/*/chat/completions", Endpoint{Name: "chat/completions", API: meter.OpenAIChat, Conversation: true}).naming(1),
	row("deployments/*/extensions/chat/completions", Endpoint{Name: "chat/completions", API: meter.OpenAIChat, Conversation: true}).naming(1),
	row("deployments/*/completions", Endpoint{Name: "completions", API: meter.OpenAICompletions, Conversation: true}).naming(1),
	row("deployments/*/embeddings", Endpoint{Name: "embeddings", API: meter.OpenAIEmbeddings}).naming(1),
	row("deployments/*/images/*", Endpoint{Name: "images", API: meter.OpenAIImages}).naming(1),
	row("deployments/*/audio/speech", Endpoint{Name: "audio/speech", API: meter.OpenAISpeech}).naming(1),
	row("deployments/*/audio/*", Endpoint{Name: "audio", API: meter.OpenAITranscriptions}).naming(1),
	row("models/chat/completions", Endpoint{Name: "chat/completions", API: meter.OpenAIChat, Conversation: true}), // its model inference
	row("models/embeddings", Endpoint{Name: "embeddings", API: meter.OpenAIEmbeddings}),

	// OpenAI and compatible
	row("chat/completions", Endpoint{API: meter.OpenAIChat, Conversation: true}),
	row("completions", Endpoint{API: meter.OpenAICompletions, Conversation: true}),
	row("responses", Endpoint{API: meter.OpenAIResponses, Conversation: true}),
	row("responses/compact", Endpoint{API: meter.OpenAIResponses, Conversation: true}),
	row("responses/input_tokens", Endpoint{Conversation: true}),
	row("responses/*/cancel", Endpoint{Name: "responses/cancel", API: meter.OpenAIStoredResponse, Creates: true}).naming(1),
	row("embeddings", Endpoint{API: meter.OpenAIEmbeddings}),
	row("multimodalembeddings", Endpoint{API: meter.OpenAIEmbeddings}),     // Voyage
	row("contextualizedembeddings", Endpoint{API: meter.OpenAIEmbeddings}), // Voyage
	row("rerank", Endpoint{API: meter.Rerank}),                             // Cohere, Voyage, Together
	row("moderations", Endpoint{}),
	row("tokenize-text", Endpoint{}), // xAI
	row("images/*", Endpoint{Name: "images", API: meter.OpenAIImages}),
	row("audio/speech", Endpoint{API: meter.OpenAISpeech}),
	row("audio/transcriptions", Endpoint{API: meter.OpenAITranscriptions}),
	row("audio/translations", Endpoint{API: meter.OpenAITranscriptions}),
	row("fim/completions", Endpoint{API: meter.OpenAIChat, Conversation: true}),                        // Mistral
	row("async/chat/completions", Endpoint{API: meter.OpenAIOther, Conversation: true, Creates: true}), // Perplexity
	row("search", Endpoint{API: meter.OpenAIOther}),                                                    // Perplexity
	row("batches/**", Endpoint{Creates: true}),
	row("files/**", Endpoint{Creates: true}),
	row("uploads/**", Endpoint{Creates: true}),
	row("vector_stores/**", Endpoint{Creates: true}),
	row("containers/**", Endpoint{Creates: true}),
	row("conversations/**", Endpoint{API: meter.MistralConversation, Creates: true}), // OpenAI's run no model, and say so
	row("skills/**", Endpoint{Creates: true}),
	row("assistants/**", Endpoint{Creates: true}),
	row("threads/runs", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("threads/*/runs/**", Endpoint{Name: "threads/runs", API: meter.OpenAIOther, Creates: true}),
	row("threads/**", Endpoint{Creates: true}),
	row("videos/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("fine_tuning/**", Endpoint{API: meter.OpenAIOther, Creates: true}),
	row("evals/**", Endpoint{API: meter.OpenAIOther, Creates: true}),

	// Gemini and Vertex
	rowAt(at(Gemini), "interactions", Endpoint{API: meter.OpenAIOther, Conversation: true, Creates: true}),
	rowAt(at(Gemini), "operations/**", Endpoint{}),
	row("projects/*/locations/*/endpoints/*/chat/completions", Endpoint{Name: "chat/completions", API: meter.OpenAIChat, Conversation: true}),
	row("projects/*/locations/*/endpoints/*/embeddings", Endpoint{Name: "embeddings", API: meter.OpenAIEmbeddings}),
	row("projects/*/locations/*/operations/**", Endpoint{Name: "operations"}),

	// Cohere
	rowAt(at(Cohere), "chat", Endpoint{API: meter.CohereChat, Conversation: true}),
	rowAt(at(Cohere), "generate", Endpoint{API: meter.CohereGenerate, Conversation: true}),
	rowAt(at(Cohere), "embed", Endpoint{API: meter.CohereEmbed}),
	rowAt(at(Cohere), "tokenize", Endpoint{}),
	rowAt(at(Cohere), "detokenize", Endpoint{}),
	rowAt(at(Cohere), "check-api-key", Endpoint{}),
	rowAt(at(Cohere), "datasets/**", Endpoint{Creates: true}),
	rowAt(at(Cohere), "connectors/**", Endpoint{Creates: true}),

	// Ollama, which streams unless it is told not to
	row("api/chat", Endpoint{API: meter.OllamaChat, Conversation: true, Streams: true}),
	row("api/generate", Endpoint{API: meter.OllamaChat, Conversation: true, Streams: true}),
	row("api/embed", Endpoint{API: meter.OllamaEmbed}),
	row("api/embeddings", Endpoint{API: meter.OllamaEmbed}),
	row("api/show", Endpoint{}),

	// Bedrock; the models' own paths are in bedrock.go
	rowAt(at(Bedrock), "guardrail/*/version/*/apply", Endpoint{Name: "guardrail", API: meter.OpenAIOther}),
	rowAt(at(Bedrock), "async-invoke", Endpoint{API: meter.OpenAIOther, Creates: true}),
}

// fetched are the paths of GET requests whose answers are counted: the results
// of batches and the responses made in the background, which are told nowhere else.
var fetched = []served{
	row("messages/batches/*/results", Endpoint{Name: "messages/batches/results", API: meter.AnthropicBatchResults, anthropic: true}).naming(2),
	rowAt(notAt(Anthropic), "files/*/content", Endpoint{Name: "files/content", API: meter.OpenAIBatchOutput}).naming(1),
	row("responses/*", Endpoint{Name: "responses/stored", API: meter.OpenAIStoredResponse}).naming(1),
}
