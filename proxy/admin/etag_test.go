package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestIfMatch(t *testing.T) {
	f := func(want int64, fields ...string) {
		t.Helper()
		r := httptest.NewRequest(http.MethodPatch, "/", http.NoBody)
		r.Header["If-Match"] = fields
		w := httptest.NewRecorder()
		got, ok := ifMatch(w, r)
		if want < noVersion {
			if ok || w.Code != http.StatusBadRequest {
				t.Errorf("%q: got %d, %v, %d", fields, got, ok, w.Code)
			}
			return
		}
		if got != want || !ok {
			t.Errorf("%q: got %d, %v, want %d", fields, got, ok, want)
		}
	}
	const wrong = noVersion - 1
	f(AnyVersion)
	f(AnyVersion, "*")
	f(7, `"7"`)
	f(7, ` "7" `)
	f(1<<62, ETag(1<<62))
	f(noVersion, `W/"7"`)
	f(noVersion, `"07"`)
	f(noVersion, `"+7"`)
	f(noVersion, `"0"`)
	f(noVersion, `"-1"`)
	f(noVersion, `"abc"`)
	f(noVersion, `""`)
	f(noVersion, `"99999999999999999999"`)
	f(wrong, "")
	f(wrong, "7")
	f(wrong, `"7`)
	f(wrong, `"`)
	f(wrong, `"7"8"`)
	f(wrong, `"7", "8"`)
	f(wrong, `"7"`, `"8"`)
	f(wrong, "*", "*")
}

type record int64

func (r record) RecordVersion() int64 { return int64(r) }

// An answer names its version, and is given whatever version is known already: how much
// an agent has spent, or what state a subscription is in, changes without it.
func TestAnswerHasTheVersionAsETag(t *testing.T) {
	f := func(v any, method, ifNoneMatch, etag string) {
		t.Helper()
		r := httptest.NewRequest(method, "/", http.NoBody)
		if ifNoneMatch != "" {
			r.Header.Set("If-None-Match", ifNoneMatch)
		}
		w := httptest.NewRecorder()
		answer(w, v)
		if w.Code != http.StatusOK || w.Header().Get("ETag") != etag || w.Body.Len() == 0 {
			t.Errorf("%v, %s, %q: got %d, %q, %q", v, method, ifNoneMatch, w.Code, w.Header().Get("ETag"), w.Body)
		}
	}
	f(record(7), "GET", "", `"7"`)
	f(record(7), "GET", `"7"`, `"7"`)
	f(record(7), "GET", "*", `"7"`)
	f(record(7), "POST", `"7"`, `"7"`)
	f(record(0), "GET", "*", "")
	f("without", "GET", "*", "")
}

// FuzzIfMatch holds what is read to what was sent: a version only for the tag of just
// that version, and any version only where none was named.
func FuzzIfMatch(f *testing.F) {
	for _, seed := range []string{"", "*", `"7"`, `W/"7"`, `"07"`, `"7", "8"`, `"7`, `"99999999999999999999"`, "\"\x00\""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r := httptest.NewRequest(http.MethodPatch, "/", http.NoBody)
		r.Header["If-Match"] = []string{text}
		w := httptest.NewRecorder()
		version, ok := ifMatch(w, r)
		switch trimmed := strings.TrimSpace(text); {
		case !ok:
			if w.Code != http.StatusBadRequest || trimmed == "*" {
				t.Errorf("%q: refused by %d", text, w.Code)
			}
		case version == AnyVersion:
			if trimmed != "*" {
				t.Errorf("%q: any version", text)
			}
		case version != noVersion && (version < 0 || ETag(version) != trimmed):
			t.Errorf("%q: version %d", text, version)
		}
	})
}
