package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/authpool/authpool/bench/simulator"
)

// peak is the most memory that the process has ever held, in MiB.
func (a *authpool) peak(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(a.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib >> 10
		}
	}
	t.Fatal("/proc has no VmHWM")
	return 0
}

func TestLargeAnswersTakeConstantMemory(t *testing.T) {
	t.Parallel()
	const answerMiB, growthMiB = 100, 40
	p := startProvider(t, simulator.Options{Keys: keysOf(pairs)})
	a := startAuthpool(t, options{subscriptions: pairs, upstream: p.url})
	a.serveSome(t, "warm", 5)
	before := a.peak(t)
	large := []string{"X-Simulate", fmt.Sprint("large-", answerMiB)}
	for _, stream := range []bool{false, true} {
		resp, err := roundTrip(a.ask(t, "/v1/messages", message("hello", stream), large...))
		if err != nil {
			t.Fatal(err)
		}
		var end tail
		n, err := io.Copy(&end, resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || n < answerMiB<<20 {
			t.Errorf("stream %t: %s, %d bytes, %v", stream, resp.Status, n, err)
		}
		if want := `"output_tokens":` + strconv.Itoa(answerMiB<<20/4); !strings.Contains(string(end.b), want) {
			t.Errorf("stream %t ends in %q, want %s in it", stream, end.b, want)
		}
	}
	a.expectLedger(t, p, pairs)

	// An agent that does not read: the provider must be made to wait.
	c, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := a.ask(t, "/v1/messages", message("hello", true), large...).Write(c); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, 4<<20); err != nil {
		t.Fatal(err)
	}
	a.serveSome(t, "beside", 20)
	for _, e := range p.Ledger() {
		if sent := e.Output * 4 >> 20; !e.Finished && sent > 32 {
			t.Errorf("the provider could send %d MiB to an agent that read 4", sent)
		}
	}
	after := a.peak(t)
	t.Logf("memory grew from %d to %d MiB", before, after)
	if after > before+growthMiB {
		t.Errorf("that is more than %d MiB", growthMiB)
	}
}

// tail keeps the last bytes that were written to it.
type tail struct{ b []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	t.b = bytes.Clone(t.b[max(0, len(t.b)-2048):])
	return len(p), nil
}
