package admin

import (
	"encoding"
	"encoding/json"
	"path"
	"reflect"
	"strings"
	"time"

	"github.com/authpool/authpool/proxy/explain"
)

// schema is a JSON Schema (draft 2020-12, which is OpenAPI 3.1's).
type schema map[string]any

// schemas are those of named types, which others refer to. A body's may be looser than
// an answer's: what an answer promises (every field, lists that are not null), a request
// need not keep.
type schemas struct {
	named map[string]schema
	body  bool // whether they are of what is sent, not of what is answered
}

const componentSchemas = "#/components/schemas/"

// of is the schema of what encoding/json makes of a value of type t.
func (s schemas) of(t reflect.Type) schema {
	switch t {
	case reflect.TypeFor[time.Time]():
		return schema{"type": "string", "format": "date-time"}
	case reflect.TypeFor[NanoUSD]():
		return schema{"type": "string", "pattern": `^-?[0-9]+(\.[0-9]{1,9})?$`, "description": "Dollars."}
	case reflect.TypeFor[explain.Seconds]():
		return schema{"type": "number", "description": "Seconds."}
	case reflect.TypeFor[SecretText]():
		return schema{"type": "string", "format": "password", "writeOnly": true}
	case reflect.TypeFor[Code]():
		return schema{"type": "string", "enum": Codes()}
	case reflect.TypeFor[json.RawMessage]():
		return schema{}
	}
	if t.Kind() != reflect.Pointer && t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return schema{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return nullable(s.of(t.Elem()))
	case reflect.Struct:
		return s.refer(t)
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return schema{"type": "string", "contentEncoding": "base64"}
		}
		return s.list(schema{"type": "array", "items": s.of(t.Elem())})
	case reflect.Map:
		return s.list(schema{"type": "object", "additionalProperties": s.of(t.Elem())})
	case reflect.String:
		return schema{"type": "string"}
	case reflect.Bool:
		return schema{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return schema{"type": "number"}
	case reflect.Int, reflect.Int64:
		return schema{"type": "integer", "format": "int64"}
	case reflect.Int8, reflect.Int16, reflect.Int32:
		return schema{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return schema{"type": "integer", "minimum": 0}
	case reflect.Interface:
		return schema{}
	default:
		panic("BUG: the admin API has no words for a " + t.String())
	}
}

// list is what may be left out of a request as null.
func (s schemas) list(l schema) schema {
	if s.body {
		return nullable(l)
	}
	return l
}

func nullable(s schema) schema {
	switch kind := s["type"].(type) {
	case string:
		s["type"] = []string{kind, "null"}
		return s
	case []string:
		return s // it is
	}
	return schema{"anyOf": []schema{s, {"type": "null"}}}
}

// refer describes a struct once, by its name, and points there. One without a name is
// described where it is.
func (s schemas) refer(t reflect.Type) schema {
	name := s.name(t)
	if name == "" {
		return s.object(t)
	}
	if _, done := s.named[name]; !done {
		s.named[name] = schema{} // it may hold itself
		s.named[name] = s.object(t)
	}
	return schema{"$ref": componentSchemas + name}
}

// name is the type's, with that of its package where that is not this one: two may
// have one of the same name.
func (s schemas) name(t reflect.Type) string {
	name := t.Name()
	if name == "" {
		return ""
	}
	if from := path.Base(t.PkgPath()); t.PkgPath() != reflect.TypeFor[Status]().PkgPath() {
		name = strings.ToUpper(from[:1]) + from[1:] + name
	}
	if s.body {
		name += "Body"
	}
	return name
}

func (s schemas) object(t reflect.Type) schema {
	properties, required := map[string]schema{}, []string{}
	s.fields(t, properties, &required)
	o := schema{"type": "object", "properties": properties}
	if len(required) > 0 {
		o["required"] = required
	}
	if s.body {
		o["additionalProperties"] = false
	}
	return o
}

// fields adds what t's fields become; those of a struct that is embedded are t's own.
func (s schemas) fields(t reflect.Type, properties map[string]schema, required *[]string) {
	for field := range t.Fields() {
		tag := field.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		if tag == "-" || !field.IsExported() && !field.Anonymous {
			continue
		}
		if field.Anonymous && name == "" && field.Type.Kind() == reflect.Struct {
			s.fields(field.Type, properties, required)
			continue
		}
		if name == "" {
			name = field.Name
		}
		properties[name] = s.of(field.Type)
		if !strings.Contains(options, "omit") {
			*required = append(*required, name)
		}
	}
}
