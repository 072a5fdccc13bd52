package provider

import (
	"errors"
	"strings"
)

// pattern is a path of the manifest, as manifest.yaml describes it.
type pattern struct {
	text     string // in lower case
	where    origin
	segments []segment
	open     bool // ends in `**`
}

// origin is where a pattern may begin to match.
type origin uint8

const (
	fromMount origin = iota // at the host, or behind versions and mounts
	fromHost                // at the host alone: `/…`
	anywhere                // at any segment: `**/…`
)

// segment is one of a pattern: a text, or one with a part of it left open.
type segment struct {
	kind           segmentKind
	before, behind string // of a glob; all of a literal is before
}

type segmentKind uint8

const (
	literalSegment segmentKind = iota
	anySegment                 // `*`
	versionSegment             // `{version}`
	globSegment                // one * inside
)

// parsePattern reads the text of a pattern. Matching knows no case.
func parsePattern(text string) (p pattern, err error) {
	p.text = strings.ToLower(text)
	rest, host := strings.CutPrefix(p.text, "/")
	if host {
		p.where = fromHost
	} else if inner, ok := strings.CutPrefix(rest, "**/"); ok {
		p.where, rest = anywhere, inner
	}
	if rest == "**" {
		p.open = true
		return p, nil
	}
	if inner, ok := strings.CutSuffix(rest, "/**"); ok {
		p.open, rest = true, inner
	}
	for part := range strings.SplitSeq(rest, "/") {
		s := segment{before: part}
		before, behind, star := strings.Cut(part, "*")
		switch {
		case part == "":
			return p, errors.New("it has an empty segment")
		case len(part) > maxName && !star:
			return p, errors.New("it has a segment that is too long to be looked for")
		case part == "*":
			s = segment{kind: anySegment}
		case part == "{version}":
			s = segment{kind: versionSegment}
		case strings.Contains(behind, "*"):
			return p, errors.New("it has a segment with more than one *")
		case star:
			s = segment{kind: globSegment, before: before, behind: behind}
		}
		if !plainSegment(part) {
			return p, errors.New("it holds what no plain path does")
		}
		p.segments = append(p.segments, s)
	}
	if len(p.segments) > maxSegments {
		return p, errors.New("it is longer than any path that is looked at")
	}
	return p, nil
}

// plainSegment tells whether a path can hold the segment, so that a row is not one that
// never matches.
func plainSegment(text string) bool {
	plain := trimSegment([]byte(text))
	return string(plain) == text && !strings.ContainsAny(text, "%?#;\\ ") && plainBytes(plain)
}

// exact tells whether the pattern is one path alone.
func (want *pattern) exact() bool {
	for _, s := range want.segments {
		if s.kind != literalSegment {
			return false
		}
	}
	return !want.open && want.where == fromHost
}

// head is the first segment, if that is a text; rows are found by it.
func (want *pattern) head() (string, bool) {
	if len(want.segments) == 0 || want.segments[0].kind != literalSegment {
		return "", false
	}
	return want.segments[0].before, true
}

// name is the pattern as an endpoint's name.
func (want *pattern) name() string {
	return strings.Trim(strings.TrimSuffix(strings.TrimPrefix(want.text, "**/"), "**"), "/")
}

func (s *segment) match(text []byte) bool {
	switch s.kind {
	case anySegment:
		return true
	case versionSegment:
		return isVersion(text)
	case globSegment:
		n := len(text) - len(s.behind)
		return n >= len(s.before) && foldedPrefix(text, s.before) && foldedEqual(text[n:], s.behind)
	default:
		return foldedEqual(text, s.before)
	}
}

// match tells whether the segments of p from i on are the pattern's.
func (want *pattern) match(p *plainPath, i int) bool {
	if rest := p.count - i; rest < len(want.segments) || rest > len(want.segments) && !want.open {
		return false
	}
	for k := range want.segments {
		if !want.segments[k].match(p.segments[i+k]) {
			return false
		}
	}
	return true
}
