package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/authpool/authpool/proxy/agentconn"
)

// tokenB is another agent's than testToken.
const tokenB = "apa_test-token-of-another-agent"

// corpusCase is one request of testdata/front/requests.txtar, which explains them.
type corpusCase struct {
	name   string
	status string // a pattern; "none": anything but a good one
	conn   string // keep, close or any
	seen   int    // requests that the provider gets
	raw    string
}

func readCorpus(t testing.TB) []corpusCase {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "front", "requests.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []corpusCase
	for _, f := range txtar.Parse(text).Files {
		c := corpusCase{name: f.Name}
		for line := range strings.Lines(string(f.Data)) {
			line = strings.TrimSuffix(line, "\n")
			key, rest, _ := strings.Cut(line, ": ")
			switch {
			case c.raw == "" && (key == "why" || key == "from"):
			case c.raw == "" && key == "want":
				if n, err := fmt.Sscan(rest, &c.status, &c.conn, &c.seen); n != 3 {
					t.Fatalf("%s: %v", f.Name, err)
				}
			default:
				c.raw += line
			}
		}
		if c.conn == "" || c.raw == "" {
			t.Fatalf("%s is not whole", f.Name)
		}
		cases = append(cases, c)
	}
	return cases
}

var (
	corpusEscape = regexp.MustCompile(`\\(?:[rntvf0\\]|x[0-9a-f]{2})`)
	corpusMacro  = regexp.MustCompile(`\{(host|a|b|smuggled|len(?:\+\d+)?|hex|fill \d+|fields \d+)\}`)
)

// bytes are what goes over the socket to host.
func (c *corpusCase) bytes(host string) string {
	smuggled := "GET /v1/files/smuggled HTTP/1.1\r\nHost: " + host + "\r\nx-api-key: " + tokenB + "\r\n\r\n"
	number := func(text string) int { n, _ := strconv.Atoi(text); return n }
	raw := corpusEscape.ReplaceAllStringFunc(c.raw, func(e string) string {
		if e[1] == 'x' {
			n, _ := strconv.ParseUint(e[2:], 16, 8)
			return string([]byte{byte(n)})
		}
		return map[byte]string{'r': "\r", 'n': "\n", 't': "\t", 'v': "\v", 'f': "\f", '0': "\x00", '\\': "\\"}[e[1]]
	})
	return corpusMacro.ReplaceAllStringFunc(raw, func(m string) string {
		name, count, _ := strings.Cut(m[1:len(m)-1], " ")
		name, more, _ := strings.Cut(name, "+")
		switch name {
		case "host":
			return host
		case "a":
			return testToken
		case "b":
			return tokenB
		case "smuggled":
			return smuggled
		case "len":
			return strconv.Itoa(len(smuggled) + number(more))
		case "hex":
			return strconv.FormatInt(int64(len(smuggled)), 16)
		case "fill":
			return strings.Repeat("f", number(count))
		default:
			return strings.Repeat("X: y\r\n", number(count))
		}
	})
}

// witness is a provider that reads what it gets as leniently as any server does that
// was ever smuggled through: it would see a request inside another's body. Strict says
// whether net/http sees the same.
type witness struct {
	mu   sync.Mutex
	seen []witnessed
}

type witnessed struct {
	line, body string
	raw        []byte
}

// serve answers every request on a connection, telling it what it was.
func (w *witness) serve(c net.Conn, br *bufio.Reader) {
	for {
		s, err := lenient(br)
		if err != nil {
			return
		}
		w.mu.Lock()
		w.seen = append(w.seen, s)
		w.mu.Unlock()
		told, _ := json.Marshal(map[string]any{
			"type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": []any{}, "line": s.line, "got": s.body,
			"usage": map[string]int{"input_tokens": 1, "output_tokens": 1},
		})
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(told), told)
	}
}

// lenient reads one request: line ends and names are as they come, chunks are preferred
// to a length, and a length is what it begins with.
func lenient(br *bufio.Reader) (s witnessed, err error) {
	var raw bytes.Buffer
	line := func() (string, error) {
		var b []byte
		for {
			c, err := br.ReadByte()
			if err != nil {
				return "", err
			}
			raw.WriteByte(c)
			if c == '\n' {
				return strings.TrimRight(string(b), "\r \t"), nil
			}
			b = append(b, c)
		}
	}
	take := func(n int) error {
		b := make([]byte, n)
		_, err := io.ReadFull(br, b)
		raw.Write(b)
		s.body += string(b)
		return err
	}
	for s.line == "" {
		if s.line, err = line(); err != nil {
			return s, err
		}
	}
	length, chunked := 0, false
	for {
		h, err := line()
		if err != nil {
			return s, err
		}
		if h == "" {
			break
		}
		name, value, _ := strings.Cut(h, ":")
		switch strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "_", "-") {
		case "content-length":
			_, _ = fmt.Sscanf(strings.TrimSpace(value), "%d", &length)
		case "transfer-encoding":
			chunked = chunked || strings.Contains(strings.ToLower(value), "chunked")
		}
	}
	for chunked {
		h, err := line()
		if err != nil {
			return s, err
		}
		var n int
		_, _ = fmt.Sscanf(strings.TrimSpace(h), "%x", &n)
		if n == 0 {
			_, err = line()
			s.raw = raw.Bytes()
			return s, err
		}
		if err := take(n); err != nil {
			return s, err
		}
		if _, err := line(); err != nil {
			return s, err
		}
	}
	err = take(max(0, length))
	s.raw = raw.Bytes()
	return s, err
}

// strict tells why net/http does not see the one request that the witness saw; "" when
// it does, with the credential of the pool and nobody's token.
func (s *witnessed) strict() string {
	br := bufio.NewReader(bytes.NewReader(s.raw))
	req, err := http.ReadRequest(br)
	if err != nil {
		return err.Error()
	}
	body, err := io.ReadAll(req.Body)
	if _, more := br.Peek(1); err != nil || more == nil || string(body) != s.body {
		return fmt.Sprintf("another body: %q, %v, %v", body, err, more)
	}
	lower := strings.ToLower(string(s.raw[:len(s.raw)-len(body)]))
	for _, never := range []string{"transfer-encoding", "transfer_encoding", "content_length", "x_api_key", "authorization:", "upgrade", "http2-settings", "expect:", "\nte:", "keep-alive:", "proxy-", "x-http-method", "x-original", "x-rewrite"} {
		if strings.Contains(lower, never) {
			return "it has " + never
		}
	}
	switch {
	case len(req.Header.Values("X-Api-Key")) != 1 || req.Header.Get("X-Api-Key") != key("anthropic", 1):
		return fmt.Sprintf("the credentials %q", req.Header.Values("X-Api-Key"))
	case strings.Contains(string(s.raw[:len(s.raw)-len(body)]), testToken), strings.Contains(string(s.raw[:len(s.raw)-len(body)]), tokenB):
		return "an agent's token is in it"
	case strings.Contains(req.RequestURI, "/smuggled"):
		return "it was smuggled"
	}
	return ""
}

func (w *witness) take() []witnessed {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// listen has the witness be a provider until the test ends.
func (w *witness) listen(t testing.TB) *fakeUpstream {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &fakeUpstream{t: t, ln: ln, whole: w.serve}
	u.start()
	return u
}

// corpusMode is a way to the same server.
type corpusMode struct {
	name, host string
	dial       func() net.Conn
	tunnel     bool // what CONNECT opened is one agent's, whatever is said inside
}

// corpusRig is a server with a witness behind it, to which there are several ways.
func corpusRig(t *testing.T) (*rig, *witness, []corpusMode) {
	w := &witness{}
	u := w.listen(t)
	in := intercepted(t, u)
	r := newRig(t, u.url(), 1, in, func(o *rigOptions) {
		o.agents = NewAgents(map[string]string{"a": testToken, "b": tokenB})
		o.opts.BodyLimit = 1 << 20
	})
	server, client := selfSigned(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.serveAlso(ln, server)
	secured := func(c net.Conn, config *tls.Config) net.Conn {
		s := tls.Client(c, config)
		if err := s.Handshake(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	return r, w, []corpusMode{
		{"base URL", r.addr, r.dial, false},
		{"TLS", "localhost:" + strconv.Itoa(ln.Addr().(*net.TCPAddr).Port), func() net.Conn {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			return secured(c, client)
		}, false},
		{"intercepted", "llm.example.test", func() net.Conn {
			c, _ := r.open("", testToken, "llm.example.test:443")
			return secured(c, r.trusted())
		}, true},
		{"plain in a tunnel", "llm.example.test:443", func() net.Conn {
			c, _ := r.open("", testToken, "llm.example.test:443")
			return c
		}, true},
	}
}

// answered is an answer that an agent got.
type answered struct {
	status int
	header http.Header
	body   string
}

// answers reads all that come until the connection ends or want have come. That to the
// request of number head is one to HEAD.
func answers(c net.Conn, want, head int) (all []answered, err error) {
	br := bufio.NewReader(c)
	for len(all) < want {
		method := http.MethodPost
		if len(all) == head {
			method = http.MethodHead
		}
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return all, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return all, err
		}
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		all = append(all, answered{resp.StatusCode, resp.Header, string(body)})
	}
	return all, nil
}

// The corpus of smuggling and of malformed requests: whatever way they take and in
// whatever pieces, none reaches the provider twice or as another agent's, what the
// provider gets means the same to a lenient reader and to a strict one, and where an
// end is in doubt nothing behind it is served.
func TestCorpus(t *testing.T) {
	corpus := readCorpus(t)
	if len(corpus) < 100 {
		t.Errorf("there are %d cases", len(corpus))
	}
	r, w, modes := corpusRig(t)
	for _, mode := range modes {
		request := func(token, mark string) string {
			body := `{"mark":"` + mark + `"}`
			return fmt.Sprintf("POST /v1/messages HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\nContent-Length: %d\r\n\r\n%s", mode.host, token, len(body), body)
		}
		next, nextToken := "b", tokenB
		if mode.tunnel {
			next, nextToken = "a", testToken
		}
		// agentOf checks whose a good request was counted as.
		agentOf := func(t *testing.T, a answered, want string) {
			t.Helper()
			id := a.header.Get("X-Authpool-Request-Id")
			for _, e := range r.recorder.all() {
				if e.ID == id && e.Agent != want {
					t.Errorf("it is counted as agent %s's", e.Agent)
				}
			}
		}
		for _, how := range []string{"whole", "by bytes", "behind another"} {
			t.Run(mode.name+"/"+how, func(t *testing.T) {
				for _, tt := range corpus {
					t.Run(tt.name, func(t *testing.T) {
						if mode.tunnel && tt.status == "401" && strings.Contains(tt.raw, "apa_unknown") {
							tt.status, tt.seen = "200", 1 // CONNECT has shown whose it is
						}
						raw := tt.bytes(mode.host)
						before := 0
						sent := raw + request(nextToken, "next")
						if how == "behind another" {
							before = 1
							sent = request(testToken, "before") + sent
						}
						for len(r.recorder.added) > 0 {
							<-r.recorder.added // there is no room for all of them
						}
						c := mode.dial()
						defer c.Close()
						go func() {
							step := len(sent)
							if how == "by bytes" {
								step = 1 + len(sent)/2000
							}
							for i := 0; i < len(sent); i += step {
								if _, err := io.WriteString(c, sent[i:min(len(sent), i+step)]); err != nil {
									return // it was refused meanwhile
								}
							}
						}()
						want := before + 2
						if tt.conn == "close" {
							want = before + 100 // until the end
						}
						head := -1
						if strings.HasPrefix(raw, http.MethodHead) {
							head = before
						}
						got, err := answers(c, want, head)
						seen := w.take()
						for i := range seen {
							if why := seen[i].strict(); why != "" {
								t.Errorf("the provider got %q: %s", seen[i].raw, why)
							}
						}
						if before == 1 {
							if len(got) == 0 || got[0].status != 200 || !strings.Contains(got[0].body, `\"before\"`) || len(seen) == 0 {
								t.Fatalf("the request before it: %v, %v", got, err)
							}
							got, seen = got[1:], seen[1:]
						}
						if tt.status == "none" {
							for _, a := range got {
								if a.status < 400 {
									t.Errorf("answered %v", a)
								}
							}
							if len(seen) != 0 {
								t.Errorf("the provider got %q", seen[0].raw)
							}
							return
						}
						if len(got) == 0 {
							t.Fatalf("no answer: %v", err)
						}
						status := strings.ReplaceAll(tt.status, "x", ".")
						if !regexp.MustCompile("^(?:" + status + ")$").MatchString(strconv.Itoa(got[0].status)) {
							t.Errorf("%d, want %s: %s", got[0].status, tt.status, got[0].body)
						}
						if got[0].status == 200 {
							agentOf(t, got[0], "a")
						} else if head < 0 && !strings.Contains(got[0].body, "authpool: ") || got[0].header.Get("X-Authpool-Error") == "" {
							t.Errorf("answered %v", got[0])
						}
						followed := len(got) > 1
						if followed {
							agentOf(t, got[1], next)
							if got[1].status != 200 || !strings.Contains(got[1].body, `\"next\"`) || len(seen) == 0 || !strings.Contains(seen[len(seen)-1].body, `"next"`) {
								t.Fatalf("the next one: %v", got[1])
							}
							seen = seen[:len(seen)-1]
						}
						if len(seen) != tt.seen {
							t.Errorf("the provider got %d requests: %q", len(seen), seen)
						}
						switch {
						case tt.conn == "keep" && !followed:
							t.Errorf("the next one was not answered: %v", err)
						case tt.conn == "close" && followed:
							t.Errorf("the next one was answered: %v", got[1])
						case len(got) > 2:
							t.Errorf("answered %v", got)
						case tt.conn == "close" && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET):
							t.Errorf("the connection ended with %v", err)
						}
					})
				}
				c := mode.dial()
				defer c.Close()
				_, _ = io.WriteString(c, request(nextToken, "after"))
				got, err := answers(c, 1, -1)
				if err != nil || got[0].status != 200 || !strings.Contains(got[0].body, `\"after\"`) {
					t.Errorf("who came after all: %v, %v", got, err)
				}
				if seen := w.take(); len(seen) != 1 || !strings.Contains(seen[0].body, `"after"`) {
					t.Errorf("the provider got %q", seen)
				}
			})
		}
	}
}

// oneConn is a listener of one connection.
type oneConn struct {
	net.Listener
	conn net.Conn
}

func (l oneConn) Accept() (net.Conn, error) { return l.conn, nil }
func (oneConn) Close() error                { return nil }

// Whatever bytes come over a connection, the provider gets no more requests than
// net/http sees in them, none that is not plain to every reader, and each with the
// pool's credential and no agent's token.
func FuzzHead(f *testing.F) {
	for _, c := range readCorpus(f) {
		if raw := c.bytes("localhost"); len(raw) < 4<<10 {
			f.Add([]byte(raw))
			f.Add([]byte(raw + messageRequest(message)))
		}
	}
	w := &witness{}
	u := w.listen(f)
	r := newRig(f, u.url(), 1, func(o *rigOptions) {
		o.quiet = true
		o.agents = NewAgents(map[string]string{"a": testToken, "b": tokenB})
		o.providers = o.providers[:1]
		o.subs = o.subs[:1]
	})
	f.Fuzz(func(t *testing.T, sent []byte) {
		l, err := agentconn.Listen(oneConn{conn: &playedConn{in: bytes.NewReader(sent)}}, agentconn.Options{Head: time.Minute, ReadStall: time.Minute, WriteStall: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Stop()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = r.server.fast.ServeConn(c)
		_ = c.Close()
		seen := w.take()
		br, reference := bufio.NewReader(bytes.NewReader(sent)), 0
		for {
			for blank, _ := br.Peek(2); string(blank) == "\r\n"; blank, _ = br.Peek(2) {
				_, _ = br.Discard(2) // RFC 9112, section 2.2; net/http does not know it
			}
			req, err := http.ReadRequest(br)
			if err != nil {
				break
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				break
			}
			reference++
		}
		if len(seen) > reference {
			t.Fatalf("net/http sees %d requests, the provider %d: %q came of %q", reference, len(seen), seen, sent)
		}
		for i := range seen {
			if why := seen[i].strict(); why != "" && !strings.HasPrefix(why, "it has ") && why != "it was smuggled" {
				t.Fatalf("%s: %q came of %q", why, seen[i].raw, sent)
			}
		}
	})
}
