package jsonscan

import (
	"fmt"
	"strings"
)

const (
	// defaultLimit is how many bytes of a scalar are kept when the path sets
	// no limit of its own: more than any number, model name or id.
	defaultLimit = 256
	// maxKey is the longest key that can be named in a path or reported for
	// a `*`, in decoded bytes.
	maxKey = 128
	// maxRawKey is the longest text that a key of maxKey bytes can have: each
	// byte written as \u00XX.
	maxRawKey = 6 * maxKey
	// maxPathDepth bounds the segments of a path, and so a Scanner's stack.
	maxPathDepth = 15
)

// Paths is a compiled set of paths. It is read-only once in use, and then any
// number of Scanners may share it.
type Paths struct {
	nodes  []node
	limits []int
	parts  int // index of the path whose strings are reported in parts, or none
	buffer int // bytes that a Scanner must be able to keep
}

// node is a place in the tree of paths. Node 0 is the whole text's value.
type node struct {
	path int16 // index of the path that ends here, or none
	star int16 // node of any key that edges does not name, or none
	elem int16 // node of an array's elements, or none
	keys []edge
}

type edge struct {
	key  string
	node int16
}

const none = -1

// Compile makes a set of paths. A path is keys joined by dots, `[]` for each
// element of an array, `*` for any key that no other path names at that place,
// and "" for the whole text's value:
//
//	usage.input_tokens
//	choices[].delta.*
//	messages[]
//
// A key may not hold `.`, `[` or `]`, and a path has at most 15 segments.
func Compile(paths ...string) (*Paths, error) {
	p := &Paths{
		nodes:  []node{{path: none, star: none, elem: none}},
		limits: make([]int, len(paths)),
		parts:  none,
		buffer: max(maxRawKey, defaultLimit),
	}
	for i, path := range paths {
		n, err := p.insert(path)
		if err != nil {
			return nil, fmt.Errorf("cannot compile JSON path %q: %w", path, err)
		}
		if p.nodes[n].path != none {
			return nil, fmt.Errorf("cannot compile JSON path %q: it is given twice", path)
		}
		p.nodes[n].path = int16(i)
		p.limits[i] = defaultLimit
	}
	return p, nil
}

// MustCompile is Compile for paths that are part of the program: it panics
// where Compile returns an error.
func MustCompile(paths ...string) *Paths {
	p, err := Compile(paths...)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return p
}

// Limit sets how many bytes of a scalar at the i-th path are kept for
// Value.Raw, instead of 256, and returns p. With 0 the value's place alone is
// reported. It must be called before p is used.
func (p *Paths) Limit(i, bytes int) *Paths {
	p.limits[i] = bytes
	p.buffer = max(p.buffer, bytes)
	return p
}

// Parts makes the text of a string at the i-th path, of any length, be reported
// in parts as it comes, and returns p: Value.Raw of a StringPart is the next
// piece, which may begin or end within an escape, and the String that ends them
// has no Raw. At most one path can be so. It must be called before p is used.
func (p *Paths) Parts(i int) *Paths {
	p.parts = i
	return p.Limit(i, 0)
}

// insert walks path from the root, adds what is missing, and returns the node
// at its end.
func (p *Paths) insert(path string) (int16, error) {
	var at int16
	depth := 0
	for rest := path; rest != ""; {
		depth++
		if depth > maxPathDepth {
			return 0, fmt.Errorf("more than %d segments", maxPathDepth)
		}
		if strings.HasPrefix(rest, "[]") {
			rest = rest[2:]
			at = p.step(at, func(n *node) *int16 { return &n.elem })
		} else {
			end := strings.IndexAny(rest, ".[")
			if end < 0 {
				end = len(rest)
			}
			key := rest[:end]
			rest = rest[end:]
			if key == "" || len(key) > maxKey || strings.Contains(key, "]") {
				return 0, fmt.Errorf("bad key %q", key)
			}
			if key == "*" {
				at = p.step(at, func(n *node) *int16 { return &n.star })
			} else {
				at = p.key(at, key)
			}
		}
		if strings.HasPrefix(rest, ".") {
			rest = rest[1:]
			if rest == "" || rest[0] == '[' {
				return 0, fmt.Errorf("a dot must be followed by a key")
			}
		} else if rest != "" && !strings.HasPrefix(rest, "[]") {
			return 0, fmt.Errorf("unexpected %q", rest)
		}
	}
	return at, nil
}

// step follows, and makes if missing, the link that field picks from node at.
func (p *Paths) step(at int16, field func(*node) *int16) int16 {
	if next := *field(&p.nodes[at]); next != none {
		return next
	}
	next := p.add()
	*field(&p.nodes[at]) = next
	return next
}

func (p *Paths) key(at int16, key string) int16 {
	for _, e := range p.nodes[at].keys {
		if e.key == key {
			return e.node
		}
	}
	next := p.add()
	p.nodes[at].keys = append(p.nodes[at].keys, edge{key, next})
	return next
}

func (p *Paths) add() int16 {
	p.nodes = append(p.nodes, node{path: none, star: none, elem: none})
	return int16(len(p.nodes) - 1)
}

// child returns the node of key under node at, and whether it is the `*` one.
// A key of which only the beginning is given (not whole) is no path's own.
func (p *Paths) child(at int16, key []byte, whole bool) (next int16, star bool) {
	n := &p.nodes[at]
	for i := range n.keys {
		if whole && n.keys[i].key == string(key) {
			return n.keys[i].node, false
		}
	}
	return n.star, n.star != none
}
