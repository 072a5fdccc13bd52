package credential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// maxSecret bounds what a file: or exec: reference reads. Keys have 100 bytes; a service
// account's JSON has some thousand.
const maxSecret = 64 << 10

// Ref says where a secret is: env:NAME, file:PATH or exec:/PROGRAM ARG…. The zero Ref is
// none. It may be printed; what it leads to may not.
type Ref struct{ scheme, target string }

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ErrNotARef is what ParseRef says of a text that is no reference. It does not
// repeat the text, which may be the secret itself.
var ErrNotARef = errors.New("this is not a reference to a secret; write env:NAME, file:PATH or exec:/PROGRAM ARG… and keep the secret itself there")

// ParseRef reads a reference. Its errors wrap ErrNotARef.
func ParseRef(text string) (Ref, error) {
	scheme, target, _ := strings.Cut(text, ":")
	_, runs := execWords(target)
	switch {
	case scheme == "exec" && runs:
	case scheme == "env" && envName.MatchString(target):
	case scheme == "file" && target != "" && !strings.ContainsAny(target, "\x00\n"):
	default:
		return Ref{}, ErrNotARef
	}
	return Ref{scheme, target}, nil
}

// String gives the reference as ParseRef reads it; empty for the zero Ref.
func (r Ref) String() string {
	if r.scheme == "" {
		return ""
	}
	return r.scheme + ":" + r.target
}

// name is the reference in errors: without a program's arguments, among which somebody
// may have written a secret.
func (r Ref) name() string {
	if words, _ := execWords(r.target); r.scheme == "exec" && len(words) > 0 {
		return "exec:" + words[0]
	}
	return r.String()
}

// Resolve reads the secret now, a file or a program's output without its one trailing
// newline. An unset variable, an empty value, and a program that fails, takes longer than
// 5 s or writes more than 64 KiB are errors; every error names the reference and none the
// value.
func (r Ref) Resolve(ctx context.Context) (Secret, error) {
	if err := ctx.Err(); err != nil {
		return Secret{}, fmt.Errorf("cannot resolve %s: %w", r.name(), err)
	}
	var text string
	switch r.scheme {
	case "env":
		value, set := os.LookupEnv(r.target)
		if !set {
			return Secret{}, fmt.Errorf("cannot resolve %s: the variable is not set", r.name())
		}
		text = value
	case "file":
		value, err := readFile(r.target)
		if err != nil {
			return Secret{}, fmt.Errorf("cannot resolve %s: %w", r.name(), err)
		}
		text = value
	case "exec":
		words, _ := execWords(r.target)
		value, err := run(ctx, words)
		if err != nil {
			return Secret{}, fmt.Errorf("cannot resolve %s: %w", r.name(), err)
		}
		text = value
	default:
		return Secret{}, fmt.Errorf("cannot resolve an empty reference: %w", ErrNotARef)
	}
	if text == "" {
		return Secret{}, fmt.Errorf("cannot resolve %s: it is empty", r.name())
	}
	return NewSecret(text), nil
}

// readFile reads a secret's file. Only regular files: a FIFO or a terminal
// would hang the start.
func readFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("it is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // read only: nothing can be lost
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxSecret {
		return "", fmt.Errorf("it is larger than %d bytes", maxSecret)
	}
	text := strings.TrimSuffix(string(data), "\n")
	return strings.TrimSuffix(text, "\r"), nil
}
