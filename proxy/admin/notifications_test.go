package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/authpool/authpool/proxy/admin"
)

// TestNotifications implements admin.Notifier.
func (s *sources) TestNotifications(_ context.Context, event string, target int) ([]admin.NotificationTest, error) {
	s.notified = append(s.notified, fmt.Sprintf("%s %d", event, target))
	return []admin.NotificationTest{
		{Target: 0, Host: "hooks.example.com", OK: true, Status: 204, TookMS: 12},
		{Target: 1, Host: "127.0.0.1", Error: "no answer in time", TookMS: 10000},
	}, s.err
}

func TestTestOfNotifications(t *testing.T) {
	src := &sources{}
	base := start(t, src, nil)
	f := func(query string, err error, edit func(*http.Request), status int, body string, asked ...string) {
		t.Helper()
		src.notified, src.err = nil, err
		a := get(t, base+admin.NotificationsTestPath+query, func(r *http.Request) {
			r.Method = http.MethodPost
			if edit != nil {
				edit(r)
			}
		})
		if a.status != status || !strings.Contains(a.body, body) {
			t.Errorf("%s: got %d %s, want %d with %q", query, a.status, a.body, status, body)
		}
		if !slices.Equal(src.notified, asked) {
			t.Errorf("%s: asked for %q, want %q", query, src.notified, asked)
		}
	}
	const all = `[{"target":0,"host":"hooks.example.com","ok":true,"status":204,"error":"","took_ms":12},{"target":1,"host":"127.0.0.1","ok":false,"status":0,"error":"no answer in time","took_ms":10000}]`
	f("", nil, nil, 200, all, " -1")
	f("?event=budget.80&target=1", nil, nil, 200, all, "budget.80 1")
	f("?target=0", &admin.RefusedError{Status: 404, Err: errors.New("no notifications[0]")}, nil, 404, "no notifications[0]", " 0")
	f("", errors.New("broken"), nil, 503, "cannot test notifications: broken", " -1")
	f("?target=-1", nil, nil, 400, "is no index")
	f("?target=x", nil, nil, 400, "is no index")
	f("?url=https://elsewhere.example", nil, nil, 400, "unknown parameter")
	f("", nil, func(r *http.Request) { r.Header.Set("Authorization", "Bearer apa_agent") }, 401, "admin token")
	f("", nil, func(r *http.Request) { r.Header.Set("Origin", "https://elsewhere.example") }, 403, "other web pages")
	f("", nil, func(r *http.Request) { r.Method = http.MethodGet }, 405, "this path takes POST")
}
