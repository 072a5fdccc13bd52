package admin_test

import (
	"bytes"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/authpool/authpool/proxy/admin"
)

// described is the API's own description, as one Server answers it, with all of its
// schemas closed: a field that is answered and not described is a fault.
var described = sync.OnceValue(func() map[string]any {
	srv := admin.New(admin.Options{})
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(srv.OpenAPI()))
	if err != nil {
		panic(err)
	}
	root := doc.(map[string]any)
	for _, s := range root["components"].(map[string]any)["schemas"].(map[string]any) {
		s.(map[string]any)["additionalProperties"] = false
	}
	return root
})

// operation finds what the description says of a request, and its path there.
func operation(method, path string) (at string, op map[string]any) {
	for pattern, item := range described()["paths"].(map[string]any) {
		expr := "^" + regexp.MustCompile(`\\\{[^/]*\\\}`).ReplaceAllString(regexp.QuoteMeta(pattern), `[^/]+`) + "$"
		found, ok := item.(map[string]any)[strings.ToLower(method)].(map[string]any)
		if ok && regexp.MustCompile(expr).MatchString(path) && (op == nil || !strings.Contains(pattern, "{")) {
			at, op = pattern, found
		}
	}
	return at, op
}

// asDescribed fails the test when an answer is not what the description says. Every
// answer that a test of this package gets is seen by it.
func asDescribed(t *testing.T, method, path string, a answer) {
	t.Helper()
	media, _, _ := strings.Cut(a.head.Get("Content-Type"), ";")
	body, err := jsonschema.UnmarshalJSON(strings.NewReader(a.body))
	at, op := operation(method, path)
	pointer := "/components/responses/Problem"
	switch responses, _ := op["responses"].(map[string]any); {
	case method == http.MethodHead, media == "text/plain":
		return
	case err != nil:
		t.Errorf("%s %s: the answer is no JSON: %v", method, path, err)
		return
	case a.status < 400:
		status := strconv.Itoa(a.status)
		if responses[status] == nil {
			t.Errorf("%s %s: no answer %s is described", method, path, status)
			return
		}
		pointer = "/paths/" + strings.ReplaceAll(at, "/", "~1") + "/" + strings.ToLower(method) + "/responses/" + status
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("openapi.json", described()); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("openapi.json#" + pointer + "/content/" + strings.ReplaceAll(media, "/", "~1") + "/schema")
	if err != nil {
		t.Errorf("%s %s: nothing of %q is described: %v", method, path, media, err)
		return
	}
	if err := s.Validate(body); err != nil {
		t.Errorf("%s %s answers otherwise than it is described: %v\n%s", method, path, err, a.body)
	}
}

func TestDescriptionIsOpenAPI(t *testing.T) {
	text, err := os.ReadFile("testdata/openapi-3.1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	meta, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("openapi-3.1.json", meta); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("openapi-3.1.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(described()); err != nil {
		t.Error(err)
	}

	// What a schema cannot say.
	ids := map[string]bool{}
	for path, item := range described()["paths"].(map[string]any) {
		var braces []string
		for _, found := range regexp.MustCompile(`\{([^}]*)\}`).FindAllStringSubmatch(path, -1) {
			braces = append(braces, found[1])
		}
		for method, o := range item.(map[string]any) {
			op := o.(map[string]any)
			id := op["operationId"].(string)
			if ids[id] {
				t.Errorf("%s %s: another one is %s too", method, path, id)
			}
			ids[id] = true
			var named []string
			parameters, _ := op["parameters"].([]any)
			for _, p := range parameters {
				if p := p.(map[string]any); p["in"] == "path" {
					named = append(named, p["name"].(string))
				}
			}
			if !slices.Equal(named, braces) {
				t.Errorf("%s %s: the parameters of the path are %q", method, path, named)
			}
			for _, may := range op["security"].([]any) {
				for scheme := range maps.Keys(may.(map[string]any)) {
					if described()["components"].(map[string]any)["securitySchemes"].(map[string]any)[scheme] == nil {
						t.Errorf("%s %s: there is no security scheme %s", method, path, scheme)
					}
				}
			}
		}
	}
	resolves(t, described(), described())
}

// resolves fails the test when a reference in part names nothing in whole.
func resolves(t *testing.T, whole map[string]any, part any) {
	t.Helper()
	switch part := part.(type) {
	case []any:
		for _, item := range part {
			resolves(t, whole, item)
		}
	case map[string]any:
		if ref, ok := part["$ref"].(string); ok {
			var at any = whole
			for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
				m, _ := at.(map[string]any)
				at = m[name]
			}
			if at == nil {
				t.Errorf("%s names nothing", ref)
			}
		}
		for _, item := range part {
			resolves(t, whole, item)
		}
	}
}

// TestOperationsAreAsDescribed asks for each as who may not, and with what it does not
// take.
func TestOperationsAreAsDescribed(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	count := 0
	for path, item := range described()["paths"].(map[string]any) {
		for method, o := range item.(map[string]any) {
			op := o.(map[string]any)
			ask := func(token string, body string) answer {
				url := base + regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(path, "x")
				return get(t, url, func(r *http.Request) {
					r.Method = strings.ToUpper(method)
					r.Header.Set("Authorization", "Bearer "+token)
					if body != "" {
						setBody(r, body, "application/json")
					}
				})
			}
			may := op["security"].([]any)
			if len(may) == 0 {
				if a := ask("", ""); a.status != http.StatusOK {
					t.Errorf("%s %s: got %d without a token", method, path, a.status)
				}
				continue
			}
			count++
			if a := ask("apo_x", ""); a.status != http.StatusUnauthorized {
				t.Errorf("%s %s: got %d with a wrong token", method, path, a.status)
			}
			viewers := slices.ContainsFunc(may, func(s any) bool { return s.(map[string]any)["viewer"] != nil })
			if viewers != (method == "get") {
				t.Errorf("%s %s: a viewer may: %v", method, path, viewers)
			}
			if !viewers {
				if a := ask(viewer, ""); a.status != http.StatusForbidden {
					t.Errorf("%s %s: got %d as a viewer", method, path, a.status)
				}
			}
			if op["requestBody"] == nil {
				if a := ask(token, "{}"); a.status != http.StatusRequestEntityTooLarge {
					t.Errorf("%s %s: got %d with a body", method, path, a.status)
				}
			} else if a := ask(token, `{"no such field": 1}`); a.status != http.StatusBadRequest {
				t.Errorf("%s %s: got %d with a field that there is not", method, path, a.status)
			}
		}
	}
	if count < 10 || len(src.enabled)+len(src.notified) > 0 {
		t.Errorf("%d operations, enabled %q, notified %q", count, src.enabled, src.notified)
	}
	if a := get(t, base+admin.OpenAPIPath, nil); a.status != http.StatusOK || a.head.Get("Content-Type") != "application/json" || !strings.Contains(a.body, `"openapi":"3.1.`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
}
