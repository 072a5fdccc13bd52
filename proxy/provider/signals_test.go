package provider_test

import (
	"bufio"
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
	"github.com/authpool/authpool/ratelimit"
)

var update = flag.Bool("update", false, "write the golden files anew")

// elsewhere are the rows that a raw answer alone cannot show, with the test that
// does.
var elsewhere = map[string]string{"throttled-beside": "TestClassifyKeepsLimitsApart"}

// example is a file of testdata/signals: PROVIDER/ROW.http, or ROW.WHAT.http for
// another form of it. Those with an error inside a stream are read by
// cmd/authpool, which has what finds it.
type example struct{ path, provider, row string }

func examples(t *testing.T) []example {
	t.Helper()
	files, err := filepath.Glob("testdata/signals/*/*.http")
	if err != nil {
		t.Fatal(err)
	}
	list := make([]example, len(files))
	for i, file := range files {
		row, _, _ := strings.Cut(filepath.Base(file), ".")
		list[i] = example{path: filepath.ToSlash(file), provider: filepath.Base(filepath.Dir(file)), row: row}
	}
	return list
}

// classify reads the example's answer; stream tells that it is one.
func (e example) classify(t *testing.T) (v ratelimit.Verdict, stream bool) {
	t.Helper()
	raw, err := os.ReadFile(e.path)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
	if err != nil {
		t.Fatalf("%s: %v", e.path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s: %v", e.path, err)
	}
	var headers []string
	for name, values := range response.Header {
		headers = append(headers, name, values[0])
	}
	a := provider.Answer{Provider: e.provider, Status: response.StatusCode, Headers: pairs(headers...), Body: body}
	switch family, err := provider.ParseFamily(e.provider); {
	case err == nil:
		a.Family = family
	case e.provider == "vertex":
		a.Family = provider.Gemini
	}
	stream = response.StatusCode == http.StatusOK && !bytes.HasPrefix(body, []byte(`{"error"`))
	return provider.Classify(a, now), stream
}

// TestEveryRowHasAnExample fails for a row that nobody has proved, for an
// example that another row decides, and for one whose meaning has changed
// (testdata/signals.golden).
func TestEveryRowHasAnExample(t *testing.T) {
	proved := make(map[string]bool)
	var golden strings.Builder
	for _, e := range examples(t) {
		v, stream := e.classify(t)
		if stream {
			continue
		}
		if v.Row != e.row {
			t.Errorf("%s: decided by the row %q", e.path, v.Row)
		}
		proved[v.Row] = true
		wait := "-"
		if v.Wait >= 0 {
			wait = v.Wait.String()
		}
		fmt.Fprintf(&golden, "%s/%s: %s %s %s %s\n", e.provider, filepath.Base(e.path), v.Signal, v.Reason, v.Scope, wait)
	}
	same(t, "testdata/signals.golden", golden.String())
	known := make(map[string]bool)
	for _, row := range provider.Rows() {
		if known[row.Name] {
			t.Errorf("two rows are called %q", row.Name)
		}
		known[row.Name] = true
		if !proved[row.Name] && elsewhere[row.Name] == "" {
			t.Errorf("testdata/signals has no example of the row %q", row.Name)
		}
		if row.Sign == "" || row.Source == "" {
			t.Errorf("the row %q does not say what it looks like and where that is known from", row.Name)
		}
	}
}

// TestSignalsTable keeps SIGNALS.md equal to the table.
func TestSignalsTable(t *testing.T) {
	found := make(map[string]string)
	for _, e := range examples(t) {
		short := strings.TrimPrefix(e.path, "testdata/signals/")
		found[e.row] += fmt.Sprintf("[%s](%s) ", strings.TrimSuffix(short, ".http"), e.path)
	}
	var b strings.Builder
	b.WriteString(`# What answers mean

Every signal that authpool knows, in the order in which the classifier tries
them: the first row that matches decides, and names itself in logs and in
` + "`authpool explain-response`" + `, which tells the row for any answer. A row looks at the
status, the headers, the error's codes, and last at its text. Errors that come
inside a good answer are read by the same rows, with the status that they would
have had.

Times count from the answer's Date, so that a local clock that is wrong does no
harm. "As told" is the first of these that the answer has: ` + "`retry-after-ms`" + `,
` + "`retry-after`" + `, the latest reset of the limits that are used up, Google's
retryDelay, "try again in 20s" in the text. No wait is negative or longer than 35
days.

This file is made from rows.go by ` + "`go test ./proxy/provider -run TestSignalsTable -update`" + `.

| Row | What the answer looks like | Signal: reason | Scope | Until | authpool | Examples | Source |
| --- | --- | --- | --- | --- | --- | --- | --- |
`)
	for _, row := range provider.Rows() {
		shown := strings.TrimSpace(found[row.Name])
		if test := elsewhere[row.Name]; test != "" {
			shown = "`" + test + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s: %s | %s | %s | %s | %s | %s |\n", row.Name, row.Sign, row.Verdict.Signal, row.Verdict.Reason,
			row.Verdict.Scope, cmp.Or(row.Until, "-"), row.Action(), shown, row.Source)
	}
	same(t, "SIGNALS.md", b.String())
}

// same compares text with a golden file, or writes it.
func same(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s is not what the table says: run the test with -update and look at the difference\ngot:\n%s", file, text)
	}
}
