package credential_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool/credential"
)

func TestParseExecRef(t *testing.T) {
	for _, text := range []string{"exec:/bin/true", "exec:/usr/bin/vault kv get -field=key secret/openai", "exec:/with$(no)'shell'"} {
		if ref := mustParse(t, text); ref.String() != text {
			t.Errorf("%s came back as %s", text, ref)
		}
	}
	for _, text := range []string{"exec:", "exec:true", "exec:./true", "exec: ", "exec:/bin/true\n-x", "exec:/bin/true\x00"} {
		if _, err := credential.ParseRef(text); err == nil {
			t.Errorf("%q is a reference", text)
		}
	}
}

// program writes a shell script and gives the reference that runs it: by the shell, as
// nobody may write to what is run at that moment.
func program(t *testing.T, script string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return "exec:/bin/sh " + file
}

func TestResolveRunsAProgram(t *testing.T) {
	f := func(ref, want string) {
		t.Helper()
		secret, err := mustParse(t, ref).Resolve(context.Background())
		if err != nil || secret.Reveal() != want {
			t.Errorf("%s: %q, %v", ref, secret.Reveal(), err)
		}
	}
	f(program(t, "echo sk-one"), "sk-one")
	f(program(t, `printf 'sk-one\r\n'`), "sk-one")
	f(program(t, `echo "$1|$2"`)+" a   b;c", "a|b;c") // words, of which no shell makes more
	f(program(t, `cat; echo end`), "end")             // there is no standard input
	t.Setenv("AUTHPOOL_TEST_KEY", "sk-env")
	f(program(t, `echo "$AUTHPOOL_TEST_KEY"`), "sk-env")
	f(program(t, `echo sk-one; echo noise >&2`), "sk-one")

	fails := func(ref, says string) {
		t.Helper()
		_, err := mustParse(t, ref+" sk-argument").Resolve(context.Background())
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "sk-") {
			t.Errorf("%s: error is %v", ref, err)
		}
	}
	fails(program(t, "echo sk-one; echo sk-two >&2; exit 3"), "exit status 3")
	fails(program(t, "true"), "is empty")
	fails(program(t, "head -c 70000 /dev/zero"), "more than 65536 bytes")
	fails(program(t, "yes sk-one"), "more than 65536 bytes")
	fails("exec:/nowhere/program", "no such file")
	fails("exec:"+t.TempDir(), "permission denied")
	fails(program(t, "sleep 60 & echo sk-one"), "left another behind")
}

// A program that hangs, and what it has started, is ended.
func TestProgramThatHangsIsEnded(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	ref := mustParse(t, program(t, fmt.Sprintf("sleep 600 & echo $! > %s; sleep 600", pids)))
	began := time.Now()
	_, err := ref.Resolve(context.Background())
	if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "did not end in 5s") || took > 60*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		// Killed, it may wait a moment to be reaped.
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, after, _ := strings.Cut(string(status), ") "); err != nil || strings.HasPrefix(after, "Z") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives", pid)
		}
	}
}

// The requests of a source take what the program gave before; the program is run again
// by Renew from time to time, and when its secret was refused.
func TestSourceRunsAProgramAgain(t *testing.T) {
	folder := t.TempDir()
	runs := filepath.Join(folder, "runs")
	answer := filepath.Join(folder, "answer")
	ref := program(t, fmt.Sprintf("echo run >> %s; cat %s", runs, answer))
	say := func(text string) {
		t.Helper()
		if err := os.WriteFile(answer, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		source := credential.NewSource(mustParse(t, ref), credential.APIKey)
		expect := func(what, want string, ran int) {
			t.Helper()
			c, err := source.Credential(t.Context())
			if c.Secret.Reveal() != want || (err == nil) != (want != "") {
				t.Errorf("%s: %q, %v, want %q", what, c.Secret.Reveal(), err, want)
			}
			text, _ := os.ReadFile(runs)
			if got := strings.Count(string(text), "run"); got != ran {
				t.Errorf("%s: ran %d times, want %d", what, got, ran)
			}
		}
		pass := func(d time.Duration) { <-time.After(d); source.Renew() }
		source.Renew()
		expect("nothing there", "", 1)
		pass(9 * time.Second)
		expect("too early", "", 1)
		say("sk-one\n")
		pass(time.Second)
		expect("at last", "sk-one", 2)
		say("sk-two\n")
		<-time.After(time.Hour)
		expect("no request runs it", "sk-one", 2)
		source.Renew()
		expect("renewed", "sk-two", 3)
		pass(5*time.Minute - time.Second)
		expect("not yet", "sk-two", 3)

		// Refused, and many notice at once.
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _, _ = source.Refresh(t.Context()) })
		}
		wg.Wait()
		expect("refused", "sk-two", 4)
		say("apa_token\n")
		pass(10 * time.Second)
		expect("unusable: the last good one stays", "sk-two", 5)
		if source.Err() == nil {
			t.Error("and nobody says why")
		}
		say("sk-three\n")
		pass(10 * time.Second)
		expect("the next one", "sk-three", 6)
		pass(time.Minute)
		expect("all is well again", "sk-three", 6)
	})
}
