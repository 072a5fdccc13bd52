package meter_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"io"
	"iter"
	"net/http"
	"slices"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/authpool/authpool/proxy/meter"
	"github.com/authpool/authpool/proxy/tap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reading is everything that a meter tells at the end of an answer.
type reading struct {
	Result   meter.Result
	Failure  *meter.Failure
	Content  bool
	Terminal bool
	Input    bool
	Estimate int64
	Items    []meter.Item // that were told of on the way
}

func (r reading) failed() (meter.Failure, bool) {
	if r.Failure == nil {
		return meter.Failure{}, false
	}
	return *r.Failure, true
}

func told(m *meter.Meter) reading {
	r := reading{
		Result: m.Result(), Content: m.HasContent(), Terminal: m.Terminal(),
		Input: m.InputKnown(), Estimate: m.EstimateOutput(),
	}
	if f, failed := m.Failure(); failed {
		r.Failure = &f
	}
	return r
}

// read passes the pieces through a tap into a meter, checks that the bytes are
// unchanged, and returns what the meter tells.
func read(t *testing.T, api meter.API, contentType, coding string, pieces ...[]byte) reading {
	t.Helper()
	return readHead(t, api, head{contentType: contentType}, coding, pieces...)
}

// head is what a meter is told of an answer's head.
type head struct {
	contentType string
	headers     http.Header
}

func (h head) options() meter.Options {
	return meter.Options{ContentType: []byte(h.contentType), Model: "asked-for", Headers: h}
}

// All implements meter.Headers.
func (h head) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for name, values := range h.headers {
			for _, value := range values {
				if !yield([]byte(name), []byte(value)) {
					return
				}
			}
		}
	}
}

// readHead is read for an answer whose headers matter.
func readHead(t *testing.T, api meter.API, h head, coding string, pieces ...[]byte) reading {
	t.Helper()
	var items []meter.Item
	o := h.options()
	o.Item = func(i meter.Item) {
		i.Result.Others = slices.Clone(i.Result.Others)
		items = append(items, i)
	}
	m := meter.New(api, o)
	tp := tap.New(tap.Options{Encoding: coding, Sink: m, Mask: [][]byte{[]byte("sk-canary-0123456789")}})
	defer tp.Close()
	var sent, passed []byte
	for _, p := range pieces {
		sent = append(sent, p...)
		out, err := tp.Pass(bytes.Clone(p))
		if err != nil {
			t.Fatal(err)
		}
		passed = append(passed, out...)
	}
	out, err := tp.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(passed, out...), sent) {
		t.Fatal("the bytes were changed")
	}
	r := told(m)
	r.Items = items
	return r
}

var codings = map[string]func(*testing.T, []byte) []byte{
	"gzip": func(t *testing.T, p []byte) []byte {
		return encode(t, p, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	},
	"deflate": func(t *testing.T, p []byte) []byte {
		return encode(t, p, func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) })
	},
	"br": func(t *testing.T, p []byte) []byte {
		return encode(t, p, func(w io.Writer) io.WriteCloser { return brotli.NewWriter(w) })
	},
	"zstd": func(t *testing.T, p []byte) []byte {
		return encode(t, p, func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			return z
		})
	},
}

func encode(t *testing.T, p []byte, to func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	w := to(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
