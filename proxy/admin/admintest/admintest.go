// Package admintest holds answers of the admin API to the API's own description, for
// tests.
package admintest

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Description is an OpenAPI document whose schemas are closed: a field that is answered
// and not described is a fault. It must not be used by several goroutines at once.
type Description struct {
	Root map[string]any // the document

	compiled map[string]*jsonschema.Schema
}

// Parse reads the document.
func Parse(text []byte) (*Description, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("cannot read the description: %w", err)
	}
	d := &Description{Root: doc.(map[string]any), compiled: map[string]*jsonschema.Schema{}}
	for _, s := range d.Root["components"].(map[string]any)["schemas"].(map[string]any) {
		s.(map[string]any)["additionalProperties"] = false
	}
	return d, nil
}

// Operation is one of the document.
type Operation struct {
	Method, Path string // in upper case; with its parameters in braces
	Fields       map[string]any
}

// Operations are all of them.
func (d *Description) Operations() []Operation {
	var all []Operation
	for path, item := range d.Root["paths"].(map[string]any) {
		for method, fields := range item.(map[string]any) {
			all = append(all, Operation{strings.ToUpper(method), path, fields.(map[string]any)})
		}
	}
	slices.SortFunc(all, func(a, b Operation) int { return strings.Compare(a.Path+a.Method, b.Path+b.Method) })
	return all
}

// Needs tells whether who holds this kind of token may.
func (o *Operation) Needs(scheme string) bool {
	return slices.ContainsFunc(o.Fields["security"].([]any), func(s any) bool { return s.(map[string]any)[scheme] != nil })
}

var braces = regexp.MustCompile(`\\\{[^/]*\\\}`)

// find is the operation that a request means. Of two, the one that names more of the
// path is meant, as http.ServeMux has it.
func (d *Description) find(method, path string) (found Operation, ok bool) {
	for _, o := range d.Operations() {
		pattern := "^" + braces.ReplaceAllString(regexp.QuoteMeta(o.Path), `[^/]+`) + "$"
		if o.Method == method && regexp.MustCompile(pattern).MatchString(path) &&
			(!ok || strings.Count(o.Path, "{") < strings.Count(found.Path, "{")) {
			found, ok = o, true
		}
	}
	return found, ok
}

// Check tells what is wrong with an answer to a request for path.
func (d *Description) Check(method, path string, status int, head http.Header, body []byte) error {
	media, _, _ := strings.Cut(head.Get("Content-Type"), ";")
	if method == http.MethodHead || media == "text/plain" {
		return nil
	}
	at := "/components/responses/Problem"
	o, ok := d.find(method, path)
	if status < http.StatusBadRequest {
		responses, _ := o.Fields["responses"].(map[string]any)
		if !ok || responses[strconv.Itoa(status)] == nil {
			return fmt.Errorf("%s %s: no answer %d is described", method, path, status)
		}
		if status == http.StatusNotModified {
			return nil
		}
		at = "/paths/" + strings.ReplaceAll(o.Path, "/", "~1") + "/" + strings.ToLower(method) + "/responses/" + strconv.Itoa(status)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: the answer is no JSON: %w", method, path, err)
	}
	s, err := d.compile(at + "/content/" + strings.ReplaceAll(media, "/", "~1") + "/schema")
	if err != nil {
		return fmt.Errorf("%s %s: nothing of %q is described: %w", method, path, media, err)
	}
	if err := s.Validate(value); err != nil {
		return fmt.Errorf("%s %s answers otherwise than it is described: %w\n%s", method, path, err, body)
	}
	return nil
}

func (d *Description) compile(pointer string) (*jsonschema.Schema, error) {
	if s := d.compiled[pointer]; s != nil {
		return s, nil
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("openapi.json", d.Root); err != nil {
		return nil, err
	}
	s, err := c.Compile("openapi.json#" + pointer)
	d.compiled[pointer] = s
	return s, err
}
