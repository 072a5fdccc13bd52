package config

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/invopop/jsonschema"
)

// Schema is the JSON Schema (draft 2020-12) of the file, generated from the Go
// types, for editors and CI. It says what the types say; `authpool check` says
// the rest (ids twice, unknown providers, references that resolve).
func Schema() []byte {
	r := jsonschema.Reflector{
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Anonymous:                  true,
		ExpandedStruct:             true,
		Mapper:                     scalarSchema,
	}
	schema := r.ReflectFromType(reflect.TypeFor[Config]())
	schema.Title = "authpool configuration"
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("BUG: the config types make no schema: %v", err))
	}
	return append(text, '\n')
}

// scalarSchema describes the types that read their own text.
func scalarSchema(t reflect.Type) *jsonschema.Schema {
	text := func(pattern string) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "string", Pattern: pattern}
	}
	texts := &jsonschema.Schema{Type: "array", Items: &jsonschema.Schema{Type: "string"}}
	const duration = `^(?:[0-9]+(?:\.[0-9]*)?(?:ns|us|µs|ms|s|m|h))+$`
	switch t {
	case reflect.TypeFor[Duration]():
		return text(duration)
	case reflect.TypeFor[SyncPolicy]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Const: "always"}, text(duration)}}
	case reflect.TypeFor[Size]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{text(`^[0-9]+(?:B|KiB|MiB|GiB)?$`), {Type: "integer", Minimum: "1"}}}
	case reflect.TypeFor[USD]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{text(`^[0-9]+(?:\.[0-9]{0,9})?$`), {Type: "number", ExclusiveMinimum: "0"}}}
	case reflect.TypeFor[Ref]():
		return text(`^(?:|env:[A-Za-z_][A-Za-z0-9_]*|file:.+|exec:/.*)$`)
	case reflect.TypeFor[Addresses]():
		one := text(`^(?:unix:/.+|.*:[0-9]{1,5})$`)
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{one, {Type: "array", Items: one}}}
	case reflect.TypeFor[HostPolicy]():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Enum: []any{"deny", "tunnel"}}, texts}}
	}
	return nil
}
