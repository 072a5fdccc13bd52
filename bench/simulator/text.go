package simulator

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"io"
	"iter"
	"math/rand/v2"
	"strings"
)

// digest hashes parts, each with its length, so that no two lists of parts collide by their borders.
func digest(parts ...string) (sum [32]byte) {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		_, _ = io.WriteString(h, p)
	}
	h.Sum(sum[:0])
	return sum
}

// words are what answers are made of. Some are there to trip a careless parser of the stream.
var words = []string{
	"the", "pool", "keeps", "a", "session", "on", "one", "subscription", "while", "it", "can", "and", "then", "moves",
	"with", "its", "cache", "cold", "so", "that", "nothing", "is", "lost", "but", "time", "tokens", "are", "counted",
	"once", "at", "the", "end", "of", "every", "answer", "naïve", "größer", "日本", "🙂", "\"quoted\"", "back\\slash",
	"\nevent: error", "\ndata: [DONE]", "{\"usage\":", "\"input_tokens\":1}", "<b>", "&amp;", "tab\there", "\r\nline",
}

// answer is the text of one answer: a known number of pieces and tokens, made again each time it is read.
type answer struct {
	seed   uint64
	fixed  []string // the pieces, if they do not come from the seed
	words  int
	blocks int // of blockSize bytes, for large answers
	cut    bool
	tool   bool // the pieces are the arguments of a tool call
}

const (
	blockSize   = 4096
	blockTokens = blockSize / 4
)

// falseUsage is the arguments of every tool call. The usage in it belongs to nobody and must not be counted.
var falseUsage = []string{`{"query":`, `"status"`, `,"usage":{"input_tokens":`, `987654321`, `,"output_tokens":`, `987654321}}`}

// answerTo draws the answer to a call.
func answerTo(seed int64, c *call) answer {
	a := answer{seed: c.seed(seed)}
	switch {
	case c.tool != "":
		a.fixed, a.tool = falseUsage, true
	case c.knobs.echo:
		a.fixed = []string{c.prompt[len(c.prompt)-1]}
	case c.knobs.large > 0:
		a.blocks = c.knobs.large << 20 / blockSize
	case c.knobs.tokens > 0:
		a.words = c.knobs.tokens
	default:
		a.words = 8 + int(a.seed%57)
	}
	if c.maxTokens > 0 && a.words > c.maxTokens {
		a.words, a.cut = c.maxTokens, true
	}
	return a
}

// piece is a part of an answer that is sent at once.
type piece struct {
	text   string
	tokens int64
}

func (a answer) pieces() iter.Seq[piece] {
	return func(yield func(piece) bool) {
		for _, text := range a.fixed {
			if !yield(piece{text, 1}) {
				return
			}
		}
		random := rand.New(rand.NewPCG(a.seed, 1)) //nolint:gosec // answers must repeat, nobody guesses at them
		for i := range a.words {
			word := words[random.IntN(len(words))]
			if i > 0 {
				word = " " + word
			}
			if !yield(piece{word, 1}) {
				return
			}
		}
		for range a.blocks {
			if !yield(piece{block, blockTokens}) {
				return
			}
		}
	}
}

var block = strings.Repeat("all work and no play. ", blockSize/22+1)[:blockSize]

func (a answer) tokens() int64 {
	return int64(len(a.fixed) + a.words + a.blocks*blockTokens)
}

// quote writes s as a JSON string.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string that cannot be written as JSON: " + err.Error())
	}
	return string(b)
}

// inner is quote without the quotation marks.
func inner(s string) string {
	q := quote(s)
	return q[1 : len(q)-1]
}
