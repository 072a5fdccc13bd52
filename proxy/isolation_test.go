package proxy

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/authpool/authpool/pool"
	"github.com/authpool/authpool/proxy/provider"
)

const otherToken = "apa_test-token-of-another-agent"

// isolated keeps two agents apart.
func isolated(o *rigOptions) {
	o.opts.Isolate = true
	o.agents = NewAgents(map[string]string{"default": testToken, "other": otherToken})
}

// callAs sends a request and returns what came.
func (r *rig) callAs(token, method, path, headers, body string) (status int, code, text string) {
	r.t.Helper()
	resp := r.sendAs(token, method, path, headers, body)
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("X-Authpool-Error"), string(b)
}

func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

// Wherever another agent's id stands in a request, the provider never gets it; the
// agent that has it is served.
func TestIsolationKeepsAgentsFromOthersThings(t *testing.T) {
	const js = "Content-Type: application/json\r\n"
	many := strings.Repeat(`{"type":"file","file":{"file_id":"file-mine%d"}},`, 20)
	dozen := fmt.Sprintf(many, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19)
	tests := map[string]struct {
		makes, headers string // "" for a JSON body
		use            string // METHOD PATH BODY, with ID for the id
		status         int    // 0: it is the provider's to answer
		want           string // in the answer
	}{
		"in the path":                {"files", "", `GET /openai/v1/files/ID/content `, 404, `"message":"authpool: there is no file-`},
		"to delete it":               {"files", "", `DELETE /openai/v1/files/ID `, 404, `authpool:`},
		"escaped in the path":        {"files", "", `GET /openai/v1/files/%66ID/x `, 0, ``}, // another id
		"percent-encoded":            {"files", "", `GET /openai/v1/files/PERCENT `, 404, `authpool:`},
		"in the query":               {"files", "", `GET /openai/v1/models?after=x&file=PERCENT `, 404, `authpool:`},
		"in a message":               {"files", "", `POST /openai/v1/chat/completions {"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"ID"}}]}]}`, 404, `authpool:`},
		"behind a crowd of its own":  {"files", "", `POST /openai/v1/chat/completions {"model":"m","messages":[{"role":"user","content":[` + dozen + `{"type":"file","file":{"file_id":"ID"}}]}]}`, 404, `authpool:`},
		"in a batch":                 {"files", "", `POST /openai/v1/batches {"input_file_id":"ID","endpoint":"/v1/responses"}`, 404, `authpool:`},
		"where nobody knows a field": {"files", "", `POST /openai/v1/responses {"model":"m","input":[],"x":{"y":["ID"]}}`, 404, `authpool:`},
		"with an escape in it":       {"files", "", `POST /openai/v1/batches {"input_file_id":"ESCAPED"}`, 404, `authpool:`},
		"compressed":                 {"files", js + "Content-Encoding: gzip\r\n", `POST /openai/v1/batches {"input_file_id":"ID"}`, 404, `authpool:`},
		"compressed by something":    {"files", js + "Content-Encoding: lzma\r\n", `POST /openai/v1/batches {"input_file_id":"ID"}`, 400, `send it uncompressed`},
		"in a form":                  {"files", "Content-Type: multipart/form-data; boundary=x\r\n", "POST /openai/v1/containers/c/files --x\r\nContent-Disposition: form-data; name=\"file_id\"\r\n\r\nID\r\n--x--\r\n", 404, `authpool:`},
		"in a file of requests":      {"files", "Content-Type: multipart/form-data; boundary=x\r\n", "POST /openai/v1/files --x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{\"body\":{\"input\":[{\"file_id\":\"ID\"}]}}\r\n--x--\r\n", 404, `authpool:`},
		"an answer to go on from":    {"responses", "", `POST /openai/v1/responses {"model":"m","previous_response_id":"ID","input":"y"}`, 404, `authpool:`},
		"a cache of Google's":        {"caches", "", `POST /gemini/v1beta/models/m:generateContent {"cachedContent":"cachedContents/ID","contents":[]}`, 403, `"status":"PERMISSION_DENIED"`},
		"a cache by its long name":   {"caches", "", `POST /gemini/v1beta/models/m:generateContent {"x":"projects/p/locations/l/cachedContents/ID","contents":[]}`, 403, `authpool:`},
		// A provider reads an id in more ways than it writes it.
		"a UUID":                        {"libraries", "", `GET /openai/v1/libraries/ID `, 404, `authpool:`},
		"a UUID in capitals":            {"libraries", "", `GET /openai/v1/libraries/CAPITALS `, 404, `authpool:`},
		"a UUID without hyphens":        {"libraries", "", `POST /openai/v1/chat/completions {"model":"m","x":"BARE"}`, 404, `authpool:`},
		"a UUID in braces":              {"libraries", "", `POST /openai/v1/chat/completions {"model":"m","x":"{ID}"}`, 404, `authpool:`},
		"a UUID as a name":              {"libraries", "", `POST /openai/v1/chat/completions {"model":"m","x":"urn:uuid:ID"}`, 404, `authpool:`},
		"another's UUID":                {"libraries", "", `GET /openai/v1/libraries/00000000-0000-4000-8000-aaaabbbbcccc `, 0, ``},
		"in a list in the query":        {"files", "", `GET /openai/v1/models?file=x,ID `, 404, `authpool:`},
		"behind a semicolon":            {"files", "", `GET /openai/v1/models?a=b;file=ID `, 404, `authpool:`},
		"in UTF-16":                     {"files", "", `POST /openai/v1/batches UTF16{"input_file_id":"ID","x":"∀"}`, 404, `authpool:`},
		"in UTF-32":                     {"files", "", `POST /openai/v1/batches UTF32{"input_file_id":"ID"}`, 404, `authpool:`},
		"in a form of a page":           {"files", "Content-Type: application/x-www-form-urlencoded\r\n", `POST /openai/v1/containers/c/files a=b&file_id=PERCENT`, 404, `authpool:`},
		"in a form of a page, zipped":   {"files", "Content-Type: application/x-www-form-urlencoded\r\nContent-Encoding: gzip\r\n", `POST /openai/v1/containers/c/files file_id=ID`, 400, `send it uncompressed`},
		"in a zipped form":              {"files", "Content-Type: multipart/form-data; boundary=x\r\nContent-Encoding: gzip\r\n", "POST /openai/v1/containers/c/files --x\r\nContent-Disposition: form-data; name=\"file_id\"\r\n\r\nID\r\n--x--\r\n", 404, `authpool:`},
		"in a form that is hard to cut": {"files", "Content-Type: multipart/form-data; boundary=x; boundary=y\r\n", "POST /openai/v1/containers/c/files --x\r\nContent-Disposition: form-data; name=\"file_id\"\r\n\r\nID\r\n--x--\r\n", 404, `authpool:`},
		"in a part with a file's name":  {"files", "Content-Type: multipart/form-data; boundary=x\r\n", "POST /openai/v1/containers/c/files --x\r\nContent-Disposition: form-data; name=\"file_id\"; filename=\"a\"\r\n\r\nID\r\n--x--\r\n", 404, `authpool:`},
		"in a form that is told first":  {"files", "Content-Type: multipart/form-data; boundary=x\r\nContent-Type: text/plain\r\n", "POST /openai/v1/containers/c/files --x\r\nContent-Disposition: form-data; name=\"file_id\"\r\n\r\nID\r\n--x--\r\n", 404, `authpool:`},
		"in quotes that Google takes":   {"caches", "", `POST /gemini/v1beta/models/m:generateContent {'cachedContent':'cachedContents/ID',"contents":[]}`, 403, `authpool:`},
		"a cache by its address":        {"caches", "", `POST /gemini/v1beta/models/m:generateContent {"x":"https://h/v1beta/cachedContents/ID?alt=media"}`, 403, `authpool:`},
		"a cache by an escaped address": {"caches", "", `POST /gemini/v1beta/models/m:generateContent {"x":"https://h/v1beta/cachedContents%2FID"}`, 403, `authpool:`},

		"a sandbox of Anthropic's": {"environments", "", `POST /anthropic/v1/sessions {"agent":"agent_1","environment_id":"ID"}`, 404, `authpool:`},

		"a mention in a text": {"files", "", `POST /openai/v1/responses {"model":"m","input":"what is ID?"}`, 0, ``},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, a := newAccounts(t, isolated)
			switch test.makes {
			case "files":
				r.callAs(testToken, "POST", "/openai/v1/files", js, `{}`)
			case "environments":
				r.callAs(testToken, "POST", "/anthropic/v1/environments", js, `{}`)
			case "libraries":
				r.callAs(testToken, "POST", "/openai/v1/libraries", js, `{}`)
			case "responses":
				r.callAs(testToken, "POST", "/openai/v1/responses", js, `{"model":"m","input":"x"}`)
			case "caches":
				r.callAs(testToken, "POST", "/gemini/v1beta/cachedContents", js, `{}`)
			}
			id := a.last()
			method, rest, _ := strings.Cut(test.use, " ")
			path, body, _ := strings.Cut(strings.NewReplacer(
				"ID", id, "CAPITALS", strings.ToUpper(id), "BARE", strings.ReplaceAll(id, "-", ""), "PERCENT", fmt.Sprintf("%%%x%s", id[0], id[1:]), "ESCAPED", fmt.Sprintf(`\u%04x%s`, id[0], id[1:]),
			).Replace(rest), " ")
			headers := test.headers
			if headers == "" {
				headers = js
			}
			if strings.Contains(headers, "gzip") {
				body = zipped(body)
			}
			if text, wide := strings.CutPrefix(body, "UTF16"); wide {
				body = string(binary.LittleEndian.AppendUint16(nil, 0xfeff))
				for _, c := range utf16.Encode([]rune(text)) {
					body += string(binary.LittleEndian.AppendUint16(nil, c))
				}
			}
			if text, wide := strings.CutPrefix(body, "UTF32"); wide {
				body = ""
				for _, c := range text {
					body += string(binary.BigEndian.AppendUint32(nil, uint32(c)))
				}
			}
			before := a.requests()
			status, code, text := r.callAs(otherToken, method, path, headers, body)
			if test.status != 0 && status != test.status || !strings.Contains(text, test.want) {
				t.Errorf("another agent got %d %s, want %d with %q", status, text, test.status, test.want)
			}
			if reached := a.requests() != before; reached != (code == "") || reached != (test.status == 0) {
				t.Errorf("reached the provider: %v, code %q", reached, code)
			}
			if status, _, text := r.callAs(testToken, method, path, headers, body); test.status != 400 && (status >= 400 && status != 404 || strings.Contains(text, "authpool:")) {
				t.Errorf("its own agent got %d %s", status, text)
			}
		})
	}
}

// A list shows what all agents have made: nobody gets it, and what lies below a single
// id is no such list.
func TestIsolationRefusesLists(t *testing.T) {
	r, a := newAccounts(t, isolated, func(o *rigOptions) {
		o.providers = append(o.providers, provider.Options{Name: "azure", Family: provider.Azure, BaseURL: o.providers[0].BaseURL, AllowPlaintext: true})
		o.subs = append(o.subs, pool.Subscription{ID: "azure-1", Provider: "azure", Credential: fixedKey(key("azure", 1))})
	})
	for path, want := range map[string]int{
		"/openai/v1/files": 403, "/openai/v1/files/": 403, "/openai/v1/FILES?limit=3": 403, "/openai/v1/batches": 403, "/v1/files": 403,
		"/openai/v1/chat/completions": 403, "/anthropic/v1/messages/batches?limit=1": 403, "/anthropic/v1/skills": 403,
		"/anthropic/v1/deployments": 403, "/openai/v1/chatkit/threads": 403, "/openai/v1/video/generations/jobs": 403, "/gemini/v1beta/generatedFiles": 403,
		"/anthropic/v1/deployments/depl_1": 200, "/azure/openai/deployments": 200,
		"/azure/api/projects/p/agents": 403, "/azure/api/projects/p/assistants?api-version=v1": 403, "/azure/api/projects/p/threads": 403,
		"/azure/api/projects/p/files": 403, "/azure/api/projects/p/vector_stores": 403, "/azure/api/projects/p/openai/v1/files": 403,
		"/azure/api/projects/p/threads/thread_1": 200, "/azure/api/projects/p/deployments": 200,
		"/gemini/v1beta/files": 403, "/gemini/v1beta/cachedContents": 403, "/gemini/v1/projects/p/locations/l/cachedContents": 403,
		"/openai/v1/models": 200, "/gemini/v1beta/models": 200, "/openai/v1/vector_stores/vs_1/files": 200, "/anthropic/v1/models": 200,
	} {
		before := a.requests()
		status, code, text := r.callAs(testToken, "GET", path, "", "")
		if status != want || want == 403 && (code != "isolated" || !strings.Contains(text, "authpool: lists") || a.requests() != before) {
			t.Errorf("%s: got %d %s %s, want %d", path, status, code, text, want)
		}
	}
}

// Where agents share, as the operator wanted it, each is served what the others made.
func TestSharedAgentsAreNotKeptApart(t *testing.T) {
	r, a := newAccounts(t, isolated, func(o *rigOptions) { o.opts.Isolate = false })
	r.callAs(testToken, "POST", "/openai/v1/files", "", `{}`)
	for _, path := range []string{"/openai/v1/files/" + a.last(), "/openai/v1/files"} {
		if status, _, text := r.callAs(otherToken, "GET", path, "", ""); status != 200 {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}
