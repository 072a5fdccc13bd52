package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// explainRaw asks explain-response about a raw answer on standard input.
func explainRaw(t *testing.T, provider string, raw []byte) explained {
	t.Helper()
	var out, errs bytes.Buffer
	stdio := Stdio{In: bytes.NewReader(raw), Out: &out, Err: &errs}
	if code := Main(t.Context(), stdio, nil, []string{"explain-response", "--json", "--provider", provider}); code != exitDone {
		t.Fatalf("exit %d: %s\n%s", code, errs.String(), raw)
	}
	var e explained
	if err := json.Unmarshal(out.Bytes(), &e); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return e
}

// compressed returns text in every coding that providers use.
func compressed(t *testing.T, text []byte) map[string][]byte {
	t.Helper()
	var gz, br bytes.Buffer
	g, b := gzip.NewWriter(&gz), brotli.NewWriter(&br)
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{g, b} {
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"gzip": gz.Bytes(), "br": br.Bytes(), "zstd": z.EncodeAll(text, nil)}
}

// TestExplainResponseKnowsEveryExample: each is named for the row that decides,
// also with CRLF, compressed, in chunks, and saved by a client that has undone
// what the head says.
func TestExplainResponseKnowsEveryExample(t *testing.T) {
	files, err := filepath.Glob("../../proxy/provider/testdata/signals/*/*.http")
	if err != nil || len(files) < 60 {
		t.Fatalf("found %d examples: %v", len(files), err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		provider := filepath.Base(filepath.Dir(file))
		row, _, _ := strings.Cut(filepath.Base(file), ".")
		head, body, ok := bytes.Cut(raw, []byte("\n\n"))
		if !ok {
			t.Fatalf("%s has no blank line", file)
		}
		forms := map[string][]byte{"as it is": raw, "CRLF": bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))}
		for coding, text := range compressed(t, body) {
			with := string(head) + "\nContent-Encoding: " + coding + "\n\n"
			forms[coding] = append([]byte(with), text...)
			forms["said to be "+coding] = append([]byte(with), body...)
		}
		chunked := string(head) + "\nTransfer-Encoding: chunked\n\n"
		forms["chunks"] = fmt.Appendf(nil, "%s%x\r\n%s\r\n0\r\n\r\n", chunked, len(body), body)
		forms["said to be in chunks"] = append([]byte(chunked), body...)
		forms["after early hints"] = append([]byte("HTTP/1.1 103 Early Hints\nLink: </x>\n\n"), raw...)
		for form, text := range forms {
			if got := explainRaw(t, provider, text); got.Row != row {
				t.Errorf("%s, %s: decided by the row %q", file, form, got.Row)
			}
		}
	}
}

// TestExplainResponseRecordings asks about every recorded error as a raw answer.
func TestExplainResponseRecordings(t *testing.T) {
	dir := os.Getenv("AUTHPOOL_RECORDINGS")
	if dir == "" {
		t.Skip("AUTHPOOL_RECORDINGS does not name the folder of recordings")
	}
	classes := map[string]string{"limited": "rate_limited"}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	errors, good := 0, 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var r struct {
			Provider string
			Response struct {
				Status  int
				Headers map[string]string
				Body    string
				Base64  string `json:"body_base64"`
			}
			Expect struct {
				Class        string
				AlsoAccepted []string `json:"also_accepted"`
			}
		}
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if _, err := answerOf(r.Provider); err != nil {
			continue // a gateway without an entry
		}
		var raw bytes.Buffer
		fmt.Fprintf(&raw, "HTTP/1.1 %d x\r\n", r.Response.Status)
		for name, value := range r.Response.Headers {
			fmt.Fprintf(&raw, "%s: %s\r\n", name, strings.ReplaceAll(value, "\n", " "))
		}
		raw.WriteString("\r\n" + r.Response.Body)
		if binary, err := base64.StdEncoding.DecodeString(r.Response.Base64); err != nil {
			t.Fatalf("%s: %v", file, err)
		} else {
			raw.Write(binary)
		}
		got := explainRaw(t, r.Provider, raw.Bytes())
		if r.Expect.Class == "" {
			good++
			if got.Signal != "ok" {
				t.Errorf("%s: a good answer was taken for %+v", file, got)
			}
			continue
		}
		errors++
		class := got.Signal
		if name, ok := classes[class]; ok {
			class = name
		}
		if class != r.Expect.Class && !strings.Contains(strings.Join(r.Expect.AlsoAccepted, " "), class) {
			t.Errorf("%s: got %+v, want %s", file, got, r.Expect.Class)
		}
	}
	if errors < 60 || good < 300 {
		t.Errorf("only %d errors and %d good answers were found in %s", errors, good, dir)
	}
}

// FuzzExplainResponse: whatever is pasted, there is a verdict or a reason why not.
func FuzzExplainResponse(f *testing.F) {
	f.Add("openai", []byte("HTTP/1.1 429 x\r\nRetry-After: 5\r\n\r\n{}"))
	f.Add("anthropic", []byte("HTTP/2 200\ncontent-type: text/event-stream\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\"}}\n\n"))
	f.Add("bedrock", []byte("HTTP/1.1 100 Continue\n\nHTTP/1.1 500\nTransfer-Encoding: chunked\nContent-Encoding: br\n\n5\r\n"))
	f.Fuzz(func(t *testing.T, provider string, raw []byte) {
		var out, errs bytes.Buffer
		code := Main(t.Context(), Stdio{In: bytes.NewReader(raw), Out: &out, Err: &errs}, nil, []string{"explain-response", "--json", "--provider", provider})
		if (code == exitDone) != (out.Len() > 0) || (code == exitDone) == (errs.Len() > 0) {
			t.Errorf("exit %d with the answer %q and the error %q", code, out.String(), errs.String())
		}
	})
}
