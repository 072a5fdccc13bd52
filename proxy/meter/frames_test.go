package meter_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/proxy/eventstream/eventstreamtest"
	"github.com/authpool/authpool/proxy/meter"
)

// TestWrappedEvents: the event's JSON is found in whatever form its Base64 comes,
// and wherever it is cut.
func TestWrappedEvents(t *testing.T) {
	inner := `{"generation":"????>>>>","prompt_token_count":9,"generation_token_count":26}`
	coded := base64.StdEncoding.EncodeToString([]byte(inner))
	if !strings.Contains(coded, "/") {
		t.Fatal("there is nothing to escape")
	}
	large := base64.StdEncoding.EncodeToString([]byte(`{"generation":"` + strings.Repeat("x", 100_000) + `","prompt_token_count":9,"generation_token_count":26}`))
	for _, tt := range []struct {
		name    string
		payload string
		known   bool
	}{
		{"plain", `{"bytes":"` + coded + `"}`, true},
		{"padding first", `{"p":"abc","bytes":"` + coded + `"}`, true},
		{"escaped slashes", `{"bytes":"` + strings.ReplaceAll(coded, "/", `\/`) + `"}`, true},
		{"large", `{"bytes":"` + large + `","p":"abc"}`, true},
		{"no Base64", `{"bytes":"!!!!"}`, false},
		{"cut short", `{"bytes":"` + coded[:len(coded)-8] + `"}`, false},
		{"no text", `{"bytes":12}`, false},
		{"elsewhere", `{"x":{"bytes":"` + coded + `"}}`, false},
		{"not wrapped", inner, false},
		{"nothing", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := eventstreamtest.Event("chunk", tt.payload)
			h := head{contentType: string(framed)}
			whole := readHead(t, meter.BedrockInvoke, h, "", frame)
			if got := whole.Result; tt.known != (got.State == meter.Partial && got.Tokens.Input == 9 && got.Tokens.Output == 26) {
				t.Errorf("known %v: %+v", tt.known, got)
			}
			for seed := range uint64(5) {
				if diff := cmp.Diff(whole, readHead(t, meter.BedrockInvoke, h, "", cutRandomly(frame, seed)...)); diff != "" {
					t.Fatalf("cut (-whole +cut):\n%s", diff)
				}
			}
			if len(frame) < 1000 {
				if diff := cmp.Diff(whole, readHead(t, meter.BedrockInvoke, h, "", cutBytes(frame)...)); diff != "" {
					t.Fatalf("cut (-whole +cut):\n%s", diff)
				}
			}
		})
	}
}

// TestErrorFrames: an error that the service does not declare has its text in the
// frame's headers.
func TestErrorFrames(t *testing.T) {
	frame := eventstreamtest.Message(nil,
		eventstreamtest.Header{Name: ":message-type", Value: "error"},
		eventstreamtest.Header{Name: ":error-code", Value: "internalFailure"},
		eventstreamtest.Header{Name: ":error-message", Value: "It broke."})
	for _, api := range []meter.API{meter.BedrockConverse, meter.BedrockInvoke} {
		r := readHead(t, api, head{contentType: string(framed)}, "", cutBytes(frame)...)
		want := meter.Failure{Type: "internalFailure", Message: "It broke."}
		if f, failed := r.failed(); !failed || f != want {
			t.Errorf("%+v, want %+v", f, want)
		}
		if r.Result.Billable || r.Content {
			t.Errorf("billable %v, content %v", r.Result.Billable, r.Content)
		}
	}
}

// TestFramesAreNotMixed: what a frame told before it broke off, or of an event
// that is none, does not reach the next.
func TestFramesAreNotMixed(t *testing.T) {
	m := meter.New(meter.BedrockConverse, meter.Options{ContentType: framed})
	m.Write(eventstreamtest.Event("metadata", `{"usage":{"inputTokens":99,"outputTokens":99`))
	m.Write(eventstreamtest.Event("metadata", `{"usage":{"outputTokens":2}}`))
	if r := m.Result(); r.Raw.Input != -1 || r.Raw.Output != 2 {
		t.Errorf("%+v", r.Raw)
	}
}
