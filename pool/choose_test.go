package pool

import (
	"fmt"
	"math"
	"path"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestRendezvousSharesByWeightAndMovesOnlyWhoMust(t *testing.T) {
	weights := map[string]int{"a": 1, "b": 1, "c": 2}
	pick := func(session string, without string) string {
		best, top := "", -1.0
		for id, w := range weights {
			if id == without {
				continue
			}
			if claim := rendezvous(session, id, w); claim > top {
				best, top = id, claim
			}
		}
		return best
	}
	const n = 20_000
	got := map[string]int{}
	for i := range n {
		session := fmt.Sprint("anthropic/a/session-", i)
		home := pick(session, "")
		got[home]++
		if other := pick(session, "b"); home != "b" && other != home {
			t.Fatalf("without b the session moved from %s to %s", home, other)
		}
	}
	for id, w := range weights {
		if share := float64(got[id]) / n * 4 / float64(w); math.Abs(share-1) > 0.05 {
			t.Errorf("%s of weight %d got %d of %d", id, w, got[id], n)
		}
	}
}

func TestMatches(t *testing.T) {
	f := func(glob, name string, want bool) {
		t.Helper()
		if got := matches(glob, name); got != want {
			t.Errorf("matches(%q, %q) = %v", glob, name, got)
		}
	}
	f("claude-*", "claude-opus-5", true)
	f("claude-*", "claude-", true)
	f("claude-*", "claude", false)
	f("*", "", true)
	f("*", "anthropic/claude", true) // a star crosses slashes
	f("*/claude-*-5", "anthropic/claude-opus-5", true)
	f("*/claude-*-5", "anthropic/claude-opus-5-x", false)
	f("gpt-?", "gpt-5", true)
	f("gpt-?", "gpt-", false)
	f("gpt-5", "gpt-5", true)
	f("gpt-5", "gpt-5-mini", false)
	f("a*b*c", "aXbbYc", true)
	f("a*b*c", "aXcY", false)
	f("", "", true)
	f("", "x", false)
	f("gpt-[45]*", "gpt-5-mini", true)
	f("gpt-[45]*", "gpt-3", false)
	f("gpt-[^0-3]", "gpt-5", true)
	f("gpt-[^0-3]", "gpt-2", false)
	f("*[0-9]", "claude-5", true)
	f("*[0-9]b", "llama-70b", true)
	f("a[", "a[", true) // what is no class is itself
}

func FuzzMatches(f *testing.F) {
	f.Add("claude-*", "claude-opus-5")
	f.Add("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaa")
	f.Add("??*", "x")
	f.Fuzz(func(t *testing.T, glob, name string) {
		if !matches("*", name) || !matches(glob+"*", glob+name) && !hasMeta(glob) {
			t.Errorf("%q, %q", glob, name)
		}
		if !strings.Contains(name, "/") {
			if want, err := path.Match(glob, name); err == nil && want != matches(glob, name) && utf8.ValidString(glob+name) && !strings.ContainsFunc(glob+name, func(r rune) bool { return r >= utf8.RuneSelf }) {
				t.Errorf("matches(%q, %q) = %v, path.Match says otherwise", glob, name, !want)
			}
		}
		if !strings.ContainsAny(glob, `[\\`) && matches(glob, name) && !matches("*"+glob+"*", "x"+name+"y") {
			t.Errorf("%q fits %q, but not with anything around it", glob, name)
		}
	})
}

func hasMeta(glob string) bool { return strings.ContainsAny(glob, `*?[\`) }

func TestUnavailableErrorWords(t *testing.T) {
	f := func(want string, e UnavailableError) {
		t.Helper()
		if e.Error() != want {
			t.Errorf("%q, want %q", e.Error(), want)
		}
	}
	e := UnavailableError{Provider: "p", Model: "m", Count: 3, FirstSubscription: "team-a", Reason: "window"}
	f("all 3 subscriptions for m are unavailable (team-a: window)", e)
	wait := func(d time.Duration, want string) {
		t.Helper()
		w := e
		w.Until, w.Wait = time.Unix(1, 0), d
		f("all 3 subscriptions for m are limited; first free in "+want+" (team-a)", w)
	}
	wait(time.Millisecond, "1s")
	wait(1001*time.Millisecond, "2s")
	wait(90*time.Second, "90s")
	wait(12*time.Minute, "12m")
	wait(12*time.Minute+time.Second, "13m")
	wait(2*time.Hour, "2h")
	wait(3*time.Hour+10*time.Minute, "3h10m")
	wait(49*time.Hour, "2d1h")
	e.Model, e.Count = "", 1
	f("the only subscription for provider p is unavailable (team-a: window)", e)
}
