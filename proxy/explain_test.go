package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/explain"
)

var updateExplained = flag.Bool("update", false, "rewrite testdata/explained.json")

// told is a proxy in a bubble, in front of a provider that a test scripts, for tests
// of what is remembered of its requests.
type told struct {
	*rig
	door *memory
}

// newTold has n subscriptions of anthropic, whose key is their credential; serve
// answers each request in raw HTTP.
func newTold(t *testing.T, n int, serve func(key string, w io.Writer), change ...func(*rigOptions)) *told {
	t.Helper()
	back := newMemory()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := back.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				serve(strings.TrimPrefix(req.Header.Get("x-api-key"), "sk-anthropic-canary-"), c)
			}()
		}
	}()
	// fasthttp's worker pool sees only at its next wake-up that it was stopped.
	t.Cleanup(func() { _ = back.Close(); <-done; time.Sleep(11 * time.Second) })
	w := &told{door: newMemory()}
	w.rig = newRig(t, "http://provider.test", n, append([]func(*rigOptions){func(o *rigOptions) {
		o.listener = w.door
		o.transport.Dial = func(context.Context, string) (net.Conn, error) { return back.dial() }
		o.subs = o.subs[:n] // anthropic's
	}}, change...)...)
	return w
}

// begin sends a request and returns the answer, whose body is not read yet.
func (w *told) begin(headers, body string) *http.Response {
	w.t.Helper()
	c, err := w.door.dial()
	if err != nil {
		w.t.Fatal(err)
	}
	go fmt.Fprintf(c, "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nanthropic-version: 2023-06-01\r\n%sContent-Length: %d\r\n\r\n%s", headers, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{resp.Body, c}
	return resp
}

const asAgent = "Authorization: Bearer " + testToken + "\r\n"

// ask makes a request and returns its id.
func (w *told) ask(headers, body string) string {
	w.t.Helper()
	resp := w.begin(headers, body)
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // some are cut
	synctest.Wait()                       // until it has ended on the other side too
	return resp.Header.Get("X-Authpool-Request-Id")
}

// explained is what is remembered of a request.
func (w *told) explained(id string) explain.Request {
	w.t.Helper()
	r, ok := w.server.Explained().Find(id)
	if !ok {
		w.t.Fatalf("nothing is known of request %q", id)
	}
	return r
}

// ofSession names a session of the test's agent.
func ofSession(id string) string { return asAgent + "X-Authpool-Session: " + id + "\r\n" }

// raw is a whole answer.
func raw(status int, headers, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s",
		status, http.StatusText(status), headers, len(body), body)
}

// streamOf is an event stream that breaks off behind its events.
func streamOf(events ...string) string {
	text := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, e := range events {
		text += fmt.Sprintf("%x\r\n%s\r\n", len(e), e)
	}
	return text
}

// TestExplained plays requests that go different ways, and compares what is
// remembered of them with testdata/explained.json, which is also what the command's
// test puts in words.
func TestExplained(t *testing.T) {
	got := map[string][]explain.Request{}
	f := func(name string, play func(t *testing.T) (*told, []string)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, ids := play(t)
				list := w.server.Explained().Last(explain.Filter{})
				if len(list) != len(ids) {
					t.Errorf("%d requests are remembered, want %d", len(list), len(ids))
				}
				for _, id := range ids {
					got[name] = append(got[name], w.explained(id))
				}
			})
		})
	}
	good := func(_ string, w io.Writer) { _, _ = io.WriteString(w, raw(200, "", answer)) }

	f("failover", func(t *testing.T) (*told, []string) {
		w := newTold(t, 4, func(key string, w io.Writer) {
			time.Sleep(20 * time.Millisecond)
			if key == "0001" {
				_, _ = io.WriteString(w, raw(429, "Retry-After: 1800\r\n", limited))
				return
			}
			good(key, w)
		}, func(o *rigOptions) {
			o.subs[2].Models, o.subs[3].Weight = []string{"claude-opus-*"}, 3
			o.subs[3].Priority = 2
		})
		first := w.ask(ofSession("s1"), message)
		return w, []string{first, w.ask(ofSession("s1"), message), w.ask(ofSession("s2")+"X-Parent-Session-Id: s1\r\n", message)}
	})
	f("elsewhere", func(t *testing.T) (*told, []string) {
		w := newTold(t, 2, good, func(o *rigOptions) { o.subs[0].Models = []string{"claude-sonnet-*"} })
		return w, []string{w.ask(ofSession("s1"), message), w.ask(ofSession("s1"), strings.Replace(message, "sonnet", "opus", 1))}
	})
	f("waiting", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, func(key string, w io.Writer) {
			time.Sleep(3 * time.Second)
			good(key, w)
		}, oneAtATime, func(o *rigOptions) { o.pool.Wait = time.Minute })
		ids := make([]string, 2)
		done := make(chan struct{})
		for i := range ids {
			go func() {
				ids[i] = w.ask(ofSession(fmt.Sprint("s", i)), message)
				done <- struct{}{}
			}()
			synctest.Wait()
		}
		for range ids {
			<-done
		}
		return w, ids
	})
	f("refused", func(t *testing.T) (*told, []string) {
		w := newTold(t, 2, func(_ string, w io.Writer) {
			_, _ = io.WriteString(w, raw(429, "Retry-After: 3600\r\n", limited))
		}, func(o *rigOptions) { o.subs[1].Disabled, o.subs[1].Reason = true, "not paid" })
		return w, []string{
			w.ask(ofSession("s1"), message),
			w.ask(asAgent, "{"),
		}
	})
	f("brake", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, good, func(o *rigOptions) { o.pool.SessionBrake = pool.Brake{Requests: 1} })
		return w, []string{w.ask(ofSession("s1"), message), w.ask(ofSession("s1"), message)}
	})
	f("no subscription", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, good, func(o *rigOptions) { o.subs[0].Models = []string{"claude-opus-*"} })
		return w, []string{w.ask(ofSession("s1"), message)}
	})
	f("agent left", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, func(_ string, w io.Writer) {
			_, _ = io.WriteString(w, streamOf(msgStart, msgBlock, msgHello))
			for range 10 {
				time.Sleep(time.Second)
				_, _ = fmt.Fprintf(w, "%x\r\n%s\r\n", len(msgHello), msgHello)
			}
		})
		resp := w.begin(ofSession("s1"), messageS)
		time.Sleep(2500 * time.Millisecond)
		_ = resp.Body.Close()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		return w, []string{resp.Header.Get("X-Authpool-Request-Id")}
	})
	f("late error", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, func(_ string, w io.Writer) {
			_, _ = io.WriteString(w, streamOf(msgStart, msgBlock, msgHello))
			time.Sleep(time.Second)
			_, _ = fmt.Fprintf(w, "%x\r\n%s\r\n0\r\n\r\n", len(msgLimit), msgLimit)
		})
		return w, []string{w.ask(ofSession("s1"), messageS)}
	})
	f("late content", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, func(_ string, w io.Writer) {
			_, _ = io.WriteString(w, streamOf(msgStart, msgPing))
			time.Sleep(5 * time.Second)
			_, _ = fmt.Fprintf(w, "%x\r\n%s\r\n", len(msgError), msgError)
		})
		return w, []string{w.ask(ofSession("s1"), messageS)}
	})
	f("damped", func(t *testing.T) (*told, []string) {
		w := newTold(t, 1, func(_ string, w io.Writer) { _, _ = io.WriteString(w, raw(529, "", busy)) })
		var ids []string
		for range triesFree + 1 {
			ids = append(ids, w.ask(ofSession("s1"), message))
		}
		return w, ids
	})

	f("failing", func(t *testing.T) (*told, []string) {
		status := 500
		w := newTold(t, 3, func(_ string, w io.Writer) {
			_, _ = io.WriteString(w, raw(status, "", `{"type":"error","error":{"type":"api_error","message":"no"}}`))
		})
		first := w.ask(ofSession("s1"), message)
		status = 400
		return w, []string{first, w.ask(ofSession("s2"), message)}
	})

	for _, list := range got {
		for i := range list {
			list[i].ID = fmt.Sprintf("019abcde-0000-7000-8000-%012d", i+1)
		}
	}
	text, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, '\n')
	const golden = "testdata/explained.json"
	if *updateExplained {
		if err := os.WriteFile(golden, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(text)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", golden, diff)
	}
}

// Whatever stands in a request or its answer, no record has a secret or content.
func TestExplainedKeepsNoSecretAndNoContent(t *testing.T) {
	const content = "the quick brown fox"
	synctest.Test(t, func(t *testing.T) {
		n := 0
		w := newTold(t, 3, func(key string, w io.Writer) {
			secret := "sk-anthropic-canary-" + key
			switch n++; n {
			case 1:
				_, _ = io.WriteString(w, raw(429, "Retry-After: 1800\r\nX-Echo: "+secret+"\r\n", strings.Replace(limited, "This", content+" "+secret, 1)))
			case 2:
				_, _ = io.WriteString(w, raw(401, "", `{"type":"error","error":{"type":"authentication_error","message":"bad key `+secret+` `+content+`"}}`))
			case 3:
				_, _ = io.WriteString(w, "HTTP/1.1 nonsense "+secret+" "+content+"\r\n\r\n")
			default:
				_, _ = io.WriteString(w, raw(400, "", `{"type":"error","error":{"type":"invalid_request_error","message":"`+content+` `+secret+`"}}`))
			}
		})
		body := strings.Replace(message, "hi", content, 1)
		for i := range 6 {
			w.ask(ofSession(fmt.Sprint("s", i)), body)
		}
		w.ask(asAgent, body)
		w.ask(asAgent+"Upgrade: "+content+"\r\n", body)
		w.ask(asAgent, `{"model":"`+content+`","model":"`+content+`"}`)
		list := w.server.Explained().Last(explain.Filter{})
		text, err := json.Marshal(list)
		if err != nil || len(list) != 9 {
			t.Fatalf("%d requests, %v", len(list), err)
		}
		for _, secret := range []string{testToken, "apa_", "canary", content, "quick"} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%q is remembered: %s", secret, text)
			}
		}
	})
}

// Who has no token cannot push out what is remembered of others.
func TestStrangersAreNotExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTold(t, 1, func(_ string, w io.Writer) { _, _ = io.WriteString(w, raw(200, "", answer)) })
		for _, headers := range []string{"", "Authorization: Bearer " + testToken + "x\r\n"} {
			id := w.ask(headers, message)
			if _, ok := w.server.Explained().Find(id); ok || id == "" {
				t.Errorf("with %q the request %q is remembered", headers, id)
			}
		}
	})
}
