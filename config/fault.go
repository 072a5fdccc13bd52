package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing wrong in a configuration, with the place where it was
// written. It never holds a secret.
type Fault struct {
	Origin  string // file name, or the flag or variable that gave the value
	Line    int    // 1-based; 0 when Origin is not a file
	Column  int    // 1-based, in characters
	Field   string // path of the key, such as subscriptions[0].credential.value
	Problem string // what is wrong
	Allowed string // what is allowed instead
}

// String writes the fault as FILE:LINE:COL: field: what is wrong → what is allowed.
func (f Fault) String() string {
	var b strings.Builder
	if f.Origin != "" {
		b.WriteString(f.Origin)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
		}
		b.WriteString(": ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Problem)
	if f.Allowed != "" {
		b.WriteString(" → " + f.Allowed)
	}
	return b.String()
}

// Faults are all faults of one configuration, in the order of the file.
type Faults []Fault //nolint:errname // the word that README and messages use

// Error writes one fault a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.String()
	}
	return strings.Join(lines, "\n")
}

// orNil is f as an error: nil when there is none.
func (f Faults) orNil() error {
	if len(f) == 0 {
		return nil
	}
	f.sort()
	return f
}

// sort brings faults into the order of the file.
func (f Faults) sort() {
	slices.SortStableFunc(f, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Field, b.Field))
	})
}

// place is where a value was written.
type place struct {
	origin       string
	line, column int
}

// origin remembers where the values of a Config came from, by field path.
type origin struct {
	places map[string]place
	file   string
}

// at finds the place of path, or of the nearest enclosing value that was
// written. Values that nobody wrote have the file's beginning.
func (o origin) at(path string) place {
	for p := path; p != ""; p = parent(p) {
		if where, ok := o.places[p]; ok {
			return where
		}
	}
	if o.file == "" {
		return place{}
	}
	return place{origin: o.file, line: 1, column: 1}
}

// parent cuts the last step off a field path: a[0].b → a[0] → a → "".
func parent(path string) string {
	if cut := strings.LastIndexAny(path, ".["); cut > 0 {
		return path[:cut]
	}
	return ""
}
