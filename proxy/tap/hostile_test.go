package tap_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/proxy/tap"
)

// FuzzDecode gives broken compressed bytes to every decoder: they go on as they
// came, and what they decode to does not depend on how they were cut. Only how
// soon a decoder of a library sees that something is broken does, so that of two
// ways of cutting one may show less than the other, but never something else.
func FuzzDecode(f *testing.F) {
	names := []string{"gzip", "deflate", "br", "zstd", "gzip,br", "zstd,deflate"}
	for i, name := range []string{"gzip", "deflate", "br", "zstd"} {
		whole := bytes.Join(encode(f, coders[name], someEvents[0], "data: x\n\n"), nil)
		f.Add(uint8(i), whole, uint64(1))
		f.Add(uint8(i), append(whole[:len(whole)/2:len(whole)/2], whole...), uint64(2))
	}
	f.Fuzz(func(t *testing.T, i uint8, body []byte, seed uint64) {
		name := names[int(i)%len(names)]
		var copies [2]recorder
		for j, pieces := range [][][]byte{{body}, cutRandomly(body, seed)} {
			out, err := pass(t, tap.Options{Encoding: name, Sink: &copies[j]}, pieces...)
			if err != nil || !bytes.Equal(out, body) {
				t.Fatalf("%s: the bytes were changed (%v)", name, err)
			}
			if copies[j].closed != 1 || copies[j].blind > 1 {
				t.Fatalf("%s: blind %d times, closed %d", name, copies[j].blind, copies[j].closed)
			}
		}
		sighted := copies[0].blind+copies[1].blind == 0
		short, long := copies[0].text, copies[1].text
		if len(short) > len(long) {
			short, long = long, short
		}
		if !bytes.HasPrefix(long, short) || sighted && len(short) != len(long) {
			t.Fatalf("%s: whole gives %q (blind %d), cut %q (blind %d)", name, copies[0].text, copies[0].blind, copies[1].text, copies[1].blind)
		}
	})
}

// TestFilterLeavesOutExactlyTheUsageChunks builds streams of blocks that stay
// and blocks that go.
func TestFilterLeavesOutExactlyTheUsageChunks(t *testing.T) {
	stays := []string{
		"data: " + contentChunk + "\n\n", "data: [DONE]\n\n", ": ping\n\n", "\n", "event: x\n\n", "id: 3\ndata\n\n", "data: {}\n\n",
		`data: {"choices":[],"usage":null}` + "\n\n", `data: {"choices":[],"prompt_filter_results":[{}],"usage":{}}` + "\n\n",
		"data: {\"choices\":[{}],\ndata: \"usage\":{}}\n\n", `data: {"error":{"choices":[],"usage":{}}}` + "\n\n",
	}
	goes := []string{
		"data: " + usageChunk + "\n\n", `data:{"usage":{"a":[1,{"choices":[1]}]},"choices": [ ] }` + "\n\n",
		"data: {\"choices\":[],\ndata\ndata:\"usage\":{}}\n: end\n\n", `data: {"\u0063hoices":[],"usage":{}}` + "\n\n",
	}
	rapid.Check(t, func(rt *rapid.T) {
		end := rapid.SampledFrom([]string{"\n", "\r\n", "\r"}).Draw(rt, "line end")
		var stream, want strings.Builder
		for range rapid.IntRange(0, 6).Draw(rt, "blocks") {
			block := rapid.SampledFrom(append(stays, goes...)).Draw(rt, "block")
			text := strings.ReplaceAll(block, "\n", end)
			stream.WriteString(text)
			if !slices.Contains(goes, block) {
				want.WriteString(text)
			}
		}
		text := []byte(stream.String())
		for _, pieces := range [][][]byte{{text}, cut(text, 1), cutRandomly(text, rapid.Uint64().Draw(rt, "seed"))} {
			got, err := pass(t, tap.Options{Filter: true}, pieces...)
			if err != nil || string(got) != want.String() {
				rt.Fatalf("%q goes on as %q, want %q (%v)", text, got, want.String(), err)
			}
		}
	})
}
