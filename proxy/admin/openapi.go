package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
)

// OpenAPIPath answers with the description of this API, as an OpenAPI 3.1 document: made
// from the table of routes and the Go types, which tests hold to what is answered.
const OpenAPIPath = "/api/v1/openapi.json"

// parameter is one of a query, a header or a path.
type parameter struct {
	Name        string `json:"name"`
	In          string `json:"in"`
	Description string `json:"description,omitempty"`
	Required    bool   `json:"required,omitempty"`
	Schema      schema `json:"schema"`
}

// query are the parameters that the operations know, by path.
var query = map[string][]parameter{
	UsagePath: {
		inQuery("by", "What is added up; subscription when it is left out.", groupingSchema()),
		inQuery("since", "RFC 3339, a date, or a duration back such as 24h or 7d; rounded down to the day, not by block.", text()),
		inQuery("until", "Likewise, rounded up.", text()),
	},
	RequestsPath: {
		inQuery("limit", "How many at most.", schema{"type": "integer", "minimum": 1, "maximum": requestsMost, "default": requestsListed}),
		inQuery("session", "An id, or agent/id.", text()),
		inQuery("subscription", "Which has served or refused.", text()),
		inQuery("status", "Of the answer.", schema{"type": "integer", "minimum": 100, "maximum": 599}),
	},
	NotificationsTestPath: {
		inQuery("event", "What is pretended to have happened; a test when it is left out.", text()),
		inQuery("target", "Index of the only one that is told; all when it is left out.", schema{"type": "integer", "minimum": 0}),
	},
	SessionsPath: {
		inQuery("provider", "", text()),
		inQuery("agent", "", text()),
		inQuery("session", "", text()),
		inQuery("subscription", "", text()),
	},
}

func inQuery(name, description string, s schema) parameter {
	return parameter{Name: name, In: "query", Description: description, Schema: s}
}

func text() schema { return schema{"type": "string"} }

func groupingSchema() schema {
	var names []string
	for _, by := range Groupings() {
		names = append(names, string(by))
	}
	return schema{"type": "string", "enum": append(names, "cell"), "default": names[0]}
}

// object is one of an OpenAPI document.
type object map[string]any

// document describes the operations of table, and what is open beside them.
func document(table []route) []byte {
	named := map[string]schema{}
	answers, bodies := schemas{named: named}, schemas{named: named, body: true}
	problems := object{problemMedia: object{"schema": answers.of(reflect.TypeFor[Problem]())}}
	paths := map[string]object{
		"/healthz": openPath("getHealthz", "Tell whether the process lives"),
		"/readyz":  openPath("getReadyz", "Tell whether it listens with at least one enabled subscription; 503 with the reason when not"),
		"/metrics": openPath("getMetrics", "Tell the metrics, as Prometheus reads them"),
	}
	for _, one := range table {
		at := paths[one.path]
		if at == nil {
			at = object{}
			paths[one.path] = at
		}
		at[strings.ToLower(one.method)] = operation(one, answers, bodies)
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "authpool admin API", "version": "1",
			"description": "Times are RFC 3339 in UTC, money a decimal string of dollars. An error is a problem of RFC 9457; its code says for programs what is wrong.",
			"license":     object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers": []object{{"url": "/"}},
		"paths":   paths,
		"components": object{
			"schemas":   named,
			"responses": object{"Problem": object{"description": "What is wrong, and what to do.", "content": problems}},
			"securitySchemes": object{
				"operator": object{"type": "http", "scheme": "bearer", "description": "admin.token: may do everything."},
				"viewer":   object{"type": "http", "scheme": "bearer", "description": "admin.viewer_token: may read."},
			},
		},
	}
	body, err := json.Marshal(doc)
	if err != nil {
		panic("BUG: the API's description cannot be encoded: " + err.Error())
	}
	return body
}

// openPath is one that needs no token and does not answer in JSON.
func openPath(id, summary string) object {
	return object{"get": object{
		"operationId": id, "summary": summary, "security": []object{},
		"responses": object{"200": object{"description": "It is.", "content": object{"text/plain": object{"schema": text()}}}, "default": problemRef()},
	}}
}

func problemRef() object { return object{"$ref": "#/components/responses/Problem"} }

func operation(one route, answers, bodies schemas) object {
	may := []object{{"operator": []string{}}}
	if one.role == Viewer {
		may = append(may, object{"viewer": []string{}})
	}
	done := object{
		"description": "Done.",
		"content":     object{"application/json": object{"schema": answers.of(reflect.TypeOf(one.answer))}},
	}
	responses := object{"200": done, "401": problemRef(), "403": problemRef(), "default": problemRef()}
	op := object{"operationId": operationID(one), "summary": one.summary, "security": may, "responses": responses}
	parameters := append(inPath(one.path), query[one.path]...)
	if one.versioned() {
		done["headers"] = object{"ETag": object{"description": "The version of the record, for If-Match.", "schema": text()}}
		if one.method != http.MethodGet {
			parameters = append(parameters, parameter{Name: "If-Match", In: "header", Description: "ETag of the record that is to be changed: 412 when it is another by now. Left out, any.", Schema: text()})
			responses["412"] = problemRef()
		}
	}
	if len(parameters) > 0 {
		op["parameters"] = parameters
		responses["400"] = problemRef()
	}
	if strings.Contains(one.path, "{") {
		responses["404"] = problemRef()
	}
	if one.role == Operator {
		responses["409"] = problemRef()
	}
	if one.body != nil {
		op["requestBody"] = object{"required": one.body != any(Rebalance{}), "content": object{"application/json": object{"schema": bodies.of(reflect.TypeOf(one.body))}}}
		responses["400"], responses["413"], responses["415"] = problemRef(), problemRef(), problemRef()
	}
	return op
}

// inPath are the parameters in the braces of a path.
func inPath(path string) []parameter {
	var all []parameter
	for part := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			all = append(all, parameter{Name: strings.TrimSuffix(name, "}"), In: "path", Required: true, Schema: text()})
		}
	}
	return all
}

// operationID names an operation for those who make clients: getRequestsById.
func operationID(one route) string {
	var id strings.Builder
	id.WriteString(strings.ToLower(one.method))
	for part := range strings.SplitSeq(strings.TrimPrefix(one.path, "/api/v1/"), "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			id.WriteString("By")
			part = strings.TrimSuffix(name, "}")
		}
		id.WriteString(camel(part))
	}
	return id.String()
}

// camel writes a name of a path as a part of a longer one.
func camel(name string) string {
	var out strings.Builder
	for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '-' || r == '_' || r == '.' }) {
		out.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return out.String()
}

// OpenAPI returns what OpenAPIPath answers with.
func (s *Server) OpenAPI() []byte { return s.openAPI }

func (s *Server) serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	write(w, http.StatusOK, "application/json", json.RawMessage(s.openAPI))
}
