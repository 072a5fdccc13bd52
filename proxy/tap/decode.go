package tap

import (
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxRatio is how many decoded bytes one encoded byte may become, beyond
	// freeBytes; repetitive event streams reach about 50.
	maxRatio  = 200
	freeBytes = 1 << 20
	// maxWindow bounds what a zstd stream may make us remember; RFC 9659
	// allows no more in a Content-Encoding.
	maxWindow = 8 << 20
	// maxStages bounds how often an answer may be encoded.
	maxStages = 3
	// copySize is how much decoded text the sink is given at a time.
	copySize = 4 << 10
)

// encoding is one content coding.
type encoding uint8

const (
	codedUnknown encoding = iota
	codedGzip
	codedDeflate
	codedBrotli
	codedZstd
)

// parseEncodings reads a Content-Encoding header: the codings in the order they
// were applied, without identity.
func parseEncodings(header string) []encoding {
	if header == "" {
		return nil
	}
	var list []encoding
	for name := range strings.SplitSeq(header, ",") {
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "", "identity":
		case "gzip", "x-gzip":
			list = append(list, codedGzip)
		case "deflate":
			list = append(list, codedDeflate)
		case "br":
			list = append(list, codedBrotli)
		case "zstd":
			list = append(list, codedZstd)
		default:
			list = append(list, codedUnknown)
		}
	}
	return list
}

// decoder decodes a compressed answer beside its passing. The decoders of the
// libraries read by themselves, so they run as a coroutine that goes on exactly
// while write or finish waits for it: it hands out decoded text, and stops when
// it needs more input.
type decoder struct {
	copy  func([]byte) bool // given the decoded text; false ends the decoding
	feed  feed
	next  func() ([]byte, bool)
	stop  func()
	err   error
	blind bool
	in    int64
	out   int64
}

var (
	errStopped = errors.New("decoding was stopped")
	errGzip    = errors.New("not a gzip file")
	errZlib    = errors.New("the zlib stream needs a dictionary")
)

// feed is the coroutine's input: the piece being passed.
type feed struct {
	piece []byte
	ended bool
	yield func([]byte) bool
}

// Read gives out the piece, and when it is used up lets the coroutine wait.
func (f *feed) Read(p []byte) (int, error) {
	for len(f.piece) == 0 {
		if f.ended {
			return 0, io.EOF
		}
		if !f.yield(nil) {
			return 0, errStopped
		}
	}
	n := copy(p, f.piece)
	f.piece = f.piece[n:]
	return n, nil
}

// open prepares to undo encodings, given in the order they were applied. It
// returns false when it cannot.
func (d *decoder) open(encodings []encoding) bool {
	if len(encodings) > maxStages || slices.Contains(encodings, codedUnknown) {
		return false
	}
	d.next, d.stop = iter.Pull(func(yield func([]byte) bool) {
		d.feed.yield = yield
		d.err = d.run(encodings, yield)
	})
	return true
}

// run decodes until the input ends, something is wrong, or it is stopped.
func (d *decoder) run(encodings []encoding, yield func([]byte) bool) error {
	var r io.Reader = &d.feed
	for _, e := range slices.Backward(encodings) {
		s, err := borrow(e)
		if err != nil {
			return err
		}
		defer giveBack(e, s) //nolint:gocritic // all stages are in use until the end
		if err := s.Reset(r); err != nil {
			return err
		}
		r = s
	}
	buf := make([]byte, copySize)
	for {
		n, err := r.Read(buf)
		if n > 0 && !yield(buf[:n]) {
			return errStopped
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// stage undoes one coding. It never reads further than it must before it gives
// out what it has: an event is visible as soon as the encoder's flush has
// arrived.
type stage interface {
	io.Reader
	// Reset makes it ready for another input.
	Reset(r io.Reader) error
}

// stages are decoders that are not in use: a decoder's tables and window are
// worth keeping.
var stages [codedZstd + 1]sync.Pool

func borrow(e encoding) (stage, error) {
	if s, ok := stages[e].Get().(stage); ok {
		return s, nil
	}
	switch e {
	case codedGzip:
		return new(gzipReader), nil
	case codedDeflate:
		return new(deflateReader), nil
	case codedBrotli:
		return new(brotli.Reader), nil
	default:
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z, nil
	}
}

func giveBack(e encoding, s stage) {
	if s.Reset(strings.NewReader("")) == nil { // it must not keep the answer
		stages[e].Put(s)
	}
}

// write decodes as much as p allows. It returns false, once, when nothing more
// can be decoded although the answer goes on.
func (d *decoder) write(p []byte) bool {
	if d.blind {
		return true
	}
	d.in += int64(len(p))
	d.feed.piece = p
	return d.pull()
}

// finish decodes what is left. An answer that ends too early is not blind: it
// was cut, as an uncompressed one may be.
func (d *decoder) finish() bool {
	if d.blind {
		return true
	}
	d.feed.ended = true
	return d.pull() || errors.Is(d.err, io.ErrUnexpectedEOF)
}

func (d *decoder) pull() bool {
	for {
		text, more := d.next()
		switch {
		case !more:
			// Bytes behind the end of the coding are nobody's.
			d.blind = true
			return d.err == nil
		case text == nil:
			return true
		}
		d.out += int64(len(text))
		if d.out > freeBytes && d.out/maxRatio > d.in {
			d.blind = true
			return false
		}
		if !d.copy(text) {
			d.blind = true
			return true
		}
	}
}

// close ends the coroutine.
func (d *decoder) close() {
	d.blind = true
	if d.stop != nil {
		d.stop()
	}
	d.feed.piece = nil
}
