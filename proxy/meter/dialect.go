package meter

import (
	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/ratelimit/usage"
)

// dialect is how an API tells its usage: tables of the places where things
// stand, and functions of what they mean. There is one file for each.
type dialect struct {
	json   *table // of a whole answer
	events *table // of one event
	array  *table // of events that stand in a JSON array; nil where none do
	// headers are those of the answer that tell usage; the body goes before them.
	headers []place
	// event takes over what a complete event has told.
	event func(*Meter, *event)
	// answer does the same for a complete JSON answer.
	answer func(*Meter, *event)
	// normal brings the numbers to the normal form.
	normal func(*counts) usage.Tokens
	// endMark: a stream ends with the data [DONE].
	endMark bool
	// media: an answer may also be sound or plain text.
	media bool
	// frames: an answer may be in AWS' event stream.
	frames bool
	// wrapped: the payload of its frames holds the event's JSON in Base64.
	wrapped bool
	// lines: an answer is one JSON text a line, whatever its Content-Type.
	lines bool
	// rates are for the estimate of a stream that was cut.
	rates rates
}

var dialects = [...]*dialect{
	AnthropicMessages:    &anthropicMessages,
	AnthropicComplete:    &anthropicComplete,
	OpenAIChat:           &openAIChat,
	OpenAICompletions:    &openAICompletions,
	OpenAIResponses:      &openAIResponses,
	OpenAIEmbeddings:     &openAIEmbeddings,
	OpenAIImages:         &openAIImages,
	OpenAITranscriptions: &openAITranscriptions,
	OpenAISpeech:         &openAISpeech,
	OpenAIOther:          nil,
	GeminiGenerate:       &gemini,
	GeminiStream:         &gemini,
	GeminiEmbed:          &geminiEmbed,
	VertexPredict:        &vertexPredict,
	BedrockInvoke:        &bedrockInvoke,
	BedrockConverse:      &bedrockConverse,

	CohereChat:            &cohereChat,
	CohereGenerate:        &cohereGenerate,
	CohereEmbed:           &cohereEmbed,
	Rerank:                &rerank,
	OllamaChat:            &ollamaChat,
	OllamaEmbed:           &ollamaEmbed,
	MistralConversation:   &mistralConversation,
	AnthropicBatchResults: &anthropicBatchResults,
	OpenAIBatchOutput:     &openAIBatchOutput,
	OpenAIStoredResponse:  &openAIStoredResponse,
	OpenAIResponsesSocket: &openAIResponsesSocket,
	OpenAIRealtime:        &openAIRealtime,
	GeminiLive:            &geminiLive,
}

// slot is what a value at a place means.
type slot uint8

// Numbers. Their slots are indexes of counts.
const (
	input slot = iota
	output
	total
	cacheRead
	cacheReadElse // a second name for cacheRead, used when that is absent
	cacheWrite
	cacheWrite5m
	cacheWrite1h
	reasoning
	reasoningElse // beside the details of the output; see normalOpenAI
	toolInput     // what tools and searches put in, beside input
	metricInput   // Bedrock's metrics: what was told before, once more
	metricOutput  //
	metricRead    //
	metricWrite   //
	webSearches
	webFetches
	seconds
	searchUnits
	billedInput // what is charged, where that is told beside what was used
	billedOutput
	numCounts
)

// Everything else.
const (
	root    slot = iota + numCounts // the JSON text itself
	list                            // the JSON text, an array of events
	element                         // one of them
	ignored
	usageBegin // the usage object
	kind       // the event's type
	status     // of a response
	responseID // of a response
	background // whether a response is made in the background
	model
	generated // text from the model: content, and counted for the estimate
	thought   // the same, of its reasoning
	arguments // the same, of a tool call
	called    // the name of a called tool
	block     // a content block begins
	sealed    // reasoning that cannot be read
	something // content when it is anything but null, empty or false
	finish    // the reason for the end
	ended     // whether this is the end
	tier      // of service
	speed     // of service
	geo       // where it was served
	item      // one of the items that the Responses API's output consists of
	itemKind
	itemAction
	customID  // of a batch's request
	answered  // with this HTTP status
	image     // one image made
	moreInput // a number that is added to input
	moreOutput
	writeBegin // one entry of Bedrock's cache writes
	writeLife
	writeCount
	iterBegin // one of Anthropic's iterations
	iterKind
	iterModel
	failBegin // an error, as an object or as its text
	failKind
	failCode
	failDetail // a more precise code
	failMessage
	failStatus
	failResets
	failResetsIn
	failReason // Google's cause
	failDelay  // Google's delay
	failQuota  // Google's quota, one of those that are used up
	failSource // OpenRouter's limit
	failUpstream
	failModerated
	turnBegun // of a socket: the model works
	turnEnded
	sessionModel
	spokenModel // that writes down what is said
	spoken      // tokens that are no text, as a number
	modality    // of some tokens, as a name
	limitBegin  // one of the limits that are told
	limitName
	limitSize
	limitLeft
	limitReset
)

// counts are numbers as told, by slot; -1 where none was.
type counts [numCounts]int64

func (c *counts) reset() {
	for i := range c {
		c[i] = -1
	}
}

// take overwrites every number that d has: the last one told counts.
func (c *counts) take(d *counts) {
	for i, n := range d {
		if n >= 0 {
			c[i] = n
		}
	}
}

// some reports whether any number was told that says of what it is: a total
// alone does not.
func (c *counts) some() bool {
	for s, n := range c {
		if n >= 0 && slot(s) != total {
			return true
		}
	}
	return false
}

// read returns the tokens read from the cache, by whichever name.
func (c *counts) read() int64 {
	if c[cacheRead] < 0 {
		return c[cacheReadElse]
	}
	return c[cacheRead]
}

func (c *counts) raw() Raw {
	return Raw{
		Input: c[input], Output: c[output], Total: c[total],
		CacheRead:  c.read(),
		CacheWrite: c[cacheWrite], CacheWrite5m: c[cacheWrite5m], CacheWrite1h: c[cacheWrite1h],
		Reasoning: c[reasoning],
	}
}

// at returns the number in s, or 0 when none was told.
func (c *counts) at(s slot) int64 { return max(c[s], 0) }

// place says what stands at a path, or in a header.
type place struct {
	path string
	slot slot
}

// table is a compiled list of places.
type table struct {
	paths *jsonscan.Paths
	slots []slot
}

// textLimit is how many bytes are kept of an error's message and of a
// custom_id, which providers limit to 64 characters.
const textLimit = 1 << 10

// newTable returns the table of a JSON text that is an answer or an event.
func newTable(lists ...[]place) *table {
	return compile(append([][]place{{{"", root}}}, lists...))
}

// newArrayTable returns the table of an array of events.
func newArrayTable(lists ...[]place) *table {
	all := [][]place{{{"", list}, {"[]", element}}}
	for _, list := range lists {
		all = append(all, under("[]", list))
	}
	return compile(all)
}

func compile(lists [][]place) *table {
	var paths []string
	t := new(table)
	for _, list := range lists {
		for _, p := range list {
			paths = append(paths, p.path)
			t.slots = append(t.slots, p.slot)
		}
	}
	t.paths = jsonscan.MustCompile(paths...)
	for i, s := range t.slots {
		if s == failMessage || s == customID {
			t.paths.Limit(i, textLimit)
		}
	}
	return t
}

// under returns the places below prefix.
func under(prefix string, places []place) []place {
	moved := make([]place, len(places))
	for i, p := range places {
		moved[i] = place{prefix + "." + p.path, p.slot}
	}
	return moved
}
