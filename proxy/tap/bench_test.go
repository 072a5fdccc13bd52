package tap_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/tap"
)

// BenchmarkDecode passes a compressed stream of 200 flushed events.
func BenchmarkDecode(b *testing.B) {
	events := make([]string, 200)
	for i := range events {
		events[i] = "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word" + strings.Repeat("x", i%7) + "\"}}]}\n\n"
	}
	for _, name := range []string{"gzip", "deflate", "br", "zstd"} {
		b.Run(name, func(b *testing.B) {
			pieces := encode(b, coders[name], events...)
			b.SetBytes(int64(len(bytes.Join(pieces, nil))))
			b.ReportAllocs()
			sink := new(recorder)
			tp := tap.New(tap.Options{})
			for b.Loop() {
				sink.text = sink.text[:0]
				tp.Reset(tap.Options{Encoding: name, Sink: sink})
				for _, p := range pieces {
					if _, err := tp.Pass(p); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := tp.Finish(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
