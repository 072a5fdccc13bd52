package tap_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/authpool/authpool/proxy/tap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a Sink that remembers.
type recorder struct {
	text   []byte
	blind  int
	closed int
}

func (r *recorder) Write(p []byte) { r.text = append(r.text, p...) }
func (r *recorder) Blind()         { r.blind++ }
func (r *recorder) Close()         { r.closed++ }

// pass pushes the pieces through a tap and returns what went on.
func pass(t *testing.T, o tap.Options, pieces ...[]byte) ([]byte, error) {
	t.Helper()
	tp := tap.New(o)
	defer tp.Close()
	var out []byte
	for _, p := range pieces {
		passed, err := tp.Pass(bytes.Clone(p))
		if err != nil {
			return out, err
		}
		out = append(out, passed...)
	}
	last, err := tp.Finish()
	return append(out, last...), err
}

// cut returns text in pieces of n bytes.
func cut(text []byte, n int) [][]byte {
	var pieces [][]byte
	for len(text) > n {
		pieces = append(pieces, text[:n])
		text = text[n:]
	}
	return append(pieces, text)
}

func cutRandomly(text []byte, seed uint64) [][]byte {
	random := rand.New(rand.NewPCG(seed, 1))
	var pieces [][]byte
	for len(text) > 0 {
		n := 1 + random.IntN(min(len(text), 40))
		pieces = append(pieces, text[:n])
		text = text[n:]
	}
	return pieces
}

const credential = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"

func TestMask(t *testing.T) {
	stars := strings.Repeat("*", len(credential))
	for _, tt := range []struct{ name, text, want string }{
		{"none", "nothing to hide", "nothing to hide"},
		{"once", "your key " + credential + ".", "your key " + stars + "."},
		{"all of it", credential, stars},
		{"twice, adjacent", credential + credential + "x", stars + stars + "x"},
		{"a false start", "sk-test-0123 sk-test-" + credential, "sk-test-0123 sk-test-" + stars},
		{"cut off at the end", "key " + credential[:40], "key " + credential[:40]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := 1; n <= len(tt.text); n++ {
				sink := new(recorder)
				got, err := pass(t, tap.Options{Mask: [][]byte{[]byte(credential)}, Sink: sink}, cut([]byte(tt.text), n)...)
				if err != nil || string(got) != tt.want {
					t.Fatalf("in pieces of %d: %q, %v; want %q", n, got, err, tt.want)
				}
				if string(sink.text) != tt.text || sink.closed != 1 {
					t.Fatalf("the sink got %q and was closed %d times", sink.text, sink.closed)
				}
			}
		})
	}
}

func TestMaskHoldsBackOnlyWhatCouldBeginTheCredential(t *testing.T) {
	tp := tap.New(tap.Options{Mask: [][]byte{[]byte(credential)}})
	defer tp.Close()
	for _, tt := range []struct{ piece, want string }{
		{"data: hello\n\n", "data: hello\n\n"},
		{"a task: sk-te", "a task: "},
		{"lecom and sk-test-0", "sk-telecom and "},
		{credential[9:], strings.Repeat("*", len(credential))},
		{"s", ""},
	} {
		if out, err := tp.Pass([]byte(tt.piece)); err != nil || string(out) != tt.want {
			t.Fatalf("Pass(%q) = %q, %v; want %q", tt.piece, out, err, tt.want)
		}
	}
	if out, err := tp.Finish(); err != nil || string(out) != "s" {
		t.Fatalf("Finish() = %q, %v; want the tail", out, err)
	}
}

func TestShortTextsAreNotMasked(t *testing.T) {
	if got, _ := pass(t, tap.Options{Mask: [][]byte{[]byte("data"), nil}}, []byte("data: data")); string(got) != "data: data" {
		t.Errorf("got %q", got)
	}
}

// FuzzMask holds masking against a plain search in the whole text, for texts
// that overlap each other and themselves.
func FuzzMask(f *testing.F) {
	f.Add([]byte("xxabababababababx"), uint64(3))
	f.Add([]byte("babababaabababab"), uint64(5))
	masks := [][]byte{[]byte("abababab"), []byte("babababaab"), []byte("aaaaaaaaaa")}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		for i := range text {
			text[i] = 'a' + text[i]%3
		}
		want := bytes.Clone(text)
		for i := 0; i < len(text); {
			length := 0
			for _, m := range masks {
				if bytes.HasPrefix(text[i:], m) && len(m) > length {
					length = len(m)
				}
			}
			for j := range length {
				want[i+j] = '*'
			}
			i += max(length, 1)
		}
		for _, pieces := range [][][]byte{{text}, cut(text, 1), cutRandomly(text, seed)} {
			got, err := pass(t, tap.Options{Mask: masks}, pieces...)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("masked %q\n  as %q\nwant %q (%v)", text, got, want, err)
			}
		}
	})
}

const (
	usageChunk   = `{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","service_tier":"default","system_fingerprint":null,"choices":[],"usage":{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":0}},"obfuscation":"ab"}`
	contentChunk = `{"id":"c","choices":[{"index":0,"delta":{"content":"say \"choices\":[],\"usage\":{}"}}],"usage":null}`
)

func TestFilter(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{
			"the usage chunk alone goes",
			"data: " + contentChunk + "\n\ndata: " + usageChunk + "\n\ndata: [DONE]\n\n",
			"data: " + contentChunk + "\n\ndata: [DONE]\n\n",
		},
		{
			"CRLF", "data: " + contentChunk + "\r\n\r\ndata: " + usageChunk + "\r\n\r\ndata: [DONE]\r\n\r\n",
			"data: " + contentChunk + "\r\n\r\ndata: [DONE]\r\n\r\n",
		},
		{
			"CR", "data:" + contentChunk + "\r\rdata:" + usageChunk + "\r\rdata:[DONE]\r\r",
			"data:" + contentChunk + "\r\rdata:[DONE]\r\r",
		},
		{
			"a usage chunk over several lines", "data: {\"choices\":\ndata: [],\ndata: \"usage\":{}}\n\ndata: [DONE]\n\n", "data: [DONE]\n\n",
		},
		{
			"with measurements", `data: {"choices":[],"usage":{},"x_groq":{"id":"r","usage":{}},"latency_checkpoint":{"engine_ttft_ms":80},"error":null}` + "\n\n", "",
		},
		{
			"Azure's filter results stay", `data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}` + "\n\n", same,
		},
		{
			"also with usage", `data: {"choices":[],"usage":{"prompt_tokens":1},"prompt_filter_results":[]}` + "\n\n", same,
		},
		{"usage null stays", `data: {"choices":[],"usage":null}` + "\n\n", same},
		{"usage beside a choice stays", `data: {"usage":{"prompt_tokens":1},"choices":[{"delta":{}}]}` + "\n\n", same},
		{"no choices at all stays", `data: {"usage":{"prompt_tokens":1}}` + "\n\n", same},
		{"choices null stays", `data: {"choices":null,"usage":{"prompt_tokens":1}}` + "\n\n", same},
		{"an error stays", `data: {"choices":[],"usage":{},"error":{"message":"x"}}` + "\n\n", same},
		{"citations stay", `data: {"choices":[],"usage":{},"citations":["https://example.com"]}` + "\n\n", same},
		{"a fake inside a text stays", `data: {"a":"\"choices\":[],\"usage\":{}"}` + "\n\n", same},
		{"broken JSON stays", `data: {"choices":[],"usage":{}` + "\n\n", same},
		{"comments and blank lines stay", ": keep-alive\n\n\n:x\n\ndata: " + usageChunk + "\n\n: bye\n\n", ": keep-alive\n\n\n:x\n\n: bye\n\n"},
		{"what went on before is ended", ":c\nevent: chunk\ndata: " + usageChunk + "\nid: 7\n\ndata: [DONE]\n\n", ":c\nevent: chunk\n\ndata: [DONE]\n\n"},
		{"byte order mark", "\xef\xbb\xbfdata: " + usageChunk + "\n\ndata: x\n\n", "\xef\xbb\xbfdata: x\n\n"},
		{"no blank line at the end", "data: " + usageChunk + "\n", ""},
		{"an unfinished event at the end stays", "data: " + usageChunk[:80], same},
		{"not an event stream", "{\n\"choices\":[],\ndata\n\"usage\":{}}\n\ndate\n\ndat", same},
		{"a huge event", "data: {\"x\":\"" + strings.Repeat("y", 100<<10) + "\",\"choices\":[],\"usage\":{}}\n\ndata: " + usageChunk + "\n\n", "data: {\"x\":\"" + strings.Repeat("y", 100<<10) + "\",\"choices\":[],\"usage\":{}}\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == same {
				tt.want = tt.text
			}
			text := []byte(tt.text)
			sizes := []int{1, 2, 3, 7, 50, 1000}
			if len(text) > 1000 {
				sizes = []int{1, 1000}
			} else {
				sizes = append(sizes, len(text))
			}
			for _, n := range sizes {
				sink := new(recorder)
				got, err := pass(t, tap.Options{Filter: true, Sink: sink}, cut(text, n)...)
				if err != nil || string(got) != tt.want {
					t.Fatalf("in pieces of %d (-want +got):\n%s", n, cmp.Diff(tt.want, string(got)))
				}
				if !bytes.Equal(sink.text, text) {
					t.Fatal("the sink did not get everything")
				}
			}
			for n := range len(text) {
				if len(text) > 1000 {
					break
				}
				if got, _ := pass(t, tap.Options{Filter: true}, text[:n], text[n:]); string(got) != tt.want {
					t.Fatalf("cut at %d (-want +got):\n%s", n, cmp.Diff(tt.want, string(got)))
				}
			}
		})
	}
}

// same stands for a wanted text that equals the input.
const same = "the same"

func TestFilterDelaysNoContent(t *testing.T) {
	tp := tap.New(tap.Options{Filter: true})
	defer tp.Close()
	for _, tt := range []struct{ piece, want string }{
		{": wait\n", ": wait\n"},
		{"\ndata: {\"id\":1,\"choi", "\n"},
		{"ces\":[{\"delta\":", "data: {\"id\":1,\"choices\":[{\"delta\":"},
		{"{\"content\":\"x", "{\"content\":\"x"},
		{"\"}}]}\n\ndata: [D", "\"}}]}\n\ndata: [D"},
		{"ONE]", "ONE]"},
	} {
		if out, err := tp.Pass([]byte(tt.piece)); err != nil || string(out) != tt.want {
			t.Fatalf("Pass(%q) = %q, %v; want %q", tt.piece, out, err, tt.want)
		}
	}
}

func TestPassKeepsThePieceItself(t *testing.T) {
	piece := []byte("data: " + contentChunk + "\n\n")
	tp := tap.New(tap.Options{Filter: true, Mask: [][]byte{[]byte(credential)}})
	defer tp.Close()
	var out []byte
	if n := testing.AllocsPerRun(100, func() { out, _ = tp.Pass(piece) }); n != 0 {
		t.Errorf("%v allocations a piece, want 0", n)
	}
	if &out[0] != &piece[0] || len(out) != len(piece) {
		t.Error("the piece was copied")
	}
}

// coder makes a writer of one content coding that can be flushed.
type coder func(io.Writer) flusher

type flusher interface {
	io.WriteCloser
	Flush() error
}

var coders = map[string]coder{
	"gzip": func(w io.Writer) flusher { return gzip.NewWriter(w) },
	"GZIP, identity": func(w io.Writer) flusher {
		z := gzip.NewWriter(w)
		z.Name, z.Comment, z.Extra = "name", "comment", []byte("extra")
		return z
	},
	"x-gzip":  func(w io.Writer) flusher { return gzip.NewWriter(w) },
	"deflate": func(w io.Writer) flusher { return zlib.NewWriter(w) },
	" Deflate ": func(w io.Writer) flusher {
		z, err := flate.NewWriter(w, flate.BestSpeed)
		if err != nil {
			panic(err)
		}
		return z
	},
	"br":       func(w io.Writer) flusher { return brotli.NewWriter(w) },
	"zstd":     zstdOver,
	"gzip, br": func(w io.Writer) flusher { return stack(gzipOver, brotli.NewWriter(w)) },
	"deflate,zstd,gzip": func(w io.Writer) flusher {
		return stack(zlibOver, stack(zstdOver, gzip.NewWriter(w)))
	},
}

// stacked flushes and closes an outer coding together with an inner one.
type stacked struct {
	flusher
	under flusher
}

func (s stacked) Flush() error { return errors.Join(s.flusher.Flush(), s.under.Flush()) }
func (s stacked) Close() error { return errors.Join(s.flusher.Close(), s.under.Close()) }

func gzipOver(w io.Writer) flusher { return gzip.NewWriter(w) }
func zlibOver(w io.Writer) flusher { return zlib.NewWriter(w) }

func zstdOver(w io.Writer) flusher {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return z
}

func stack(over coder, under flusher) flusher { return stacked{over(under), under} }

// encode returns the events encoded, one piece each, flushed behind each.
func encode(t testing.TB, c coder, events ...string) [][]byte {
	t.Helper()
	var pieces [][]byte
	var b bytes.Buffer
	w := c(&b)
	for _, event := range events {
		if _, err := io.WriteString(w, event); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, bytes.Clone(b.Bytes()))
		b.Reset()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(pieces, bytes.Clone(b.Bytes()))
}

var someEvents = []string{
	"event: a\ndata: {\"type\":\"a\"}\n\n", ": ping\n\n", "data: " + strings.Repeat("long ", 5000) + "\n\n", "data: [DONE]\n\n",
}

func TestDecodedCopyIsCompleteAtEachFlush(t *testing.T) {
	for name, c := range coders {
		t.Run(name, func(t *testing.T) {
			sink := new(recorder)
			tp := tap.New(tap.Options{Encoding: name, Sink: sink})
			defer tp.Close()
			want := ""
			for i, piece := range encode(t, c, someEvents...) {
				if i < len(someEvents) {
					want += someEvents[i]
				}
				out, err := tp.Pass(piece)
				if err != nil || !bytes.Equal(out, piece) {
					t.Fatalf("piece %d was changed (%v)", i, err)
				}
				if string(sink.text) != want {
					t.Fatalf("after piece %d the sink has %d bytes, want %d", i, len(sink.text), len(want))
				}
			}
		})
	}
}

func TestDecodedCopyAtEveryCut(t *testing.T) {
	want := strings.Join(someEvents, "")
	for name, c := range coders {
		t.Run(name, func(t *testing.T) {
			whole := bytes.Join(encode(t, c, someEvents...), nil)
			check := func(pieces ...[]byte) {
				t.Helper()
				sink := new(recorder)
				out, err := pass(t, tap.Options{Encoding: name, Sink: sink, Filter: true}, pieces...)
				if err != nil || !bytes.Equal(out, whole) {
					t.Fatalf("the bytes were changed (%v)", err)
				}
				if string(sink.text) != want || sink.blind != 0 || sink.closed != 1 {
					t.Fatalf("the sink has %d bytes of %d, blind %d, closed %d", len(sink.text), len(want), sink.blind, sink.closed)
				}
			}
			for i := range whole {
				check(whole[:i], whole[i:])
			}
			check(cut(whole, 1)...)
		})
	}
}

func TestLastTextIsSeenBeforeTheTrailer(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, `{"usage":1}`); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sink := new(recorder)
	tp := tap.New(tap.Options{Encoding: "gzip", Sink: sink})
	defer tp.Close()
	if _, err := tp.Pass(b.Bytes()[:b.Len()-8]); err != nil || string(sink.text) != `{"usage":1}` {
		t.Errorf("without the trailer the sink has %q (%v)", sink.text, err)
	}
}

func TestGzipMembersAndPadding(t *testing.T) {
	one := bytes.Join(encode(t, gzipOver, "one,"), nil)
	two := bytes.Join(encode(t, gzipOver, "two"), nil)
	whole := concat(one, two, make([]byte, 20))
	sink := new(recorder)
	if _, err := pass(t, tap.Options{Encoding: "gzip", Sink: sink}, cut(whole, 3)...); err != nil || string(sink.text) != "one,two" || sink.blind != 0 {
		t.Errorf("the sink has %q, blind %d (%v)", sink.text, sink.blind, err)
	}
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestAnUndecodableAnswerPassesAndBlinds(t *testing.T) {
	text := []byte(strings.Repeat("not what the header says ", 300))
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, encoding string
		body           []byte
	}{
		{"not gzip", "gzip", text},
		{"not brotli", "br", text},
		{"not zstd", "zstd", text},
		{"not deflate", "deflate", concat([]byte{0xff, 0xff}, text)},
		{"unknown coding", "compress", text},
		{"too many codings", "gzip,gzip,gzip,gzip", text},
		{"bomb", "gzip", bomb.Bytes()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sink := new(recorder)
			out, err := pass(t, tap.Options{Encoding: tt.encoding, Sink: sink}, cut(tt.body, 100)...)
			if err != nil || !bytes.Equal(out, tt.body) {
				t.Errorf("the bytes were changed (%v)", err)
			}
			if sink.blind != 1 || sink.closed != 1 {
				t.Errorf("blind %d times, closed %d; want 1 and 1", sink.blind, sink.closed)
			}
			if len(sink.text) > 16<<20 {
				t.Errorf("%d bytes were decoded", len(sink.text))
			}
		})
	}
}

func TestACutAnswerIsNotBlind(t *testing.T) {
	for name, c := range coders {
		pieces := encode(t, c, someEvents...)
		whole := bytes.Join(pieces, nil)
		sink := new(recorder)
		if _, err := pass(t, tap.Options{Encoding: name, Sink: sink}, whole[:len(whole)*2/3]); err != nil || sink.blind != 0 || sink.closed != 1 {
			t.Errorf("%s: blind %d, closed %d (%v)", name, sink.blind, sink.closed, err)
		}
	}
}

func TestEchoInACompressedAnswerCutsIt(t *testing.T) {
	text := strings.Repeat("x", 9000) + credential + "y"
	for name, c := range coders {
		whole := bytes.Join(encode(t, c, text), nil)
		for _, pieces := range [][][]byte{{whole}, cut(whole, 1), cut(whole, 5)} {
			sink := new(recorder)
			_, err := pass(t, tap.Options{Encoding: name, Sink: sink, Mask: [][]byte{[]byte(credential)}}, pieces...)
			if !errors.Is(err, tap.ErrEcho) {
				t.Fatalf("%s: error %v, want ErrEcho", name, err)
			}
			if bytes.Contains(sink.text, []byte(credential)) || sink.closed != 1 {
				t.Fatalf("%s: the sink saw the credential, or was closed %d times", name, sink.closed)
			}
		}
	}
}

func TestEchoIsFoundAcrossDecodedPieces(t *testing.T) {
	for name, c := range coders {
		for at := 1; at < len(credential); at += 7 {
			pieces := encode(t, c, "start "+credential[:3], credential[3:max(3, at)], credential[max(3, at):]+" end")
			_, err := pass(t, tap.Options{Encoding: name, Mask: [][]byte{[]byte(credential)}}, pieces...)
			if !errors.Is(err, tap.ErrEcho) {
				t.Fatalf("%s cut at %d: error %v, want ErrEcho", name, at, err)
			}
		}
	}
}

func TestATapCanBeUsedAgain(t *testing.T) {
	mask := [][]byte{[]byte(credential)}
	tp := tap.New(tap.Options{Mask: mask, Filter: true})
	if _, err := tp.Pass([]byte("data: {\"choices\":[],\nsk-")); err != nil {
		t.Fatal(err)
	}
	tp.Close()
	sink := new(recorder)
	tp.Reset(tap.Options{Mask: mask, Sink: sink})
	out, err := tp.Pass([]byte("test-0123456789abcdefghijklmnopqrstuvwxyz"))
	if err != nil || string(out) != "test-0123456789abcdefghijklmnopqrstuvwxyz" {
		t.Errorf("got %q, %v: the answer before shows", out, err)
	}
	tp.Close()
	tp.Close()
	if sink.closed != 1 {
		t.Errorf("the sink was closed %d times", sink.closed)
	}
}
