package jsonscan_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/jsonscan"
)

// report is a Value that can be kept.
type report struct {
	Path       int
	Kind       jsonscan.Kind
	Raw        string
	Truncated  bool
	Escaped    bool
	Start, End int64
	KeyStart   int64
	KeyEnd     int64
	Key        string
	Index      int
}

type reports []report

func (r *reports) Found(v *jsonscan.Value) {
	*r = append(*r, report{
		v.Path, v.Kind, string(v.Raw), v.Truncated, v.Escaped,
		v.Start, v.End, v.KeyStart, v.KeyEnd, string(v.Key), v.Index,
	})
}

// scan reads doc in pieces that end at each of cuts.
func scan(paths *jsonscan.Paths, doc []byte, cuts ...int) (found reports, valid, done bool) {
	var s jsonscan.Scanner
	s.Reset(paths, &found)
	last := 0
	for _, cut := range cuts {
		s.Write(bytes.Clone(doc[last:cut]))
		last = cut
	}
	s.Write(bytes.Clone(doc[last:]))
	done = s.Close()
	return found, s.Valid(), done
}

func everyByte(doc []byte) []int {
	cuts := make([]int, len(doc))
	for i := range cuts {
		cuts[i] = i
	}
	return cuts
}

// show writes what a caller would use of each report, one a line.
func show(doc string, found reports) string {
	names := map[jsonscan.Kind]string{
		jsonscan.ObjectBegin: "{", jsonscan.ObjectEnd: "}", jsonscan.ArrayBegin: "[", jsonscan.ArrayEnd: "]",
		jsonscan.String: "string", jsonscan.Number: "number", jsonscan.True: "true", jsonscan.False: "false", jsonscan.Null: "null",
	}
	var b strings.Builder
	for _, r := range found {
		fmt.Fprintf(&b, "%d %s", r.Path, names[r.Kind])
		if r.Kind == jsonscan.String || r.Kind == jsonscan.Number {
			fmt.Fprintf(&b, " %s", r.Raw)
		}
		if r.Truncated {
			b.WriteString("...")
		}
		if r.Key != "" {
			fmt.Fprintf(&b, " key=%s", r.Key)
		}
		if r.Index != 0 {
			fmt.Fprintf(&b, " at=%d", r.Index)
		}
		fmt.Fprintf(&b, " <%s>", doc[r.Start:r.End])
		if r.KeyStart >= 0 {
			fmt.Fprintf(&b, " of %s", doc[r.KeyStart:r.KeyEnd])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestParts: a string of any length is told in parts as it comes, wherever it is
// cut, and other values at the path as ever.
func TestParts(t *testing.T) {
	long := strings.Repeat("0123456789", 100)
	for _, tt := range []struct{ name, doc, want string }{
		{"short", `{"a":"x","b":"text","c":1}`, "b:text|"},
		{"long", `{"b":"` + long + `"}`, "b:" + long + "|"},
		{"empty", `{"b":""}`, "b:|"},
		{"escapes as they stand", `{"b":"a\/\u00e9\"b"}`, `b:a\/\u00e9\"b|`},
		{"twice", `{"b":"x","b":"y"}`, "b:x|b:y|"},
		{"no string", `{"b":12,"b":null,"b":{"b":"z"}}`, "Number Null ObjectBegin ObjectEnd "},
		{"elsewhere", `{"a":{"b":"x"},"d":["b"]}`, ""},
		{"never ended", `{"b":"xyz`, "b:xyz"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			paths := jsonscan.MustCompile("a", "b").Parts(1)
			for cut := range len(tt.doc) + 1 {
				var got parts
				var s jsonscan.Scanner
				s.Reset(paths, &got)
				s.Write([]byte(tt.doc[:cut]))
				s.Write([]byte(tt.doc[cut:]))
				if got.text != tt.want {
					t.Fatalf("cut at %d: %q, want %q", cut, got.text, tt.want)
				}
			}
		})
	}
}

// parts writes down what is told of path 1.
type parts struct {
	text string
	open bool
}

func (p *parts) Found(v *jsonscan.Value) {
	if v.Path != 1 {
		return
	}
	kinds := map[jsonscan.Kind]string{jsonscan.Number: "Number ", jsonscan.Null: "Null ", jsonscan.ObjectBegin: "ObjectBegin ", jsonscan.ObjectEnd: "ObjectEnd "}
	if kind, ok := kinds[v.Kind]; ok {
		p.text += kind
		return
	}
	if !p.open {
		p.text += "b:"
		p.open = true
	}
	p.text += string(v.Raw)
	if v.Kind == jsonscan.String {
		p.text += "|"
		p.open = false
	}
}

func TestScannerReportsPaths(t *testing.T) {
	tests := []struct {
		name  string
		paths []string
		doc   string
		want  string
	}{
		{
			"member",
			[]string{"usage.input_tokens"},
			`{"id":1,"usage":{"input_tokens": 12 ,"x":2}}`,
			"0 number 12 <12> of \"input_tokens\"\n",
		},
		{
			"same name elsewhere",
			[]string{"usage.n"},
			`{"n":1,"a":{"usage":{"n":2}},"usage":[{"n":3}],"usage":{"n":{"n":4}}}`,
			"0 { <{> of \"n\"\n0 } <{\"n\":4}> of \"n\"\n",
		},
		{
			"text is not structure",
			[]string{"usage.n"},
			`{"arguments":"{\"usage\":{\"n\":9}}","x":"\"usage\":{\"n\":8}"}`,
			"",
		},
		{
			"duplicates are each told",
			[]string{"model"},
			`{"model":"a","model":"b"}`,
			"0 string a <\"a\"> of \"model\"\n0 string b <\"b\"> of \"model\"\n",
		},
		{
			"an escaped key is the key",
			[]string{"model"},
			`{"mod\u0065l":"a"}`,
			"0 string a <\"a\"> of \"mod\\u0065l\"\n",
		},
		{
			"wildcard",
			[]string{"choices[].delta.*", "choices[].delta.role"},
			`{"choices":[{"delta":{"role":"x","content":"hi"}},{"delta":{"tool\n":[1],"n":null}}]}`,
			"1 string x <\"x\"> of \"role\"\n0 string hi key=content <\"hi\"> of \"content\"\n" +
				"0 [ key=tool\n at=1 <[> of \"tool\\n\"\n0 ] at=1 <[1]> of \"tool\\n\"\n0 null key=n at=1 <null> of \"n\"\n",
		},
		{
			"elements",
			[]string{"m[]", "m[].role"},
			`{"m":[{"role":"a"},7,[{"role":"no"}],{"x":[1,2],"role":"b"}]}`,
			"0 { <{>\n1 string a <\"a\"> of \"role\"\n0 } <{\"role\":\"a\"}>\n0 number 7 at=1 <7>\n" +
				"0 [ at=2 <[>\n0 ] at=2 <[{\"role\":\"no\"}]>\n" +
				"0 { at=3 <{>\n1 string b at=3 <\"b\"> of \"role\"\n0 } at=3 <{\"x\":[1,2],\"role\":\"b\"}>\n",
		},
		{
			"root",
			[]string{"", "[][].a"},
			` [[{"a":true}], [ {"a":false} ] ] `,
			"0 [ <[>\n1 true <true> of \"a\"\n1 false <false> of \"a\"\n0 ] <[[{\"a\":true}], [ {\"a\":false} ] ]>\n",
		},
		{
			"root scalar",
			[]string{""},
			` -1.5e+3`,
			"0 number -1.5e+3 <-1.5e+3>\n",
		},
		{
			"long string",
			[]string{"s", "e"},
			`{"s":"` + strings.Repeat("x", 20) + `","e":""}`,
			"0 string xxxxxxxxxxxx... <\"xxxxxxxxxxxxxxxxxxxx\"> of \"s\"\n1 string  <\"\"> of \"e\"\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			paths := jsonscan.MustCompile(tt.paths...)
			for i := range tt.paths {
				paths.Limit(i, 12)
			}
			found, valid, done := scan(paths, []byte(tt.doc))
			if !valid || !done {
				t.Fatalf("valid %v, done %v; want both", valid, done)
			}
			if diff := cmp.Diff(tt.want, show(tt.doc, found)); diff != "" {
				t.Errorf("whole (-want +got):\n%s", diff)
			}
			for cut := range len(tt.doc) + 1 {
				again, _, _ := scan(paths, []byte(tt.doc), cut)
				if diff := cmp.Diff(found, again); diff != "" {
					t.Fatalf("cut at %d (-whole +cut):\n%s", cut, diff)
				}
			}
		})
	}
}

func TestLimitZeroReportsThePlaceOnly(t *testing.T) {
	found, _, _ := scan(jsonscan.MustCompile("s").Limit(0, 0), []byte(`{"s":"abc"}`), 7)
	want := reports{{Path: 0, Kind: jsonscan.String, Truncated: true, Start: 5, End: 10, KeyStart: 1, KeyEnd: 4}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

func TestLongKeys(t *testing.T) {
	long := strings.Repeat("k", 128)
	escaped := strings.Repeat(`\u006b`, 128)
	paths := jsonscan.MustCompile("*", long)
	for _, tt := range []struct {
		key  string
		path int
	}{
		{long, 1}, {escaped, 1}, {long + "k", 0}, {escaped + "k", 0}, {escaped + `\u006b`, 0},
	} {
		doc := []byte(`{"` + tt.key + `":1}`)
		for _, cuts := range [][]int{nil, everyByte(doc)} {
			found, _, _ := scan(paths, doc, cuts...)
			if len(found) != 1 || found[0].Path != tt.path {
				t.Fatalf("key %q: found %+v, want path %d", tt.key, found, tt.path)
			}
			if tt.path == 0 && found[0].Key != long {
				t.Errorf("key %q: told as %q, want its first 128 bytes", tt.key, found[0].Key)
			}
		}
	}
}

func TestMalformedTextStopsTheScanner(t *testing.T) {
	paths := jsonscan.MustCompile("a", "b")
	for _, doc := range []string{
		`{"a":1]`, `{"a":1,}`, `{"a" 1}`, `{a:1}`, `[1 2]`, `{"a":01}`, `{"a":tru}`, `{"a":"\x"}`, "{\"a\":\"\n\"}",
		`{"a":1}{`, `}`, `]`, `[}`, `{"a":-}`, `{"a":1.}`, `{"a":1e}`, `{"a":"\u00g0"}`, "\xef\xbb\xbf{}", strings.Repeat("[", 10001),
	} {
		found, valid, done := scan(paths, []byte(doc+`,"b":2`), everyByte([]byte(doc))...)
		if valid || done {
			t.Errorf("%.20q: valid %v, done %v; want neither", doc, valid, done)
		}
		for _, r := range found {
			if r.Path == 1 {
				t.Errorf("%.20q: something behind the fault was reported", doc)
			}
		}
	}
}

func TestCompileRefusesWrongPaths(t *testing.T) {
	for _, paths := range [][]string{
		{"a", "a"},
		{"a."},
		{".a"},
		{"a..b"},
		{"a[b]"},
		{"a]"},
		{"a[]b"},
		{"a.[]"},
		{strings.Repeat("k", 129)},
		{strings.Repeat("a.", 15) + "a"},
	} {
		if _, err := jsonscan.Compile(paths...); err == nil {
			t.Errorf("Compile(%q) gave no error", paths)
		}
	}
}

func TestUnquote(t *testing.T) {
	for raw, want := range map[string]string{
		`plain`: "plain", `\"\\\/\b\f\n\r\t`: "\"\\/\b\f\n\r\t", `\u00e9\u20AC`: "é€", `\ud83d\ude00!`: "😀!",
		`\ud83d`: "\uFFFD", `\ude00\ud83d\u0041`: "\uFFFD\uFFFDA", `cut\`: "cut", `cut\u12`: "cut",
	} {
		if got := string(jsonscan.Unquote(nil, []byte(raw))); got != want {
			t.Errorf("Unquote(%s) = %q, want %q", raw, got, want)
		}
	}
}

type ignore struct{ n int }

func (h *ignore) Found(*jsonscan.Value) { h.n++ }

func TestScannerDoesNotAllocate(t *testing.T) {
	paths := jsonscan.MustCompile("a.*", "b[].c", "long")
	doc := []byte(`{"a":{"x\u0041":1,"y":"` + strings.Repeat("z", 700) + `"},"b":[{"c":null},{"c":[[[[1]]]]}],"long":"\u0041"}`)
	var s jsonscan.Scanner
	var h ignore
	s.Reset(paths, &h)
	if n := testing.AllocsPerRun(100, func() {
		s.Reset(paths, &h)
		for i := 0; i < len(doc); i += 7 {
			s.Write(doc[i:min(i+7, len(doc))])
		}
		if !s.Close() {
			t.Fatal("not done")
		}
	}); n != 0 {
		t.Errorf("%v allocations a text, want 0", n)
	}
}

var fuzzPaths = []string{"", "a", "a.b", "a.*", "a[]", "a[].b", "*", "[]", "[].*", "[][].a", "b.c.d", "b[][]"}

// FuzzScanner holds the scanner against encoding/json: the same texts are
// valid, the same values stand at the same places, however the text is cut.
func FuzzScanner(f *testing.F) {
	for _, doc := range []string{
		`{"a":{"b":1,"c":"x\u00e9\\"},"a":[{"b":true},null],"b":{"c":{"d":-0.5E-7}}}`,
		`[[{"a":1}],{"\u0061":2}]`, `"text"`, `12`, `{"a":[],"b":[[1,[2]],{}]}`, "\t{ } \r\n", `{"a\ud800":"\ud800"}`, "{\"\xff\":\"\xff\"}",
	} {
		f.Add([]byte(doc), uint64(1))
	}
	paths := jsonscan.MustCompile(fuzzPaths...)
	f.Fuzz(func(t *testing.T, doc []byte, seed uint64) {
		found, _, done := scan(paths, doc)
		if want := json.Valid(doc); done != want {
			t.Fatalf("Done is %v, json.Valid %v", done, want)
		}
		random := rand.New(rand.NewPCG(seed, 0))
		var cuts []int
		for i := range doc {
			if random.IntN(4) == 0 {
				cuts = append(cuts, i)
			}
		}
		for _, cuts := range [][]int{everyByte(doc), cuts} {
			again, _, _ := scan(paths, doc, cuts...)
			if diff := cmp.Diff(found, again); diff != "" {
				t.Fatalf("cut at %v (-whole +cut):\n%s", cuts, diff)
			}
		}
		if !done {
			return
		}
		want := reference(t, doc)
		var got []string
		for _, r := range found {
			got = append(got, line(t, doc, r))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-encoding/json +jsonscan):\n%s", diff)
		}
	})
}

// line renders a report for comparison with reference. Values are decoded from
// the place reported, so that the offsets are held to it too.
func line(t *testing.T, doc []byte, r report) string {
	text := doc[r.Start:r.End]
	switch r.Kind {
	case jsonscan.ObjectBegin, jsonscan.ArrayBegin:
		return fmt.Sprintf("%s@%d %s", fuzzPaths[r.Path], r.Index, text)
	case jsonscan.ObjectEnd, jsonscan.ArrayEnd:
		if !json.Valid(text) {
			t.Fatalf("an object or array was reported at %q", text)
		}
		return fmt.Sprintf("%s@%d %c", fuzzPaths[r.Path], r.Index, text[len(text)-1])
	default: // scalars
	}
	if raw := strings.Trim(r.Raw, `"`); !r.Truncated && raw != strings.Trim(string(text), `"`) {
		t.Fatalf("Raw is %q at %q", r.Raw, text)
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("a scalar was reported at %q", text)
	}
	if s, ok := v.(string); ok && !r.Truncated {
		if got := strings.ToValidUTF8(string(jsonscan.Unquote(nil, []byte(r.Raw))), "\uFFFD"); got != strings.ToValidUTF8(s, "\uFFFD") {
			// encoding/json writes one U+FFFD a byte, ToValidUTF8 one a run.
			if strings.ReplaceAll(got, "\uFFFD", "") != strings.ReplaceAll(s, "\uFFFD", "") {
				t.Fatalf("Unquote gives %q, encoding/json %q", got, s)
			}
		}
	}
	return fmt.Sprintf("%s@%d %v", fuzzPaths[r.Path], r.Index, v)
}

// reference walks doc by encoding/json's tokens and says what fuzzPaths match.
func reference(t *testing.T, doc []byte) []string {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var out []string
	var walk func(segments []string, index int)
	walk = func(segments []string, index int) {
		token, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		name, reported := match(segments)
		if reported {
			out = append(out, fmt.Sprintf("%s@%d %v", name, index, token))
		}
		delim, ok := token.(json.Delim)
		if !ok {
			return
		}
		for i := 0; d.More(); i++ {
			if delim == '[' {
				walk(append(slices.Clip(segments), "[]"), i)
				continue
			}
			key, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			walk(append(slices.Clip(segments), "."+key.(string)), index)
		}
		end, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		if reported {
			out = append(out, fmt.Sprintf("%s@%d %v", name, index, end))
		}
	}
	walk(nil, 0)
	return out
}

// match finds the path of fuzzPaths at segments; a key's own path goes before
// `*`, decided from the root on.
func match(segments []string) (string, bool) {
	candidates := fuzzPaths
	for i, segment := range segments {
		var own, star []string
		for _, c := range candidates {
			switch s := split(c); {
			case i >= len(s):
			case s[i] == segment && segment != ".*":
				own = append(own, c)
			case s[i] == ".*" && segment != "[]":
				star = append(star, c)
			}
		}
		candidates = own
		if len(own) == 0 {
			candidates = star
		}
	}
	for _, c := range candidates {
		if len(split(c)) == len(segments) {
			return c, true
		}
	}
	return "", false
}

// split cuts a path into segments: "a[].b" into ".a", "[]", ".b".
func split(path string) []string {
	if path == "" {
		return nil
	}
	if path[0] != '[' {
		path = "." + path
	}
	path = strings.ReplaceAll(strings.ReplaceAll(path, "[]", "|[]"), ".", "|.")
	return strings.Split(path[1:], "|")
}

func BenchmarkScanner(b *testing.B) {
	paths := jsonscan.MustCompile("model", "stream", "messages[].role", "messages[].content")
	doc := []byte(`{"model":"m","stream":true,"messages":[` +
		strings.Repeat(`{"role":"user","content":"`+strings.Repeat("Some text, and then more of it. ", 60)+`\n"},`, 100) + `{}]}`)
	var s jsonscan.Scanner
	var h ignore
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		s.Reset(paths, &h)
		s.Write(doc)
	}
}
