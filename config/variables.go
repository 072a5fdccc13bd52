package config

import (
	"reflect"
	"slices"
	"strings"
)

// SecretVariables are the names of the environment variables that hold the secrets of
// c, sorted: what its env: references name. Who starts an agent keeps them from it.
func (c *Config) SecretVariables() []string {
	var names []string
	add := func(r Ref) {
		if name, ok := strings.CutPrefix(string(r), "env:"); ok {
			names = append(names, name)
		}
	}
	eachRef(reflect.ValueOf(c).Elem(), add)
	if r, ok := c.Redis.URLRef(); ok {
		add(r)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// eachRef finds the references in v. It looks at the types, so that no key can be
// forgotten.
func eachRef(v reflect.Value, found func(Ref)) {
	switch v.Kind() { //nolint:exhaustive // others hold none
	case reflect.String:
		if r, ok := reflect.TypeAssert[Ref](v); ok {
			found(r)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				eachRef(v.Field(i), found)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachRef(v.Index(i), found)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			eachRef(v.MapIndex(key), found)
		}
	}
}
