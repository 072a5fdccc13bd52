package provider

import (
	"bytes"
	"slices"

	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/proxy/meter"
)

// The places in an answer, or in an event of a streamed one, at which the id of
// something stands that it has made (the providers' API references). The same key
// elsewhere, in a text or a tool's arguments, is not looked at.
const (
	atMadeID = iota
	atMadeResponse
	atMadeInteraction
	atMadeThread
	atMadeMistral
	atMadeUpload
	atMadeOutputFile
	atMadeErrorFile
	atMadeMistralFile
	atMadeContainer
	atMadeStartContainer
	atMadeDeltaContainer
	atMadeFile
	atMadeBlockFile
	atMadeCode
	atMadeCodeItem
	atMadeCodeResponse
	atMadeName
	atMadeFileName
)

var madePaths = jsonscan.MustCompile([]string{
	atMadeID:          "id",
	atMadeResponse:    "response.id",     // events of the Responses API
	atMadeInteraction: "interaction.id",  // events of Gemini's interactions
	atMadeThread:      "thread_id",       // a run that has made its thread
	atMadeMistral:     "conversation_id", // Mistral's conversations
	atMadeUpload:      "file.id",         // an upload that is complete
	atMadeOutputFile:  "output_file_id",  // a batch that has ended
	atMadeErrorFile:   "error_file_id",
	atMadeMistralFile: "output_file",
	// Anthropic's code execution: the container and the files that it left there.
	atMadeContainer:      "container.id",
	atMadeStartContainer: "message.container.id",
	atMadeDeltaContainer: "delta.container.id",
	atMadeFile:           "content[].content.content[].file_id",
	atMadeBlockFile:      "content_block.content.content[].file_id",
	// OpenAI's code interpreter.
	atMadeCode:         "output[].container_id",
	atMadeCodeItem:     "item.container_id",
	atMadeCodeResponse: "response.output[].container_id",
	// Google's names of resources.
	atMadeName:     "name",
	atMadeFileName: "file.name",
}...)

// maxMade bounds the ids of one answer.
const maxMade = 32

// Made reads from the JSON texts of an answer, its whole body or the events of a
// stream, the ids of the account-bound things that it has made. It keeps nothing
// else of the text. The zero value is ready for Reset; it is not safe for
// concurrent use.
type Made struct {
	family  Family
	scanner jsonscan.Scanner
	ids     []string
}

// Reset makes m ready for an answer of a provider of family f.
func (m *Made) Reset(f Family) {
	m.family, m.ids = f, m.ids[:0]
	m.Begin()
}

// Begin says that another JSON text begins.
func (m *Made) Begin() { m.scanner.Reset(madePaths, m) }

// Write reads the next piece of the text.
func (m *Made) Write(p []byte) { m.scanner.Write(p) }

// Location reads where the answer's head says that what was made is: a URL, or its path.
func (m *Made) Location(place []byte) {
	if i := bytes.IndexAny(place, "?#"); i >= 0 {
		place = place[:i]
	}
	if m.family == Gemini || len(m.ids) == maxMade {
		return
	}
	m.add(place[bytes.LastIndexByte(place, '/')+1:])
}

// IDs returns what was found so far, each once and in the form of Pins.IDs; 32 at
// most. It is valid until Reset.
func (m *Made) IDs() []string { return m.ids }

// Found implements jsonscan.Handler.
func (m *Made) Found(v *jsonscan.Value) {
	if v.Kind != jsonscan.String || v.Truncated || len(v.Raw) == 0 || len(m.ids) == maxMade {
		return
	}
	google := m.family == Gemini
	switch v.Path {
	case atMadeID, atMadeInteraction:
		if google {
			m.add([]byte(interactions + CleanSession(v.Raw)))
			return
		}
		m.add(v.Raw)
	case atMadeName, atMadeFileName:
		if google {
			var text [2 * 256]byte
			m.add(googleResource(jsonscan.Unquote(text[:0], v.Raw)))
		}
	default:
		m.add(v.Raw)
	}
}

// add keeps the id of a thing that can be learned.
func (m *Made) add(id []byte) {
	if len(id) > maxResource || len(id) == 0 || !isResource(id) && (m.family != Gemini || googleResource(id) == nil) {
		return
	}
	id = plainID(id)
	if slices.ContainsFunc(m.ids, func(one string) bool { return one == string(id) }) || KeepResource(string(id)) == keepNot {
		return
	}
	m.ids = append(m.ids, string(id))
}

// making are the facts of a request that tell whether its answer makes something.
type making struct {
	stored, unstored bool // by the field store
	sandboxed        bool // a tool runs in a container
	background       bool // the answer is fetched later, also if it is not stored for longer
}

// makes tells whether the answer to a call may name things that it has made.
func (c *Call) makes(method []byte, m making) bool {
	switch string(method) {
	case "POST":
	case "GET":
		// A batch or job that has ended names the files that hold its results, a
		// response that was made in the background its containers.
		return len(c.Pins.IDs) > 0 && (!c.Endpoint.Billable() || c.Endpoint.API == meter.OpenAIStoredResponse)
	default:
		return false
	}
	if c.Endpoint.Creates {
		return true
	}
	switch c.Endpoint.API {
	case meter.OpenAIResponses:
		return !m.unstored || m.sandboxed || m.background
	case meter.OpenAIChat:
		return m.stored
	case meter.AnthropicMessages:
		return m.sandboxed
	default:
		return false
	}
}
