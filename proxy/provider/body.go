package provider

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"strconv"
	"sync"

	"github.com/authpool/authpool/proxy/jsonscan"
	"github.com/authpool/authpool/proxy/meter"
)

// The places in a JSON body at which something means something, by the
// providers' documentation of their requests. The same key anywhere else, in a
// tool's arguments or in a text, is not looked at.
const (
	atRoot = iota
	atModel
	atStream
	atStreamOptions
	atIncludeUsage
	atStreamOption // any other
	atMetadata
	atUserID
	atPromptCacheKey
	atConversation
	atConversationID
	atCohereConversation
	atPreviousResponse
	atPreviousInteraction
	atPromptID
	atContainer
	atContainerID
	atBackground
	atStore
	atThread
	atMaxTokens
	atMaxCompletionTokens
	atMaxOutputTokens

	// Texts that tell conversations apart.
	atSystem
	atSystemText
	atInstructions
	atPrompt
	atInput
	atMessage
	atMessageRole
	atMessageContent
	atMessageText
	atItem
	atItemRole
	atItemContent
	atItemText
	atTurn
	atTurnRole
	atTurnText
	atSystemPart
	atSystemPartSnake
	atPreamble
	atLoneMessage
	atPastMessage
	atPastRole
	atPastText
	atTitanText

	// What only one account or organisation can serve.
	atMessageFile
	atMessageSource
	atMessageOpenAIFile
	atMessageNestedSource
	atMessageBlockType
	atMessageEncrypted
	atMessageNestedEncrypted
	atItemID
	atItemType
	atItemEncrypted
	atItemFile
	atVectorStore
	atToolContainer
	atToolContainerFile
	atToolType
	atCachedContent
	atCachedContentSnake
	atFileURI
	atFileURISnake

	// What only the organisation that serves will be able to read.
	atIncluded
	atContextType
	atContextEditType
)

var bodyPlaces = [...]string{
	atRoot:                "",
	atModel:               "model",
	atStream:              "stream",
	atStreamOptions:       "stream_options",
	atIncludeUsage:        "stream_options.include_usage",
	atStreamOption:        "stream_options.*",
	atMetadata:            "metadata",
	atUserID:              "metadata.user_id",
	atPromptCacheKey:      "prompt_cache_key",
	atConversation:        "conversation",
	atConversationID:      "conversation.id",
	atCohereConversation:  "conversation_id",
	atPreviousResponse:    "previous_response_id",
	atPreviousInteraction: "previous_interaction_id",
	atPromptID:            "prompt.id",
	atContainer:           "container",
	atContainerID:         "container.id",
	atBackground:          "background",
	atStore:               "store",
	atThread:              "thread",
	atMaxTokens:           "max_tokens",
	atMaxCompletionTokens: "max_completion_tokens",
	atMaxOutputTokens:     "max_output_tokens",

	atSystem:         "system",
	atSystemText:     "system[].text",
	atInstructions:   "instructions",
	atPrompt:         "prompt",
	atInput:          "input",
	atMessage:        "messages[]",
	atMessageRole:    "messages[].role",
	atMessageContent: "messages[].content",
	atMessageText:    "messages[].content[].text",
	atItem:           "input[]",
	atItemRole:       "input[].role",
	atItemContent:    "input[].content",
	atItemText:       "input[].content[].text",
	atTurn:           "contents[]",
	atTurnRole:       "contents[].role",
	atTurnText:       "contents[].parts[].text",
	atSystemPart:     "systemInstruction.parts[].text",
	// Google's APIs take both spellings of a name.
	atSystemPartSnake: "system_instruction.parts[].text",
	// Cohere v1: the message of this turn, and those before it.
	atPreamble:    "preamble",
	atLoneMessage: "message",
	atPastMessage: "chat_history[]",
	atPastRole:    "chat_history[].role",
	atPastText:    "chat_history[].message",
	atTitanText:   "inputText", // Amazon's Titan on Bedrock

	atMessageFile:            "messages[].content[].file_id",
	atMessageSource:          "messages[].content[].source.file_id",
	atMessageOpenAIFile:      "messages[].content[].file.file_id",
	atMessageNestedSource:    "messages[].content[].content[].source.file_id",
	atMessageBlockType:       "messages[].content[].type",
	atMessageEncrypted:       "messages[].content[].encrypted_content",
	atMessageNestedEncrypted: "messages[].content[].content[].encrypted_content",
	atItemID:                 "input[].id",
	atItemType:               "input[].type",
	atItemEncrypted:          "input[].encrypted_content",
	atItemFile:               "input[].content[].file_id",
	atVectorStore:            "tools[].vector_store_ids[]",
	atToolContainer:          "tools[].container",
	atToolContainerFile:      "tools[].container.file_ids[]",
	atToolType:               "tools[].type",
	atCachedContent:          "cachedContent",
	atCachedContentSnake:     "cached_content",
	atFileURI:                "contents[].parts[].fileData.fileUri",
	atFileURISnake:           "contents[].parts[].file_data.file_uri",

	atIncluded:        "include[]",
	atContextType:     "context_management[].type",       // OpenAI
	atContextEditType: "context_management.edits[].type", // Anthropic
}

// textLimit is how much of a text goes into a session's hash; its whole length
// does too.
const textLimit = 16 << 10

// bodyPaths is bodyPlaces compiled.
var bodyPaths = func() *jsonscan.Paths {
	p := jsonscan.MustCompile(bodyPlaces[:]...)
	for _, i := range []int{
		atSystem, atSystemText, atInstructions, atPrompt, atInput, atMessageContent, atMessageText,
		atItemContent, atItemText, atTurnText, atSystemPart, atSystemPartSnake,
		atPreamble, atLoneMessage, atPastText, atTitanText,
	} {
		p.Limit(i, textLimit)
	}
	for _, i := range []int{atMessageEncrypted, atMessageNestedEncrypted, atItemEncrypted} {
		p.Limit(i, 0)
	}
	return p.Limit(atUserID, 4<<10).Limit(atPromptCacheKey, 1<<10).Limit(atConversation, 1<<10).Limit(atCohereConversation, 1<<10)
}()

// bodyScan is the state of reading one JSON body.
type bodyScan struct {
	scanner jsonscan.Scanner
	chunk   [32 << 10]byte // of a decompressed body

	// What is found, apart from what the caller has until all is well.
	call   Call
	id     identity
	making making
	facts

	// For the session's hash.
	system, message, firstUser hash.Hash
}

// facts are what a scan has seen of the text so far.
type facts struct {
	object  bool  // the body is one
	rootEnd int64 // behind its last brace
	// Fields on which authpool acts, by how often they stand there.
	models, streams, streamOptions, includes, metadatas int

	options     span // of stream_options
	optionsKind jsonscan.Kind
	option      bool // stream_options has a member
	include     span
	includeKind jsonscan.Kind

	// Of the item of a Responses input that is being read.
	reference bool // its type is item_reference
	itemID    word

	named   bool // a header names the session, so that the body need not
	hashing bool // the session's hash may be needed
	role    word // of the message that is being read
	hasUser bool // the first message of the user was read

	lone    [sha256.Size]byte // of Cohere's message of this turn
	hasLone bool

	pathModel bool // the path names the model: what the body says is not asked
}

// word is a short text that outlives the call in which it was found.
type word struct {
	text   [maxWord]byte
	length int
}

func (w *word) set(text []byte) {
	w.length = 0
	if len(text) <= maxWord {
		w.length = copy(w.text[:], text)
	}
}

func (w *word) bytes() []byte { return w.text[:w.length] }

// span is a place in the body.
type span struct{ start, end int64 }

var bodyScans = sync.Pool{New: func() any {
	return &bodyScan{system: sha256.New(), message: sha256.New(), firstUser: sha256.New()}
}}

// readBody reads the facts of a body into c and id, and returns those about what
// the answer makes. For a body that is not whole JSON it leaves all as they are.
func (c *Call) readBody(r *Request, content *contentHeaders, id *identity) (making, error) {
	if content.multipart() {
		readForm(c, content.mediaType, r.Body)
		return making{}, nil
	}
	s := bodyScans.Get().(*bodyScan)
	defer s.release()
	s.begin(c, id)
	if content.encoded() {
		if !s.writeDecoded(content, r.Body) {
			return making{}, nil
		}
	} else {
		s.scanner.Write(r.Body)
	}
	if !s.scanner.Close() || !s.object {
		return making{}, nil
	}
	if field := s.duplicate(); field != "" {
		return making{}, &Refusal{
			Status: 400, Code: CodeDuplicateField, Family: c.Shape,
			Message: "the body names the field " + strconv.Quote(field) + " more than once; send it once",
		}
	}
	if s.hashing {
		s.id.found[fromHash] = s.sum()
	}
	*c, *id = s.call, s.id
	if c.Stream && !content.encoded() && r.asksUsage(c.Endpoint, s.pathModel) {
		c.Patch = s.askUsage()
	}
	return s.making, nil
}

func (s *bodyScan) begin(c *Call, id *identity) {
	s.scanner.Reset(bodyPaths, s)
	s.call, s.id, s.facts, s.making = *c, *id, facts{}, making{}
	for from := range fromUserID {
		s.named = s.named || len(id.found[from]) > 0
	}
	s.hashing = c.Endpoint.Conversation && !s.named
	s.pathModel = c.Model != ""
	s.system.Reset()
	s.firstUser.Reset()
}

func (s *bodyScan) release() {
	s.call, s.id = Call{}, identity{}
	bodyScans.Put(s)
}

// duplicate returns the field that stands in the body more than once, or "".
func (s *bodyScan) duplicate() string {
	switch {
	case s.models > 1:
		return "model"
	case s.streams > 1:
		return "stream"
	case s.streamOptions > 1:
		return "stream_options"
	case s.includes > 1:
		return "stream_options.include_usage"
	case s.metadatas > 1:
		return "metadata"
	}
	return ""
}

// Found implements jsonscan.Handler.
func (s *bodyScan) Found(v *jsonscan.Value) {
	begins := v.Kind != jsonscan.ObjectEnd && v.Kind != jsonscan.ArrayEnd
	text := v.Kind == jsonscan.String
	switch v.Path {
	case atRoot:
		if v.Kind == jsonscan.ObjectEnd {
			s.object, s.rootEnd = true, v.End
		}
	case atModel:
		s.models += count(begins)
		if text && !s.pathModel {
			var buf [256]byte
			s.call.Model = CleanModel(jsonscan.Unquote(buf[:0], v.Raw))
		}
	case atStream:
		s.streams += count(begins)
		s.call.Stream = v.Kind == jsonscan.True
	case atStreamOptions:
		s.streamOptions += count(begins)
		s.options.end = v.End
		if begins {
			s.options.start, s.optionsKind = v.Start, v.Kind
		}
	case atIncludeUsage:
		s.includes += count(begins)
		s.option = true
		s.include, s.includeKind = span{v.Start, v.End}, v.Kind
	case atStreamOption:
		s.option = true
	case atMetadata:
		s.metadatas += count(begins)
	case atUserID:
		if text && !v.Truncated && !s.named {
			s.id.found[fromUserID] = sessionOfUserID(jsonscan.Unquote(nil, v.Raw))
		}
	case atPromptCacheKey:
		if text && !v.Truncated && !s.named {
			s.id.found[fromPromptCacheKey] = jsonscan.Unquote(nil, v.Raw)
		}
	case atConversation, atConversationID, atCohereConversation:
		if text && !v.Truncated && (v.Path != atCohereConversation || s.call.Endpoint.API == meter.CohereChat) {
			if !s.named {
				s.id.found[fromConversation] = jsonscan.Unquote(nil, v.Raw)
			}
			s.call.Pins.add(v.Raw)
			s.call.Unsafe = true // its items would stand there twice
		}
	case atPreviousResponse, atPromptID:
		if text {
			s.call.Pins.add(v.Raw)
		}
	case atContainer, atContainerID:
		s.making.sandboxed = s.making.sandboxed || begins && v.Kind != jsonscan.Null
		if text {
			s.call.Pins.add(v.Raw)
		}
	case atPreviousInteraction:
		if text && len(v.Raw) > 0 {
			s.call.Pins.addID([]byte(interactions + CleanSession(v.Raw)))
		}
	case atCachedContent, atCachedContentSnake, atFileURI, atFileURISnake:
		if text && !v.Truncated {
			var buf [2 * 256]byte
			s.call.Pins.addGoogle(jsonscan.Unquote(buf[:0], v.Raw))
		}
	case atStore:
		s.making.stored, s.making.unstored = v.Kind == jsonscan.True, v.Kind == jsonscan.False
	case atToolType:
		s.making.sandboxed = s.making.sandboxed || text && bytes.HasPrefix(v.Raw, []byte("code_"))
		s.call.Seals = s.call.Seals || text && s.call.Endpoint.API == meter.AnthropicMessages && bytes.HasPrefix(v.Raw, []byte("web_search_"))
	case atIncluded:
		s.call.Seals = s.call.Seals || text && string(v.Raw) == "reasoning.encrypted_content"
	case atContextType, atContextEditType:
		s.call.Seals = s.call.Seals || text && bytes.HasPrefix(v.Raw, []byte("compact"))
	case atBackground:
		s.making.background = v.Kind == jsonscan.True
		s.call.Unsafe = s.call.Unsafe || s.making.background
	case atThread:
		// Each answer of an Anthropic thread can be continued once.
		s.call.Unsafe = s.call.Unsafe || v.Kind == jsonscan.ObjectBegin
	case atMaxTokens, atMaxCompletionTokens, atMaxOutputTokens:
		if v.Kind == jsonscan.Number {
			if n, err := strconv.ParseInt(string(v.Raw), 10, 64); err == nil && n > 0 {
				s.call.MaxTokens = n
			}
		}
	case atMessageFile, atMessageSource, atMessageOpenAIFile, atMessageNestedSource,
		atItemFile, atVectorStore, atToolContainer, atToolContainerFile:
		if text && isResource(v.Raw) {
			s.call.Pins.add(v.Raw)
		}
	case atMessageEncrypted, atMessageNestedEncrypted, atItemEncrypted:
		if text && v.End-v.Start > 2 {
			s.call.Pins.Organisation = true
		}
	case atMessageBlockType, atItemType:
		if text && bytes.HasPrefix(v.Raw, []byte("compaction")) {
			s.call.Pins.Organisation = true
		}
		s.reference = v.Path == atItemType && string(v.Raw) == "item_reference"
	case atItemID:
		if text {
			s.itemID.set(v.Raw)
		}
	case atItem:
		if v.Kind == jsonscan.ObjectBegin {
			s.reference = false
			s.itemID.set(nil)
		}
		if v.Kind == jsonscan.ObjectEnd && s.reference {
			s.call.Pins.add(s.itemID.bytes())
		}
		if s.hashing {
			s.hashText(v)
		}
	default:
		if s.hashing {
			s.hashText(v)
		}
	}
}

// count is 1 for a value that begins.
func count(begins bool) int {
	if begins {
		return 1
	}
	return 0
}
