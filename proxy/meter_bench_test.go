//go:build unix

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
)

// BenchmarkMetering is one answer of 200 events that goes through the proxy
// event by event, as a model sends them: the provider sends the next one when
// the agent has the last. /unmetered sends the same bytes in answer to a request
// that is never billed, so that nobody reads them: what metering costs is the
// difference. cpu-ns/op is the processor time of the whole, both ends included,
// which other work on the machine disturbs less than the clock's.
func BenchmarkMetering(b *testing.B) {
	chat := func(choices, usage string) string {
		return `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-x","service_tier":"default","system_fingerprint":"fp_1","choices":` + choices + `,"usage":` + usage + "}\n\n"
	}
	asks := `{"model":"gpt-x","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}`
	anthropic := stretch(msgStart+msgBlock, func(n int) string {
		return fmt.Sprintf("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word%d of it\"}}\n\n", n)
	}, msgDelta+msgStop)
	openai := stretch("", func(n int) string {
		return chat(fmt.Sprintf(`[{"index":0,"delta":{"content":" word%d"},"logprobs":null,"finish_reason":null}]`, n), "null")
	}, chat("[]", `{"prompt_tokens":9,"completion_tokens":200,"total_tokens":209}`)+"data: [DONE]\n\n")
	for _, bb := range []struct {
		name, path, body string
		events           []string
	}{
		{"anthropic/metered", "/v1/messages", messageS, anthropic},
		{"anthropic/unmetered", "/v1/messages/count_tokens", messageS, anthropic},
		{"openai/metered", "/v1/chat/completions", asks, openai},
		{"openai/unmetered", "/v1/moderations", asks, openai},
	} {
		b.Run(bb.name, func(b *testing.B) {
			next := make(chan struct{}, 1)
			up := newStepper(b, bb.events, next)
			r := newRig(b, "http://"+up.Addr().String(), 1, func(o *rigOptions) { o.quiet = true })
			request := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nanthropic-version: 2023-06-01\r\nContent-Type: application/json\r\nX-Authpool-Session: bench\r\nContent-Length: %d\r\n\r\n%s", bb.path, testToken, len(bb.body), bb.body)
			c := r.dial()
			br := bufio.NewReaderSize(c, 64<<10)
			buf := make([]byte, 4<<10)
			turn := func() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					b.Fatal(err)
				}
				for _, event := range bb.events {
					if _, err := io.ReadFull(resp.Body, buf[:len(event)]); err != nil {
						b.Fatal(err)
					}
					next <- struct{}{}
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
			}
			turn()
			before := processorTime(b)
			for b.Loop() {
				turn()
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// stretch returns a stream of 200 events in pieces of one event, but for what
// comes before the first and after the last content.
func stretch(start string, event func(n int) string, end string) []string {
	var events []string
	for n := range 200 {
		events = append(events, event(n))
	}
	events[0] = start + events[0]
	events[len(events)-1] += end
	return events
}

// newStepper is a provider that answers each request with a stream, whose next
// event it sends when told.
func newStepper(b testing.TB, events []string, next <-chan struct{}) net.Listener {
	b.Helper()
	var chunks [][]byte
	for _, event := range events {
		chunks = append(chunks, fmt.Appendf(nil, "%x\r\n%s\r\n", len(event), event))
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				br := bufio.NewReader(c)
				for skipAnswer(br) == nil {
					head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
					if _, err := io.WriteString(c, head); err != nil {
						return
					}
					for _, chunk := range chunks {
						if _, err := c.Write(chunk); err != nil {
							return
						}
						<-next
					}
					if _, err := io.WriteString(c, "0\r\n\r\n"); err != nil {
						return
					}
				}
			}()
		}
	}()
	b.Cleanup(func() { _ = ln.Close(); <-done })
	return ln
}

// processorTime returns the nanoseconds of processor time that the process has
// used.
func processorTime(b testing.TB) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
