package simulator

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// call is a request that spends tokens, as far as the simulator understands it.
type call struct {
	provider string
	model    string
	stream   bool
	// includeUsage is OpenAI's stream_options.include_usage.
	includeUsage bool
	// prompt are the pieces that cost tokens, in order: tools, system or instructions, messages.
	prompt []string
	// prefixes[i] identifies model and prompt[:i+1].
	prefixes     [][32]byte
	cacheControl bool
	cacheLong    bool
	// maxTokens cuts the answer; zero does not.
	maxTokens int
	thinking  bool
	// encrypted asks for reasoning.encrypted_content (Responses).
	encrypted bool
	// tool is the tool to call; empty: answer with text.
	tool  string
	knobs knobs
}

// knobs shape one answer; see the package comment.
type knobs struct {
	large    int // MiB
	tokens   int
	slow     time.Duration
	echo     bool
	thinking bool
	tool     bool
}

func parseKnobs(text string) (knobs, error) {
	var k knobs
	words := strings.Split(text, "-")
	for i := 0; i < len(words); i++ {
		word, number := words[i], -1
		if i+1 < len(words) {
			if n, err := strconv.Atoi(words[i+1]); err == nil {
				number = n
				i++
			}
		}
		switch {
		case word == "large" && number > 0:
			k.large = number
		case word == "tokens" && number > 0:
			k.tokens = number
		case word == "slow" && number >= 0:
			k.slow = time.Duration(number) * time.Millisecond
		case word == "echo" && number < 0:
			k.echo = true
		case word == "thinking" && number < 0:
			k.thinking = true
		case word == "tool" && number < 0:
			k.tool = true
		default:
			return knobs{}, fmt.Errorf("simulator: no knob %q, want large-N, tokens-N, slow-N, echo, thinking, tool", word)
		}
	}
	return k, nil
}

// wire is the union of the request bodies that spend tokens; what costs tokens is kept as it was written.
type wire struct {
	Model         string            `json:"model"`
	Stream        bool              `json:"stream"`
	StreamOptions *streamOptions    `json:"stream_options"`
	Tools         json.RawMessage   `json:"tools"`
	System        json.RawMessage   `json:"system"`
	Instructions  json.RawMessage   `json:"instructions"`
	Messages      []json.RawMessage `json:"messages"`
	// Gemini's, which has no more in common with the others, and Bedrock's.
	SystemInstruction json.RawMessage   `json:"systemInstruction"`
	Contents          []json.RawMessage `json:"contents"`
	GenerationConfig  struct {
		MaxOutputTokens *int `json:"maxOutputTokens"`
	} `json:"generationConfig"`
	ToolConfig      json.RawMessage `json:"toolConfig"`
	InferenceConfig struct {
		MaxTokens *int `json:"maxTokens"`
	} `json:"inferenceConfig"`
	Input      json.RawMessage `json:"input"`
	Prompt     json.RawMessage `json:"prompt"`
	Include    []string        `json:"include"`
	ToolChoice json.RawMessage `json:"tool_choice"`
	Thinking   *struct {
		Type string `json:"type"`
	} `json:"thinking"`
	Reasoning *struct {
		Effort string `json:"effort"`
	} `json:"reasoning"`
	MaxTokens           *int `json:"max_tokens"`
	MaxCompletionTokens *int `json:"max_completion_tokens"`
	MaxOutputTokens     *int `json:"max_output_tokens"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

var (
	errNotJSON = errors.New("not JSON")
	errField   = errors.New("field required")
)

// parseCall reads a body. The errors are errNotJSON, errField with the field's name, or one about a knob.
func parseCall(q *request, h http.Header) (*call, error) {
	path := q.endpoint
	var w wire
	if err := json.Unmarshal(q.body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotJSON, err)
	}
	if q.model != "" {
		w.Model = q.model
	}
	if w.Model == "" {
		return nil, fmt.Errorf("model: %w", errField)
	}
	c := &call{provider: q.provider, model: w.Model, stream: w.Stream}
	if q.model != "" {
		c.stream = dialects[path].stream != nil
	}
	c.includeUsage = w.StreamOptions != nil && w.StreamOptions.IncludeUsage
	for _, n := range []*int{w.MaxTokens, w.MaxCompletionTokens, w.MaxOutputTokens, w.GenerationConfig.MaxOutputTokens, w.InferenceConfig.MaxTokens} {
		if n != nil {
			c.maxTokens = *n
		}
	}
	if (path == "/v1/messages" || path == bedrockInvoke || path == bedrockInvokeStream) && c.maxTokens < 1 {
		return nil, fmt.Errorf("max_tokens: %w", errField)
	}
	pieces := []json.RawMessage{w.Tools, w.System, w.Instructions}
	switch path {
	case geminiGenerate, geminiStream, geminiArray, geminiCount:
		if len(w.Contents) == 0 {
			return nil, fmt.Errorf("contents: %w", errField)
		}
		pieces = append(append(pieces, w.SystemInstruction), w.Contents...)
	case bedrockConverse, bedrockConverseStream:
		pieces = append(pieces, w.ToolConfig)
		fallthrough
	case "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", bedrockInvoke, bedrockInvokeStream:
		if len(w.Messages) == 0 {
			return nil, fmt.Errorf("messages: %w", errField)
		}
		pieces = append(pieces, w.Messages...)
	case "/v1/completions":
		if len(w.Prompt) == 0 {
			return nil, fmt.Errorf("prompt: %w", errField)
		}
		pieces = append(pieces, w.Prompt)
	default:
		var items []json.RawMessage
		switch {
		case len(w.Input) == 0:
			return nil, fmt.Errorf("input: %w", errField)
		case path == "/v1/responses" && json.Unmarshal(w.Input, &items) == nil:
			pieces = append(pieces, items...)
		default:
			pieces = append(pieces, w.Input)
		}
	}
	for _, p := range pieces {
		if len(p) > 0 && string(p) != "null" {
			c.prompt = append(c.prompt, string(p))
			c.cacheControl = c.cacheControl || bytes.Contains(p, []byte(`"cache_control"`)) || bytes.Contains(p, []byte(`"cachePoint"`))
			c.cacheLong = c.cacheLong || bytes.Contains(p, []byte(`"1h"`))
		}
	}
	sum := digest("prompt", c.model)
	for _, p := range c.prompt {
		sum = digest(string(sum[:]), p)
		c.prefixes = append(c.prefixes, sum)
	}
	if err := c.turn(h); err != nil {
		return nil, err
	}
	c.thinking = c.knobs.thinking || w.Thinking != nil && w.Thinking.Type != "disabled" ||
		w.Reasoning != nil && w.Reasoning.Effort != "" && w.Reasoning.Effort != "none"
	for _, v := range w.Include {
		c.encrypted = c.encrypted || v == "reasoning.encrypted_content"
	}
	if c.knobs.tool || forced(w.ToolChoice) {
		c.tool = firstTool(w.Tools)
	}
	return c, nil
}

// turn reads the knobs from the header, else from the model's name.
func (c *call) turn(h http.Header) (err error) {
	text := h.Get("X-Simulate")
	if text == "" {
		var ok bool
		if text, ok = strings.CutPrefix(c.model, "sim-"); !ok {
			return nil
		}
	}
	c.knobs, err = parseKnobs(text)
	return err
}

// forced tells whether tool_choice leaves the model no choice but to call a tool.
func forced(choice json.RawMessage) bool {
	var word string
	if json.Unmarshal(choice, &word) == nil {
		return word == "required"
	}
	var object struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(choice, &object) == nil && (object.Type == "any" || object.Type == "tool" || object.Type == "function")
}

func firstTool(tools json.RawMessage) string {
	var list []struct {
		Name     string `json:"name"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	if json.Unmarshal(tools, &list) == nil {
		for _, t := range list {
			if t.Name != "" {
				return t.Name
			}
			if t.Function.Name != "" {
				return t.Function.Name
			}
		}
	}
	return "lookup"
}

// tokens is what a piece of a prompt costs.
func tokens(piece string) int64 { return int64(len(piece)+3) / 4 }

// total is what the whole prompt costs.
func (c *call) total() (n int64) {
	for _, p := range c.prompt {
		n += tokens(p)
	}
	return n
}

// seed is the number that the answer is drawn from. The prompt may be empty: Codex warms a
// socket up with one.
func (c *call) seed(seed int64) uint64 {
	var whole string
	if n := len(c.prefixes); n > 0 {
		whole = string(c.prefixes[n-1][:])
	}
	sum := digest("answer", strconv.FormatInt(seed, 10), whole)
	return binary.LittleEndian.Uint64(sum[:])
}
