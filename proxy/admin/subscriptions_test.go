package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authpool/authpool/pool/credential"
	"github.com/authpool/authpool/proxy/admin"
)

// roster is an admin.Roster that writes down what it is asked for.
type roster struct {
	calls   []string
	added   admin.NewSubscription
	refused error
	list    []admin.SubscriptionRecord
}

func (r *roster) answer(id, format string, args ...any) (admin.SubscriptionRecord, error) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
	return admin.SubscriptionRecord{ID: id, Version: 7, Switch: admin.SwitchEnabled}, r.refused
}

func (r *roster) Subscriptions(context.Context) ([]admin.SubscriptionRecord, error) {
	return r.list, r.refused
}

func (r *roster) AddSubscription(_ context.Context, n admin.NewSubscription) (admin.SubscriptionRecord, error) {
	r.added = n
	return r.answer(n.ID, "add %s %s", n.ID, credential.NewSecret(string(n.Credential)).Reveal())
}

func (r *roster) SwitchSubscription(_ context.Context, id, to string, version int64) (admin.SubscriptionRecord, error) {
	return r.answer(id, "%s %s %d", to, id, version)
}

func (r *roster) RotateSubscription(_ context.Context, id string, secret credential.Secret, version int64) (admin.SubscriptionRecord, error) {
	return r.answer(id, "rotate %s %s %d", id, secret.Reveal(), version)
}

func (r *roster) RemoveSubscription(_ context.Context, id string, version int64) (admin.SubscriptionRecord, error) {
	return r.answer(id, "remove %s %d", id, version)
}

// post makes a request of get into one with a body.
func post(method, body string) func(*http.Request) {
	return func(r *http.Request) {
		r.Method = method
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
	}
}

func TestSubscriptionOperations(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	f := func(method, path, body, match, want string) {
		t.Helper()
		src.calls = nil
		a := get(t, base+path, func(r *http.Request) {
			post(method, body)(r)
			if match != "" {
				r.Header.Set("If-Match", match)
			}
		})
		if a.status != http.StatusOK || a.head.Get("ETag") != `"7"` || !strings.Contains(a.body, `"version":7,"switch":"enabled"`) {
			t.Errorf("%s %s: %d %v %s", method, path, a.status, a.head, a.body)
		}
		if diff := cmp.Diff([]string{want}, src.calls); diff != "" {
			t.Errorf("%s %s: %s", method, path, diff)
		}
	}
	one := admin.SubscriptionPath("team-a")
	f("POST", admin.SubscriptionsPath, `{"id":"b","provider":"anthropic","limits":{"concurrent":0},"budgets":[{"window":"day","cost_usd":"2.5"}],"credential":"sk-b"}`, "", "add b sk-b")
	if l := src.added.Limits; l == nil || l.Concurrent == nil || *l.Concurrent != 0 || l.Sessions != nil {
		t.Errorf("a limit of zero is told from none: %+v", l)
	}
	f("POST", one+"/enable", "", "", "enabled team-a 0")
	f("POST", one+"/disable", "", `"3"`, "disabled team-a 3")
	f("POST", one+"/drain", "", "*", "draining team-a 0")
	f("POST", one+"/rotate", `{"credential":"sk-new"}`, `"4"`, "rotate team-a sk-new 4")
	f("DELETE", one, "", `"5"`, "remove team-a 5")
	f("DELETE", admin.SubscriptionPath("a:b"), "", "", "remove a:b 0")

	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %x", src.added, src.added, src.added, src.added.Credential, src.added.Credential)} {
		if strings.Contains(text, "sk-b") || strings.Contains(text, fmt.Sprintf("%x", "sk-b")) {
			t.Errorf("the secret is printed: %s", text)
		}
	}
}

func TestSubscriptionOperationsAreRefused(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	f := func(method, path, body string, edit func(*http.Request), status int, says string) {
		t.Helper()
		src.calls = nil
		a := get(t, base+path, func(r *http.Request) {
			post(method, body)(r)
			if edit != nil {
				edit(r)
			}
		})
		if a.status != status || !strings.Contains(a.body, says) || strings.Contains(a.body, "sk-") {
			t.Errorf("%s %s: got %d %s, want %d with %q", method, path, a.status, a.body, status, says)
		}
		if src.roster.refused == nil && len(src.calls) > 0 {
			t.Errorf("%s %s was done: %q", method, path, src.calls)
		}
	}
	one := admin.SubscriptionPath("team-a")
	f("POST", admin.SubscriptionsPath, `{"id":"b","base_url":"https://elsewhere.example","credential":"sk-b"}`, nil, 400, `unknown field \"base_url\"`)
	f("POST", admin.SubscriptionsPath, `{"id":"b","limits":{"concurrent":"many"},"credential":"sk-b"}`, nil, 400, "the body is not what is wanted")
	f("POST", admin.SubscriptionsPath, `{"id":"`+strings.Repeat("a", 10<<20)+`"}`, nil, 413, "larger than")
	f("POST", admin.SubscriptionsPath, "", nil, 415, "send JSON")
	f("POST", one+"/rotate", `{"credential":"sk-b","credential2":"x"}`, nil, 400, "unknown field")
	f("POST", one+"/enable", `{}`, nil, 413, "no request body")
	f("POST", one+"/drain", "", func(r *http.Request) { r.Header.Set("If-Match", "3") }, 400, "If-Match")
	f("GET", admin.SubscriptionPath(strings.Repeat("x", 300)), "", nil, 404, "there is no subscription")
	f("GET", admin.SubscriptionPath("a\r\nb"), "", nil, 404, `there is no subscription \"a\\r\\nb\"`)
	for _, path := range []string{one + "/enable", one + "/disable", one + "/drain"} {
		f("POST", path, "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer apa_agent") }, 401, "")
		f("POST", path, "", func(r *http.Request) { r.Header.Set("Origin", "https://elsewhere.example") }, 403, "")
	}
	src.roster.refused = &admin.RefusedError{Status: 404, Err: errors.New("there is no such subscription")}
	f("POST", one+"/enable", "", nil, 404, "no such subscription")
	src.roster.refused = admin.StaleError("subscription team-a", 7)
	f("DELETE", one, "", nil, 412, "is at version 7")
	src.roster.refused = errors.New("Redis is away")
	f("POST", one+"/enable", "", nil, 503, "enabled in this process only: Redis is away")
	f("POST", one+"/drain", "", nil, 503, "may not be draining: Redis is away")
	f("GET", admin.SubscriptionsPath, "", nil, 503, "Redis is away")
}

func TestSubscriptionsAreListed(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	if a := get(t, base+admin.SubscriptionsPath, nil); a.status != 200 || a.body != "[]\n" {
		t.Errorf("none: %d %s", a.status, a.body)
	}
	src.list = []admin.SubscriptionRecord{{ID: "a", Source: admin.SourceFile}, {ID: "a", Source: admin.SourceManaged, Version: 4, Shadowed: true}}
	if a := get(t, base+admin.SubscriptionsPath, nil); a.status != 200 || !strings.Contains(a.body, `"shadowed":true`) {
		t.Errorf("two: %d %s", a.status, a.body)
	}
	if a := get(t, base+admin.SubscriptionPath("a"), nil); a.status != 200 || !strings.Contains(a.body, `"source":"file"`) {
		t.Errorf("the one that rules: %d %s", a.status, a.body)
	}
}
