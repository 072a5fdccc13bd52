package provider_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/provider"
)

func isolationRequest(t testing.TB, family provider.Family, body string) *provider.Request {
	t.Helper()
	registry, err := provider.NewRegistry([]provider.Options{{Name: "openai", Family: family, BaseURL: "https://h"}})
	if err != nil {
		t.Fatal(err)
	}
	target, err := registry.Route([]byte("/openai/v1/responses"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &provider.Request{Provider: target.Provider, Method: []byte("POST"), Rest: target.Rest, Body: []byte(body)}
}

// Whatever a body of JSON says, an id that is one of its texts is found, as are those
// of the documented places.
func FuzzNamed(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","input":[{"type":"item_reference","id":"x"}],"previous_response_id":"resp_1234"}`,
		`{"a":"\"","b":{"c":["file-abc\u0064"]},"d":"\\"}`, `["vs_1","vs_2"]`, `"container_\u003a"`, `{`, ``,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := isolationRequest(t, provider.OpenAI, body)
		call, err := provider.Inspect(r)
		if err != nil {
			return
		}
		var named provider.Named
		named.Find(r, &call.Pins)
		for _, id := range call.Pins.IDs {
			if provider.KeepResource(id) > 0 && !slices.Contains(named.IDs, id) {
				t.Errorf("%q is pinned and not named: %q", id, named.IDs)
			}
		}
		var value any
		if json.Unmarshal([]byte(body), &value) != nil {
			return
		}
		// The same with an id put beside.
		for _, text := range []string{"file-of-another", `file-of\u002danother`, `\u0066ile-of-another`} {
			r.Body = []byte(`{"x":` + body + `,"y":["` + text + `"]}`)
			named.Find(r, &provider.Pins{})
			if !named.Unread && !slices.Contains(named.IDs, "file-of-another") {
				t.Errorf("%s: not found among %q", r.Body, named.IDs)
			}
		}
	})
}

// A request whose ids cannot all be compared says so.
func TestNamedTellsOfTooMany(t *testing.T) {
	var b strings.Builder
	for i := range 300 {
		b.WriteString(`"file-`)
		b.WriteString(strings.Repeat("x", i+1)[:min(i+1, 100)])
		b.WriteString(strings.Repeat("y", i/100))
		b.WriteString(`",`)
	}
	var named provider.Named
	named.Find(isolationRequest(t, provider.OpenAI, "["+b.String()+`""]`), &provider.Pins{})
	if !named.Unread && len(named.IDs) >= 256 || named.Unread && len(named.IDs) != 256 {
		t.Errorf("%d ids, unread %v", len(named.IDs), named.Unread)
	}
}

func BenchmarkNamed(b *testing.B) {
	turn := `{"role":"user","content":[{"type":"input_text","text":"` + strings.Repeat("Please say what func main() does with \\\"os.Args\\\" here. ", 30) + `"}]},`
	for name, turns := range map[string]int{"2KB": 1, "200KB": 110} {
		b.Run(name, func(b *testing.B) {
			r := isolationRequest(b, provider.OpenAI, `{"model":"m","input":[`+strings.Repeat(turn, turns)+`{}]}`)
			var named provider.Named
			b.SetBytes(int64(len(r.Body)))
			b.ReportAllocs()
			for b.Loop() {
				named.Find(r, &provider.Pins{})
			}
		})
		b.Run(name+"/inspect", func(b *testing.B) {
			r := isolationRequest(b, provider.OpenAI, `{"model":"m","input":[`+strings.Repeat(turn, turns)+`{}]}`)
			b.SetBytes(int64(len(r.Body)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = provider.Inspect(r)
			}
		})
	}
}
