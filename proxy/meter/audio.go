package meter

import "slices"

// audioUsage is the usage object of the audio API: tokens, or seconds for
// models that are billed by time. Mistral tells both, by the names of its chat.
// Sources: openai 6.49.0, transcriptions.d.ts; Mistral's openapi.yaml,
// TranscriptionResponse.
var audioUsage = []place{
	{"usage", usageBegin},
	{"usage.input_tokens", input},
	{"usage.output_tokens", output},
	{"usage.total_tokens", total},
	{"usage.seconds", seconds},
	{"usage.prompt_tokens", input},
	{"usage.completion_tokens", output},
	{"usage.prompt_audio_seconds", seconds},
}

// openAITranscriptions serves transcriptions and translations. Plain text and
// subtitles tell no usage.
var openAITranscriptions = dialect{
	json:   newTable([]place{{"model", model}}, audioUsage, failureAt("error")),
	events: newTable([]place{{"type", kind}, {"model", model}, {"delta", generated}, {"text", generated}}, audioUsage, failureAt("error")),
	event:  audioEvent("transcript.text.done", "transcription.done"),
	answer: takeAnswer,
	normal: normalOpenAI,
	media:  true,
}

// openAISpeech tells usage only in a stream of events; sound alone tells none.
var openAISpeech = dialect{
	json:   newTable(audioUsage, failureAt("error")),
	events: newTable([]place{{"type", kind}}, audioUsage, failureAt("error")),
	event:  audioEvent("speech.audio.done"),
	answer: takeAnswer,
	normal: normalOpenAI,
	media:  true,
}

// audioEvent takes over an event of an audio stream, which one of last ends. That
// repeats the whole text.
func audioEvent(last ...string) func(*Meter, *event) {
	return func(m *Meter, e *event) {
		if e.failed {
			m.fail(e)
			return
		}
		m.content = true
		if slices.Contains(last, string(e.kind.bytes())) {
			m.takeModel(e)
			m.replaceUsage(e)
			m.terminal = true
			return
		}
		m.shown.plus(&e.shown)
	}
}
