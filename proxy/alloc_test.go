//go:build !race

package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// What one request allocates between two kept connections, all goroutines
// together; the agent and the provider of this test allocate nothing. Where the
// ceiling is passed something new allocates per request, or per event.
func TestAllocations(t *testing.T) {
	stream := func(events int) []byte {
		var b bytes.Buffer
		b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		chunk := func(s string) { fmt.Fprintf(&b, "%x\r\n%s\r\n", len(s), s) }
		chunk(msgStart + msgBlock)
		for range events {
			chunk(msgHello)
		}
		chunk(msgDelta + msgStop)
		b.WriteString("0\r\n\r\n")
		return b.Bytes()
	}
	tests := []struct {
		name, body string
		reply      []byte
		most       float64
	}{
		{"JSON", message, jsonReply, 20},
		{"200 KB of request", strings.Replace(message, "hi", strings.Repeat("x", 200<<10), 1), jsonReply, 30},
		{"stream of 10 events", messageS, stream(10), 30},
		{"stream of 1000 events", messageS, stream(1000), 40},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := newEcho(t, tt.reply)
			log, _ := openAudit(t)
			r := newRig(t, "http://"+up.Addr().String(), 1, func(o *rigOptions) {
				o.quiet = true
				o.deps = func(d *Deps) { d.Audit = log }
			})
			c := r.dial()
			br := bufio.NewReaderSize(c, 64<<10)
			request := []byte(strings.Replace(messageRequest(tt.body), "\r\n", "\r\nanthropic-version: 2023-06-01\r\nX-Authpool-Session: one\r\n", 1))
			end := []byte("{\"type\":\"message_stop\"}\n\n")
			turn := func() {
				if _, err := c.Write(request); err != nil {
					t.Fatal(err)
				}
				if tt.body != messageS {
					if err := skipAnswer(br); err != nil {
						t.Fatal(err)
					}
					return
				}
				for at := 0; at < len(end); {
					b, err := br.ReadByte()
					switch {
					case err != nil:
						t.Fatal(err)
					case b == end[at]:
						at++
					case b == end[0]:
						at = 1
					default:
						at = 0
					}
				}
			}
			for range 50 { // until pools and buffers have their size
				turn()
			}
			got := testing.AllocsPerRun(300, turn)
			t.Logf("%.1f allocations", got)
			if got > tt.most {
				t.Errorf("%.1f allocations, at most %.0f are expected", got, tt.most)
			}
		})
	}
}
