package provider

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"io"
	"mime"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// contentHeaders say how a body is written.
type contentHeaders struct {
	mediaType []byte // as the last of its headers says
	// Whether any of them says that it is a form, with files or as a page sends it: which
	// one the provider heeds is not known.
	files, page bool

	encodings []byte // all codings, as one list
}

// maxDecoded bounds the text that a compressed body is scanned for, so that a
// small body cannot cost much. A longer one counts as one that tells nothing.
const maxDecoded = 64 << 20

// coding returns the body's one coding; whole is false when there are several
// or it is unknown.
func (h *contentHeaders) coding() (name string, ok bool) {
	for element, list := cutElement(h.encodings); element != nil; element, list = cutElement(list) {
		var buf [maxName]byte
		var next string
		switch string(foldName(&buf, element)) {
		case "identity":
			continue
		case "gzip", "x-gzip":
			next = "gzip"
		case "deflate":
			next = "deflate"
		case "br":
			next = "br"
		case "zstd":
			next = "zstd"
		default:
			return "", false
		}
		if name != "" {
			return "", false
		}
		name = next
	}
	return name, true
}

// encoded tells whether the body is not the text itself.
func (h *contentHeaders) encoded() bool {
	name, ok := h.coding()
	return name != "" || !ok
}

// multipart tells whether the body is a form with files.
func (h *contentHeaders) multipart() bool {
	return foldedPrefix(h.mediaType, "multipart/form-data")
}

// read takes what the headers say of the body.
func (h *contentHeaders) read(headers Headers) {
	for rest := headers; ; {
		name, value, next, ok := rest.cut()
		if !ok {
			return
		}
		rest = next
		var buf [maxName]byte
		h.header(foldName(&buf, name), value)
	}
}

// header takes one of them, by its name in lower case.
func (h *contentHeaders) header(name, value []byte) {
	switch string(name) {
	case "content-type":
		h.mediaType = value
		h.files = h.files || foldedPrefix(value, "multipart/form-data")
		h.page = h.page || foldedPrefix(value, "application/x-www-form-urlencoded")
	case "content-encoding":
		h.encodings = append(h.encodings, value...)
		h.encodings = append(h.encodings, ',')
	}
}

// writeDecoded scans a compressed body; false when it cannot be read to its
// end within maxDecoded.
func (s *bodyScan) writeDecoded(content *contentHeaders, body []byte) bool {
	return content.decoded(body, s.chunk[:], func(piece []byte) bool {
		s.scanner.Write(piece)
		return s.scanner.Valid()
	})
}

// decoded gives the text of a compressed body in pieces, which lie in buf; false when
// it cannot be read to its end within maxDecoded, or f wants no more.
func (h *contentHeaders) decoded(body, buf []byte, f func(piece []byte) bool) bool {
	name, ok := h.coding()
	if !ok {
		return false
	}
	decoder, err := decode(name, bytes.NewReader(body))
	if err != nil {
		return false
	}
	defer func() { _ = decoder.Close() }() // the body's end was seen or does not matter
	for total := 0; total <= maxDecoded; {
		n, err := decoder.Read(buf)
		total += n
		if !f(buf[:n]) {
			return false
		}
		if err != nil {
			return err == io.EOF
		}
	}
	return false
}

// decode opens a compressed body.
func decode(coding string, body *bytes.Reader) (io.ReadCloser, error) {
	switch coding {
	case "gzip":
		return gzip.NewReader(body)
	case "br":
		return io.NopCloser(brotli.NewReader(body)), nil
	case "zstd":
		d := zstdDecoders.Get().(*zstdDecoder)
		if err := d.Reset(body); err != nil {
			return nil, err
		}
		return d, nil
	}
	// "deflate" should be zlib's format, but some send it bare (RFC 9110 8.4.1.2).
	if z, err := zlib.NewReader(body); err == nil {
		return z, nil
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return flate.NewReader(body), nil
}

// zstdDecoder goes back to zstdDecoders when it is closed.
type zstdDecoder struct{ *zstd.Decoder }

func (d *zstdDecoder) Close() error {
	// It lets go of the body; it fails only for a reader that is not nil.
	_ = d.Reset(nil)
	zstdDecoders.Put(d)
	return nil
}

// zstdDecoders are used again, because making one costs more than a body.
var zstdDecoders = sync.Pool{New: func() any {
	// Without concurrency a decoder starts no goroutine that had to be stopped.
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		panic("BUG: cannot make a zstd decoder: " + err.Error())
	}
	return &zstdDecoder{d}
}}

// maxFormField is how long a form's field can be that is read.
const maxFormField = 1 << 10

// readForm reads the fields model and stream of a form with files (audio,
// image edits), which stands beside the file, not in JSON.
func readForm(c *Call, mediaType, body []byte) {
	pathModel := c.Model != ""
	formFields(mediaType, body, func(name string, value []byte) {
		switch name {
		case "model":
			if !pathModel {
				c.Model = CleanModel(value)
			}
		case "stream":
			c.Stream = string(value) == "true"
		}
	})
}

// formFields gives the short fields of a form that are no files.
func formFields(mediaType, body []byte, f func(name string, value []byte)) {
	_, parameters, err := mime.ParseMediaType(string(mediaType))
	if err != nil || parameters["boundary"] == "" {
		return
	}
	boundary := []byte("--" + parameters["boundary"])
	_, body, _ = bytes.Cut(body, boundary)
	for {
		part, rest, more := bytes.Cut(body, boundary)
		if !more {
			return
		}
		body = rest
		head, value, ok := bytes.Cut(part, []byte("\r\n\r\n"))
		value = bytes.TrimSuffix(value, []byte("\r\n"))
		if name := fieldName(head); ok && name != "" && len(value) <= maxFormField {
			f(name, value)
		}
	}
}

// fieldName returns the name of a form's part; empty when it is a file.
func fieldName(head []byte) string {
	value := Headers(bytes.TrimPrefix(head, []byte("\r\n"))).Get("content-disposition")
	_, parameters, err := mime.ParseMediaType(string(value))
	if err != nil || parameters["filename"] != "" {
		return ""
	}
	return parameters["name"]
}
