package admin_test

import (
	"bytes"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/authpool/authpool/proxy/admin"
	"github.com/authpool/authpool/proxy/admin/admintest"
)

// described is the API's own description. Every answer that a test of this package gets
// is held to it.
var described = sync.OnceValue(func() *admintest.Description {
	d, err := admintest.Parse(admin.New(admin.Options{}).OpenAPI())
	if err != nil {
		panic(err)
	}
	return d
})

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
	if err := s.Validate(described().Root); err != nil {
		t.Error(err)
	}

	// What a schema cannot say.
	ids := map[string]bool{}
	schemes := described().Root["components"].(map[string]any)["securitySchemes"].(map[string]any)
	for _, o := range described().Operations() {
		id := o.Fields["operationId"].(string)
		if ids[id] {
			t.Errorf("%s %s: another one is %s too", o.Method, o.Path, id)
		}
		ids[id] = true
		responses := o.Fields["responses"].(map[string]any)
		if strings.Contains(o.Path, "{") != (responses["404"] != nil) {
			t.Errorf("%s %s: 404 is described: %v", o.Method, o.Path, responses["404"] != nil)
		}
		if o.Needs("operator") && o.Method != http.MethodGet && responses["409"] == nil {
			t.Errorf("%s %s: no 409 is described", o.Method, o.Path)
		}
		var braces, named []string
		for _, found := range regexp.MustCompile(`\{([^}]*)\}`).FindAllStringSubmatch(o.Path, -1) {
			braces = append(braces, found[1])
		}
		parameters, _ := o.Fields["parameters"].([]any)
		for _, p := range parameters {
			if p := p.(map[string]any); p["in"] == "path" {
				named = append(named, p["name"].(string))
			}
		}
		if !slices.Equal(named, braces) {
			t.Errorf("%s %s: the parameters of the path are %q", o.Method, o.Path, named)
		}
		for _, may := range o.Fields["security"].([]any) {
			for scheme := range may.(map[string]any) {
				if schemes[scheme] == nil {
					t.Errorf("%s %s: there is no security scheme %s", o.Method, o.Path, scheme)
				}
			}
		}
	}
	resolves(t, described().Root, described().Root)
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

// TestOperationsAreAsDescribed asks for each as who may not, and with what it does
// not take.
func TestOperationsAreAsDescribed(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	count := 0
	for _, o := range described().Operations() {
		ask := func(token, body string) answer {
			return get(t, base+regexp.MustCompile(`\{[^}]*\}`).ReplaceAllString(o.Path, "x"), func(r *http.Request) {
				r.Method = o.Method
				r.Header.Set("Authorization", "Bearer "+token)
				if body != "" {
					setBody(r, body, "application/json")
				}
			})
		}
		if !o.Needs("operator") {
			if a := ask("", ""); a.status != http.StatusOK {
				t.Errorf("%s %s: got %d without a token", o.Method, o.Path, a.status)
			}
			continue
		}
		count++
		if a := ask("apo_x", ""); a.status != http.StatusUnauthorized {
			t.Errorf("%s %s: got %d with a wrong token", o.Method, o.Path, a.status)
		}
		if o.Needs("viewer") != (o.Method == http.MethodGet) {
			t.Errorf("%s %s: a viewer may: %v", o.Method, o.Path, o.Needs("viewer"))
		}
		if !o.Needs("viewer") {
			if a := ask(viewer, ""); a.status != http.StatusForbidden {
				t.Errorf("%s %s: got %d as a viewer", o.Method, o.Path, a.status)
			}
		}
		if o.Fields["requestBody"] == nil {
			if a := ask(token, "{}"); a.status != http.StatusRequestEntityTooLarge {
				t.Errorf("%s %s: got %d with a body", o.Method, o.Path, a.status)
			}
		} else if a := ask(token, `{"no such field": 1}`); a.status != http.StatusBadRequest {
			t.Errorf("%s %s: got %d with a field that there is not", o.Method, o.Path, a.status)
		}
	}
	if count < 10 || len(src.calls)+len(src.notified) > 0 {
		t.Errorf("%d operations, subscriptions %q, notified %q", count, src.calls, src.notified)
	}
	if a := get(t, base+admin.OpenAPIPath, nil); a.status != http.StatusOK || a.head.Get("Content-Type") != "application/json" || !strings.Contains(a.body, `"openapi":"3.1.`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
}
