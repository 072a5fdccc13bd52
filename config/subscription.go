package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxRecord bounds the text of one subscription, and maxList what each of its
// lists holds: both are far above what anybody writes by hand.
const (
	maxRecord = 64 << 10
	maxList   = 256
)

// ParseSubscription reads one subscription that stands in no file, written in YAML
// or JSON with the keys of the file, and checks it as one of c's: it has the same
// faults (Faults, all at once, without a place). Its secret is kept elsewhere:
// credential has a type, or is left out, and a value is a fault, because only a file
// may refer to variables, files and programs of this machine.
func (c *Config) ParseSubscription(text []byte) (Subscription, error) {
	if len(text) > maxRecord {
		return Subscription{}, Faults{{Problem: "the subscription is larger than " + Size(maxRecord).String(), Allowed: "less"}}
	}
	d := &decoder{origin: origin{places: map[string]place{}}, anchors: map[string]ast.Node{}, open: map[string]bool{}}
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return Subscription{}, Faults{d.syntax(err)}
	}
	s := fresh(reflect.TypeFor[Subscription]())
	for _, doc := range documents(file) {
		d.value("", doc, s, rules{})
	}
	sub := s.Interface().(Subscription)
	v := validator{Config: c, broken: d.faults}
	if !identifier.MatchString(sub.ID) {
		v.fault("id", quoted(sub.ID)+" is no id", identifierAllowed)
	}
	if sub.Credential.Value != "" {
		v.fault("credential.value", "is not for a subscription that is not in the config file", "the secret itself, which is kept sealed")
	}
	for key, n := range map[string]int{"labels": len(sub.Labels), "models": len(sub.Models)} {
		if n > maxList {
			v.fault(key, fmt.Sprintf("has %d entries", n), fmt.Sprintf("at most %d", maxList))
		}
	}
	v.settings(sub, func(key string) string { return key })
	faults := slices.DeleteFunc(append(d.faults, v.faults...), func(f Fault) bool {
		return strings.HasPrefix(f.Field, "credential") && f.Problem == missing
	})
	for i := range faults { // places in a text that nobody has before them say nothing
		faults[i].Origin, faults[i].Line, faults[i].Column = "", 0, 0
	}
	return sub, faults.orNil()
}
