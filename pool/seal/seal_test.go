package seal_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/pool/seal"
)

var what = seal.For{Subscription: "team-a", Provider: "anthropic", Scheme: "api_key", Hosts: []string{"api.anthropic.com:443"}, What: "credential"}

func fresh(t *testing.T) *seal.Keyset {
	t.Helper()
	k, err := seal.New()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sealed(t *testing.T, k *seal.Keyset, text string) string {
	t.Helper()
	s, err := k.Seal([]byte(text), what)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A text opens for exactly what it was sealed for.
func TestBoundToItsRecordAndTarget(t *testing.T) {
	k := fresh(t)
	s := sealed(t, k, "sk-secret")
	if strings.Contains(s, "sk-secret") {
		t.Fatal("it is in the clear")
	}
	if text, err := k.Open(s, what); err != nil || string(text) != "sk-secret" {
		t.Fatalf("%q, %v", text, err)
	}
	same := what
	same.Hosts = []string{"api.anthropic.com:443", "api.anthropic.com:443"}
	if _, err := k.Open(s, same); err != nil {
		t.Errorf("the same hosts: %v", err)
	}
	for name, change := range map[string]func(*seal.For){
		"another record":         func(f *seal.For) { f.Subscription = "team-b" },
		"another provider":       func(f *seal.For) { f.Provider = "openai" },
		"another scheme":         func(f *seal.For) { f.Scheme = "bearer" },
		"another host":           func(f *seal.For) { f.Hosts = []string{"evil.example:443"} },
		"one more host":          func(f *seal.For) { f.Hosts = append(f.Hosts, "evil.example:443") },
		"no host":                func(f *seal.For) { f.Hosts = nil },
		"another kind of text":   func(f *seal.For) { f.What = "private note" },
		"parts that run over":    func(f *seal.For) { f.Subscription, f.Provider = "team-aanthropic", "" },
		"a host in the provider": func(f *seal.For) { f.Provider, f.Hosts = "anthropic\n21:api.anthropic.com:443", nil },
	} {
		other := what
		change(&other)
		if _, err := k.Open(s, other); !errors.Is(err, seal.ErrNotOpened) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// No two purposes are authenticated alike.
func TestPurposesAreApart(t *testing.T) {
	k := fresh(t)
	part := rapid.StringMatching(`[ab:\n0-9]{0,4}`)
	rapid.Check(t, func(t *rapid.T) {
		purpose := func(name string) seal.For {
			return seal.For{
				Subscription: part.Draw(t, name+" subscription"), Provider: part.Draw(t, name+" provider"), Scheme: part.Draw(t, name+" scheme"),
				Hosts: rapid.SliceOfNDistinct(part, 0, 2, rapid.ID).Draw(t, name+" hosts"), What: part.Draw(t, name+" what"),
			}
		}
		a, b := purpose("a"), purpose("b")
		text, err := k.Seal([]byte("x"), a)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Open(text, b)
		sort := func(hosts []string) string {
			if len(hosts) == 2 && hosts[0] > hosts[1] {
				hosts = []string{hosts[1], hosts[0]}
			}
			return fmt.Sprintf("%q", hosts)
		}
		same := a.Subscription == b.Subscription && a.Provider == b.Provider && a.Scheme == b.Scheme && a.What == b.What && sort(a.Hosts) == sort(b.Hosts)
		if (err == nil) != same {
			t.Fatalf("%+v and %+v: %v", a, b, err)
		}
	})
}

func TestRotation(t *testing.T) {
	old := fresh(t)
	s := sealed(t, old, "sk-secret")
	k, err := old.Rotated()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := k.Open(s, what); err != nil || string(text) != "sk-secret" || k.Primary(s) || k.Keys() != 2 {
		t.Errorf("what the old key has sealed: %q, %v, primary %v, %d keys", text, err, k.Primary(s), k.Keys())
	}
	again := sealed(t, k, "sk-secret")
	if !k.Primary(again) || old.Primary(again) {
		t.Error("the new key does not seal")
	}
	if _, err := old.Open(again, what); !errors.Is(err, seal.ErrNotOpened) {
		t.Errorf("the old keyset opens it: %v", err)
	}
	// The keyset survives its text, and prints as a hint.
	text, err := k.Text()
	if err != nil {
		t.Fatal(err)
	}
	read, err := seal.Open(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []string{s, again} {
		if _, err := read.Open(one, what); err != nil {
			t.Error(err)
		}
	}
	if printed := fmt.Sprint(text); len(printed) > 8 {
		t.Errorf("it prints as %s", printed)
	}
}

// Whatever a keyset or a sealed text was made into, the refusal is clear and quotes
// nothing.
func TestDamage(t *testing.T) {
	k := fresh(t)
	text, err := k.Text()
	if err != nil {
		t.Fatal(err)
	}
	whole := text.Reveal()
	for _, broken := range []string{"", "{}", "x", whole[:len(whole)/2], whole[:len(whole)-2], strings.Replace(whole, `"value":"`, `"value":"AAAA`, 1), strings.Replace(whole, "AesGcmKey", "HmacKey", 1)} {
		if _, err := seal.Open(credential.NewSecret(broken)); !errors.Is(err, seal.ErrKeyset) || strings.Contains(err.Error(), "value") {
			t.Errorf("%.20q…: %v", broken, err)
		}
	}
	s := sealed(t, k, "sk-secret")
	for i := range len(s) {
		b := []byte(s)
		b[i] ^= 1
		if _, err := k.Open(string(b), what); !errors.Is(err, seal.ErrNotOpened) && string(b) != s {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for _, broken := range []string{"", "AAAA", s[:len(s)-4], s + "AAAA", "\x00", strings.Repeat("A", 1<<20)} {
		if _, err := k.Open(broken, what); !errors.Is(err, seal.ErrNotOpened) || k.Primary("") {
			t.Errorf("%.20q…: %v", broken, err)
		}
	}
	if _, err := fresh(t).Open(s, what); !errors.Is(err, seal.ErrNotOpened) {
		t.Errorf("another keyset: %v", err)
	}
}
