package meter

// audioUsage is the usage object of the audio API: tokens, or seconds for
// models that are billed by time.
var audioUsage = []place{
	{"usage", usageBegin},
	{"usage.input_tokens", input},
	{"usage.output_tokens", output},
	{"usage.total_tokens", total},
	{"usage.seconds", seconds},
}

// openAITranscriptions serves transcriptions and translations. Plain text and
// subtitles tell no usage.
var openAITranscriptions = dialect{
	json:   newTable([]place{{"model", model}}, audioUsage, failureAt("error")),
	events: newTable([]place{{"type", kind}, {"delta", generated}}, audioUsage, failureAt("error")),
	event:  audioEvent("transcript.text.done"),
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

// audioEvent takes over an event of an audio stream, which last ends.
func audioEvent(last string) func(*Meter, *event) {
	return func(m *Meter, e *event) {
		if e.failed {
			m.fail(e)
			return
		}
		m.content = true
		m.shown.plus(&e.shown)
		if string(e.kind.bytes()) == last {
			m.replaceUsage(e)
			m.terminal = true
		}
	}
}
