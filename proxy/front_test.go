package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

func TestCheckHead(t *testing.T) {
	const host = "Host: localhost\r\n"
	tests := []struct {
		method, raw string
		ok          bool
	}{
		{"GET", host + "\r\n", true},
		{"POST", host + "Content-Length: 5\r\n\r\n", true},
		{"POST", host + "Transfer-Encoding: Chunked\r\n\r\n", true},
		{"POST", host + "X-Empty:\r\nX-Tab: a\tb\r\n\r\n", true},
		{"GET", host + "content-length: 0\r\n\r\n", true},
		{"GET", "\r\n", false},
		{"GET", host + "host: localhost\r\n\r\n", false},
		{"POST", host + "Content-Length: 5\r\ncontent-length: 5\r\n\r\n", false},
		{"POST", host + "Content-Length: 5, 5\r\n\r\n", false},
		{"POST", host + "Content-Length: +5\r\n\r\n", false},
		{"POST", host + "Content-Length: \r\n\r\n", false},
		{"POST", host + "Content-Length: 99999999999999999999\r\n\r\n", false},
		{"POST", host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"POST", host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"POST", host + "Transfer-Encoding: gzip, chunked\r\n\r\n", false},
		{"POST", host + "Transfer-Encoding: xchunked\r\n\r\n", false},
		{"POST", host + "Transfer-Encoding: \x0bchunked\r\n\r\n", false},
		{"POST", host + "Transfer-Encoding : chunked\r\n\r\n", false},
		{"POST", host + "X: a\r\n b\r\n\r\n", false},
		{"POST", host + "X: a\nY: b\r\n\r\n", false},
		{"POST", host + "X: a\rY: b\r\n\r\n", false},
		{"POST", host + "X: a\x00b\r\n\r\n", false},
		{"POST", host + ": nameless\r\n\r\n", false},
		{"POST", host + "no colon\r\n\r\n", false},
		{"POST", host + "X(Y): b\r\n\r\n", false},
		{"GET", host + "Content-Length: 3\r\n\r\n", false},
		{"HEAD", host + "Transfer-Encoding: chunked\r\n\r\n", false},
	}
	for _, tt := range tests {
		if _, fault := checkHead([]byte(tt.raw), []byte(tt.method)); (fault == "") != tt.ok {
			t.Errorf("%s %q: fault %q, want ok %v", tt.method, tt.raw, fault, tt.ok)
		}
	}
}

// Whatever passes is read the same way by another strict parser: the same
// framing, and one host.
func FuzzCheckHead(f *testing.F) {
	f.Add("Host: a\r\nContent-Length: 2\r\n\r\n")
	f.Add("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	f.Add("Host: a\r\nX: b\r\n c\r\n\r\n")
	f.Fuzz(func(t *testing.T, raw string) {
		if !strings.HasSuffix(raw, "\r\n\r\n") || strings.Index(raw, "\r\n\r\n") != len(raw)-4 || strings.HasPrefix(raw, "\r\n") {
			return
		}
		if _, fault := checkHead([]byte(raw), []byte("POST")); fault != "" {
			return
		}
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST / HTTP/1.1\r\n" + raw)))
		if err != nil {
			if strings.Contains(err.Error(), "malformed Host") || strings.Contains(err.Error(), "too many") {
				return // authpool writes its own Host
			}
			t.Fatalf("net/http refuses what passed: %v: %q", err, raw)
		}
		chunked := slices.Contains(req.TransferEncoding, "chunked")
		if has := bytes.Contains(bytes.ToLower([]byte(raw)), []byte("\ntransfer-encoding:")) || strings.HasPrefix(strings.ToLower(raw), "transfer-encoding:"); has != chunked {
			t.Fatalf("framing differs: %v %v: %q", has, chunked, raw)
		}
	})
}

func TestSplitTarget(t *testing.T) {
	tests := []struct {
		target, host, path string
		ok                 bool
	}{
		{"/v1/models?x=1", "a", "/v1/models?x=1", true},
		{"http://a:1/v1", "A:1", "/v1", true},
		{"HTTPS://a", "a", "/", true},
		{"http://a?x", "a", "/?x", true},
		{"http://b/v1", "a", "", false},
		{"http://a@b/v1", "a", "", false},
		{"ftp://a/v1", "a", "", false},
		{"v1", "a", "", false},
		{"*", "a", "", false},
		{"", "a", "", false},
	}
	for _, tt := range tests {
		path, ok := splitTarget([]byte(tt.target), []byte(tt.host))
		if ok != tt.ok || string(path) != tt.path {
			t.Errorf("splitTarget(%q, %q) = %q, %v", tt.target, tt.host, path, ok)
		}
	}
}

func TestIsLocalHost(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:8787": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:80": true, "[::1]": true, "pool.localhost": true,
		"evil.test": false, "localhost.evil.test": false, "192.168.1.1": false, "": false, "127.0.0.1.evil.test": false, "notlocalhost": false,
		"localhost:1@evil.test": false, "localhost:": false, "localhost:a": false,
	} {
		if got := isLocalHost(host); got != want {
			t.Errorf("isLocalHost(%q) = %v", host, got)
		}
	}
}

func TestIdentify(t *testing.T) {
	agents := NewAgents(map[string]string{"a": "apa_one", "b": "apa_two"})
	tests := []struct {
		agents *Agents
		tokens []string
		want   string
		err    error
	}{
		{agents, []string{"apa_one"}, "a", nil},
		{agents, []string{"sk-dummy", "apa_two", ""}, "b", nil},
		{agents, []string{"apa_one", "apa_one"}, "a", nil},
		{agents, []string{"apa_one", "apa_two"}, "", errTwoAgents},
		{agents, []string{"apa_on"}, "", errBadToken},
		{agents, []string{""}, "", errNoToken},
		{agents, nil, "", errNoToken},
		{NoAgents(), nil, AnonymousAgent, nil},
	}
	for _, tt := range tests {
		head := ""
		for _, token := range tt.tokens {
			head += "x-api-key: " + token + "\r\n"
		}
		got, err := tt.agents.identify(provider.Headers(head), nil, nil, "")
		if got.agent != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%q: %q, %v", tt.tokens, got.agent, err)
		}
	}
}
