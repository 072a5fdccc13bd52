package main

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/explain"
)

// TestRequestText puts in words what the proxy's own test remembers of requests
// that go different ways.
func TestRequestText(t *testing.T) {
	text, err := os.ReadFile("../../proxy/testdata/explained.json")
	if err != nil {
		t.Fatal(err)
	}
	var told map[string][]explain.Request
	if err := json.Unmarshal(text, &told); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, name := range slices.Sorted(maps.Keys(told)) {
		got.WriteString("== " + name + "\n\n" + requestsTable(told[name]) + "\n")
		for i := range told[name] {
			got.WriteString(requestText(&told[name][i]) + "\n")
		}
	}
	const golden = "testdata/explained.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", golden, diff)
	}
}
