package provider

import (
	"fmt"
	"strings"

	"github.com/authpool/authpool/proxy/meter"
)

// PathRule is an operator's row of a provider's manifest. Rules are asked before the
// manifest, and the first that matches counts.
type PathRule struct {
	// Path is a pattern of the whole path behind the base URL, such as
	// /api/claude_code/**, with `*` for a segment or a part of one and a last `**` for
	// any number.
	Path    string
	Methods []string // none: all
	// Action is inject, free, bound, local or refuse. What inject, free and bound let
	// through is counted as the manifest says, and unknown where it says nothing; free
	// is not counted.
	Action string
}

// PathError says what is wrong with a PathRule, or unusual.
type PathError struct {
	Provider string
	Index    int    // of the rule
	Key      string // of the rule: path, methods or action
	Problem  string // what is wrong
	Allowed  string // what is allowed instead; empty for what is only unusual
}

// Error implements error.
func (e *PathError) Error() string {
	text := fmt.Sprintf("providers.%s.paths[%d].%s: %s", e.Provider, e.Index, e.Key, e.Problem)
	if e.Allowed != "" {
		text += " → " + e.Allowed
	}
	return text
}

// rule is a PathRule that can be matched.
type rule struct {
	row
	posted Endpoint // of a POST that the manifest does not know
}

// add puts the operator's rules in front. The notes are about what they lift.
//
// No rule has a credential sent to where keys and secrets are made: what an agent got
// there would work without authpool, for ever. What else is refused is the operator's to
// open, path by path.
func (t *paths) add(rules []PathRule, provider string) (notes, faults []*PathError) {
	for i, given := range rules {
		fault := func(key, problem, allowed string) {
			faults = append(faults, &PathError{provider, i, key, problem, allowed})
		}
		r := &rule{}
		var err error
		if r.pattern, err = parsePattern(given.Path); err == nil && (r.where != fromHost || strings.Contains(given.Path, "{")) {
			err = fmt.Errorf("%q does not begin at the host", given.Path)
		}
		if err != nil {
			fault("path", err.Error(), "the whole path behind the base URL, such as /v1/skills/**")
			continue
		}
		if r.methods, err = parseMethods(given.Methods); err != nil {
			fault("methods", err.Error(), strings.Join(methodNames, ", "))
			continue
		}
		action, err := parseAction(given.Action)
		if err != nil {
			fault("action", err.Error(), "inject, free, bound, local or refuse")
			continue
		}
		if action.Sends() {
			if refused := t.refusedBy(&r.pattern); refused != nil {
				what := fmt.Sprintf("%s (%s)", whyNames[refused.why], refused.text)
				opens := refused.why.opens()
				switch {
				case opens == 0:
					fault("path", "would have a credential sent to "+what, "local or refuse; what is made there works without authpool, so that it is made at the provider's console")
					continue
				case !r.exact() || r.methods == 0:
					fault("path", "would have a credential sent to "+what+" by a pattern or by any method", "one path without *, with its methods")
					continue
				case r.methods&^opens != 0:
					fault("methods", "would have "+what+" changed with the subscriptions' credentials", "GET and HEAD")
					continue
				}
				t.lifts = true
				notes = append(notes, &PathError{
					Provider: provider, Index: i, Key: "path",
					Problem: fmt.Sprintf("every agent can reach %s with the subscriptions' credentials: it is %s, and refused without this rule", given.Path, what),
				})
			}
		}
		r.Endpoint = Endpoint{Name: r.name(), Action: action, operators: true}
		r.posted = r.Endpoint
		if action == Inject || action == Bound {
			r.posted.API, r.posted.Creates = otherEndpoint.API, true
		}
		t.rules = append(t.rules, r)
	}
	return notes, faults
}

// refusedBy returns a row that refuses a path of a pattern, or nil; of several the one
// that may be opened least. The stars of the pattern are taken for words of their own:
// what they may stand for is refused when the request comes.
func (t *paths) refusedBy(want *pattern) (worst *row) {
	path, ok := parsePath(nil, []byte(strings.TrimSuffix(want.text, "/**")))
	for i := 0; ok && i < path.count; i++ {
		if r := t.refusesFrom(&path, i); r != nil && (worst == nil || r.why.opens() < worst.why.opens()) {
			worst = r
		}
	}
	return worst
}

// endpoint is what the rule makes of a request.
func (r *rule) endpoint(t *paths, p *plainPath, method methods) (e *Endpoint, named []byte) {
	if !r.Action.Sends() {
		return &r.Endpoint, nil
	}
	e, named = t.find(p, method)
	switch {
	case !e.Action.Sends() && method == post:
		return &r.posted, nil
	case !e.Action.Sends():
		return &r.Endpoint, nil
	case r.Action == e.Action, r.Action == Inject:
		return e, named
	}
	changed := *e
	changed.Action = r.Action
	if f, ok := e.shape(); ok && f == Anthropic {
		changed.anthropic = true
	}
	if r.Action == Bound {
		changed.Creates = method == post
		return &changed, named
	}
	if e.API.Items() {
		named = nil
	}
	changed.API, changed.Creates = meter.None, false
	return &changed, named
}
