package usage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/authpool/authpool/ratelimit/usage"
)

// fullDiskEnv makes the test binary the child of TestFullDisk.
const fullDiskEnv = "AUTHPOOL_TEST_FULL_DISK"

// TestFullDisk: the disk is full long before the journal is. It runs in a child with
// a mount namespace of its own, where it may mount a disk of 1 MiB.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if os.Getenv(fullDiskEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), fullDiskEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		switch {
		case err != nil && len(out) == 0:
			t.Skipf("no namespaces here: %v", err)
		case bytes.Contains(out, []byte("--- SKIP")):
			t.Skipf("%s", out)
		case err != nil || !bytes.Contains(out, []byte("--- PASS: TestFullDisk")):
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()

	l := newLedger()
	l.fail = func() failure { return lostRequest }
	a := &alarms{}
	opts := usage.JournalOptions{Sync: time.Millisecond, Max: 2 << 20, Keep: time.Hour} // segments of 256 KiB
	r := usage.NewRecorder(openJournal(t, filepath.Join(dir, "journal"), opts), l, usage.RecorderOptions{Alarm: a.add})
	r.Start(t.Context())
	e := usage.Event{Subscription: "team-a"}
	taken := 0
	fill := func() error {
		for {
			e.ID = fmt.Sprint(taken)
			if err := r.Add(e); err != nil {
				return err
			}
			taken++
		}
	}
	if err := fill(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want a full disk", err)
	}
	if s := r.Journal(); !s.Refusing || s.Refused != 1 || s.Bytes > 1<<20 {
		t.Errorf("the state is %+v", s)
	}
	l.mu.Lock()
	l.fail = func() failure { return works }
	l.mu.Unlock()

	// Redis takes what there is: segments go, although neither Max nor Keep asks for
	// it, and there is room again.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for again := 0; again < 3; {
		if err := r.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		e.ID = fmt.Sprint(taken)
		if r.Add(e) != nil {
			continue
		}
		taken++
		again++
		if err := fill(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want a full disk", err)
		}
	}
	if err := r.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	// Others have the room now, and give it back.
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := fill(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want a full disk", err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	for e.ID = fmt.Sprint(taken); r.Add(e) != nil; {
		if err := r.Flush(ctx); err != nil {
			t.Fatalf("there is room again, and it is not taken: %v", err)
		}
	}
	taken++
	if err := r.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got := l.account("team-a").ids; len(got) != taken {
		t.Errorf("counted %d events of %d", len(got), taken)
	}
	for i, id := range l.account("team-a").ids {
		if id != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
	for _, err := range a.list {
		if s := err.Error(); !strings.Contains(s, "no space left") && !errors.Is(err, usage.ErrGap) {
			t.Errorf("alarm: %v", err)
		}
	}
	if len(a.list) == 0 {
		t.Error("nobody was told")
	}
}
