package meter_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/authpool/authpool/proxy/meter"
)

var sockets = map[string]meter.API{
	"responses": meter.OpenAIResponsesSocket, "realtime": meter.OpenAIRealtime, "live": meter.GeminiLive,
}

// played plays lines of a socket, `> ` the agent's and `< ` the provider's, and returns
// what is told of them. Each message is cut into pieces of the given size.
func played(api meter.API, script string, size int) string {
	var s meter.Socket
	s.Reset(api, "asked")
	var out strings.Builder
	n := 0
	turn := func(cut bool) {
		r := s.Result()
		fmt.Fprintf(&out, "%d turn billable=%t state=%d model=%s %+v spoken=%t", n, r.Billable, r.State, r.Model, r.Tokens, r.Spoken)
		if cut {
			fmt.Fprintf(&out, " cut, about %d", s.EstimateOutput())
		}
		out.WriteString("\n")
		s.Next()
	}
	for line := range strings.Lines(script) {
		n++
		side, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		pieces := func(write func([]byte)) {
			for p := []byte(text); len(p) > 0; {
				k := min(size, len(p))
				write(p[:k])
				p = p[k:]
			}
		}
		if side == ">" {
			s.AgentBegin()
			pieces(s.AgentWrite)
			a := s.AgentEnd()
			if a.Ends {
				turn(false)
			}
			if a.Named || a.Begins {
				fmt.Fprintf(&out, "%d asked begins=%t model=%s\n", n, a.Begins, a.Model)
			}
			if a.Begins {
				s.AgentOpens()
			}
			continue
		}
		s.Begin()
		pieces(s.Write)
		h := s.End()
		if h.Begins {
			fmt.Fprintf(&out, "%d begins\n", n)
		}
		if h.Failed {
			f := h.Failure
			fmt.Fprintf(&out, "%d failed {Type:%s Code:%s Message:%s Status:%d ResetsAt:%d}\n", n, f.Type, f.Code, f.Message, f.Status, f.ResetsAt)
		}
		for _, l := range h.Limits {
			fmt.Fprintf(&out, "%d limit %+v\n", n, l)
		}
		if b := h.Beside; b != nil {
			fmt.Fprintf(&out, "%d beside model=%s %+v %+v\n", n, b.Model, b.Tokens, b.Units)
		}
		if h.Ends {
			turn(false)
		}
	}
	if s.Open() {
		turn(true)
	}
	return out.String()
}

// TestSocketVectors plays testdata/sockets, written by hand from the providers'
// references: one file for each dialect and trap.
func TestSocketVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/sockets/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(filepath.Base(file), "-")
		api := sockets[strings.TrimSuffix(name, ".txtar")]
		script, want := string(a.Files[0].Data), string(a.Files[1].Data)
		got := played(api, script, 1<<20)
		if *update {
			a.Files[1].Data = []byte(got)
			if err := os.WriteFile(file, txtar.Format(a), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", file, d)
		}
		for _, size := range []int{1, 7} {
			if d := cmp.Diff(want, played(api, script, size)); d != "" {
				t.Errorf("%s in pieces of %d: (-want +got)\n%s", file, size, d)
			}
		}
	}
}

// FuzzSocket: no message makes it panic, and counts are never negative.
func FuzzSocket(f *testing.F) {
	files, _ := filepath.Glob("testdata/sockets/*.txtar")
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for i := range uint8(3) {
			f.Add(i, a.Files[0].Data)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, script []byte) {
		api := [...]meter.API{meter.OpenAIResponsesSocket, meter.OpenAIRealtime, meter.GeminiLive}[which%3]
		whole := played(api, string(script), 1<<20)
		if cut := played(api, string(script), 3); cut != whole {
			t.Errorf("whole: %s\ncut: %s", whole, cut)
		}
		if bytes.Contains([]byte(whole), []byte("Input:-")) || bytes.Contains([]byte(whole), []byte("Output:-")) {
			t.Errorf("negative: %s", whole)
		}
	})
}
