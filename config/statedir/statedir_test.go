package statedir_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/authpool/authpool/config/statedir"
)

func TestPath(t *testing.T) {
	f := func(configured string, env map[string]string, want string) {
		t.Helper()
		got, err := statedir.Path(configured, func(name string) string { return env[name] })
		if got != want || (want == "") != errors.Is(err, statedir.ErrNoHome) {
			t.Errorf("%q with %v: %q, %v; want %q", configured, env, got, err, want)
		}
	}
	all := map[string]string{"AUTHPOOL_STATE_DIR": "/s", "XDG_STATE_HOME": "/x", "HOME": "/h"}
	f("/c", all, "/c")
	f("", all, "/s")
	f("", map[string]string{"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/authpool")
	f("", map[string]string{"XDG_STATE_HOME": "x", "HOME": "/h"}, "/h/.local/state/authpool")
	f("", map[string]string{"HOME": "/h"}, "/h/.local/state/authpool")
	f("", nil, "")
}

func open(t *testing.T, path string) *statedir.Dir {
	t.Helper()
	d, err := statedir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestOpenMakesTokensThatLast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "state")
	d := open(t, path)
	secrets := map[string]string{
		statedir.AgentTokenFile:    d.AgentToken(),
		statedir.AdminTokenFile:    d.AdminToken(),
		statedir.ViewerTokenFile:   d.ViewerToken(),
		statedir.RedisPasswordFile: d.RedisPassword(),
	}
	prefixes := map[string]string{statedir.AgentTokenFile: "apa_", statedir.AdminTokenFile: "apo_", statedir.ViewerTokenFile: "apo_"}
	seen := map[string]bool{}
	for file, secret := range secrets {
		random, ok := strings.CutPrefix(secret, prefixes[file])
		bytes, err := base64.RawURLEncoding.DecodeString(random)
		if !ok || err != nil || len(bytes) != 32 || seen[random] {
			t.Errorf("%s: %q is no token", file, secret)
		}
		seen[random] = true
		text, err := os.ReadFile(filepath.Join(path, file))
		if err != nil || string(text) != secret+"\n" {
			t.Errorf("%s holds %q, %v", file, text, err)
		}
		if got := mode(t, filepath.Join(path, file)); got != 0o600 {
			t.Errorf("%s has mode %04o", file, got)
		}
	}
	if got := mode(t, path); got != 0o700 {
		t.Errorf("the folder has mode %04o", got)
	}
	if d.Path() != path || len(d.Notes()) != 0 {
		t.Errorf("path %s, notes %v", d.Path(), d.Notes())
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	again := open(t, path)
	if again.AgentToken() != d.AgentToken() || again.AdminToken() != d.AdminToken() || again.ViewerToken() != d.ViewerToken() || again.RedisPassword() != d.RedisPassword() {
		t.Error("the second start made other tokens")
	}
}

func TestOpenClosesTheFolderToOthers(t *testing.T) {
	path := t.TempDir()
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(path, statedir.AdminTokenFile)
	if err := errors.Join(os.Chmod(path, 0o755), os.Chmod(token, 0o664)); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	if mode(t, path) != 0o700 || mode(t, token) != 0o600 {
		t.Errorf("modes are %04o and %04o", mode(t, path), mode(t, token))
	}
	notes := strings.Join(d.Notes(), "\n")
	if len(d.Notes()) != 2 || !strings.Contains(notes, "mode 0755") || !strings.Contains(notes, "mode 0664") {
		t.Errorf("notes are %q", notes)
	}
}

func TestOpenRefusesDamagedTokens(t *testing.T) {
	for _, text := range []string{"", "\n", "apo_short\n", "apa_" + strings.Repeat("A", 43) + "\n", "apo_" + strings.Repeat("!", 43) + "\n"} {
		path := t.TempDir()
		if err := os.WriteFile(filepath.Join(path, statedir.AdminTokenFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := statedir.Open(path)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "admin.token does not hold a token: delete it") {
			t.Errorf("%q: error is %v", text, err)
		}
		if text != "" && text != "\n" && err != nil && strings.Contains(err.Error(), strings.TrimSpace(text)) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}

func TestOpenRefusesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := statedir.Open(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "name another folder by --state-dir") {
		t.Errorf("error is %v", err)
	}
}

// Nothing of a folder such as /tmp may be changed.
func TestOpenRefusesWhatAllUsersShare(t *testing.T) {
	path := t.TempDir()
	if err := os.Chmod(path, 0o777|fs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, err := statedir.Open(path); err == nil || !strings.Contains(err.Error(), "all users share: name a folder of your own") {
		t.Errorf("error is %v", err)
	}
	if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 || mode(t, path) != 0o777 {
		t.Errorf("it was changed: mode %04o, %v, %v", mode(t, path), entries, err)
	}
}

func TestSecondOpenIsRefusedUntilClose(t *testing.T) {
	path := t.TempDir()
	first := open(t, path)
	_, err := statedir.Open(path)
	if !errors.Is(err, statedir.ErrInUse) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("error is %v", err)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, path)
}

// Who looks whether somebody has the folder is not taken for one who has.
func TestALookIsNoUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir()
		look, err := os.Create(filepath.Join(path, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer look.Close()
		if err := unix.Flock(int(look.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		opened := make(chan error, 1)
		go func() {
			dir, err := statedir.Open(path)
			if err == nil {
				err = dir.Close()
			}
			opened <- err
		}()
		synctest.Wait() // it has found the folder locked
		if err := unix.Flock(int(look.Fd()), unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})
}

// TestAProcessThatDiedLeavesNoLock runs itself as the process that dies.
func TestAProcessThatDiedLeavesNoLock(t *testing.T) {
	const variable = "AUTHPOOL_TEST_STATE_DIR"
	if path := os.Getenv(variable); path != "" {
		if _, err := statedir.Open(path); err != nil {
			t.Fatal(err)
		}
		process, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = process.Kill()
		}
		t.Fatal(err)
	}
	path := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestAProcessThatDiedLeavesNoLock$")
	child.Env = append(os.Environ(), variable+"="+path)
	if out, err := child.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended by %v: %s", err, out)
	}
	held, err := os.ReadFile(filepath.Join(path, "lock"))
	if err != nil || strings.TrimSpace(string(held)) != fmt.Sprint(child.Process.Pid) {
		t.Fatalf("the child did not hold the lock: %q, %v", held, err)
	}
	open(t, path)
}
