package simulator

import (
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// coder is a compressor that can be flushed in the middle.
type coder interface {
	io.WriteCloser
	Flush() error
}

// encodings makes the coder of each content coding.
var encodings = map[string]func(io.Writer) coder{
	"gzip":    func(w io.Writer) coder { return gzip.NewWriter(w) },
	"deflate": func(w io.Writer) coder { return zlib.NewWriter(w) },
	"br":      func(w io.Writer) coder { return brotli.NewWriter(w) },
	"zstd": func(w io.Writer) coder {
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err != nil {
			panic("BUG: constant options refused: " + err.Error())
		}
		return z
	},
}

// chooseEncoding returns the first coding of an Accept-Encoding that the simulator knows, or "".
func chooseEncoding(accept string) string {
	for part := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(part, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		if q, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			if weight, err := strconv.ParseFloat(q, 64); err != nil || weight == 0 {
				continue
			}
		}
		if encodings[name] != nil {
			return name
		}
	}
	return ""
}

// decodeBody undoes the Content-Encoding of a request.
func decodeBody(body io.Reader, encoding string) (io.ReadCloser, error) {
	switch strings.ToLower(encoding) {
	case "", "identity":
		return io.NopCloser(body), nil
	case "gzip":
		return gzip.NewReader(body)
	case "deflate":
		return zlib.NewReader(body)
	case "br":
		return io.NopCloser(brotli.NewReader(body)), nil
	case "zstd":
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("unsupported content encoding %q", encoding)
}

// output is the body of an answer on its way out, encoded as the client asked.
type output struct {
	w       http.ResponseWriter
	control *http.ResponseController
	coder   coder // nil: identity
}

// start writes the head and returns the body. It must be given the whole head in w.Header().
func start(w http.ResponseWriter, r *http.Request, status int) *output {
	o := &output{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Vary", "Accept-Encoding")
	if name := chooseEncoding(r.Header.Get("Accept-Encoding")); name != "" {
		w.Header().Set("Content-Encoding", name)
		o.coder = encodings[name](w)
	}
	w.WriteHeader(status)
	return o
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	if o.coder != nil {
		return o.coder.Write(p)
	}
	return o.w.Write(p) //nolint:gosec // no browser: the content type is JSON or an event stream
}

// flush sends what was written.
func (o *output) flush() error {
	if o.coder != nil {
		if err := o.coder.Flush(); err != nil {
			return err
		}
	}
	return o.control.Flush()
}

// close ends the coding; the server ends the message.
func (o *output) close() error {
	if o.coder != nil {
		return o.coder.Close()
	}
	return nil
}
