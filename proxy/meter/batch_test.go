package meter_test

import (
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/meter"
)

// TestItemIsToldWhereItsTextEnds: a request of a batch is told of before the end
// of its line goes on, so that it can be counted before the agent has it.
func TestItemIsToldWhereItsTextEnds(t *testing.T) {
	var told []string
	m := meter.New(meter.AnthropicBatchResults, meter.Options{Item: func(i meter.Item) { told = append(told, i.CustomID) }})
	line := `{"custom_id":"a","result":{"type":"succeeded","message":{"model":"m","usage":{"input_tokens":1,"output_tokens":2}}}}`
	m.Write([]byte(line[:len(line)-1]))
	if len(told) != 0 {
		t.Fatalf("told of %v too early", told)
	}
	m.Write([]byte(line[len(line)-1:]))
	if len(told) != 1 || told[0] != "a" {
		t.Fatalf("told of %v, want a", told)
	}
	if r := m.Result(); r.Billable || r.State != meter.Absent {
		t.Errorf("reading the results costs %+v", r)
	}
	m.Write([]byte("\n" + strings.Replace(line, `"a"`, `"b"`, 1)))
	if len(told) != 2 || told[1] != "b" {
		t.Errorf("told of %v, want a and b", told)
	}
}

// TestLargeLinesUseNoMemory: what a request of a batch has generated may be
// megabytes; only its name and its model are kept.
func TestLargeLinesUseNoMemory(t *testing.T) {
	line := []byte(`{"id":"b","custom_id":"a","response":{"status_code":200,"body":{"model":"gpt-x","choices":[{"message":{"content":"` +
		strings.Repeat("x", 4<<20) + `"}}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}},"error":null}` + "\n")
	items := 0
	options := meter.Options{Model: "gpt-x", Item: func(meter.Item) { items++ }}
	m := meter.New(meter.OpenAIBatchOutput, options)
	m.Write(line)
	n := testing.AllocsPerRun(3, func() {
		m.Reset(meter.OpenAIBatchOutput, options)
		m.Write(line)
	})
	if n > 1 { // the custom_id
		t.Errorf("%v allocations a line, want 1", n)
	}
	if items == 0 {
		t.Error("no item")
	}
}
