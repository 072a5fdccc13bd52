package tap_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/tap"
)

// events reads the stream in pieces and returns the data of each event.
func events(pieces ...[]byte) []string {
	var e tap.Events
	var found []string
	var data []byte
	for _, p := range pieces {
		for len(p) > 0 {
			what, part, n := e.Next(p)
			p = p[n:]
			switch what {
			case tap.Data:
				data = append(data, part...)
			case tap.End:
				found = append(found, string(data))
				data = data[:0]
			default:
			}
		}
	}
	return found
}

func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		name, stream string
		want         []string
	}{
		{"LF", "data: a\n\ndata: b\n\n", []string{"a", "b"}},
		{"CRLF", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}},
		{"CR", "data: a\r\rdata: b\r\r", []string{"a", "b"}},
		{"mixed", "data: a\r\n\ndata: b\r\r\ndata: c\n\r\n", []string{"a", "b", "c"}},
		{"many lines", "data: a\ndata:\ndata\ndata:b\n\n", []string{"a\n\n\nb"}},
		{"one space is taken off", "data:  a \n\ndata:\tb\n\n", []string{" a ", "\tb"}},
		{"other fields", "id: 1\nevent: x\ndata: a\nretry: 3\n:comment\ndatax: b\ndat: c\n\n", []string{"a"}},
		{"no data, no event", "event: x\n\n: ping\n\n\n\ndata: a\n\n", []string{"a"}},
		{"empty data", "data\n\ndata:\n\n", []string{"", ""}},
		{"byte order mark", "\xef\xbb\xbfdata: a\n\n", []string{"a"}},
		{"half a mark", "\xef\xbbdata: a\n\ndata: b\n\n", []string{"b"}},
		{"a mark later on", "data: a\n\n\xef\xbb\xbfdata: b\n\n", []string{"a"}},
		{"an event without an end", "data: a\n\ndata: b\n", []string{"a"}},
		{"large", "data: " + strings.Repeat("x", 3<<20) + "\n\n", []string{strings.Repeat("x", 3<<20)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stream := []byte(tt.stream)
			if got := events(stream); !cmp.Equal(tt.want, got) {
				t.Fatalf("whole (-want +got):\n%s", cmp.Diff(tt.want, got))
			}
			if got := events(cut(stream, 1)...); !cmp.Equal(tt.want, got) {
				t.Fatalf("byte by byte (-want +got):\n%s", cmp.Diff(tt.want, got))
			}
		})
	}
}

// FuzzEvents holds Events against a line-by-line reading of the whole stream.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("\xef\xbb\xbfdata: a\r\n\r\ndata\r:\n\n\rdata:b\rdata: c\n\n"), uint64(1))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		want := reference(stream)
		for _, pieces := range [][][]byte{{stream}, cut(stream, 1), cutRandomly(stream, seed)} {
			if got := events(pieces...); !cmp.Equal(want, got) {
				t.Fatalf("%q (-want +got):\n%s", stream, cmp.Diff(want, got))
			}
		}
	})
}

func reference(stream []byte) (found []string) {
	stream = bytes.TrimPrefix(stream, []byte("\xef\xbb\xbf"))
	text := strings.ReplaceAll(strings.ReplaceAll(string(stream), "\r\n", "\n"), "\r", "\n")
	lines := strings.Split(text, "\n")
	var data []string
	for _, line := range lines[:len(lines)-1] {
		name, value, _ := strings.Cut(line, ":")
		switch {
		case line == "":
			if data != nil {
				found = append(found, strings.Join(data, "\n"))
			}
			data = nil
		case name == "data":
			data = append(data, strings.TrimPrefix(value, " "))
		}
	}
	return found
}

// FuzzFilter checks that only whole usage chunks are left out, however the
// stream is cut.
func FuzzFilter(f *testing.F) {
	f.Add([]byte("data: {\"choices\":[],\"usage\":{}}\r\n\r\ndata: [DONE]\n\n"), uint64(1))
	f.Add([]byte(":c\rdata:{\"choices\":[],\rdata:\"usage\":{}}\r\r\n:x\n"), uint64(1))
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		// These keys mark a chunk with a choice, when they come in one piece.
		stream = bytes.ReplaceAll(bytes.ReplaceAll(stream, []byte(`"delta"`), nil), []byte(`"text"`), nil)
		whole, err := pass(t, tap.Options{Filter: true}, stream)
		if err != nil {
			t.Fatal(err)
		}
		for _, pieces := range [][][]byte{cut(stream, 1), cutRandomly(stream, seed)} {
			got, err := pass(t, tap.Options{Filter: true}, pieces...)
			if err != nil || !bytes.Equal(whole, got) {
				t.Fatalf("%q whole gives %q, cut %q (%v)", stream, whole, got, err)
			}
		}
		if !bytes.Contains(stream, []byte("usage")) && !bytes.Equal(whole, stream) && !bytes.Contains(stream, []byte(`\u`)) {
			t.Fatalf("%q was changed to %q", stream, whole)
		}
	})
}
