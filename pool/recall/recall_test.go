package recall_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/pool/recall"
	"github.com/authpool/authpool/pool/store"
)

var quiet = slog.New(slog.DiscardHandler)

func TestFileTellsWhatWasLastKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.agents")
	f := recall.New(path, "agents of here", quiet)
	if _, _, err := f.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before anything was kept: %v", err)
	}
	want := []store.Record{{ID: "bob", Version: 3, Text: `{"hash":"AAAA"}`}, {ID: "ann", Version: 1, Text: "\n"}}
	f.Keep(want)
	list, known, err := recall.New(path, "agents of here", quiet).Load()
	if err != nil || time.Since(known) > time.Minute {
		t.Fatal(known, err)
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, _, err := recall.New(path, "agents of elsewhere", quiet).Load(); !errors.Is(err, recall.ErrOther) {
		t.Errorf("of another Redis: %v", err)
	}
}

// Of a file that is not whole nothing is believed: half of it may lack what was revoked.
func TestDamagedFileIsNotBelieved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	f := recall.New(path, "x", quiet)
	f.Keep([]store.Record{{ID: "bob", Version: 3, Text: "text"}})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{
		"empty": {}, "cut": whole[:len(whole)-1], "longer": append(bytes.Clone(whole), ' '),
		"changed": bytes.Replace(whole, []byte("bob"), []byte("eve"), 1), "no head": bytes.TrimLeft(whole, "{"),
	}
	for name, text := range bad {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if list, _, err := f.Load(); !errors.Is(err, recall.ErrDamaged) || list != nil {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
}

// What is set in a hurry is written once a second, and the last of it at the end.
func TestFileIsNotWrittenAllTheTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	synctest.Test(t, func(t *testing.T) {
		f := recall.New(path, "x", quiet)
		last := func() string {
			list, _, err := f.Load()
			if err != nil {
				t.Fatal(err)
			}
			return list[0].ID
		}
		for _, id := range []string{"a", "b", "c"} {
			f.Keep([]store.Record{{ID: id}})
			f.Flush()
		}
		if got := last(); got != "a" {
			t.Errorf("%s is written at once", got)
		}
		time.Sleep(time.Second)
		f.Flush()
		if got := last(); got != "c" {
			t.Errorf("%s is written after a second", got)
		}
		f.Keep([]store.Record{{ID: "d"}})
		f.Close()
		if got := last(); got != "d" {
			t.Errorf("%s is written at the end", got)
		}
	})
}

// What cannot be written is written later.
func TestFileThatCannotBeWritten(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	f := recall.New(filepath.Join(folder, "records"), "x", quiet)
	f.Keep([]store.Record{{ID: "a"}})
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if list, _, err := f.Load(); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	var none *recall.File
	none.Keep(nil)
	none.Flush()
	none.Close()
	if _, _, err := none.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
