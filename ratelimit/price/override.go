package price

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Override is an operator's own prices, read by LoadFile from a YAML or JSON
// file of this form:
//
//	models:
//	  - provider: anthropic        # authpool's name of the provider, declared ones too
//	    model: claude-sonnet-5     # as the provider's answers name it, exactly
//	    input: 3                   # US dollars per million tokens, plain decimals
//	    output: 15                 # with at most six places
//	    cache_read: 0.3            # the three cache prices may be left out:
//	    cache_write_5m: 3.75       # see Rate for what is assumed then
//	    cache_write_1h: 6
//	    fast: 6                    # optional: what the whole sum is multiplied by for an
//	    us: 1.1                    # answer served so, plain decimals with at most three
//	    batch: 0.5                 # places; also flex and priority
//	    tiers:                     # optional: prices of the whole request when its
//	      - above: 200000          # prompt side has more tokens than that
//	        input: 6
//	        output: 22.5
//
// input and output must be there: free is written 0. A price left out of a tier is
// that of the row. A row replaces the embedded one of the same provider and model
// as a whole, its factors too; only factors that the provider states for all its
// models hold on where the row has none. A class without a factor is not priced:
// see Table.Cost.
type Override struct {
	rates map[key]Rate
	hash  string
}

// overrideFile is the file's form. Numbers are kept as their digits.
type overrideFile struct {
	Models []overrideRow `yaml:"models"`
}

type overrideRow struct {
	Provider string          `yaml:"provider"`
	Model    string          `yaml:"model"`
	Prices   overridePrices  `yaml:",inline"`
	Factors  overrideFactors `yaml:",inline"`
	Tiers    []overrideTier  `yaml:"tiers"`
}

type overrideFactors struct {
	Fast     digits `yaml:"fast"`
	US       digits `yaml:"us"`
	Batch    digits `yaml:"batch"`
	Flex     digits `yaml:"flex"`
	Priority digits `yaml:"priority"`
}

type overrideTier struct {
	Above  int64          `yaml:"above"`
	Prices overridePrices `yaml:",inline"`
}

type overridePrices struct {
	Input        digits `yaml:"input"`
	Output       digits `yaml:"output"`
	CacheRead    digits `yaml:"cache_read"`
	CacheWrite5m digits `yaml:"cache_write_5m"`
	CacheWrite1h digits `yaml:"cache_write_1h"`
}

// priceFields are the fields of overridePrices by kind.
var priceFields = [kinds]string{"input", "output", "cache_read", "cache_write_5m", "cache_write_1h"}

// digits is a number as it stands in the file.
type digits string

// UnmarshalYAML keeps the number's text, without quotes if it has them.
func (d *digits) UnmarshalYAML(text []byte) error {
	*d = digits(strings.Trim(strings.TrimSpace(string(text)), `"'`))
	if *d == "" {
		*d = `""` // there, but empty: a fault, and not a price left out
	}
	return nil
}

// hashLen is the length of the file hash in Table.Version, in hex digits.
const hashLen = 8

// LoadFile reads the operator's prices at path. An unknown key, a price that is
// not a plain decimal, a row twice: each is a fault, and all faults are reported
// at once, one a line, as FILE:LINE:COL: field: what is wrong.
func LoadFile(path string) (*Override, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read prices: %w", err)
	}
	faults := faultList{path: path}
	if tree, err := parser.ParseBytes(data, 0); err == nil && len(tree.Docs) > 0 {
		faults.tree = tree
	}
	var file overrideFile
	err = yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(&file)
	if _, unknown := errors.AsType[*yaml.UnknownFieldError](err); unknown && faults.unknownKeys() {
		// The decoder stops at the first one; what else is wrong is to be told, too.
		file = overrideFile{}
		err = yaml.NewDecoder(bytes.NewReader(data)).Decode(&file)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			pos := at.GetToken().Position
			return nil, fmt.Errorf("%s:%d:%d: %s", path, pos.Line, pos.Column, at.GetMessage())
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	sum := sha256.Sum256(data)
	o := &Override{rates: make(map[key]Rate, len(file.Models)), hash: hex.EncodeToString(sum[:])[:hashLen]}
	for i, row := range file.Models {
		o.add(row, fmt.Sprintf("models[%d]", i), &faults)
	}
	if err := faults.err(); err != nil {
		return nil, err
	}
	return o, nil
}

// add checks row, which stands at field at, and takes it over.
func (o *Override) add(row overrideRow, at string, faults *faultList) {
	k := key{row.Provider, row.Model}
	if k.provider == "" {
		faults.add(at, "provider", "is missing: authpool's name of the provider, such as anthropic")
	}
	if k.model == "" {
		faults.add(at, "model", "is missing: the model as the provider's answers name it")
	}
	if _, twice := o.rates[k]; twice {
		faults.add(at, "model", fmt.Sprintf("%s at %s has a row already", k.model, k.provider))
	}
	base := row.Prices.parse(at, faults)
	for _, required := range []kind{input, output} {
		if !base.set[required] && row.Prices.digits()[required] == "" {
			faults.add(at, priceFields[required], "is missing: US dollars per million tokens, 0 when free")
		}
	}
	var tiers []tier
	for i, t := range row.Tiers {
		at := fmt.Sprintf("%s.tiers[%d]", at, i)
		if t.Above <= 0 {
			faults.add(at, "above", "must be a number of tokens above 0")
		}
		if slices.ContainsFunc(tiers, func(other tier) bool { return other.above == t.Above }) {
			faults.add(at, "above", fmt.Sprintf("%d has a tier already", t.Above))
		}
		tiers = append(tiers, tier{t.Above, t.Prices.parse(at, faults)})
	}
	o.rates[k] = newRate(row.Provider, base, tiers, row.Factors.parse(at, faults))
}

func (f *overrideFactors) parse(at string, faults *faultList) factors {
	var out factors
	for c, d := range [classes]digits{f.Fast, f.US, f.Batch, f.Flex, f.Priority} {
		if d == "" {
			continue
		}
		r, err := parseFactor(string(d))
		if err != nil {
			faults.add(at, classFields[c], err.Error())
		}
		out[c] = r
	}
	return out
}

func (p *overridePrices) digits() [kinds]digits {
	return [kinds]digits{p.Input, p.Output, p.CacheRead, p.CacheWrite5m, p.CacheWrite1h}
}

func (p *overridePrices) parse(at string, faults *faultList) prices {
	var out prices
	for k, d := range p.digits() {
		if d == "" {
			continue
		}
		pico, err := parsePico(string(d))
		if err != nil {
			faults.add(at, priceFields[k], err.Error())
			continue
		}
		out.pico[k], out.set[k] = pico, true
	}
	return out
}

// faultList gathers what is wrong with one file.
type faultList struct {
	path   string
	tree   *ast.File // to find a field's line; may be nil
	faults []fault
}

type fault struct {
	line, column int
	text         string
}

// add reports that field of the value at is wrong. A field that is missing has
// the position of the value.
func (l *faultList) add(at, field, text string) {
	line, column := l.position(at + "." + field)
	if line == 0 {
		line, column = l.position(at)
	}
	l.faults = append(l.faults, fault{line, column, fmt.Sprintf("%s:%d:%d: %s.%s: %s", l.path, line, column, at, field, text)})
}

// unknownKeys reports the keys that the file's form does not have, and whether
// there are any. Keys that are behind an anchor or an alias are not looked at.
func (l *faultList) unknownKeys() bool {
	if l.tree == nil {
		return false
	}
	rowKeys := slices.Concat([]string{"provider", "model", "tiers"}, priceFields[:], classFields[:])
	tierKeys := append([]string{"above"}, priceFields[:]...)
	file := l.tree.Docs[0].Body
	l.unknownKeysOf(file, []string{"models"})
	for _, row := range elements(value(file, "models")) {
		l.unknownKeysOf(row, rowKeys)
		for _, t := range elements(value(row, "tiers")) {
			l.unknownKeysOf(t, tierKeys)
		}
	}
	return len(l.faults) > 0
}

// unknownKeysOf reports the keys of one mapping that are not among known.
func (l *faultList) unknownKeysOf(mapping ast.Node, known []string) {
	for _, e := range entries(mapping) {
		if at := e.Key.GetToken(); !e.Key.IsMergeKey() && !slices.Contains(known, at.Value) {
			l.faults = append(l.faults, fault{
				at.Position.Line, at.Position.Column,
				fmt.Sprintf("%s:%d:%d: unknown field %q", l.path, at.Position.Line, at.Position.Column, at.Value),
			})
		}
	}
}

// entries are those of a mapping; none when node is something else.
func entries(node ast.Node) []*ast.MappingValueNode {
	if m, ok := node.(*ast.MappingNode); ok {
		return m.Values
	}
	return nil
}

// value is that of a mapping's key; nil when it has none.
func value(mapping ast.Node, name string) ast.Node {
	for _, e := range entries(mapping) {
		if e.Key.GetToken().Value == name {
			return e.Value
		}
	}
	return nil
}

// elements are those of a list; none when node is something else.
func elements(node ast.Node) []ast.Node {
	if s, ok := node.(*ast.SequenceNode); ok {
		return s.Values
	}
	return nil
}

// position finds a field in the file, or returns zeros.
func (l *faultList) position(field string) (line, column int) {
	if l.tree == nil {
		return 0, 0
	}
	path, err := yaml.PathString("$." + field)
	if err != nil {
		return 0, 0
	}
	node, err := path.FilterFile(l.tree)
	if err != nil || node == nil {
		return 0, 0
	}
	// The token of a mapping is its first colon; it begins with its first key.
	if m, ok := node.(*ast.MappingNode); ok && len(m.Values) > 0 {
		node = m.Values[0].Key
	}
	pos := node.GetToken().Position
	return pos.Line, pos.Column
}

// err returns all faults in the order of the file, or nil.
func (l *faultList) err() error {
	slices.SortStableFunc(l.faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.column, b.column))
	})
	errs := make([]error, len(l.faults))
	for i, f := range l.faults {
		errs[i] = errors.New(f.text)
	}
	return errors.Join(errs...)
}
