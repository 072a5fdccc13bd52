package proxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/authpool/authpool/pool/audit"
	"github.com/authpool/authpool/ratelimit/usage"
)

// codings are what providers compress with.
var codings = map[string]func(io.Writer) io.WriteCloser{
	"gzip":    func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
	"deflate": func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) },
	"br":      func(w io.Writer) io.WriteCloser { return brotli.NewWriter(w) },
	"zstd": func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		if err != nil {
			panic(err)
		}
		return z
	},
}

// compress returns the text in pieces, as a provider flushes them.
func compress(t *testing.T, coding string, pieces ...string) []string {
	t.Helper()
	var buf bytes.Buffer
	w := codings[coding](&buf)
	var out []string
	for _, p := range pieces {
		_, err := io.WriteString(w, p)
		if f, ok := w.(interface{ Flush() error }); ok && err == nil {
			err = f.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, buf.String())
		buf.Reset()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(out, buf.String())
}

// Compressed answers reach the agent byte for byte, and are counted.
func TestCompressedAnswers(t *testing.T) {
	for coding := range codings {
		t.Run(coding, func(t *testing.T) {
			whole := strings.Join(compress(t, coding, answer), "")
			events := compress(t, coding, msgStart+msgBlock, msgHello, msgDelta, msgStop)
			failed := strings.Join(compress(t, coding, busy), "")
			up := newUpstream(t, func(c *upstreamConn) {
				switch {
				case strings.Contains(c.body, "fail"):
					c.json(529, "Content-Encoding: "+coding+"\r\n", failed)
				case strings.Contains(c.body, "stream"):
					c.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: %s\r\nTransfer-Encoding: chunked\r\n\r\n", coding)
					for _, e := range events {
						if e != "" {
							c.chunk(e)
						}
					}
					c.last()
				default:
					c.json(200, "Content-Encoding: "+coding+"\r\n", whole)
				}
			})
			r := newRig(t, up.url(), 1)
			for body, want := range map[string]string{
				message: whole, messageS: strings.Join(events, ""), strings.Replace(message, "hi", "fail", 1): failed,
			} {
				resp := r.send("POST", "/v1/messages", "Accept-Encoding: gzip, deflate, br, zstd\r\n", body)
				got, err := io.ReadAll(resp.Body)
				if string(got) != want || err != nil || resp.Header.Get("Content-Encoding") != coding {
					t.Errorf("%d %q, %d of %d bytes, %v", resp.StatusCode, resp.Header.Get("Content-Encoding"), len(got), len(want), err)
				}
			}
			for _, e := range r.waitEvents(2) {
				if e.Tokens != (usage.Tokens{Input: 12, CacheRead: 100, Output: 7}) || e.Estimated || e.Unknown {
					t.Errorf("event %+v", e)
				}
			}
			if n := len(r.recorder.all()); n != 2 {
				t.Errorf("%d events", n)
			}
		})
	}
}

// A compressed answer that repeats the credential is cut in front of it, never
// ends as if it were whole, and is told in the log without it.
func TestCompressedEchoIsCut(t *testing.T) {
	secret := key("anthropic", 1)
	echo := strings.Replace(msgHello, "Hello", secret, 1)
	for coding := range codings {
		for name, pieces := range map[string][]string{
			"in JSON":                    {strings.Replace(answer, "Hello", secret, 1)},
			"before the first content":   {msgStart, strings.Replace(msgPing, "ping\"", "ping\",\"k\":\""+secret+"\"", 1), msgHello, msgDelta, msgStop},
			"in the first content":       {msgStart + msgBlock, echo, msgDelta, msgStop},
			"late":                       {msgStart + msgBlock + msgHello, strings.Repeat(msgHello, 400), echo, msgDelta, msgStop},
			"in an error":                {strings.Replace(busy, "Overloaded", secret, 1)},
			"in what is flushed at last": {msgStart + msgBlock + msgHello, msgDelta + strings.TrimSuffix(strings.Replace(msgPing, "ping\"", "ping\",\"k\":\""+secret+"\"", 1), "\n")},
		} {
			t.Run(coding+" "+name, func(t *testing.T) {
				stream := len(pieces) > 1
				coded := compress(t, coding, pieces...)
				up := newUpstream(t, func(c *upstreamConn) {
					switch {
					case stream:
						c.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: %s\r\nTransfer-Encoding: chunked\r\n\r\n", coding)
						for _, e := range coded {
							if e != "" {
								c.chunk(e)
							}
						}
						c.last()
					case name == "in an error":
						c.json(400, "Content-Encoding: "+coding+"\r\n", strings.Join(coded, ""))
					default:
						c.json(200, "Content-Encoding: "+coding+"\r\n", strings.Join(coded, ""))
					}
				})
				audited, read := openAudit(t)
				r := newRig(t, up.url(), 1, func(o *rigOptions) {
					o.deps = func(d *Deps) { d.Audit = audited }
				})
				body := message
				if stream {
					body = messageS
				}
				c := r.dial()
				_, _ = io.WriteString(c, strings.Replace(messageRequest(body), "\r\n", "\r\nConnection: close\r\n", 1))
				raw, _ := io.ReadAll(c)
				var got []byte
				if len(raw) > 0 { // else it was cut before its first byte
					resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
					if err != nil {
						t.Fatal(err)
					}
					if got, err = io.ReadAll(resp.Body); resp.StatusCode < 500 && err == nil {
						t.Errorf("%d: the answer looks whole: %d bytes", resp.StatusCode, len(got))
					}
				}
				if text := decompress(coding, got); strings.Contains(text, secret) || strings.Contains(string(raw), secret) {
					t.Errorf("the agent got the credential: %q", text)
				}
				if log := r.log.text(); strings.Contains(log, secret) || !strings.Contains(log, "repeat") && !strings.Contains(log, "echo") {
					t.Errorf("log: %s", log)
				}
				if lines := read(); !slices.ContainsFunc(lines, func(l audit.Line) bool {
					return l.Kind == audit.CredentialEchoed && l.Fields["subscription"] == "anthropic-1"
				}) {
					t.Errorf("audited: %+v", lines)
				}
			})
		}
	}
}

// decompress decodes as much as there is.
func decompress(coding string, b []byte) string {
	var r io.Reader
	var err error
	switch coding {
	case "gzip":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case "deflate":
		r, err = zlib.NewReader(bytes.NewReader(b))
	case "br":
		r = brotli.NewReader(bytes.NewReader(b))
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	}
	if err != nil {
		return ""
	}
	text, _ := io.ReadAll(r)
	return string(text)
}
