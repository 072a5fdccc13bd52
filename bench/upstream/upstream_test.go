package upstream_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/authpool/authpool/bench/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnswers(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := upstream.Start(ln)
	transport := &http.Transport{}
	defer func() {
		transport.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	tests := []struct {
		bench, contains string
		bytes           int
	}{
		{"json", `"output_tokens":280`, upstream.JSONBytes()},
		{"sse 3 1ms", "event: message_stop", upstream.StreamBytes(3)},
		{"sse 50 0s", "event: message_stop", upstream.StreamBytes(50)},
	}
	for _, test := range tests {
		for range 2 { // the second on the same connection
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Addr()+"/v1/messages", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Bench", test.bench)
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || len(body) != test.bytes || !strings.Contains(string(body), test.contains) {
				t.Errorf("%s: %d bytes, %v, want %d with %s: %s", test.bench, len(body), err, test.bytes, test.contains, body)
			}
			_ = resp.Body.Close()
		}
	}
}

func TestWrongRequestsEndTheConnection(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := upstream.Start(ln)
	for _, head := range []string{"X-Bench: fast", "X-Bench: sse x 0s", "X-Bench: sse 1 x", "Content-Length: x", "Transfer-Encoding: chunked"} {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\n"+head+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(c); len(got) != 0 {
			t.Errorf("%s: answered %q", head, got)
		}
		_ = c.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
