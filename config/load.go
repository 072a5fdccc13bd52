package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds what Load reads; a config of 500 subscriptions has 100 KiB.
const maxFile = 4 << 20

// Load reads and checks a file. What is wrong in it comes back as Faults, all at
// once; a file that cannot be read, as another error.
func Load(path string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read config: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("cannot read config %s: it is larger than %s", path, Size(maxFile))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read config: %w", err)
	}
	return Parse(path, data)
}

// Parse reads and checks data as if it were the file called name. Relative
// paths in it are made relative to the folder of name.
func Parse(name string, data []byte) (*Config, error) {
	c := Default()
	d := &decoder{
		origin:  origin{places: map[string]place{}, file: name},
		anchors: map[string]ast.Node{},
		open:    map[string]bool{},
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // editors on Windows begin files so
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, Faults{d.syntax(err)}
	}
	switch docs := documents(file); len(docs) {
	case 0:
	case 1:
		ast.Walk(anchorFinder(d.anchors), docs[0])
		d.value("", docs[0], reflect.ValueOf(c).Elem(), rules{})
	default:
		d.fault(docs[1], "", "begins a second document", "one document in a file")
	}
	c.origin = d.origin
	c.settle(filepath.Dir(name))
	v := validator{Config: c, broken: d.faults}
	v.all()
	return c.checked(append(d.faults, v.faults...))
}

// checked is the outcome of loading: the Config or its faults.
func (c *Config) checked(faults Faults) (*Config, error) {
	if err := faults.orNil(); err != nil {
		return nil, err
	}
	return c, nil
}

// settle brings values to their one form: base URLs lose one trailing slash, and
// relative paths become relative to the file's folder, so that they mean the
// same wherever authpool is started.
func (c *Config) settle(folder string) {
	refs := []*Ref{&c.Admin.Token, &c.Admin.Viewer, &c.Redis.Password, &c.Egress.Password, &c.Sealing.Keyset}
	for i := range c.Subscriptions {
		refs = append(refs, &c.Subscriptions[i].Credential.Value)
	}
	for i := range c.Notifications {
		refs = append(refs, &c.Notifications[i].Secret)
	}
	for _, r := range refs {
		*r = r.under(folder)
	}
	for _, r := range []*FileRef{&c.TLS.Cert, &c.TLS.Key, &c.Prices} {
		*r = FileRef(Ref(*r).under(folder))
	}
	if r, ok := c.Redis.URLRef(); ok {
		c.Redis.URL = string(r.under(folder))
	}
	for name, p := range c.Providers {
		p.BaseURL = strings.TrimSuffix(p.BaseURL, "/")
		c.Providers[name] = p
	}
	for _, path := range []*string{&c.StateDir, &c.Egress.CAFile} {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(folder, *path)
		}
	}
}

// syntax makes a fault of the YAML parser's complaint. Only its message is used:
// the whole error would quote the lines around, and with them perhaps a secret.
func (d *decoder) syntax(err error) Fault {
	f := Fault{Origin: d.file, Line: 1, Column: 1, Problem: "this is not YAML", Allowed: "a YAML mapping of keys, such as listen: and subscriptions:"}
	if at, ok := errors.AsType[*yaml.SyntaxError](err); ok {
		f.Problem += " (" + at.Message + ")"
		if t := at.Token; t != nil && t.Position != nil {
			f.Line, f.Column = max(t.Position.Line, 1), max(t.Position.Column, 1)
		}
	}
	return f
}

// documents are those of a file that say anything.
func documents(file *ast.File) (bodies []ast.Node) {
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if _, comment := doc.Body.(*ast.CommentGroupNode); !comment {
			bodies = append(bodies, doc.Body)
		}
	}
	return bodies
}

// anchorFinder collects the values that have an anchor, by name. As YAML says,
// the last one of a name would win only for aliases behind it; a name used twice
// is rare enough to take the first.
type anchorFinder map[string]ast.Node

// Visit implements ast.Visitor.
func (a anchorFinder) Visit(n ast.Node) ast.Visitor {
	if anchor, ok := n.(*ast.AnchorNode); ok && anchor.Name != nil {
		name := anchor.Name.GetToken().Value
		if _, taken := a[name]; !taken {
			a[name] = anchor.Value
		}
	}
	return a
}
