package simulator_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/bench/simulator"
)

// wireAnswer sends a request by hand and returns all that came until the connection was closed.
func wireAnswer(t *testing.T, s *sim, path, header string) string {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: 2\r\n\r\n{}", path, header); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

func TestRawAnswerIsPlayedByteForByte(t *testing.T) {
	t.Parallel()
	const (
		pasted = "HTTP/1.1 429 Slow Down\nx-Amzn-errortype:  Odd\nRetry-After: 7\n\nline\nline\r\n"
		sent   = "HTTP/1.1 429 Slow Down\r\nx-Amzn-errortype:  Odd\r\nRetry-After: 7\r\n\r\nline\nline\r\n"
		frames = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n\r\n\x00\x00\x01\xff\xfe"
	)
	tests := []struct {
		name, provider, path, header, injection, want string
	}{
		{"a simulated endpoint", "anthropic", "/v1/messages", "X-Api-Key: k\r\nAnthropic-Version: 2023-06-01", `{"key":"k","kind":"answer","answer":` + quoted(pasted) + `}`, sent},
		{"one that is not", "openai", "/v1/images", "Authorization: Bearer k", `{"key":"k","kind":"answer","answer":` + quoted(pasted) + `}`, sent},
		{"another provider's", "gemini", "/v1beta/models/m:generateContent", "x-goog-api-key: k", `{"key":"k","kind":"answer","answer":` + quoted(pasted) + `}`, sent},
		{"another provider at a path of OpenAI's", "xai", "/v1/chat/completions", "Authorization: Bearer k", `{"key":"k","kind":"answer","answer":` + quoted(pasted) + `}`, sent},
		{"a key in the query", "gemini", "/v1beta/models/m:generateContent?key=k", "X: y", `{"key":"k","kind":"answer","answer":` + quoted(pasted) + `}`, sent},
		{"bytes that are no text", "bedrock", "/model/m/converse-stream", "Authorization: Bearer k", `{"key":"k","kind":"answer","answer_base64":"` + base64.StdEncoding.EncodeToString([]byte(frames)) + `"}`, frames},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := run(t, simulator.Options{Keys: []simulator.Key{{Key: "k", Provider: test.provider}}})
			if resp := s.post(t, "/faults", test.injection); resp.StatusCode != http.StatusNoContent {
				t.Fatal(text(t, resp.Body))
			}
			if got := wireAnswer(t, s, test.path, test.header); got != test.want {
				t.Errorf("played %q\nwant   %q", got, test.want)
			}
			if a := s.Arrivals(); len(a) == 0 || a[len(a)-1].Key != "k" || len(a[len(a)-1].Foreign) > 0 {
				t.Errorf("arrived: %+v", a)
			}
			if l := s.Ledger(); len(l) != 0 {
				t.Errorf("billed: %+v", l)
			}
		})
	}
}

// A provider that is not simulated has nothing to say by itself, and knows its own keys alone.
func TestKeysOfOtherProviders(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{Keys: []simulator.Key{{Key: "k1", Provider: "groq"}}})
	for key, want := range map[string]string{"k1": `404 Not Found: nothing but faults is simulated of provider \"groq\"`, "k2": "401 Unauthorized: Incorrect API key"} {
		status, sign, _ := strings.Cut(want, ": ")
		if resp := s.post(t, "/openai/v1/chat/completions", chat, "Authorization", "Bearer "+key); resp.Status != status || !strings.Contains(text(t, resp.Body), sign) {
			t.Errorf("%s: %s, want %s", key, resp.Status, want)
		}
	}
	if err := s.Inject(simulator.Injection{Key: "k1", Fault: simulator.Fault{Kind: simulator.RateLimit, RetryAfter: 3}}); err != nil {
		t.Fatal(err)
	}
	if resp := s.post(t, "/openai/v1/chat/completions", chat); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "3" {
		t.Errorf("a fault of a simulated kind: %s %v", resp.Status, resp.Header)
	}
}

func TestRawAnswerInAKeysFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "busy.http")
	if err := os.WriteFile(file, []byte("HTTP/1.1 503 Busy\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := simulator.ReadKeys(strings.NewReader(`[{key: k, provider: groq, faults: [{kind: answer, answer_file: ` + file + `}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	s := run(t, simulator.Options{Keys: keys})
	if got := wireAnswer(t, s, "/x", "Authorization: Bearer k"); got != "HTTP/1.1 503 Busy\r\n\r\n" {
		t.Errorf("played %q", got)
	}
	if _, err := simulator.ReadKeys(strings.NewReader(`[{key: k, provider: groq, faults: [{kind: answer, answer_file: ` + file + `.not}]}]`)); err == nil || !strings.Contains(err.Error(), "answer_file") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestWrongRawAnswers(t *testing.T) {
	t.Parallel()
	s := run(t, simulator.Options{})
	for body, want := range map[string]string{
		`{"kind":"answer"}`:                                                              "answer: missing",
		`{"kind":"answer","answer":"oops"}`:                                              "not a raw HTTP/1.1 answer",
		`{"kind":"answer","answer":"HTTP/1.1 100 Continue\n\n"}`:                         "status 100",
		`{"kind":"answer","answer_base64":"%"}`:                                          "answer_base64",
		`{"kind":"answer","answer":"HTTP/1.1 200 OK\n\n","answer_base64":"SFRUUC8xLjE"}`: "give one",
		`{"kind":"cut","answer":"HTTP/1.1 200 OK\n\n"}`:                                  "only with kind answer",
		`{"kind":"answer","answer_file":"/etc/hostname"}`:                                "unknown field",
		`{"kind":"answer","status":500,"answer":"HTTP/1.1 200 OK\n\n"}`:                  "status: only with kind",
	} {
		resp := s.post(t, "/faults", body)
		if got := text(t, resp.Body); resp.StatusCode != http.StatusBadRequest || !strings.Contains(got, want) {
			t.Errorf("%s: %s %s, want %q", body, resp.Status, got, want)
		}
	}
}

// TestRawAnswerWaits runs on a clock of its own: the answer comes after its delay.
func TestRawAnswerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := simulator.New(simulator.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Inject(simulator.Injection{Fault: simulator.Fault{Kind: simulator.RawAnswer, Answer: "HTTP/1.1 204 No Content\n\n", DelayMS: 1500}}); err != nil {
			t.Fatal(err)
		}
		client, server := net.Pipe()
		listener := &oneConn{conn: server, closed: make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- s.Serve(listener) }()
		begun := time.Now()
		go func() {
			_, _ = io.WriteString(client, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}")
		}()
		b, err := io.ReadAll(client)
		if took := time.Since(begun); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 204")) || took != 1500*time.Millisecond {
			t.Errorf("%q, %v, after %v", b, err, took)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// oneConn is a listener that has one connection.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}
