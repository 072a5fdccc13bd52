package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// maxNodes bounds the work that aliases can multiply (a "billion laughs" file).
const maxNodes = 100_000

// missing is what a fault says of a key that has to be there.
const missing = "is missing"

// decoder walks a YAML tree beside a Go value. It does not stop at a fault, and
// it remembers where each value stood, so that later checks can say so too.
type decoder struct {
	origin
	faults  Faults
	anchors map[string]ast.Node
	open    map[string]bool // aliases being followed, to refuse cycles
	nodes   int
}

func (d *decoder) fault(n ast.Node, path, problem, allowed string) {
	where := d.place(n)
	d.faults = append(d.faults, Fault{
		Origin: where.origin, Line: where.line, Column: where.column,
		Field: path, Problem: problem, Allowed: allowed,
	})
}

func (d *decoder) place(n ast.Node) place {
	where := place{origin: d.file, line: 1, column: 1}
	for n != nil {
		switch inner := n.(type) {
		case *ast.MappingNode:
			// A block mapping's own token is its first colon.
			if !inner.IsFlowStyle && len(inner.Values) > 0 {
				n = inner.Values[0].Key
				continue
			}
		case *ast.MappingValueNode:
			n = inner.Key
			continue
		}
		if t := n.GetToken(); t != nil && t.Position != nil {
			where.line, where.column = max(t.Position.Line, 1), max(t.Position.Column, 1)
		}
		break
	}
	return where
}

// rules are what the struct tag of a field demands of its value.
type rules struct {
	enum     []string
	min, max int64
}

func rulesOf(tag reflect.StructTag) (r rules, required bool) {
	r.min, r.max = -1<<63, 1<<63-1
	for rule := range strings.SplitSeq(tag.Get("jsonschema"), ",") {
		name, value, _ := strings.Cut(rule, "=")
		switch name {
		case "enum":
			r.enum = append(r.enum, value)
		case "minimum":
			r.min, _ = strconv.ParseInt(value, 10, 64)
		case "maximum":
			r.max, _ = strconv.ParseInt(value, 10, 64)
		case "required":
			required = true
		}
	}
	return r, required
}

// value reads n into v.
func (d *decoder) value(path string, n ast.Node, v reflect.Value, r rules) {
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.fault(n, path, "the file says too much, counting what its aliases repeat", fmt.Sprintf("at most %d values", maxNodes))
		}
		return
	}
	switch inner := n.(type) {
	case *ast.AnchorNode:
		d.value(path, inner.Value, v, r)
		return
	case *ast.AliasNode:
		d.alias(path, inner, v, r)
		return
	case *ast.TagNode:
		d.fault(n, path, "has a YAML tag", "the value without a tag")
		return
	case *ast.NullNode:
		if kind := v.Kind(); kind != reflect.Struct && kind != reflect.Map && kind != reflect.Slice {
			d.mark(path, n)
			d.fault(n, path, "has no value", d.allowed(v, r))
		}
		return
	case nil:
		return
	}
	d.mark(path, n)
	switch target := v.Addr().Interface().(type) {
	case oneOrMany:
		d.oneOrMany(path, n, target)
		return
	case encoding.TextUnmarshaler:
		d.text(path, n, v, r, target.UnmarshalText)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(path, n, v)
	case reflect.Map:
		d.mapping(path, n, v)
	case reflect.Slice:
		d.list(path, n, v)
	case reflect.String:
		d.text(path, n, v, r, func(text []byte) error { return setString(v, string(text), r) })
	case reflect.Bool:
		d.boolean(path, n, v)
	default:
		d.integer(path, n, v, r)
	}
}

func (d *decoder) mark(path string, n ast.Node) {
	if path != "" {
		d.places[path] = d.place(n)
	}
}

// alias reads the anchored value in the alias' place. Faults within it are
// reported where the anchor stands.
func (d *decoder) alias(path string, n *ast.AliasNode, v reflect.Value, r rules) {
	name := n.Value.GetToken().Value
	target, known := d.anchors[name]
	switch {
	case !known:
		d.fault(n, path, "refers to an anchor that the file does not have", "the name of an anchor")
	case d.open[name]:
		d.fault(n, path, "refers to itself", "an anchor that stands elsewhere")
	default:
		d.open[name] = true
		d.value(path, target, v, r)
		delete(d.open, name)
	}
}

// pairs gives the keys and values of a mapping, or reports that n is none. A key
// that stands twice is reported and its first value kept.
func (d *decoder) pairs(path string, n ast.Node, each func(key string, at *ast.MappingValueNode)) {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.fault(n, path, "is "+kindOf(n), "a mapping of keys")
		return
	}
	seen := map[string]bool{}
	for it := m.MapRange(); it.Next(); {
		pair := it.KeyValue()
		if pair.Key.IsMergeKey() {
			d.fault(pair, path, "has a merge key", "the keys themselves, or an alias for the whole value")
			continue
		}
		key, ok := keyText(pair.Key)
		if !ok {
			d.fault(pair, path, "has a key that is "+kindOf(pair.Key), "a plain key")
			continue
		}
		if seen[key] {
			d.fault(pair, join(path, key), "stands here a second time", "each key once")
			continue
		}
		seen[key] = true
		each(key, pair)
	}
}

func (d *decoder) structure(path string, n ast.Node, v reflect.Value) {
	fields := map[string]int{}
	var names []string
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("yaml"); name != "" {
			fields[name] = i
			names = append(names, name)
		}
	}
	if _, ok := n.(ast.MapNode); !ok {
		d.fault(n, path, "is "+kindOf(n), "a mapping with the keys "+strings.Join(names, ", "))
		return
	}
	given := map[string]bool{}
	d.pairs(path, n, func(key string, pair *ast.MappingValueNode) {
		i, ok := fields[key]
		if !ok {
			d.fault(pair, join(path, quotedKey(key)), "is no key that authpool knows"+suggest(key, names), "one of "+strings.Join(names, ", "))
			return
		}
		given[key] = true
		r, _ := rulesOf(v.Type().Field(i).Tag)
		d.value(join(path, key), pair.Value, v.Field(i), r)
	})
	for _, name := range names {
		field := v.Type().Field(fields[name])
		if r, required := rulesOf(field.Tag); required && !given[name] {
			d.mark(join(path, name), n)
			d.fault(n, join(path, name), missing, d.allowed(v.Field(fields[name]), r))
		}
	}
}

func (d *decoder) mapping(path string, n ast.Node, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(path, n, func(key string, pair *ast.MappingValueNode) {
		element := fresh(v.Type().Elem())
		d.value(join(path, key), pair.Value, element, rules{})
		d.mark(join(path, key), pair) // the key, for faults about the name
		v.SetMapIndex(reflect.ValueOf(key), element)
	})
}

func (d *decoder) list(path string, n ast.Node, v reflect.Value) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fault(n, path, "is "+kindOf(n), "a list")
		return
	}
	for i, item := range list.Values {
		element := fresh(v.Type().Elem())
		d.value(fmt.Sprintf("%s[%d]", path, i), item, element, rules{})
		v.Set(reflect.Append(v, element))
	}
}

func (d *decoder) oneOrMany(path string, n ast.Node, target oneOrMany) {
	if list, ok := n.(*ast.SequenceNode); ok {
		var texts []string
		d.list(path, list, reflect.ValueOf(&texts).Elem())
		target.setMany(texts)
		return
	}
	text, ok := stringOf(n)
	if !ok {
		d.fault(n, path, "is "+kindOf(n), "a text or a list of texts")
		return
	}
	if err := target.setOne(text); err != nil {
		d.wrong(n, path, err)
	}
}

// text reads a scalar through set. A number is taken as its text only by types
// that parse it themselves.
func (d *decoder) text(path string, n ast.Node, v reflect.Value, r rules, set func([]byte) error) {
	text, ok := stringOf(n)
	if _, numeric := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); !ok && numeric && v.Kind() != reflect.String {
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode:
			text, ok = n.GetToken().Value, true
		}
	}
	if !ok {
		allowed := d.allowed(v, r)
		if _, scalar := n.(ast.ScalarNode); scalar && allowed == "a text" {
			allowed = "a text, in quotes"
		}
		d.fault(n, path, "is "+kindOf(n), allowed)
		return
	}
	if err := set([]byte(text)); err != nil {
		d.wrong(n, path, err)
	}
}

func (d *decoder) boolean(path string, n ast.Node, v reflect.Value) {
	b, ok := n.(*ast.BoolNode)
	if !ok {
		d.fault(n, path, "is "+kindOf(n), "true or false")
		return
	}
	v.SetBool(b.Value)
}

func (d *decoder) integer(path string, n ast.Node, v reflect.Value, r rules) {
	number, ok := n.(*ast.IntegerNode)
	if !ok {
		d.fault(n, path, "is "+kindOf(n), d.allowed(v, r))
		return
	}
	i, fits := number.Value.(int64)
	if u, unsigned := number.Value.(uint64); unsigned {
		i, fits = int64(u), u <= 1<<63-1
	}
	if !fits || i < r.min || i > r.max || v.OverflowInt(i) {
		d.fault(n, path, n.GetToken().Value+" is out of range", d.allowed(v, r))
		return
	}
	v.SetInt(i)
}

func (d *decoder) wrong(n ast.Node, path string, err error) {
	problem, allowed := split(err)
	d.fault(n, path, problem, allowed)
}

// allowed says what may stand in v.
func (d *decoder) allowed(v reflect.Value, r rules) string {
	switch v.Interface().(type) {
	case Ref:
		return refAllowed
	case FileRef:
		return fileRefAllowed
	case Duration:
		return durationAllowed
	case Size:
		return sizeAllowed
	case USD:
		return usdAllowed
	case SyncPolicy:
		return durationAllowed + ", or always"
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		return "a mapping of keys"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		if len(r.enum) > 0 {
			return "one of " + strings.Join(r.enum, ", ")
		}
		return "a text"
	default:
		if r.max < 1<<63-1 {
			return fmt.Sprintf("a whole number from %d to %d", r.min, r.max)
		}
		return fmt.Sprintf("a whole number, at least %d", r.min)
	}
}

func setString(v reflect.Value, text string, r rules) error {
	if len(r.enum) > 0 {
		if !slices.Contains(r.enum, text) {
			return wrong{quoted(text) + " is not known here" + suggest(text, r.enum), "one of " + strings.Join(r.enum, ", ")}
		}
	}
	v.SetString(text)
	return nil
}

// fresh makes a value of type t with its defaults.
func fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if d, ok := reflect.TypeAssert[interface{ setDefaults() }](v); ok {
		d.setDefaults()
	}
	return v.Elem()
}

// stringOf gives the text of a plain, quoted or block scalar.
func stringOf(n ast.Node) (string, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		return s.Value.Value, true
	}
	return "", false
}

// keyText gives the text of a mapping key; numbers and booleans keep theirs.
func keyText(n ast.Node) (string, bool) {
	switch k := n.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return k.GetToken().Value, true
	}
	return "", false
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.BoolNode:
		return "true or false"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.NullNode:
		return "empty"
	case *ast.StringNode, *ast.LiteralNode:
		return "a text"
	}
	return "something else"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// quotedKey shows a key as it is when it is plain.
func quotedKey(key string) string {
	if q := quoted(key); strings.ContainsAny(key, " .[]:") || len(q) != len(key)+2 {
		return q
	}
	return key
}

// split takes a scalar type's complaint apart.
func split(err error) (problem, allowed string) {
	if w, ok := errors.AsType[wrong](err); ok {
		return w.problem, w.allowed
	}
	return err.Error(), "a value of the right form"
}
