package audit_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/authpool/authpool/pool/audit"
)

// smallDiskEnv makes the test binary the child of TestSmallDisk.
const smallDiskEnv = "AUTHPOOL_TEST_AUDIT_DISK"

// TestSmallDisk: a real disk is full, and then it is not. It runs in a child with a
// mount namespace of its own, where it may mount a disk of 256 KiB.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if os.Getenv(smallDiskEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSmallDisk$", "-test.v")
		cmd.Env = append(os.Environ(), smallDiskEnv+"=1")
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
		case err != nil || !bytes.Contains(out, []byte("--- PASS: TestSmallDisk")):
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount a small disk: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	told := make(chan error, 8)
	l := open(t, audit.Options{Dir: filepath.Join(dir, "audit"), Failing: func(err error) { told <- err }})
	hear := func() error {
		t.Helper()
		select {
		case err := <-told:
			return err
		case <-time.After(30 * time.Second):
			t.Fatal("nobody was told")
			return nil
		}
	}
	l.Add(audit.Entry{Kind: audit.ServeStarted, Actor: audit.Operator})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 500)
	for range 32 { // more than what is left of the page under way
		l.Add(audit.Entry{Kind: audit.ConfigLoaded, Actor: audit.Operator, Fields: map[string]string{"n": long}})
	}
	if err := hear(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := hear(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(kinds(lines(t, filepath.Join(dir, "audit"))), "config.loaded"); n != 32 {
		t.Errorf("%d lines are there", n)
	}
	verifies(t, filepath.Join(dir, "audit"))
}
