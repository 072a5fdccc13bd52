package provider

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/authpool/authpool/proxy/meter"
)

// ManifestText is the manifest that authpool brings along.
func ManifestText() string { return string(manifestText) }

// ParseManifest tells what is wrong with the text of a manifest.
func ParseManifest(text string) error {
	_, err := parseManifest([]byte(text))
	return err
}

// Refusals are the patterns of what the manifest refuses.
func Refusals() (patterns []string) {
	for _, r := range builtin().rows {
		if r.Action == Refuse {
			patterns = append(patterns, r.text)
		}
	}
	return patterns
}

// RefusesWithout tells whether a manifest from which the rows of some pattern were taken
// out refuses a path at a provider.
func RefusesWithout(pattern string, p *Provider, path string) bool {
	m := *builtin()
	m.rows = slices.DeleteFunc(slices.Clone(m.rows), func(r *row) bool { return r.text == pattern && r.Action == Refuse })
	plain, ok := parsePath(nil, []byte(path))
	return ok && newPaths(&m, p.Family, p.Name).refuses(&plain) != nil
}

// ManifestTable is the manifest as it was understood, a row a line.
func ManifestTable() string {
	words := map[meter.API]string{}
	for _, word := range slices.Sorted(maps.Keys(dialects)) {
		words[dialects[word]] = word
	}
	var b strings.Builder
	line := func(r *row, what ...string) {
		for f := range familyNames {
			if r.families != 0 && r.families.has(Family(f)) {
				what = append(what, "@"+familyNames[f])
			}
		}
		for _, name := range r.providers {
			what = append(what, "@@"+name)
		}
		fmt.Fprintln(&b, strings.Join(slices.DeleteFunc(what, func(word string) bool { return word == "" }), " "))
	}
	flag := func(is bool, word string) string {
		if is {
			return word
		}
		return ""
	}
	for _, r := range builtin().apis {
		line(r, "api", r.text)
	}
	for _, r := range builtin().rows {
		names := "*"
		if r.methods != 0 {
			names = ""
			for i, name := range methodNames {
				if r.methods&(1<<i) != 0 {
					names += "," + name
				}
			}
		}
		named := ""
		if r.names > 0 {
			named = fmt.Sprint("named:", r.names)
		}
		line(r, r.Action.String(), strings.TrimPrefix(names, ","), r.text, whyNames[r.why], flag(r.Action != Refuse, "name:"+r.Name), words[r.API], named,
			flag(r.Conversation, "conversation"), flag(r.Creates, "creates"), flag(r.Streams, "streams"), flag(r.Lists, "lists"), flag(r.anthropic, "shape:anthropic"))
	}
	for _, kind := range builtin().kinds {
		fmt.Fprintln(&b, "resource", kind.prefix, kind.keep)
	}
	return b.String()
}
