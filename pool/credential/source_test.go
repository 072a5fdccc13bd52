package credential_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authpool/authpool/pool/credential"
)

func mustParse(t *testing.T, text string) credential.Ref {
	t.Helper()
	ref, err := credential.ParseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestParseRef(t *testing.T) {
	for _, text := range []string{"env:A", "env:_a9", "file:/run/x", "file:relative", "file:/with:colon and space"} {
		if ref := mustParse(t, text); ref.String() != text {
			t.Errorf("%s came back as %s", text, ref)
		}
	}
	for _, text := range []string{"", canary, "env:", "env:" + canary, "env:9", "file:", "file:a\nb", "file:a\x00", "vault:" + canary, "exec:" + canary, ":" + canary, "ENV:A"} {
		_, err := credential.ParseRef(text)
		if !errors.Is(err, credential.ErrNotARef) {
			t.Errorf("%q: error is %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("the error repeats the text: %v", err)
		}
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	f := func(ref, content, want string) {
		t.Helper()
		if path, ok := strings.CutPrefix(ref, "file:"); ok {
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		} else {
			t.Setenv(strings.TrimPrefix(ref, "env:"), content)
		}
		secret, err := mustParse(t, ref).Resolve(context.Background())
		if got := secret.Reveal(); err != nil || got != want {
			t.Errorf("%s of %q: %q, %v", ref, content, got, err)
		}
	}
	file := "file:" + filepath.Join(dir, "key")
	f(file, "abc", "abc")
	f(file, "abc\n", "abc")
	f(file, "abc\r\n", "abc")
	f(file, "abc\n\n", "abc\n") // one newline; the rest is the value's, and Check's matter
	f("env:AUTHPOOL_TEST_KEY", "abc", "abc")
	f("env:AUTHPOOL_TEST_KEY", "apo_admin", "apo_admin") // an admin token is resolved like any secret

	fails := func(ref, says string) {
		t.Helper()
		_, err := mustParse(t, ref).Resolve(context.Background())
		if err == nil || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error is %v", ref, err)
		}
	}
	t.Setenv("AUTHPOOL_TEST_KEY", "")
	fails("env:AUTHPOOL_TEST_KEY", "is empty")
	fails("env:AUTHPOOL_TEST_UNSET", "not set")
	fails("file:"+filepath.Join(dir, "none"), "no such file")
	fails("file:"+dir, "not a regular file")
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 64<<10+1), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("file:"+big, "larger than")
	if _, err := (credential.Ref{}).Resolve(context.Background()); !errors.Is(err, credential.ErrNotARef) {
		t.Errorf("the zero Ref: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := mustParse(t, file).Resolve(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for text, want := range map[string]error{
		canary:        nil,
		"a":           nil,
		"apa_x":       credential.ErrAgentToken,
		"apo_x":       credential.ErrAdminToken,
		"a b":         credential.ErrCharacters,
		"a\r\nX: y":   credential.ErrCharacters,
		"a\n":         credential.ErrCharacters,
		"a\x00":       credential.ErrCharacters,
		"a\t":         credential.ErrCharacters,
		"kéy":         credential.ErrCharacters,
		"a\x7f":       credential.ErrCharacters,
		"\ufeffsk-ab": credential.ErrCharacters,
	} {
		if err := credential.Check(credential.NewSecret(text)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", text, err, want)
		}
	}
}

func TestSourcePicksUpARotatedFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	synctest.Test(t, func(t *testing.T) { rotate(t, file) })
}

func rotate(t *testing.T, file string) {
	stamp := time.Now()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp = stamp.Add(time.Millisecond)
		if err := os.Chtimes(file, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	source := credential.NewSource(mustParse(t, "file:"+file), credential.Bearer)
	expect := func(want string, healthy bool) {
		t.Helper()
		got, err := source.Credential(t.Context())
		if got.Secret.Reveal() != want || (err != nil) != (want == "") {
			t.Errorf("secret is %q (%v), want %q", got.Secret.Reveal(), err, want)
		}
		if err == nil && got.Scheme != credential.Bearer {
			t.Errorf("scheme is %q", got.Scheme)
		}
		if (source.Err() == nil) != healthy {
			t.Errorf("Err is %v, want healthy %v", source.Err(), healthy)
		}
	}
	step := func() { <-time.After(time.Second) }

	expect("", false) // not there yet
	write("one\n")
	expect("", false) // looked at less than a second ago
	step()
	expect("one", true)
	write("two\n")
	expect("one", true)
	<-time.After(999 * time.Millisecond)
	expect("one", true)
	<-time.After(time.Millisecond)
	expect("two", true)
	write("apa_agent\n") // unusable: the last good one stays, and is said
	step()
	expect("two", false)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	step()
	expect("two", false)
	write("six\n")
	step()
	expect("six", true)
	step()
	expect("six", true)

	// A new file under the name, with the same size and time, is another file.
	replacement := file + ".new"
	if err := os.WriteFile(replacement, []byte("ten\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(replacement, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(replacement, file); err != nil {
		t.Fatal(err)
	}
	step()
	expect("ten", true)
}

// A refused secret is looked for at once, whatever the file's metadata say: they
// can be the same after two writes in a row.
func TestRefreshReadsARotatedFileAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "key")
		at := time.Now()
		write := func(secret string) {
			t.Helper()
			if err := errors.Join(os.WriteFile(path, []byte(secret), 0o600), os.Chtimes(path, at, at)); err != nil {
				t.Fatal(err)
			}
		}
		write("sk-one")
		s := credential.NewSource(mustParse(t, "file:"+path), credential.APIKey)
		read := func(what string, from func(context.Context) (credential.Credential, error), want string) {
			t.Helper()
			if c, err := from(context.Background()); err != nil || c.Secret.Reveal() != want {
				t.Errorf("%s: %q, %v, want %q", what, c.Secret.Reveal(), err, want)
			}
		}
		read("first", s.Credential, "sk-one")
		write("sk-two")
		read("at hand", s.Credential, "sk-one")
		time.Sleep(time.Minute)
		read("with the same metadata", s.Credential, "sk-one")
		read("refused", s.Refresh, "sk-two")
		read("after that", s.Credential, "sk-two")
		write("no key\n\n")
		read("unusable: the last good one stays", s.Refresh, "sk-two")
		if s.Err() == nil {
			t.Error("and nobody says why")
		}
		t.Setenv("AUTHPOOL_TEST_KEY", "sk-env")
		read("of a variable", credential.NewSource(mustParse(t, "env:AUTHPOOL_TEST_KEY"), credential.APIKey).Refresh, "sk-env")
	})
}

func TestSourceSaysWhyASecretIsRefused(t *testing.T) {
	t.Setenv("AUTHPOOL_TEST_KEY", "apa_"+canary)
	source := credential.NewSource(mustParse(t, "env:AUTHPOOL_TEST_KEY"), credential.APIKey)
	_, err := source.Credential(t.Context())
	if !errors.Is(err, credential.ErrAgentToken) || strings.Contains(err.Error(), canary) || !strings.Contains(err.Error(), "env:AUTHPOOL_TEST_KEY") {
		t.Errorf("error is %v", err)
	}
}

func TestSourceIsSafeForConcurrentUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	write("one")
	synctest.Test(t, func(t *testing.T) {
		source := credential.NewSource(mustParse(t, "file:"+file), credential.APIKey)
		if _, err := source.Credential(t.Context()); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 50 {
					if g == 0 && i%5 == 0 {
						write("two") // empty for a moment: the last good secret stays
					}
					if _, err := source.Credential(t.Context()); err != nil {
						t.Error(err)
					}
					<-time.After(200 * time.Millisecond)
				}
			})
		}
		wg.Wait()
	})
}

func TestCredentialAtHandAllocatesNothing(t *testing.T) {
	t.Setenv("AUTHPOOL_TEST_KEY", canary)
	source := credential.NewSource(mustParse(t, "env:AUTHPOOL_TEST_KEY"), credential.APIKey)
	if n := testing.AllocsPerRun(100, func() { _, _ = source.Credential(t.Context()) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
