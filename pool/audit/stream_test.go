package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool/audit"
)

// memoryStream is a stream that may be away.
type memoryStream struct {
	mu    sync.Mutex
	away  bool
	seqs  []uint64
	lines [][]byte
}

var errAway = errors.New("away")

func (m *memoryStream) Last(context.Context) (uint64, []byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.away:
		return 0, nil, errAway
	case len(m.seqs) == 0:
		return 0, nil, nil
	}
	return m.seqs[len(m.seqs)-1], m.lines[len(m.lines)-1], nil
}

func (m *memoryStream) Append(_ context.Context, seqs []uint64, lines [][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, seq := range seqs {
		if len(m.seqs) > 0 && seq <= m.seqs[len(m.seqs)-1] {
			continue
		}
		if m.away && i > 0 {
			return errAway // in the middle
		}
		m.seqs, m.lines = append(m.seqs, seq), append(m.lines, lines[i])
	}
	return nil
}

func (m *memoryStream) set(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = away
}

func (m *memoryStream) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(bytes.Join(m.lines, []byte("\n"))) + "\n"
}

// allFiles is all lines of a log.
func allFiles(t *testing.T, dir string) string {
	t.Helper()
	names, err := audit.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return string(all)
}

// The stream gets every line once and in order: over files, over times in which it is
// away and over restarts.
func TestStreamGetsEveryLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, stream := t.TempDir(), &memoryStream{}
		for range 2 {
			log, err := audit.Open(audit.Options{Dir: dir, FileSize: 8 << 10})
			if err != nil {
				t.Fatal(err)
			}
			stop := log.CopyTo(stream, func() bool { return true })
			for round := range 6 {
				stream.set(round%2 == 1)
				for range 100 {
					log.Add(audit.Entry{Kind: audit.ServeStarted, Actor: audit.Operator, Fields: map[string]string{"config": strings.Repeat("x", 50)}})
				}
				time.Sleep(3 * time.Second)
			}
			stream.set(false)
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			stop(t.Context())
		}
		if got, want := stream.text(), allFiles(t, dir); got != want || len(got) < 1000*60 {
			t.Errorf("the stream has %d bytes, the files %d", len(got), len(want))
		}
		if names, _ := audit.List(dir); len(names) < 3 {
			t.Errorf("there are %d files only", len(names))
		}
	})
}

// Who puts an earlier log back is found out by the copy.
func TestStreamTellsOfALogThatWasPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, stream := t.TempDir(), &memoryStream{}
		run := func(acts int) {
			log, err := audit.Open(audit.Options{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			stop := log.CopyTo(stream, func() bool { return true })
			for range acts {
				log.Add(audit.Entry{Kind: audit.ServeStarted, Actor: audit.Operator})
			}
			time.Sleep(5 * time.Second)
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			stop(t.Context())
		}
		run(3)
		saved := t.TempDir()
		if err := os.CopyFS(saved, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		run(5)
		if strings.Contains(stream.text(), "audit.diverged") {
			t.Error("an honest restart is taken for a log that was put back")
		}
		names, _ := os.ReadDir(dir)
		for _, name := range names {
			_ = os.Remove(filepath.Join(dir, name.Name()))
		}
		for _, name := range names {
			if text, err := os.ReadFile(filepath.Join(saved, name.Name())); err == nil {
				if err := os.WriteFile(filepath.Join(dir, name.Name()), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		run(20)
		if !strings.Contains(stream.text(), "audit.diverged") {
			t.Error("the log that was put back was not noticed")
		}
	})
}
