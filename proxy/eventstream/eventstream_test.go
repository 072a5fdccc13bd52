package eventstream_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/eventstream"
	"github.com/authpool/authpool/proxy/eventstream/eventstreamtest"
)

// read gives the pieces to a Reader and writes down what it tells, a message a
// line.
func read(pieces ...[]byte) string {
	var b strings.Builder
	var payload []byte
	var r eventstream.Reader
	for _, p := range pieces {
		for len(p) > 0 {
			what, data, n := r.Next(p)
			p = p[n:]
			switch what {
			case eventstream.Header:
				name, value := r.Header()
				fmt.Fprintf(&b, "%s=%s ", name, value)
			case eventstream.Payload:
				payload = append(payload, data...)
			case eventstream.End:
				fmt.Fprintf(&b, "<%s>\n", payload)
				payload = payload[:0]
			case eventstream.Broken:
				return b.String() + "broken"
			default:
			}
		}
	}
	return b.String() + fmt.Sprintf("open <%s>", payload)
}

func cutEverywhere(text []byte) [][]byte {
	var pieces [][]byte
	for i := range text {
		pieces = append(pieces, text[i:i+1])
	}
	return pieces
}

// damaged returns message with the byte at i changed; i may count from its end.
func damaged(message []byte, i int) []byte {
	message = bytes.Clone(message)
	message[(len(message)+i)%len(message)] ^= 1
	return message
}

func TestReader(t *testing.T) {
	event := eventstreamtest.Event("chunk", `{"a":1}`)
	const told = ":event-type=chunk :content-type=application/json :message-type=event <{\"a\":1}>\n"
	others := []byte("\x01b\x00\x01c\x01\x01i\x02x\x01s\x03xx\x01n\x04xxxx\x01l\x05xxxxxxxx\x01y\x06\x00\x02zz\x01e\x07\x00\x00\x01t\x08xxxxxxxx\x01u\x09xxxxxxxxxxxxxxxx")
	for _, tt := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"two", append(bytes.Clone(event), event...), told + told + "open <>"},
		{"nothing in it", eventstreamtest.Message(nil), "<>\nopen <>"},
		{"a payload alone", eventstreamtest.Message([]byte("x")), "<x>\nopen <>"},
		{"headers alone", eventstreamtest.Message(nil, eventstreamtest.Header{Name: "a", Value: "b"}), "a=b <>\nopen <>"},
		{"headers of every type", eventstreamtest.Raw(nil, others), "e= <>\nopen <>"},
		{"a long text", eventstreamtest.Message(nil, eventstreamtest.Header{Name: "a", Value: strings.Repeat("b", 300)}), "a=" + strings.Repeat("b", 256) + " <>\nopen <>"},
		{"a long name", eventstreamtest.Message(nil, eventstreamtest.Header{Name: strings.Repeat("a", 33), Value: "b"}), "<>\nopen <>"},
		{"cut", event[:len(event)-1], strings.TrimSuffix(told, "<{\"a\":1}>\n") + "open <{\"a\":1}>"},
		{"the length is wrong", damaged(event, 3), "broken"},
		{"the prelude's checksum is wrong", damaged(event, 8), "broken"},
		{"the payload is wrong", damaged(event, -5), strings.TrimSuffix(told, "<{\"a\":1}>\n") + "broken"},
		{"the checksum is wrong", damaged(event, -1), strings.TrimSuffix(told, "<{\"a\":1}>\n") + "broken"},
		{"no message follows", append(bytes.Clone(event), "HTTP/1.1 200"...), told + "broken"},
		{"a type that is not known", eventstreamtest.Raw(nil, []byte("\x01a\x0a")), "broken"},
		{"a name of nothing", eventstreamtest.Raw(nil, []byte("\x00\x00")), "broken"},
		{"a header goes beyond the headers", eventstreamtest.Raw([]byte("xx"), []byte("\x01a\x07\x00\x02x")), "broken"},
		{"too small", prelude(15, 0), "broken"},
		{"headers beyond the message", prelude(20, 5), "broken"},
		{"headers beyond the bound", prelude(1<<20, 128<<10+1), "broken"},
		{"a payload beyond the bound", prelude(16<<20+17, 0), "broken"},
		{"lengths that overflow", prelude(1<<32-1, 1<<32-1), "broken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, read(tt.stream)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, read(cutEverywhere(tt.stream)...)); diff != "" {
				t.Errorf("cut (-want +got):\n%s", diff)
			}
		})
	}
}

func prelude(total, headers uint32) []byte {
	p := binary.BigEndian.AppendUint32(nil, total)
	p = binary.BigEndian.AppendUint32(p, headers)
	return binary.BigEndian.AppendUint32(p, crc32.ChecksumIEEE(p))
}

// TestLargestMessage: a message may be as large as AWS' SDKs read them.
func TestLargestMessage(t *testing.T) {
	payload := bytes.Repeat([]byte{'x'}, 16<<20)
	stream := eventstreamtest.Message(payload)
	var r eventstream.Reader
	got, ended := 0, false
	for len(stream) > 0 {
		what, data, n := r.Next(stream[:min(len(stream), 32<<10)])
		stream = stream[n:]
		got += len(data)
		ended = ended || what == eventstream.End
	}
	if got != len(payload) || !ended {
		t.Errorf("%d bytes of payload, ended %v", got, ended)
	}
}

func TestResetForgets(t *testing.T) {
	event := eventstreamtest.Event("chunk", "{}")
	var r eventstream.Reader
	for cut := range len(event) {
		r.Reset()
		for p := event[:cut]; len(p) > 0; {
			_, _, n := r.Next(p)
			p = p[n:]
		}
		r.Reset()
		last := eventstream.None
		for p := event; len(p) > 0; {
			what, _, n := r.Next(p)
			p = p[n:]
			last = what
		}
		if last != eventstream.End {
			t.Fatalf("after a message cut at %d: %v", cut, last)
		}
	}
}

// parse reads a whole stream at once, as plainly as can be; it is what the
// Reader is compared with.
func parse(b []byte) string {
	var out strings.Builder
	for {
		if len(b) < 12 {
			return out.String() + "open <>"
		}
		total, headers := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if crc32.ChecksumIEEE(b[:8]) != binary.BigEndian.Uint32(b[8:]) || headers > 128<<10 ||
			uint64(total) < uint64(headers)+16 || uint64(total) > uint64(headers)+16+16<<20 {
			return out.String() + "broken"
		}
		whole := uint32(len(b)) >= total
		end := min(int(total)-4, len(b))
		text, ok := parseHeaders(b[12:min(12+int(headers), len(b))], len(b) >= 12+int(headers))
		out.WriteString(text)
		if !ok {
			return out.String() + "broken"
		}
		payload := b[min(12+int(headers), end):end]
		if !whole {
			return out.String() + fmt.Sprintf("open <%s>", payload)
		}
		if crc32.ChecksumIEEE(b[:end]) != binary.BigEndian.Uint32(b[end:]) {
			return out.String() + "broken"
		}
		fmt.Fprintf(&out, "<%s>\n", payload)
		b = b[total:]
	}
}

// parseHeaders reads headers of which, unless they are whole, the end is missing.
func parseHeaders(h []byte, whole bool) (text string, ok bool) {
	for len(h) > 0 {
		if h[0] == 0 {
			return text, false
		}
		n := 1 + int(h[0])
		if len(h) <= n {
			return text, !whole
		}
		name, kind := h[1:n], h[n]
		h = h[n+1:]
		size := 0
		switch kind {
		case 0, 1:
		case 2:
			size = 1
		case 3:
			size = 2
		case 4:
			size = 4
		case 5, 8:
			size = 8
		case 6, 7:
			if len(h) < 2 {
				return text, !whole
			}
			size = int(binary.BigEndian.Uint16(h))
			h = h[2:]
		case 9:
			size = 16
		default:
			return text, false
		}
		if len(h) < size {
			return text, !whole
		}
		if kind == 7 && len(name) <= 32 {
			text += fmt.Sprintf("%s=%s ", name, h[:min(size, 256)])
		}
		h = h[size:]
	}
	return text, true
}

// FuzzReader compares the Reader, however the stream is cut, with parse. The
// checksums are made right when repair says so: otherwise nearly nothing behind
// the prelude would be reached.
func FuzzReader(f *testing.F) {
	event := eventstreamtest.Event("metadata", `{"usage":{"inputTokens":1}}`)
	f.Add(event, true, uint64(1))
	f.Add(append(eventstreamtest.Chunk(`{"a":1}`), eventstreamtest.Exception("throttlingException", `{"message":"x"}`)...), true, uint64(2))
	f.Add(damaged(event, -1), false, uint64(3))
	f.Add(event[:len(event)-3], false, uint64(4))
	f.Fuzz(func(t *testing.T, stream []byte, repair bool, seed uint64) {
		if repair {
			stream = repaired(stream)
		}
		want := parse(stream)
		if got := read(stream); got != want {
			t.Fatalf("whole: %q\nwant %q", got, want)
		}
		random := rand.New(rand.NewPCG(seed, 1))
		var pieces [][]byte
		for rest := stream; len(rest) > 0; {
			n := 1 + random.IntN(min(len(rest), 40))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		if got := read(pieces...); got != want {
			t.Fatalf("cut: %q\nwant %q", got, want)
		}
	})
}

// repaired returns stream with the checksums of every message made right.
func repaired(stream []byte) []byte {
	stream = bytes.Clone(stream)
	for b := stream; len(b) >= 16; {
		binary.BigEndian.PutUint32(b[8:], crc32.ChecksumIEEE(b[:8]))
		total := binary.BigEndian.Uint32(b)
		if total < 16 || uint64(total) > uint64(len(b)) {
			break
		}
		binary.BigEndian.PutUint32(b[total-4:], crc32.ChecksumIEEE(b[:total-4]))
		b = b[total:]
	}
	return stream
}
