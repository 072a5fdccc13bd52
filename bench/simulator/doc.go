// Package simulator is a provider that costs nothing: endpoints of Anthropic, OpenAI, Gemini and Bedrock with real
// limits, real headers, real error bodies, faults on demand, and a ledger of what it billed.
//
// It imports nothing of authpool. Its ledger is the independent witness that authpool's own counting
// is compared with, so the two must not share a line of code.
//
// Start at [New]; [Simulator.Handler] mounts it anywhere, [Simulator.Serve] runs it on a listener.
//
// # Endpoints
//
//	POST /v1/messages, /v1/messages/count_tokens                              Anthropic
//	POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings OpenAI
//	POST /v1beta/models/MODEL:generateContent, :streamGenerateContent, :countTokens   Gemini, also under /v1 and /v1alpha
//	WebSocket /v1/responses, /v1/realtime?model=MODEL, /ws/…GenerativeService.BidiGenerateContent   text turns, as of the streams
//	POST /model/MODEL/converse, converse-stream, invoke, invoke-with-response-stream  Bedrock with API keys; Messages are invoked
//	GET  /v1/models                                                           Anthropic or OpenAI, by the request's headers
//	GET  /ledger, DELETE /ledger      what was billed, oldest first ([Entry]); forget it
//	GET  /requests                    what arrived, oldest first ([Arrival]): names and hashes, no secret values
//	GET, POST, DELETE /faults         list, add ([Injection], one or an array), forget the faults
//
// # Tokens
//
// One token is four bytes of the prompt's JSON (tools, system, messages; other fields are free) or one
// word of the answer. Answers depend on the seed, the model and the prompt, never on the key, so a
// request that moves to another key is answered alike. Prompt caching is kept for each key: Anthropic and
// Bedrock cache everything before the last message of a request that carries cache_control or a cachePoint, the others
// cache by themselves, and an entry lives five minutes after its last use (an hour with "ttl":"1h").
//
// # Limits
//
// A key has limits per minute and usage windows ([Key]); both are its organisation's, which other keys can share. Every
// answer says what is left of them and whose they are, in the provider's own headers.
//
// # Any answer
//
// A fault of kind [RawAnswer] plays a raw HTTP answer byte for byte: a paste from a log, a recording, a binary event
// stream. Keys may belong to any provider for that; those that are not simulated serve nothing else:
//
//	jq -Rs '{key: "sk-sim-1", kind: "answer", answer: .}' ANSWER.http | curl --data @- http://127.0.0.1:8790/faults
//
// # Knobs
//
// A model named sim-KNOB[-KNOB…], or a header X-Simulate: KNOB[-KNOB…] on any model, shapes one answer:
//
//	large-N    text of N MiB, made as it is sent, so memory stays constant
//	tokens-N   N words (max_tokens still cuts it)
//	slow-N     N milliseconds between stream events
//	echo       repeats the last message's JSON as text
//	thinking   a thinking block (Anthropic) or a reasoning item (Responses) first
//	tool       a tool call whose arguments hold a false "usage" object
//
// # Codings
//
// Answers are encoded with the first coding of the request's Accept-Encoding that is gzip, br, zstd or
// deflate; a stream is flushed after each event.
package simulator
