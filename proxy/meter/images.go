package meter

// imageUsage is the usage object of the image API; models before gpt-image-1
// send none.
var imageUsage = []place{
	{"usage", usageBegin},
	{"usage.input_tokens", input},
	{"usage.output_tokens", output},
	{"usage.total_tokens", total},
}

// openAIImages serves generations, edits and variations. In a stream the usage
// stands in the event of the finished image.
var openAIImages = dialect{
	json:   newTable([]place{{"model", model}, {"data[]", image}}, imageUsage, failureAt("error")),
	events: newTable([]place{{"type", kind}, {"model", model}}, imageUsage, failureAt("error")),
	event:  imagesEvent,
	answer: takeAnswer,
	normal: normalOpenAI,
}

func imagesEvent(m *Meter, e *event) {
	if e.failed {
		m.fail(e)
		return
	}
	m.content = true
	switch string(e.kind.bytes()) {
	case "image_generation.completed", "image_edit.completed":
		m.takeModel(e)
		m.replaceUsage(e)
		m.images++
		m.terminal = true
	}
}
