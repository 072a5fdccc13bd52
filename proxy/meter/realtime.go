package meter

import (
	"bytes"
	"slices"
)

// openAIResponsesSocket serves WebSocket /responses. Its messages are the events of a
// stream, and an error that may carry its HTTP status beside (openai/codex,
// responses_websocket.rs: status or status_code).
var openAIResponsesSocket = dialect{
	events: newTable(responsesPlaces, []place{{"status_code", failStatus}}),
	event:  responsesMessage,
	normal: normalOpenAI,
	rates:  openAIResponses.rates,
}

// responsesMessage takes over a message. An error before a response has begun is the
// whole turn. One behind that is not known to end the response, which goes on to its
// last event or ends with the socket.
func responsesMessage(m *Meter, e *event) {
	kind := e.kind.bytes()
	switch {
	case e.kind.is("error"):
		e.fails()
		if e.socket.ends = !m.begun; e.socket.ends {
			m.fail(e)
		}
		return
	case !bytes.HasPrefix(kind, []byte("response.")):
		return // what is beside the responses: codex.rate_limits, for instance
	}
	responsesEvent(m, e)
	m.begun = true
	e.socket.begins, e.socket.ends = true, m.terminal
	if m.failed {
		e.fails()
	}
}

// realtimeUsage is the usage object of the Realtime API, whose details are called
// otherwise than those of responses. Source: openai 6.49.0, realtime.d.ts.
func realtimeUsage(path string) []place {
	return under(path, []place{
		{"total_tokens", total},
		{"input_tokens", input},
		{"output_tokens", output},
		{"input_token_details.cached_tokens", cacheRead},
		{"input_token_details.audio_tokens", spoken},
		{"input_token_details.image_tokens", spoken},
		{"output_token_details.audio_tokens", spoken},
		{"output_token_details.reasoning_tokens", reasoning},
	})
}

// openAIRealtime serves WebSocket /realtime, of OpenAI and Azure.
var openAIRealtime = dialect{
	events: newTable([]place{
		{"type", kind},
		{"session.model", sessionModel},
		{"session.input_audio_transcription.model", spokenModel}, // of the beta, and of Azure
		{"session.audio.input.transcription.model", spokenModel},
		{"delta", generated},
		{"item.name", called},
		{"response.status", status},
		{"response.usage", usageBegin},
		{"usage", usageBegin}, // of a transcription
		{"usage.seconds", seconds},
		{"rate_limits[]", limitBegin},
		{"rate_limits[].name", limitName},
		{"rate_limits[].limit", limitSize},
		{"rate_limits[].remaining", limitLeft},
		{"rate_limits[].reset_seconds", limitReset},
	}, realtimeUsage("response.usage"), realtimeUsage("usage"), failureAt("response.status_details.error"), failureAt("error")),
	event:  realtimeMessage,
	normal: normalOpenAI,
	rates:  openAIResponses.rates,
}

// realtimeMessage takes over a message. A response tells its usage in its last event,
// response.done, also when it has failed or was cancelled. An error is no end of
// anything ("most errors are recoverable and the session will stay open") but of a turn
// that was asked for and has not begun.
func realtimeMessage(m *Meter, e *event) {
	switch kind := e.kind.bytes(); string(kind) {
	case "error":
		e.fails()
		if e.socket.ends = !m.begun; e.socket.ends {
			m.fail(e)
		}
	case "response.created":
		m.begun = true
		e.socket.begins = true
	case "response.done":
		e.socket.begins, e.socket.ends = true, true
		m.spoken = m.spoken || e.socket.spoken
		m.replaceUsage(e)
		if e.status.is("failed") && e.failed {
			e.fails()
			m.failWith(e)
			return
		}
		m.content, m.terminal = true, true
	default:
		if !bytes.HasPrefix(kind, []byte("response.")) {
			// conversation.item.input_audio_transcription.completed; nothing else that is
			// no response's has a usage.
			e.socket.beside = e.told && e.counts.some()
			return
		}
		e.socket.begins = true
		m.content = true
		m.shown.plus(realtimeShown(kind, &e.shown))
	}
}

// realtimeShown is responsesShown, but that what is said is told as a text, too.
func realtimeShown(kind []byte, g *generation) *generation {
	if bytes.HasSuffix(kind, []byte("audio_transcript.delta")) {
		return g
	}
	return responsesShown(kind, g)
}

// liveUsage is geminiUsage with what kinds of tokens there are.
var liveUsage = slices.Concat(geminiUsage, []place{
	{"usageMetadata.promptTokensDetails[].modality", modality},
	{"usageMetadata.responseTokensDetails[].modality", modality},
	{"usageMetadata.candidatesTokensDetails[].modality", modality}, // Vertex
})

// geminiLive serves the Live API of Gemini and of Vertex (BidiGenerateContentServerMessage).
var geminiLive = dialect{
	events: newTable([]place{
		{"serverContent", turnBegun},
		{"toolCall", turnBegun},
		{"serverContent.turnComplete", turnEnded},
		{"serverContent.modelTurn.parts[].text", generated},
		{"serverContent.outputTranscription.text", generated},
		{"toolCall.functionCalls[].name", called},
		{"toolCall.functionCalls[].args", arguments},
	}, liveUsage, failureAt("error")),
	event:  liveMessage,
	normal: geminiNormal,
}

// liveMessage takes over a message. Its usage is that of one turn, and not of the
// session so far: three turns told 162, 205 and 248 tokens, each with all the context
// that the model read again and is charged (pydantic/pydantic-ai#7269,
// googleapis/python-genai#1917). Within a turn the last of each count is believed, as
// in a stream. It comes with the turn's end, or in a message of its own behind that:
// the turn is over when both have come.
func liveMessage(m *Meter, e *event) {
	t := e.socket
	m.spoken = m.spoken || t.spoken
	m.takeUsage(e)
	t.begins = t.working || e.told
	if e.failed {
		e.fails()
		return
	}
	m.shown.plus(&e.shown)
	m.content = m.content || e.content
	m.begun = m.begun || t.ended
	if m.begun && m.told {
		t.ends, m.final, m.terminal = true, true, true
	}
}
