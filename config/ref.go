package config

import (
	"path/filepath"
	"regexp"
	"strings"
)

// Ref says where a secret is, never what it is: env:NAME, file:PATH or
// exec:/PROGRAM ARG…; empty means none. It may be printed, see String.
type Ref string

const refAllowed = "env:NAME, file:PATH or exec:/PROGRAM ARG…, so that the secret itself stays out of the config"

// runnable is an absolute path and arguments, with spaces between them.
var runnable = regexp.MustCompile(`^/[^[:cntrl:]]*$`)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// UnmarshalText implements encoding.TextUnmarshaler. Its errors never repeat the
// text: it may be a secret written in the wrong place.
func (r *Ref) UnmarshalText(text []byte) error {
	scheme, target, found := strings.Cut(string(text), ":")
	switch {
	case len(text) == 0:
	case !found:
		return wrong{"a secret is written here in the clear", refAllowed}
	case scheme == "env" && !envName.MatchString(target):
		return wrong{"env: is not followed by the name of a variable", refAllowed}
	case scheme == "file" && (target == "" || strings.ContainsAny(target, "\x00\n")):
		return wrong{"file: is not followed by a path", refAllowed}
	case scheme == "exec" && !runnable.MatchString(target):
		return wrong{"exec: is not followed by the absolute path of a program", refAllowed}
	case scheme == "vault":
		return wrong{scheme + ": references are not available in this version", refAllowed}
	case scheme == "sealed":
		return wrong{"sealed: references exist only in records that authpool manages itself", refAllowed}
	case scheme != "env" && scheme != "file" && scheme != "exec":
		return wrong{"this is no reference; a secret may be written here in the clear", refAllowed}
	}
	*r = Ref(text)
	return nil
}

// String is for people: a program's arguments are left out, as somebody may have
// written a secret among them.
func (r Ref) String() string {
	if program, _, more := strings.Cut(string(r), " "); more && strings.HasPrefix(program, "exec:") {
		return program + " …"
	}
	return string(r)
}

// File gives the path of a file: reference.
func (r Ref) File() (path string, ok bool) { return strings.CutPrefix(string(r), "file:") }

// under makes a relative file: reference relative to folder.
func (r Ref) under(folder string) Ref {
	if path, ok := r.File(); ok && !filepath.IsAbs(path) {
		return Ref("file:" + filepath.Join(folder, path))
	}
	return r
}

// FileRef is a Ref that must be a file: certificates and prices, which are read again
// when they change. Empty means none.
type FileRef string

const fileRefAllowed = "file:PATH"

// UnmarshalText implements encoding.TextUnmarshaler. Its errors never repeat the text,
// which may be a key.
func (r *FileRef) UnmarshalText(text []byte) error {
	if _, isFile := Ref(text).File(); len(text) > 0 && !isFile {
		return wrong{"is not a file", fileRefAllowed}
	}
	if err := new(Ref).UnmarshalText(text); err != nil {
		problem, _ := split(err)
		return wrong{problem, fileRefAllowed}
	}
	*r = FileRef(text)
	return nil
}

// File gives the path of the file; empty: none is named.
func (r FileRef) File() string {
	path, _ := Ref(r).File()
	return path
}
